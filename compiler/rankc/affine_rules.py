"""Operators that are affine in each row of the batch: y = linear(x) + shift, one rule for each.

A rule looks at a node and at its constant inputs and says what the node does to a batch of rows,
axis 0, in float64; or None where the node is not affine or touches the batch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from rankc.graph import attribute
from rankc.linalg import Floats

FREE = "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"  # the numbers stay where they are

Batch = Callable[[Sequence[Floats]], Sequence[Floats]]  # varying inputs to outputs


@dataclasses.dataclass(frozen=True, slots=True)
class Linear:
    """An operator on its varying inputs: a linear map of rows, then a constant added."""

    batch: Batch
    shift: Floats | float = 0.0


def row_dims(value: ir.Value) -> tuple[int, ...] | None:
    """The constant part of (batch, *dims), or None."""
    if value.shape is None or len(value.shape) == 0:
        return None
    dims = tuple(d for d in value.shape[1:] if isinstance(d, int))
    return dims if len(dims) == len(value.shape) - 1 else None


Constants = Sequence[np.ndarray | None]
Rule = Callable[[ir.Node, Constants], Linear | None]


def _each(function: Callable[[Floats], Floats]) -> Linear:
    return Linear(lambda rows: [function(rows[0])])


def _axis(node: ir.Node, axis: int) -> int | None:
    """A positive axis that is not the batch's."""
    value = node.inputs[0]
    if value is None or value.shape is None:
        return None
    axis += len(value.shape) if axis < 0 else 0
    return axis or None


def _reshape(node: ir.Node, _: Constants) -> Linear | None:
    """Rows stay rows when the constant sizes before and after agree: then so do the batches."""
    value, dims = node.inputs[0], row_dims(node.outputs[0])
    before = row_dims(value) if value is not None else None
    if dims is None or before is None or math.prod(before) != math.prod(dims):
        return None
    return _each(lambda x: x.reshape(len(x), *dims))


def _transpose(node: ir.Node, _: Constants) -> Linear | None:
    perm = list(node.attributes["perm"].as_ints()) if "perm" in node.attributes else [1]
    return None if perm[0] else _each(lambda x: x.transpose(perm))


def _concat(node: ir.Node, consts: Constants) -> Linear | None:
    axis = _axis(node, attribute(node, "axis", 0))
    if axis is None or any(c is not None for c in consts):
        return None
    return Linear(lambda rows: [np.concatenate(rows, axis)])


def _split(node: ir.Node, _: Constants) -> Linear | None:
    axis = _axis(node, attribute(node, "axis", 0))
    sizes = [v.shape[axis] for v in node.outputs if v.shape is not None and axis is not None]
    if axis is None or len(sizes) != len(node.outputs):
        return None
    if not all(isinstance(size, int) for size in sizes):
        return None
    ends = np.cumsum(np.array(sizes, int))[:-1]
    return Linear(lambda rows: np.split(rows[0], ends, axis))


def _slice(node: ir.Node, consts: Constants) -> Linear | None:
    if len(consts) < 4 or any(c is None for c in consts[1:]):
        return None
    starts, ends, axes, *steps = (np.asarray(c).tolist() for c in consts[1:])
    cut = {_axis(node, axis): slice(a, b) for a, b, axis in zip(starts, ends, axes, strict=True)}
    if None in cut or any(step != 1 for given in steps for step in given):
        return None
    return _each(lambda x: x[tuple(cut.get(k, slice(None)) for k in range(x.ndim))])


def _take(node: ir.Node, consts: Constants) -> Linear | None:
    axis = _axis(node, attribute(node, "axis", 0))
    index = consts[1]
    if axis is None or index is None or index.ndim > 1:
        return None
    return _each(lambda x: np.take(x, index.astype(int), axis))


def _cast(node: ir.Node, consts: Constants) -> Linear | None:
    """Between integers only, of indices."""
    before, after = node.inputs[0], node.outputs[0].dtype
    wide = (ir.DataType.INT32, ir.DataType.INT64)
    return _each(lambda x: x) if before is not None and {before.dtype, after} <= set(wide) else None


def _reduce(node: ir.Node, consts: Constants) -> Linear | None:
    given = consts[1] if len(consts) > 1 else None
    if given is None and "axes" in node.attributes:
        given = np.array(node.attributes["axes"].as_ints())
    axes = [] if given is None else [_axis(node, int(a)) for a in np.ravel(given)]
    if not axes or None in axes:
        return None
    which = tuple(a for a in axes if a is not None)
    keep = bool(attribute(node, "keepdims", 1))
    if node.op_type == "ReduceMean" and node.outputs[0].dtype != ir.DataType.FLOAT:
        return None
    reduce = np.sum if node.op_type == "ReduceSum" else np.mean
    return _each(lambda x: np.asarray(reduce(x, axis=which, keepdims=keep)))


def _without_batch(node: ir.Node, const: np.ndarray) -> Floats | None:
    """A constant that means the same for every row, as it broadcasts against (rows, *dims)."""
    ranks = [len(v.shape) for v in node.inputs if v is not None and v.shape is not None]
    if const.ndim == max(ranks):
        if const.shape[0] != 1 or sum(rank == const.ndim for rank in ranks) < 2:
            return None  # one value a row, or more axes than the varying operand
        const = const[0]
    return np.asarray(const, np.float64)


def _sum(node: ir.Node, consts: Constants) -> Linear | None:
    sign = -1.0 if node.op_type == "Sub" else 1.0
    fixed = [c for c in consts if c is not None]
    if not fixed:
        return Linear(lambda rows: [rows[0] + sign * rows[1]])
    shift = _without_batch(node, fixed[0])
    if shift is None or len(fixed) == 2:
        return None
    shape = np.zeros(shift.shape)
    if consts[0] is None:
        return Linear(lambda rows: [rows[0] + shape], sign * shift)
    return Linear(lambda rows: [sign * rows[0] + shape], shift)


def _scale(node: ir.Node, consts: Constants) -> Linear | None:
    divide = node.op_type == "Div"
    fixed = consts[1] if consts[1] is not None or divide else consts[0]
    if fixed is None or all(c is not None for c in consts):
        return None
    if divide and node.outputs[0].dtype != ir.DataType.FLOAT:
        return None  # whole numbers divide otherwise
    factor = _without_batch(node, fixed)
    if factor is None:
        return None
    return _each((lambda x: x / factor) if divide else (lambda x: x * factor))


def _matmul(node: ir.Node, consts: Constants) -> Linear | None:
    weight = consts[1]
    if consts[0] is not None or weight is None or weight.ndim != 2:
        return None
    matrix = weight.astype(np.float64)
    x = node.inputs[0]
    if x is None or x.shape is None or len(x.shape) < 2:
        return None
    return _each(lambda rows: rows @ matrix)


def _gemm(node: ir.Node, consts: Constants) -> Linear | None:
    if attribute(node, "transA", 0) or consts[0] is not None or consts[1] is None:
        return None
    scale = {k: a.as_float() for k, a in node.attributes.items() if k in ("alpha", "beta")}
    matrix = scale.get("alpha", 1.0) * consts[1].astype(np.float64)
    matrix = matrix.T if attribute(node, "transB", 0) else matrix
    if len(consts) == 2 or node.inputs[2] is None:
        return _each(lambda rows: rows @ matrix)
    bias = consts[2]
    if bias is None or (bias.ndim == 2 and bias.shape[0] != 1):
        return None
    shift = scale.get("beta", 1.0) * np.broadcast_to(bias.reshape(-1), matrix.shape[1:])
    return Linear(lambda rows: [rows[0] @ matrix], shift.astype(np.float64))


RULES: dict[str, Rule] = {
    **dict.fromkeys(FREE, _reshape),
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _take,
    "Cast": _cast,
    "ReduceSum": _reduce,
    "ReduceMean": _reduce,
    "Add": _sum,
    "Sub": _sum,
    "Neg": lambda node, consts: _each(np.negative),
    "Mul": _scale,
    "Div": _scale,
    "MatMul": _matmul,
    "Gemm": _gemm,
}
