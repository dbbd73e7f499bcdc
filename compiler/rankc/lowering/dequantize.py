"""The TensorRT form of int8 tables.

The canonical form is the one that ONNX Runtime runs well: read a few int8 rows, then widen them,

    int8 table -> Gather -> [Concat, Reshape, ...] -> Cast -> scale

TensorRT takes int8 for quantized numbers and refuses such constants anywhere but in front of a
DequantizeLinear; ONNX Runtime in turn would run that operator over the whole table on every call.
So for TensorRT each table gets one, with scale 1 and zero point 0, and the Cast goes:

    int8 table -> DequantizeLinear -> Gather -> [Concat, Reshape, ...] -> scale

Both compute the same numbers: integers up to 127 are exact in every float type. TensorRT moves the
operator behind the Gather by itself; the engine holds the int8 codes.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from rankc.errors import ModelError
from rankc.graph import new_initializer

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
_HALF_SCALES_OPSET = 19  # before it, DequantizeLinear yields float32 only
_MOVES = frozenset(
    (
        *("Gather", "GatherElements", "GatherND", "Slice", "Split", "Concat", "Identity"),
        *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Tile", "Expand"),
    )
)
_QUANTIZERS = frozenset(("DequantizeLinear", "QuantizeLinear"))
_Region = dict[ir.Value, None]  # an ordered set


def dequantize_tables(model: ir.Model) -> int:
    """Rewrite every int8 table that is read before it is dequantized; in place.

    Returns:
        How many tables were rewritten.

    Raises:
        ModelError: 8-bit values go where TensorRT cannot follow; nothing has been changed then.
    """
    tables = [value for value in model.graph.initializers.values() if _is_table(value)]
    if not tables:
        return 0
    if (opset := model.opset_imports.get("", 1)) < 10:
        raise ModelError(f"int8 tables need DequantizeLinear, which opset {opset} lacks; use 13+")
    region, casts = _region(model.graph, tables)
    dtype = _dtype(model, casts)
    for value in reversed(tables):  # each is put first, so they end up in the order of the tables
        _dequantize(model, value, dtype)
    for value in region:
        if not value.is_initializer():
            value.type = ir.TensorType(dtype)
    for cast in casts:
        _drop_cast(model.graph, cast)
    return len(tables)


def _is_table(value: ir.Value) -> bool:
    if value.dtype not in (ir.DataType.INT8, ir.DataType.UINT8) or value.is_graph_input():
        return False
    return any(node.op_type not in _QUANTIZERS for node, _ in value.uses())


def _region(graph: ir.Graph, tables: list[ir.Value]) -> tuple[_Region, list[ir.Node]]:
    """All 8-bit values between the tables and the casts, and those casts."""
    region: _Region = dict.fromkeys(tables)
    movers: dict[ir.Node, None] = {}
    casts: dict[ir.Node, None] = {}
    todo = list(tables)
    while todo:
        value = todo.pop()
        _check_value(value)
        for node, index in value.uses():
            if node.op_type == "Cast" and _casts_to_float(node):
                casts[node] = None
            elif node.op_type in _MOVES and node.graph is graph and _is_data(node, index):
                movers[node] = None
                todo += [output for output in node.outputs if output not in region]
                region |= dict.fromkeys(node.outputs)
            else:
                raise ModelError(
                    f"8-bit value {value.name!r} is read by {node.op_type} (node {node.name!r});"
                    " TensorRT needs it cast to float first"
                )
    for node in movers:
        _check_mover(node, region)
    return region, list(casts)


def _check_value(value: ir.Value) -> None:
    if value.dtype == ir.DataType.UINT8:
        raise ModelError(f"table {value.name!r} is uint8; TensorRT takes signed codes, use int8")
    if value.is_graph_output():
        raise ModelError(f"8-bit value {value.name!r} is a graph output; TensorRT cannot return it")


def _check_mover(node: ir.Node, region: _Region) -> None:
    foreign = [
        value
        for index, value in enumerate(node.inputs)
        if value is not None and _is_data(node, index) and value not in region
    ]
    if foreign:
        raise ModelError(
            f"{node.op_type} (node {node.name!r}) mixes rows of a table with {foreign[0].name!r},"
            " which is computed in 8 bits; TensorRT needs both cast to float first"
        )


def _is_data(node: ir.Node, index: int) -> bool:
    return index == 0 or node.op_type == "Concat"


def _casts_to_float(cast: ir.Node) -> bool:
    return cast.attributes["to"].as_int() in (FLOAT, HALF, ir.DataType.DOUBLE)


def _dtype(model: ir.Model, casts: list[ir.Node]) -> ir.DataType:
    """What the tables dequantize to: what the casts made of them where they agree."""
    wanted = {cast.attributes["to"].as_int() for cast in casts}
    half = wanted == {HALF} and model.opset_imports.get("", 1) >= _HALF_SCALES_OPSET
    return HALF if half else FLOAT


def _dequantize(model: ir.Model, table: ir.Value, dtype: ir.DataType) -> None:
    readers = [(node, i) for node, i in table.uses() if node.op_type not in _QUANTIZERS]
    scale = new_initializer(model, f"{table.name}_one", np.ones((), dtype.numpy()))
    zero = new_initializer(model, f"{table.name}_zero", np.zeros((), np.int8))
    result = ir.Value(name=f"{table.name}_float", type=ir.TensorType(dtype), shape=table.shape)
    node = ir.node(
        "DequantizeLinear", [table, scale, zero], outputs=[result], name=f"dequantize_{table.name}"
    )
    model.graph.insert_before(model.graph[0], node)
    for reader, index in readers:
        reader.replace_input_with(index, result)


def _drop_cast(graph: ir.Graph, cast: ir.Node) -> None:
    """Remove a Cast that has become the identity; one that ends the graph may stay."""
    source, result = cast.inputs[0], cast.outputs[0]
    assert source is not None
    if source.dtype == cast.attributes["to"].as_int() and not result.is_graph_output():
        result.replace_all_uses_with(source)
        assert cast.graph is not None
        cast.graph.remove(cast, safe=True)
