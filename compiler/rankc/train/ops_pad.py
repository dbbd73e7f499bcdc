"""Padding and triangles."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it

from rankc.train.registry import Builder, Function, Op, Tensor
from rankc.train.tensors import reader


def _pad(op: Op) -> Function:
    """Negative pads cut off."""
    mode = op.text("mode", "constant")
    if mode != "constant" and mode not in _PLACES:
        raise op.refuse(f"mode is {mode!r}; known are constant, {', '.join(_PLACES)}")
    read, read_axes, known = reader(op, 1), reader(op, 3), op.constant(2)

    def pad(
        x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None
    ) -> Tensor:
        amounts = read(pads)
        half = len(amounts) // 2
        along = list(range(half)) if axes is None else [k % x.dim() for k in read_axes(axes)]
        around = dict(zip(along, zip(amounts[:half], amounts[half:], strict=True), strict=True))
        if mode == "constant":
            return _filled(x, around, value if known is None else known.item())
        for axis, (before, after) in around.items():
            size = x.shape[axis]
            places = torch.arange(-before, size + after, device=x.device)
            x = x.index_select(axis, _PLACES[mode](places, size))
        return x

    return pad


def _filled(
    x: Tensor, around: Mapping[int, tuple[int, int]], value: Tensor | float | None
) -> Tensor:
    pads = [n for k in reversed(range(x.dim())) for n in around.get(k, (0, 0))]
    if isinstance(value, Tensor):
        inside = F.pad(torch.ones_like(x, dtype=torch.bool), pads)
        return torch.where(inside, F.pad(x, pads), value.to(x.device))
    return F.pad(x, pads, value=value)


def _reflected(places: Tensor, size: int) -> Tensor:
    """To and fro between the first and the last, neither of them twice."""
    if size == 1:
        return torch.zeros_like(places)
    once = places % (2 * (size - 1))
    return torch.minimum(once, 2 * (size - 1) - once)


_PLACES: Mapping[str, Callable[[Tensor, int], Tensor]] = {
    "reflect": _reflected,
    "edge": lambda places, size: places.clamp(0, size - 1),
    "wrap": lambda places, size: places % size,
}


def _center_crop_pad(op: Op) -> Function:
    given, read = op.integers("axes"), reader(op, 1)

    def center_crop_pad(x: Tensor, shape: Tensor) -> Tensor:
        axes = list(range(x.dim())) if given is None else [k % x.dim() for k in given]
        around = {}
        for axis, size in zip(axes, read(shape), strict=True):
            missing = size - x.shape[axis]
            before = missing // 2 if missing > 0 else -(-missing // 2)
            around[axis] = (before, missing - before)
        return _filled(x, around, None)

    return center_crop_pad


def _trilu(op: Op) -> Function:
    half, read = torch.triu if op.integer("upper", 1) else torch.tril, reader(op, 1)
    return lambda x, k=None: half(x, 0 if k is None else read(k)[0])


OPERATORS: Mapping[str, Builder] = {
    "CenterCropPad": _center_crop_pad,
    "Pad": _pad,
    "Trilu": _trilu,
}
