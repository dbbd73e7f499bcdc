"""Padding and triangles."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it

from rankc.train.registry import Builder, Function, Op, Tensor
from rankc.train.tensors import whole


def _pad(op: Op) -> Function:
    """Negative pads cut off."""
    mode = op.text("mode", "constant")
    if mode != "constant" and mode not in _PLACES:
        raise op.refuse(f"mode is {mode!r}; known are constant, {', '.join(_PLACES)}")

    def pad(
        x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None
    ) -> Tensor:
        amounts = whole(pads)
        half = len(amounts) // 2
        along = list(range(half)) if axes is None else [k % x.dim() for k in whole(axes)]
        around = dict(zip(along, zip(amounts[:half], amounts[half:], strict=True), strict=True))
        if mode == "constant":
            return _filled(x, around, 0 if value is None else value.item())
        for axis, (before, after) in around.items():
            size = x.shape[axis]
            places = torch.arange(-before, size + after, device=x.device)
            x = x.index_select(axis, _PLACES[mode](places, size))
        return x

    return pad


def _filled(x: Tensor, around: Mapping[int, tuple[int, int]], value: float) -> Tensor:
    pairs = [around.get(axis, (0, 0)) for axis in reversed(range(x.dim()))]
    return F.pad(x, [n for pair in pairs for n in pair], value=value)


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


def _trilu(op: Op) -> Function:
    half = torch.triu if op.integer("upper", 1) else torch.tril
    return lambda x, k=None: half(x, 0 if k is None else int(k))


OPERATORS: Mapping[str, Builder] = {
    "Pad": _pad,
    "Trilu": _trilu,
}
