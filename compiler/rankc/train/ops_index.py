"""Operators that pick numbers out by their place."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it

from rankc.train.ops_shape import whole
from rankc.train.registry import Builder, Function, Op, Tensor


def _gather(op: Op) -> Function:
    axis = op.integer("axis", 0)

    def gather(x: Tensor, index: Tensor) -> Tensor:
        k = axis % x.dim()
        index = torch.where(index < 0, index + x.shape[k], index).to(x.device, torch.int64)
        if k == 0 and x.dim() == 2:
            return F.embedding(index, x)
        found = x.index_select(k, index.reshape(-1))
        return found.reshape(*x.shape[:k], *index.shape, *x.shape[k + 1 :])

    return gather


def _slice(
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    first, last = whole(starts), whole(ends)
    along = range(len(first)) if axes is None else whole(axes)
    by = [1] * len(first) if steps is None else whole(steps)
    for start, end, axis, step in zip(first, last, along, by, strict=True):
        picked = range(x.shape[axis])[_python_slice(start, end, step, x.shape[axis])]
        if step > 0:
            x = x[(slice(None),) * (axis % x.dim()) + (slice(picked.start, picked.stop, step),)]
        else:
            x = x.index_select(axis, torch.tensor(list(picked), device=x.device))
    return x


def _python_slice(start: int, end: int, step: int, size: int) -> slice:
    """ONNX clamps; where Python would count an end of -size - 1 from the back, it is the front."""
    if step > 0:
        return slice(start, end, step)
    return slice(min(start, size - 1), None if end < -size else end, step)


def _split(op: Op) -> Function:
    axis, count = op.integer("axis", 0), op.integer("num_outputs", op.outputs)

    def split(x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        parts = -(-x.shape[axis] // count) if sizes is None else whole(sizes)
        return torch.split(x, parts, axis)

    return split


OPERATORS: Mapping[str, Builder] = {
    "Gather": _gather,
    "Slice": lambda op: _slice,
    "Split": _split,
}
