"""Pools: the maximum, the mean or a norm of what a window covers, or of all there is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it

from rankc.train.ops_window import Pads, padded, padding
from rankc.train.registry import Builder, Function, Op, Tensor
from rankc.train.tensors import whole

_CONV = (F.conv1d, F.conv2d, F.conv3d)
_MAX = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
_MAX_WITH_INDEX = (
    F.max_pool1d_with_indices,
    F.max_pool2d_with_indices,
    F.max_pool3d_with_indices,
)
_MEAN = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


class _Window:
    """The window of a pool, and how many times it fits."""

    def __init__(self, op: Op) -> None:
        self.kernel = op.integers("kernel_shape") or []
        self.axes = len(self.kernel)
        if not 1 <= self.axes <= 3:
            raise op.refuse(f"a window of {self.axes} axes; one, two or three are supported")
        self.strides = op.integers("strides") or [1] * self.axes
        self.by = op.integers("dilations") or [1] * self.axes
        self._ceil = bool(op.integer("ceil_mode", 0))
        self._pads = padding(op)

    def pads(self, size: Sequence[int]) -> Pads:
        """As the node gives them."""
        found: Pads = self._pads(size, self.kernel, self.strides, self.by)
        return found

    def counts(self, size: Sequence[int], pads: Pads) -> list[int]:
        """Of outputs, an axis each. A window that would start beyond the input's end is left out.

        Rounded up, as ONNX and torch have it: the last window may reach beyond the padding.
        """
        found = []
        for k, (n, (low, high)) in enumerate(zip(size, pads, strict=True)):
            room = n + low + high - (self.kernel[k] - 1) * self.by[k] - 1
            if self._ceil:
                times = -(-room // self.strides[k]) + 1
                times -= (times - 1) * self.strides[k] >= n + low
            else:
                times = room // self.strides[k] + 1
            found.append(times)
        return found

    def filled(self, size: Sequence[int], pads: Pads) -> Pads:
        """The same padding, with as much after it as the last window needs."""
        found = []
        for k, (n, (low, high)) in enumerate(zip(self.counts(size, pads), pads, strict=True)):
            needed = (n - 1) * self.strides[k] + (self.kernel[k] - 1) * self.by[k] + 1
            found.append((low, max(needed - size[k] - low, high)))
        return found

    def covered(self, size: Sequence[int], pads: Pads, inside: bool) -> Tensor:
        """How many numbers each window covers: of the input, or of it with its padding."""
        found = torch.ones((), dtype=torch.float64)
        for k, (times, (low, high)) in enumerate(zip(self.counts(size, pads), pads, strict=True)):
            first, last = (0, size[k]) if inside else (-low, size[k] + high)
            starts = torch.arange(times)[:, None] * self.strides[k] - low
            places = starts + torch.arange(self.kernel[k]) * self.by[k]
            along = ((places >= first) & (places < last)).sum(1)
            found = found.unsqueeze(-1) * along
        return found

    def summed(self, x: Tensor, pads: Pads) -> Tensor:
        """The sum of what each window covers."""
        around = padded(x, self.filled(x.shape[2:], pads))
        if all(d == 1 for d in self.by):
            mean: Tensor = _MEAN[self.axes - 1](around, self.kernel, self.strides)
            return mean * math.prod(self.kernel)
        ones = torch.ones(1, 1, *self.kernel, dtype=x.dtype, device=x.device)
        apart = around.flatten(0, 1).unsqueeze(1)
        found: Tensor = _CONV[self.axes - 1](apart, ones, None, self.strides, 0, self.by)
        return found.reshape(*x.shape[:2], *found.shape[2:])


def _max_pool(op: Op) -> Function:
    window, storage = _Window(op), op.integer("storage_order", 0)

    def max_pool(x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        k, size = window.axes - 1, x.shape[2:]
        given = window.pads(size)
        pads = window.filled(size, given)
        wide = x if x.is_floating_point() else x.to(torch.float32)
        if op.outputs > 1:
            around = padded(wide, pads, -math.inf)
            found, at = _MAX_WITH_INDEX[k](around, window.kernel, window.strides, [0], window.by)
            return found.to(x.dtype), _places(at, x, pads, storage)
        even = [low for low, high in pads if low == high]
        if len(even) == len(pads) and all(
            2 * n <= m for n, m in zip(even, window.kernel, strict=True)
        ):
            found = _MAX[k](wide, window.kernel, window.strides, even, window.by)
        else:
            around = padded(wide, pads, -math.inf)
            found = _MAX[k](around, window.kernel, window.strides, 0, window.by)
        return found.to(x.dtype)

    return max_pool


def _places(at: Tensor, x: Tensor, pads: Pads, storage: int) -> Tensor:
    """Places in the padded image, as places in the whole input laid out as one row."""
    size = x.shape[2:]
    around = [n + low + high for n, (low, high) in zip(size, pads, strict=True)]
    place = torch.zeros_like(at)
    steps = _steps(size, storage)
    for k in reversed(range(len(size))):
        place += (at % around[k] - pads[k][0]) * steps[k]
        at = at // around[k]
    images = torch.arange(x.shape[0] * x.shape[1], device=at.device) * math.prod(size)
    return place + images.reshape(*x.shape[:2], *[1] * len(size))


def _steps(size: Sequence[int], storage: int) -> list[int]:
    """How far apart neighbours along each axis are: the last axis is densest, or the first."""
    order = size if storage else list(reversed(size))
    steps = [1, *itertools.accumulate(order, lambda a, b: a * b)][: len(size)]
    return steps if storage else steps[::-1]


def _average_pool(op: Op) -> Function:
    window, inside = _Window(op), not op.integer("count_include_pad", 0)

    def average_pool(x: Tensor) -> Tensor:
        pads = window.pads(x.shape[2:])
        count = window.covered(x.shape[2:], pads, inside)
        return window.summed(x, pads) / count.to(x.device, x.dtype)

    return average_pool


def _root(total: Tensor, p: int) -> Tensor:
    """The p-th root, with a gradient of 0 at 0."""
    some = total > 0
    return torch.where(some, total, 1).pow(1 / p) * some


def _lp_pool(op: Op) -> Function:
    window, p = _Window(op), op.integer("p", 2)
    return lambda x: _root(window.summed(x.abs() ** p, window.pads(x.shape[2:])), p)


def _inner(x: Tensor) -> list[int]:
    return list(range(2, x.dim()))


def _global(function: Callable[[Tensor, list[int]], Tensor]) -> Builder:
    return lambda op: lambda x: function(x, _inner(x))


def _col2im(op: Op) -> Function:
    by, strides = (tuple(op.integers(name) or (1, 1)) for name in ("dilations", "strides"))
    pads = op.integers("pads")

    def col2im(x: Tensor, image: Tensor, block: Tensor) -> Tensor:
        """Blocks of a two-dimensional image, a column each, added up where they overlap."""
        size, kernel = whole(image), tuple(whole(block))
        if len(size) != 2:
            raise op.refuse(f"an image of {len(size)} axes; two are supported")
        low, high = (pads[:2], pads[2:]) if pads else ([0, 0], [0, 0])
        around = tuple(n + a + b for n, a, b in zip(size, low, high, strict=True))
        found = F.fold(x, around, kernel, by, 0, strides)
        return found[:, :, low[0] : low[0] + size[0], low[1] : low[1] + size[1]]

    return col2im


OPERATORS: Mapping[str, Builder] = {
    "AveragePool": _average_pool,
    "Col2Im": _col2im,
    "GlobalAveragePool": _global(lambda x, axes: x.mean(axes, keepdim=True)),
    "GlobalMaxPool": _global(lambda x, axes: x.amax(axes, keepdim=True)),
    "LpPool": _lp_pool,
    "MaxPool": _max_pool,
}
