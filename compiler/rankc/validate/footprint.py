"""What a model weighs: bytes on disk, parameters, multiply-accumulates, nodes.

* size_bytes: the ONNX file and every external data file that it names.
* params: scalars in initializers and in Constant nodes, except int64, bool and string tensors,
  which hold shapes, axes and offsets.
* macs: multiply-accumulates of Gemm, MatMul and Conv (their integer forms too) for one row: every
  symbolic dimension counts as 1. A loop's body counts once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

_NOT_PARAMETERS = frozenset({ir.DataType.INT64, ir.DataType.BOOL, ir.DataType.STRING})


@dataclasses.dataclass(frozen=True, slots=True)
class Footprint:
    size_bytes: int
    params: int
    nodes: int
    macs: int | None  # for one row; None where shape inference fails, and then
    unknown: str = ""  # which node is to blame


def footprint(path: Path) -> Footprint:
    """Measure an ONNX file without running it.

    Args:
        path: Of a model that loads; big tensors stay on disk.
    """
    model = ir.load(path)
    size = path.stat().st_size + sum(f.stat().st_size for f in _external_files(model))
    params = sum(t.size for t in _tensors(model) if t.dtype not in _NOT_PARAMETERS)
    nodes = sum(1 for _ in model.graph.all_nodes())
    macs, unknown = _macs(model)
    return Footprint(size, params, nodes, macs, unknown)


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Every tensor that the file stores, in functions and subgraphs too."""
    for graph in _graphs(model):
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        for node in graph.all_nodes():
            if node.op_type == "Constant" and (held := node.attributes.get("value")) is not None:
                yield held.as_tensor()


def _graphs(model: ir.Model) -> Iterator[ir.Graph]:
    yield model.graph
    yield from model.graph.subgraphs()
    for function in model.functions.values():
        yield function.graph
        yield from function.graph.subgraphs()


def _external_files(model: ir.Model) -> set[Path]:
    return {Path(t.path).resolve() for t in _tensors(model) if isinstance(t, ir.ExternalTensor)}


def _macs(model: ir.Model) -> tuple[int | None, str]:
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


def _one_row(model: ir.Model) -> None:
    """Give every symbolic input dimension the size 1 and forget what was derived from it."""
    for graph in _graphs(model):
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
