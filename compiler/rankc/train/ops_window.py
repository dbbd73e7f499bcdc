"""Convolutions and pools: a window that moves over one to three axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch.nn.functional as F  # noqa: N812 - as everybody calls it

from rankc.train.registry import Builder, Function, Op, Tensor

Pads = list[tuple[int, int]]  # before and after, an axis each


def pads_of(
    op: Op, size: Sequence[int], kernel: Sequence[int], strides: Sequence[int], by: Sequence[int]
) -> Pads:
    """The padding of each axis, `auto_pad` worked out for an input of that size."""
    auto, axes = op.text("auto_pad", "NOTSET"), len(kernel)
    if auto.startswith("SAME"):
        found = []
        for n, k, s, d in zip(size, kernel, strides, by, strict=True):
            total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
            less, more = total // 2, total - total // 2
            found.append((less, more) if auto == "SAME_UPPER" else (more, less))
        return found
    given = op.integers("pads") if auto == "NOTSET" else None
    pads = given or [0] * (2 * axes)
    return list(zip(pads[:axes], pads[axes:], strict=True))


def padded(x: Tensor, pads: Pads, value: float = 0.0) -> Tensor:
    """The tensor with that many of `value` round its last axes."""
    if not any(low or high for low, high in pads):
        return x
    return F.pad(x, [n for pair in reversed(pads) for n in pair], value=value)


_CONV = (F.conv1d, F.conv2d, F.conv3d)
_MAX = (F.max_pool1d, F.max_pool2d, F.max_pool3d)


def _conv(op: Op) -> Function:
    groups, strides, by = op.integer("group", 1), op.integers("strides"), op.integers("dilations")

    def conv(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        axes = w.dim() - 2
        stride, dilation = strides or [1] * axes, by or [1] * axes
        pads = pads_of(op, x.shape[2:], w.shape[2:], stride, dilation)
        if all(low == high for low, high in pads):
            even = [low for low, _ in pads]
            return _CONV[axes - 1](x, w, b, stride, even, dilation, groups)
        return _CONV[axes - 1](padded(x, pads), w, b, stride, 0, dilation, groups)

    return conv


def _max_pool(op: Op) -> Function:
    kernel = op.integers("kernel_shape") or []
    axes = len(kernel)
    stride, by = op.integers("strides") or [1] * axes, op.integers("dilations") or [1] * axes
    ceil = bool(op.integer("ceil_mode", 0))

    def max_pool(x: Tensor) -> Tensor:
        pads = pads_of(op, x.shape[2:], kernel, stride, by)
        around = padded(x, pads, -math.inf)
        return _MAX[axes - 1](around, kernel, stride, 0, by, ceil)

    return max_pool


OPERATORS: Mapping[str, Builder] = {
    "Conv": _conv,
    "GlobalAveragePool": lambda op: lambda x: x.mean(list(range(2, x.dim())), keepdim=True),
    "MaxPool": _max_pool,
}
