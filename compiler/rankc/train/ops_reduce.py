"""Reductions along axes, running sums, and where the largest is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

from rankc.train.registry import Builder, Function, Op, Tensor
from rankc.train.tensors import reader

Reduction = Callable[[Tensor, list[int], bool], Tensor]


def _reduce(function: Reduction) -> Builder:
    def build(op: Op) -> Function:
        given, keep = op.integers("axes"), bool(op.integer("keepdims", 1))
        none, read = bool(op.integer("noop_with_empty_axes", 0)), reader(op, 1)

        def reduce(x: Tensor, axes: Tensor | None = None) -> Tensor:
            along = given if axes is None else read(axes)
            if along:
                return function(x, along, keep)
            if none:  # each number is a set of its own
                return function(x[None], [0], False)
            return function(x, list(range(x.dim())), keep)

        return reduce

    return build


def _sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.sum(axes, keepdim=keep, dtype=x.dtype)


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if x.is_floating_point():
        return x.mean(axes, keepdim=keep)
    count = math.prod(x.shape[axis] for axis in axes)
    return torch.div(_sum(x, axes, keep), count, rounding_mode="trunc")


def _prod(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((k % x.dim() for k in axes), reverse=True):
        x = x.prod(axis, keepdim=keep, dtype=x.dtype)
    return x


def _max(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _bounded(x, axes, keep, largest=True)


def _min(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _bounded(x, axes, keep, largest=False)


def _bounded(x: Tensor, axes: list[int], keep: bool, largest: bool) -> Tensor:
    """Of no numbers at all: the identity of the reduction."""
    if x.numel() == 0 and any(x.shape[axis] == 0 for axis in axes):
        shape = x.new_empty(x.shape, dtype=torch.int8).sum(axes, keepdim=keep).shape
        return x.new_full(shape, _least(x.dtype) if largest else _greatest(x.dtype))
    return x.amax(axes, keepdim=keep) if largest else x.amin(axes, keepdim=keep)


def _least(dtype: torch.dtype) -> float:
    if dtype is torch.bool:
        return False
    return -math.inf if dtype.is_floating_point else torch.iinfo(dtype).min


def _greatest(dtype: torch.dtype) -> float:
    if dtype is torch.bool:
        return True
    return math.inf if dtype.is_floating_point else torch.iinfo(dtype).max


def _norm(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    exact = x if x.is_floating_point() else x.to(torch.float64)
    found: Tensor = torch.linalg.vector_norm(exact, dim=axes, keepdim=keep)
    return found.to(x.dtype)


def _log_sum_exp(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.logsumexp(x, axes, keepdim=keep)


def _arg(function: Callable[..., Tensor]) -> Builder:
    def build(op: Op) -> Function:
        axis, keep = op.integer("axis", 0), bool(op.integer("keepdims", 1))
        if not op.integer("select_last_index", 0):
            return lambda x: function(x, axis, keepdim=keep)
        return lambda x: last(x, axis, keep)

    def last(x: Tensor, axis: int, keep: bool) -> Tensor:
        return x.shape[axis] - 1 - function(x.flip(axis), axis, keepdim=keep)

    return build


def _running(function: Callable[..., Tensor], start: int) -> Builder:
    def build(op: Op) -> Function:
        exclusive, reverse = bool(op.integer("exclusive", 0)), bool(op.integer("reverse", 0))
        read = reader(op, 1)

        def run(x: Tensor, axis: Tensor) -> Tensor:
            (k,) = read(axis)
            along = x.flip(k) if reverse else x
            if exclusive:
                first = torch.full_like(along.narrow(k, 0, 1), start)
                along = torch.cat((first, along.narrow(k, 0, x.shape[k] - 1)), k)
            found = function(along, k, dtype=x.dtype)
            return found.flip(k) if reverse else found

        return run

    return build


OPERATORS: Mapping[str, Builder] = {
    "ArgMax": _arg(torch.argmax),
    "ArgMin": _arg(torch.argmin),
    "CumProd": _running(torch.cumprod, 1),
    "CumSum": _running(torch.cumsum, 0),
    "ReduceL1": _reduce(lambda x, axes, keep: _sum(x.abs(), axes, keep)),
    "ReduceL2": _reduce(_norm),
    "ReduceLogSum": _reduce(lambda x, axes, keep: _sum(x, axes, keep).log()),
    "ReduceLogSumExp": _reduce(_log_sum_exp),
    "ReduceMax": _reduce(_max),
    "ReduceMean": _reduce(_mean),
    "ReduceMin": _reduce(_min),
    "ReduceProd": _reduce(_prod),
    "ReduceSum": _reduce(_sum),
    "ReduceSumSquare": _reduce(lambda x, axes, keep: _sum(x * x, axes, keep)),
}
