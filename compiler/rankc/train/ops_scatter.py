"""Operators that write numbers to places of a copy."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from rankc.train.ops_index import from_front
from rankc.train.registry import Builder, Function, Op, Tensor
from rankc.train.tensors import together

_REDUCTIONS = {"none": "", "add": "sum", "mul": "prod", "min": "amin", "max": "amax"}


def _reduction(op: Op) -> str:
    given = op.text("reduction", "none")
    if given not in _REDUCTIONS:
        raise op.refuse(f"reduction is {given!r}; known are {', '.join(_REDUCTIONS)}")
    return _REDUCTIONS[given]


def _written(x: Tensor, axis: int, index: Tensor, updates: Tensor, how: str) -> Tensor:
    if not how:
        return x.scatter(axis, index, updates)
    return x.scatter_reduce(axis, index, updates, how)


def _scatter_elements(op: Op) -> Function:
    axis, how = op.integer("axis", 0), _reduction(op)

    def scatter_elements(x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
        x, updates = together(x, updates)
        return _written(x, axis, from_front(index, x.shape[axis], x), updates, how)

    return scatter_elements


def _scatter_nd(op: Op) -> Function:
    how = _reduction(op)

    def scatter_nd(x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
        """Over `x` as rows: an index of the first axes is the number of a row."""
        x, updates = together(x, updates)
        along = x.shape[: index.shape[-1]]
        steps = [math.prod(along[k + 1 :]) for k in range(len(along))]
        index = from_front(index, torch.tensor(along, device=x.device), x)
        rows = (index * torch.tensor(steps, device=x.device)).sum(-1).reshape(-1, 1)
        width = math.prod(x.shape[len(along) :])
        flat = updates.reshape(rows.shape[0], width)
        table = x.reshape(math.prod(along), width)
        return _written(table, 0, rows.expand(-1, width), flat, how).reshape(x.shape)

    return scatter_nd


OPERATORS: Mapping[str, Builder] = {
    "Scatter": _scatter_elements,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
}
