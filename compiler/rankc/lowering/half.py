"""What a model answers in float16, on a machine that has none: float32 with rounding in between.

ONNX Runtime computes float16 in float32 on a CPU and drops the casts between nodes, so neither
rounding nor overflow shows there. Here every value that `to_fp16` would narrow passes two Casts, to
float16 and back, which it keeps: 11 bits are left, and beyond 65504 it is infinite. Sums within a
node are of float32, as on tensor cores. Values are rounded layer by layer, so that whoever looks
for the layer that float16 hurts can leave any of them out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import onnx_ir as ir

from rankc.lowering.precision import Golden, prepared
from rankc.lowering.precision_rules import (
    FLOAT,
    HALF,
    MOVES,
    Slots,
    is_constant,
    is_float,
    is_layer,
    kept,
)

_SAME = {*MOVES, "Relu", "Max", "Min", "Neg", "Abs"}  # give float16 numbers for float16 numbers

Rounds = Callable[[str], bool]


@dataclasses.dataclass(frozen=True, slots=True)
class HalfModel:
    """A model with what of it would run in float16."""

    model: ir.Model  # float32; sorted, its values have types
    low: frozenset[int]  # positions in the graph of the nodes that would
    layers: Mapping[str, str]  # which layer a value belongs to, see `layers_of`

    @classmethod
    def of(cls, model: ir.Model, golden: Golden | None = None) -> HalfModel:
        """Decide as `to_fp16` does; the argument is not changed.

        Raises:
            RankrtError: ONNX Runtime refuses the model or the golden inputs.
        """
        copy = prepared(model)
        reasons = kept(copy, {} if golden is None else golden.peaks(copy))
        low = frozenset(k for k, node in enumerate(copy.graph) if node not in reasons)
        return cls(copy, low, layers_of(copy))

    @property
    def names(self) -> list[str]:
        """The layers of which something is rounded, in graph order."""
        seen = {self.layers[str(v.name)]: None for v in self._rounded()}
        order = {str(node.name): k for k, node in enumerate(self.model.graph)}
        return sorted(seen, key=lambda name: order.get(name, -1))

    def _rounded(self) -> list[ir.Value]:
        low = {node for k, node in enumerate(self.model.graph) if k in self.low}
        slots = Slots(self.model.opset_imports)
        return [
            value
            for value in _floats(self.model)
            if value.producer() in low
            or any(n in low and slots.reads(n, i) for n, i in value.uses())
        ]

    def rounding(self, rounds: Rounds = lambda layer: True) -> ir.Model:
        """A float32 model that rounds the values of the layers for which `rounds` says so.

        Run it with `open_model(..., optimize=False)`, which leaves the Casts where they are.
        """
        copy = self.model.clone()
        low = {node for k, node in enumerate(copy.graph) if k in self.low}
        slots = Slots(copy.opset_imports)
        for value in _floats(copy):
            if not rounds(self.layers[str(value.name)]):
                continue
            uses = [(n, i) for n, i in value.uses() if n in low and slots.reads(n, i)]
            if is_constant(value):
                _round_constant(copy, value, uses)
            elif value.producer() in low:
                _round_result(copy, value)
            elif uses:
                _rewire(uses, _round(copy, value))
        return copy


def layers_of(model: ir.Model) -> dict[str, str]:
    """The layer that each value belongs to: the last one that it has passed, by the node's name.

    A constant belongs to the layer that reads it, and what comes before every layer to the node
    that makes it, or to itself. Nodes are in order.
    """
    known = {str(value.name): str(value.name) for value in model.graph.inputs}
    order: dict[str, int] = {}
    for k, node in enumerate(model.graph):
        read = [v for v in node.inputs if v is not None]
        owners = [known[str(v.name)] for v in read if not is_constant(v) and v.name in known]
        name = str(node.name)
        if owners and not is_layer(node):
            name = max(owners, key=lambda owner: order.get(owner, -1))
        order.setdefault(name, k)
        known |= {str(value.name): name for value in node.outputs}
        for value in filter(is_constant, read):
            known.setdefault(str(value.name), name)
    return known


def _floats(model: ir.Model) -> list[ir.Value]:
    """The float32 values that a node of the main graph reads or makes."""
    graph = model.graph
    results = [value for node in graph for value in node.outputs]
    every = [*graph.initializers.values(), *graph.inputs, *results]
    return [value for value in every if is_float(value) and (value.uses() or value.producer())]


def _round_constant(model: ir.Model, value: ir.Value, uses: list[tuple[ir.Node, int]]) -> None:
    """For those who read it in float16."""
    if not uses or value.const_value is None:
        return
    array = value.const_value.numpy().astype(np.float16).astype(np.float32)
    name = f"{value.name}.as_fp16"
    tensor = ir.tensor(array, name=name)
    rounded = ir.Value(name=name, const_value=tensor, type=ir.TensorType(FLOAT), shape=value.shape)
    model.graph.register_initializer(rounded)
    _rewire(uses, rounded)


def _round_result(model: ir.Model, value: ir.Value) -> None:
    """For all who read it; an output of the graph keeps its name."""
    node = value.producer()
    if node is None or node.op_type in _SAME:
        return
    uses = list(value.uses())
    rounded = _round(model, value)
    _rewire(uses, rounded)
    if value.is_graph_output():
        name, value.name = value.name, f"{value.name}.exact"
        rounded.name = name
        for k, output in enumerate(model.graph.outputs):
            if output is value:
                model.graph.outputs[k] = rounded


def _round(model: ir.Model, value: ir.Value) -> ir.Value:
    """The value after two Casts, right behind whatever makes it."""
    low = ir.Value(name=f"{value.name}.fp16", type=ir.TensorType(HALF), shape=value.shape)
    high = ir.Value(name=f"{value.name}.rounded", type=ir.TensorType(FLOAT), shape=value.shape)
    down = ir.node("Cast", [value], {"to": HALF}, outputs=[low], name=str(low.name))
    up = ir.node("Cast", [low], {"to": FLOAT}, outputs=[high], name=str(high.name))
    producer = value.producer()
    if producer is None:
        model.graph.insert_before(model.graph[0], [down, up])
    else:
        model.graph.insert_after(producer, [down, up])
    return high


def _rewire(uses: Iterable[tuple[ir.Node, int]], value: ir.Value) -> None:
    for node, index in uses:
        node.replace_input_with(index, value)
