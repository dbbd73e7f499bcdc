"""Which nodes may run in float16, and which inputs and outputs change type with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container, Iterable, Iterator, Mapping

import onnx
import onnx_ir as ir

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
HALF_MAX = 65504.0
HEADROOM = 4.0  # how much larger values may get than they were seen
HALF_NORMAL = 2.0**-14  # below it float16 has fewer than 11 significant bits

KEEP_FP32: tuple[str, ...] = (
    # a sum over many elements, or a difference of large numbers, comes first in each of these
    *("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"),
    *("BatchNormalization", "InstanceNormalization", "GroupNormalization"),
    *("LpNormalization", "MeanVarianceNormalization", "LRN", "GlobalAveragePool", "CumSum"),
    *("ReduceSum", "ReduceMean", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceProd"),
    *("ReduceLogSum", "ReduceLogSumExp", "Softmax", "LogSoftmax", "Hardmax"),
    # the range of the result, or the slope, leaves float16 for ordinary arguments
    *("Pow", "Exp", "Log", "Sqrt", "Reciprocal", "Softplus", "Tan", "Sinh", "Cosh"),
    # the result is a number to count with, or its type is not tied to the input's
    *("Cast", "CastLike", "Range", "QuantizeLinear", "DynamicQuantizeLinear"),
    *("RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"),
)
MOVES: tuple[str, ...] = (  # copy their input; any type will do
    *("Gather", "GatherElements", "GatherND", "Slice", "Split", "Concat", "Identity", "Expand"),
    *(
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Transpose",
        "Tile",
        *(ASKS := ("Shape", "Size")),
    ),
)
LAYERS: tuple[str, ...] = (
    *("MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "Attention", "LSTM", "GRU", "RNN"),
)
EXACT_CODES = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.BOOL)

Nodes = set[ir.Node]


def kept(model: ir.Model, peaks: Mapping[str, float]) -> dict[ir.Node, str]:
    """Why each node of the main graph that has to stay in float32 does.

    The model is sorted and its values have types; `peaks` holds the magnitudes that are known.
    Later rules build on the earlier ones.
    """
    nodes, slots = list(model.graph), Slots(model.opset_imports)
    reasons = {
        node: reason
        for node in nodes
        if (reason := _refusal(node, slots) or _too_large(node, peaks))
    }

    def keep(more: Iterable[ir.Node], reason: str) -> None:
        for node in more:
            reasons.setdefault(node, reason)

    keep(_tail(nodes, reasons), "it is behind the last layer")
    keep(_behind(nodes, _is_move, reasons, inputs_count=False), "its data comes in float32")
    fed = _behind(nodes, lambda node: not is_layer(node), reasons, inputs_count=True)
    keep(_before(nodes, fed.__contains__, reasons), "it is between two float32 nodes")
    casts = set(filter(is_code_cast, nodes))
    codes = casts | _behind(nodes, _is_move, casts, inputs_count=False)
    keep(_before(nodes, codes.__contains__, reasons), "only float32 nodes read it")
    return reasons


def _refusal(node: ir.Node, slots: Slots) -> str | None:
    """Why this node cannot run in float16 whatever its neighbours do, else None."""
    if is_code_cast(node):
        return None
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in _attributes(node)):
        return "it holds a subgraph"
    if node.op_type in KEEP_FP32:
        return f"{node.op_type} is kept in float32"
    if any(value.dtype is None for value in touched(node)):
        return "the type of one of its values is not known"
    if node.op_type in ASKS:
        return None
    if not any(map(is_float, node.outputs)):
        return "it has no float32 result"
    if not slots.fits(node):
        return f"{node.op_type} takes no float16 here"
    return next((why for value in slots.inputs(node) if (why := _unfit(value))), None)


def _too_large(node: ir.Node, peaks: Mapping[str, float]) -> str | None:
    """Why what the node reads or makes is beyond float16, else None."""
    for value in _floats((*node.inputs, *node.outputs)):
        peak = peaks.get(str(value.name), 0.0)
        if not peak * HEADROOM <= HALF_MAX:  # or NaN
            return f"{value.name} reaches {peak:.3g} on golden inputs; float16 ends at 65504"
    return None


def _unfit(value: ir.Value) -> str | None:
    """Why a constant may not become float16, else None.

    Single elements may fall to zero: their error is small beside the largest one. All of them may
    not: an epsilon of 1e-12 would turn into a division by zero.
    """
    if not is_constant(value) or value.const_value is None or value.const_value.size == 0:
        return None
    array = value.const_value.numpy()
    peak = max(float(array.max()), -float(array.min()))
    if not peak <= HALF_MAX:  # or NaN
        return f"{value.name} holds {peak:g}, beyond float16 (±65504)"
    if 0 < peak < HALF_NORMAL:
        return f"{value.name} holds at most {peak:g}, too small for float16"
    return None


def _tail(nodes: list[ir.Node], reasons: Container[ir.Node]) -> Nodes:
    """Nodes from which no way leads to another layer.

    Those that only move float16 data are left out: one result is widened, not many inputs.
    """
    tail = _before(nodes, lambda node: not is_layer(node), ())
    for node in filter(_is_move, nodes):
        sources = [v.producer() for v in _floats(node.inputs) if not is_constant(v)]
        low = [s is not None and s not in tail and s not in reasons for s in sources]
        if low and all(low):
            tail.discard(node)
    return tail


def _behind(
    nodes: list[ir.Node],
    eligible: Callable[[ir.Node], bool],
    base: Container[ir.Node],
    *,
    inputs_count: bool,
) -> Nodes:
    """Eligible nodes whose float32 inputs all come from `base`, from such nodes, or are constant.

    Graph inputs are float32 too, and belong to the base when `inputs_count`.
    """
    found: Nodes = set()

    def supplies(source: ir.Node | None) -> bool:
        return inputs_count if source is None else source in base or source in found

    for node in nodes:
        sources = [v.producer() for v in _floats(node.inputs) if not is_constant(v)]
        if node not in base and eligible(node) and sources and all(map(supplies, sources)):
            found.add(node)
    return found


def _before(
    nodes: list[ir.Node], eligible: Callable[[ir.Node], bool], base: Container[ir.Node]
) -> Nodes:
    """Eligible nodes whose float32 results are read by nothing but `base`, such nodes, outputs."""
    found: Nodes = set()
    for node in reversed(nodes):
        results = list(_floats(node.outputs))
        readers = (reader for value in results for reader, _ in value.uses())
        if node in base or not eligible(node) or not results:
            continue
        if all(reader in base or reader in found for reader in readers):
            found.add(node)
    return found


@dataclasses.dataclass(frozen=True, slots=True)
class Slots:
    """Which inputs and outputs of a node change type with it, from the operators' schemas."""

    opsets: dict[str, int]

    def fits(self, node: ir.Node) -> bool:
        """Whether the schema lets every float32 output of the node follow its float32 inputs."""
        names = self._narrowed(node)
        outputs = self._typed(node.outputs, self._schema(node), outputs=True)
        return bool(names) and all(name in names for _, name in outputs)

    def inputs(self, node: ir.Node) -> list[ir.Value]:
        """The float32 inputs that become float16 with the node."""
        names = self._narrowed(node)
        inputs = self._typed(node.inputs, self._schema(node), outputs=False)
        return [value for value, name in inputs if name in names]

    def reads(self, node: ir.Node, index: int) -> bool:
        """Whether the float32 input `index` becomes float16 with the node."""
        value = node.inputs[index]
        return node.op_type in ASKS or any(value is v for v in self.inputs(node))

    def _narrowed(self, node: ir.Node) -> set[str]:
        """Type variables bound to float32 by an input that float16 may take as well."""
        schema = self._schema(node)
        if schema is None:
            return set()
        half = {c.type_param_str for c in schema.type_constraints if _HALF in c.allowed_type_strs}
        return {n for _, n in self._typed(node.inputs, schema, outputs=False) if n in half}

    def _typed(
        self,
        values: Iterable[ir.Value | None],
        schema: onnx.defs.OpSchema | None,
        *,
        outputs: bool,
    ) -> Iterator[tuple[ir.Value, str]]:
        """The float32 ones among the values, each with the schema's name for its type."""
        formals = [] if schema is None else list(schema.outputs if outputs else schema.inputs)
        for i, value in enumerate(values):
            if value is not None and is_float(value) and formals:
                yield value, formals[min(i, len(formals) - 1)].type_str  # the last is variadic

    def _schema(self, node: ir.Node) -> onnx.defs.OpSchema | None:
        try:
            version = self.opsets.get(node.domain, 1)
            return onnx.defs.get_schema(node.op_type, version, node.domain)
        except onnx.defs.SchemaError:
            return None


_HALF = "tensor(float16)"


def is_code_cast(node: ir.Node) -> bool:
    """A Cast to float32 of integers that float16 holds exactly."""
    source = node.inputs[0] if node.inputs else None
    cast = node.op_type == "Cast" and node.domain == "" and node.outputs[0].dtype == FLOAT
    return cast and source is not None and source.dtype in EXACT_CODES


def is_float(value: ir.Value) -> bool:
    """Whether the value is a float32 tensor."""
    return value.dtype == FLOAT


def is_constant(value: ir.Value) -> bool:
    """An initializer that no caller can override."""
    return value.is_initializer() and not value.is_graph_input()


def touched(node: ir.Node) -> Iterator[ir.Value]:
    """The inputs and outputs that the node does have."""
    yield from (v for v in (*node.inputs, *node.outputs) if v is not None and v.name)


def is_layer(node: ir.Node) -> bool:
    """Whether the node is worth float16: it multiplies matrices, or reads a table or matrix."""
    matrices = (v for v in _floats(node.inputs) if is_constant(v) and len(v.shape or ()) > 1)
    return node.op_type in LAYERS or any(matrices)


def _is_move(node: ir.Node) -> bool:
    return node.op_type in MOVES


def _attributes(node: ir.Node) -> Iterator[ir.Attr]:
    yield from node.attributes.values()


def _floats(values: Iterable[ir.Value | None]) -> Iterator[ir.Value]:
    yield from (v for v in values if v is not None and is_float(v))
