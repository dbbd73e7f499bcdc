"""Sums, means and softmax along axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch.nn.functional as F  # noqa: N812 - as everybody calls it

from rankc.train.ops_shape import whole
from rankc.train.registry import Builder, Function, Op, Tensor


def _reduce(function: Callable[[Tensor, list[int], bool], Tensor]) -> Builder:
    def build(op: Op) -> Function:
        given, keep = op.integers("axes"), bool(op.integer("keepdims", 1))
        none = bool(op.integer("noop_with_empty_axes", 0))

        def reduce(x: Tensor, axes: Tensor | None = None) -> Tensor:
            along = given if axes is None else whole(axes)
            if not along:
                if none:
                    return x
                along = list(range(x.dim()))
            return function(x, along, keep)

        return reduce

    return build


def _softmax(op: Op) -> Function:
    axis = op.integer("axis", -1)
    return lambda x: F.softmax(x, axis)


def _log_softmax(op: Op) -> Function:
    axis = op.integer("axis", -1)
    return lambda x: F.log_softmax(x, axis)


OPERATORS: Mapping[str, Builder] = {
    "LogSoftmax": _log_softmax,
    "ReduceMean": _reduce(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
    "ReduceSum": _reduce(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
    "ReduceMax": _reduce(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "Softmax": _softmax,
}
