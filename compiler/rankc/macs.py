"""Multiply-accumulates of a model: Gemm, MatMul and Conv, their integer forms too, for one row.

Every symbolic dimension counts as 1, and the body of a loop counts once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import onnx_ir as ir
import onnx_ir.passes.common as common_passes


def count_macs(model: ir.Model) -> tuple[int | None, str]:
    """Multiply-accumulates for one row, or None and the reason. Changes the model's shapes."""
    if model.functions:
        common_passes.InlinePass()(model)
    _one_row(model)
    common_passes.ShapeInferencePass(check_type=False, strict_mode=False)(model)
    total = 0
    for node in model.graph.all_nodes():
        cost = _node_macs(node)
        if cost is None:
            return None, f"node '{node.name}' ({node.op_type}): shape inference gives no shapes"
        total += cost
    return total, ""


def graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """The main graph, those of its functions, and the bodies in all of them."""
    yield model.graph
    yield from model.graph.subgraphs()
    for function in model.functions.values():
        yield function.graph
        yield from function.graph.subgraphs()


def _one_row(model: ir.Model) -> None:
    """Give every symbolic input dimension the size 1 and forget what was derived from it."""
    for graph in graphs(model):
        for node in graph:
            for value in node.outputs:
                value.shape = None
    for value in model.graph.inputs:
        if value.shape is not None:
            value.shape = ir.Shape([d if isinstance(d, int) else 1 for d in value.shape])


def _node_macs(node: ir.Node) -> int | None:
    """Outputs times the length of the sum behind each; 0 for other nodes, None if unknown."""
    if node.op_type in ("Conv", "ConvInteger", "QLinearConv"):
        weight = _shape(node, 3 if node.op_type == "QLinearConv" else 1)
        depth = None if weight is None else math.prod(weight[1:])  # (out, in / group, kernel...)
    elif node.op_type == "Gemm":
        first = _shape(node, 0)
        axis = 0 if node.attributes.get_int("transA", 0) else 1
        depth = None if first is None else first[axis]
    elif node.op_type in ("MatMul", "MatMulInteger", "QLinearMatMul"):
        first = _shape(node, 0)
        depth = None if first is None else first[-1]
    else:
        return 0
    produced = _known(node.outputs[0])
    return None if depth is None or produced is None else math.prod(produced) * depth


def _shape(node: ir.Node, index: int) -> tuple[int, ...] | None:
    value = node.inputs[index]
    return None if value is None else _known(value)


def _known(value: ir.Value) -> tuple[int, ...] | None:
    """The shape if every dimension is a number."""
    shape = value.shape
    if shape is None and value.const_value is not None:
        return tuple(value.const_value.shape.numpy())
    if shape is None or not all(isinstance(d, int) for d in shape):
        return None
    return tuple(int(d) for d in shape if isinstance(d, int))
