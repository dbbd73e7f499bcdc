"""Operators that move numbers without changing them, and integer arithmetic on shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from rankc.train.registry import Builder, Function, Op, Tensor


def whole(tensor: Tensor) -> list[int]:
    """The integers of a tensor of any shape."""
    return [int(k) for k in tensor.reshape(-1).tolist()]


def _reshape(op: Op) -> Function:
    literal = bool(op.integer("allowzero", 0))

    def reshape(x: Tensor, shape: Tensor) -> Tensor:
        wanted = whole(shape)
        if not literal:
            wanted = [x.shape[k] if n == 0 else n for k, n in enumerate(wanted)]
        return x.reshape(wanted)

    return reshape


def _transpose(op: Op) -> Function:
    order = op.integers("perm")
    return lambda x: x.permute(order or list(range(x.dim()))[::-1])


def _flatten(op: Op) -> Function:
    axis = op.integer("axis", 1)

    def flatten(x: Tensor) -> Tensor:
        rows = math.prod(x.shape[: axis if axis >= 0 else axis + x.dim()])
        return x.reshape(rows, -1)

    return flatten


def _concat(op: Op) -> Function:
    axis = op.integer("axis")
    return lambda *tensors: torch.cat(tensors, axis)


def _squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(whole(axes)))


def _unsqueeze(x: Tensor, axes: Tensor) -> Tensor:
    wanted = whole(axes)
    rank = x.dim() + len(wanted)
    for axis in sorted(k % rank for k in wanted):
        x = x.unsqueeze(axis)
    return x


def _shape(op: Op) -> Function:
    start, end = op.integer("start", 0), op.node.attributes.get("end")
    stop = None if end is None else end.as_int()
    return lambda x: torch.tensor(list(x.shape)[start:stop], dtype=torch.int64)


def _constant(op: Op) -> Function:
    found = op.tensor("value")
    if found is None:
        for name, kind in (("value_int", torch.int64), ("value_ints", torch.int64)):
            if (value := op.node.attributes.get(name)) is not None:
                found = torch.tensor(value.value, dtype=kind)
        for name in ("value_float", "value_floats"):
            if (value := op.node.attributes.get(name)) is not None:
                found = torch.tensor(value.value, dtype=torch.float32)
    if found is None:
        raise op.refuse("holds no tensor, number or list of numbers")
    return lambda: found


def _expand(x: Tensor, shape: Tensor) -> Tensor:
    both: list[int] = torch.broadcast_shapes(x.shape, tuple(whole(shape)))  # type: ignore[no-untyped-call]
    return x.expand(both)


OPERATORS: Mapping[str, Builder] = {
    "Concat": _concat,
    "Constant": _constant,
    "Expand": lambda op: _expand,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Shape": _shape,
    "Squeeze": lambda op: _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": lambda op: _unsqueeze,
}
