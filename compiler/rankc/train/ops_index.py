"""Operators that pick numbers out by their place."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it

from rankc.train.registry import Builder, Function, Op, Tensor
from rankc.train.tensors import reader, together


def from_front(index: Tensor, size: int | Tensor, like: Tensor) -> Tensor:
    """Places counted from the front, as int64 on the device of `like`; ONNX's may be negative."""
    index = index.to(like.device, torch.int64)
    return torch.where(index < 0, index + size, index)


def _gather(op: Op) -> Function:
    axis = op.integer("axis", 0)
    known = None if (index := op.constant(1)) is None else torch.tensor(index)

    def gather(x: Tensor, index: Tensor) -> Tensor:
        k = axis % x.dim()
        if known is not None and x.device.type == "cpu":
            index = known  # of a shape, while all else may be on an accelerator
        index = from_front(index, x.shape[k], x)
        if k == 0 and x.dim() == 2:
            return F.embedding(index, x)
        found = x.index_select(k, index.reshape(-1))
        return found.reshape((*x.shape[:k], *index.shape, *x.shape[k + 1 :]))

    return gather


def _gather_elements(op: Op) -> Function:
    axis = op.integer("axis", 0)
    return lambda x, index: torch.gather(x, axis, from_front(index, x.shape[axis], x))


def _gather_nd(op: Op) -> Function:
    batch = op.integer("batch_dims", 0)

    def gather_nd(x: Tensor, index: Tensor) -> Tensor:
        along = x.shape[batch : batch + index.shape[-1]]
        index = from_front(index, torch.tensor(along, device=x.device), x)
        rows = index.shape[batch:-1]
        which = index.reshape((*index.shape[:batch], math.prod(rows), index.shape[-1])).unbind(-1)
        grid = [
            torch.arange(n, device=x.device).reshape([-1] + [1] * (batch - k))
            for k, n in enumerate(x.shape[:batch])
        ]
        found = x[tuple(grid) + which]
        return found.reshape((*x.shape[:batch], *rows, *x.shape[batch + len(along) :]))

    return gather_nd


def _slice(op: Op) -> Function:
    read_start, read_end, read_axes, read_steps = (reader(op, k) for k in range(1, 5))

    def cut(
        x: Tensor,
        starts: Tensor,
        ends: Tensor,
        axes: Tensor | None = None,
        steps: Tensor | None = None,
    ) -> Tensor:
        first, last = read_start(starts), read_end(ends)
        along = range(len(first)) if axes is None else [k % x.dim() for k in read_axes(axes)]
        by = [1] * len(first) if steps is None else read_steps(steps)
        for start, end, axis, step in zip(first, last, along, by, strict=True):
            x = _taken(x, axis, _places(start, end, step, x.shape[axis]))
        return x

    return cut


def _taken(x: Tensor, axis: int, places: range) -> Tensor:
    if places.step > 0:
        return x[(slice(None),) * axis + (slice(places.start, places.stop, places.step),)]
    return x.index_select(axis, torch.tensor(places, dtype=torch.int64, device=x.device))


def _places(start: int, end: int, step: int, size: int) -> range:
    """Where Python would count from the back once more, ONNX takes the nearest end."""
    start, end = (k + size if k < 0 else k for k in (start, end))
    if step > 0:
        return range(min(max(start, 0), size), min(max(end, 0), size), step)
    return range(min(max(start, 0), size - 1), min(max(end, -1), size - 1), step)


def _compress(op: Op) -> Function:
    axis = op.integer("axis") if "axis" in op.node.attributes else None

    def compress(x: Tensor, condition: Tensor) -> Tensor:
        kept = condition.to(x.device).nonzero().reshape(-1)
        return x.reshape(-1)[kept] if axis is None else x.index_select(axis, kept)

    return compress


def _one_hot(op: Op) -> Function:
    axis, read = op.integer("axis", -1), reader(op, 1)

    def one_hot(index: Tensor, depth: Tensor, values: Tensor) -> Tensor:
        index, values = together(index, values)
        (count,) = read(depth)
        at = axis % (index.dim() + 1)
        places = torch.arange(count, device=index.device)
        hot = from_front(index, count, index).unsqueeze(at)
        hot = hot == places.reshape([-1] + [1] * (index.dim() - at))
        return torch.where(hot, values[1], values[0])

    return one_hot


def _top_k(op: Op) -> Function:
    axis, largest = op.integer("axis", -1), bool(op.integer("largest", 1))
    read = reader(op, 1)

    def top_k(x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Of equal numbers the first counts as larger, and as smaller."""
        values, places = torch.sort(x, dim=axis, descending=largest, stable=True)
        (count,) = read(k)
        return values.narrow(axis, 0, count), places.narrow(axis, 0, count)

    return top_k


def _unique(op: Op) -> Function:
    axis = op.integer("axis") if "axis" in op.node.attributes else None
    ascending = bool(op.integer("sorted", 1))

    def unique(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        along = x.reshape(-1) if axis is None else x
        k = 0 if axis is None else axis
        _, kind, counts = torch.unique(
            along.detach(), dim=k, return_inverse=True, return_counts=True
        )
        places = torch.arange(along.shape[k], device=x.device)
        first = torch.zeros_like(counts).scatter_reduce(0, kind, places, "amin", include_self=False)
        if not ascending:
            order = first.argsort()
            first, counts, kind = first[order], counts[order], order.argsort()[kind]
        return along.index_select(k, first), first, kind, counts

    return unique


def _reverse_sequence(op: Op) -> Function:
    rows, time = op.integer("batch_axis", 1), op.integer("time_axis", 0)

    def reverse_sequence(x: Tensor, lengths: Tensor) -> Tensor:
        moved = x.movedim((rows, time), (0, 1))
        ends = lengths.to(x.device, torch.int64)[:, None]
        places = torch.arange(moved.shape[1], device=x.device)[None]
        places = torch.where(places < ends, ends - 1 - places, places)
        batch = torch.arange(moved.shape[0], device=x.device)[:, None]
        return moved[batch, places].movedim((0, 1), (rows, time))

    return reverse_sequence


OPERATORS: Mapping[str, Builder] = {
    "Compress": _compress,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "NonZero": lambda op: lambda x: x.nonzero().t(),
    "OneHot": _one_hot,
    "ReverseSequence": _reverse_sequence,
    "Slice": _slice,
    "TopK": _top_k,
    "Unique": _unique,
}
