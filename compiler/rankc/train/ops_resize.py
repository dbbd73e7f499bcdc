"""Images of other sizes, an axis after another, and images read at places given."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it
from numpy.typing import NDArray

from rankc.train.registry import Builder, Function, Op, Tensor
from rankc.train.tensors import whole

Floats = NDArray[np.float64]
Range = tuple[float, float]  # of the input that is looked at, as a share of it

_REACH = {"nearest": 0, "linear": 1, "cubic": 2}  # of the kernel, in input pixels
_PLACES = (
    "align_corners", "asymmetric", "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel",
    "tf_crop_and_resize",
)  # fmt: skip
_NEAREST = ("ceil", "floor", "round_prefer_ceil", "round_prefer_floor")
_POLICIES = ("not_larger", "not_smaller", "stretch")


@dataclasses.dataclass(frozen=True, slots=True)
class _Resize:
    """Attributes of the node."""

    mode: str
    places: str
    nearest: str
    policy: str
    axes: list[int] | None
    sharpness: float
    antialias: bool
    inside: bool
    outside: float

    @classmethod
    def of(cls, op: Op) -> _Resize:
        def chosen(name: str, default: str, known: Sequence[str]) -> str:
            found = op.text(name, default)
            if found not in known:
                raise op.refuse(f"{name} {found!r}; known are {', '.join(known)}")
            return found

        return cls(
            chosen("mode", "nearest", list(_REACH)),
            chosen("coordinate_transformation_mode", "half_pixel", _PLACES),
            chosen("nearest_mode", "round_prefer_floor", _NEAREST),
            chosen("keep_aspect_ratio_policy", "stretch", _POLICIES), op.integers("axes"),
            op.number("cubic_coeff_a", -0.75), bool(op.integer("antialias", 0)),
            bool(op.integer("exclude_outside", 0)), op.number("extrapolation_value", 0.0),
        )  # fmt: skip

    def origins(self, size: int, count: int, scale: float, span: Range) -> Floats:
        """Where in the input, in pixels, each of `count` outputs lies."""
        at, exact = np.arange(count, dtype=np.float64), scale * size
        if self.places == "asymmetric":
            return at / scale
        if self.places == "align_corners":
            return at * 0 if exact == 1 else at * (size - 1) / (exact - 1)
        if self.places == "tf_crop_and_resize":
            low, high = span
            part = (high - low) * (size - 1)
            return low * (size - 1) + (at * 0 + part / 2 if exact == 1 else at * part / (exact - 1))
        if self.places == "pytorch_half_pixel" and exact == 1:
            return at - 0.5
        moved = size / 2 * (1 - count / exact) if self.places == "half_pixel_symmetric" else 0.0
        found: Floats = moved + (at + 0.5) / scale - 0.5
        return found

    def picked(self, origins: Floats) -> Floats:
        """The pixel nearest to each place."""
        if self.nearest == "floor":
            return np.floor(origins)
        if self.nearest == "ceil":
            return np.ceil(origins)
        if self.nearest == "round_prefer_ceil":
            return np.floor(origins + 0.5)
        return np.ceil(origins - 0.5)

    def taps(self, origins: Floats, size: int, scale: float) -> tuple[Floats, Floats]:
        """(outputs, taps) of pixels that each output is made of, beyond the edge too, and shares.

        R. Keys, "Cubic convolution interpolation for digital image processing", 1981. Against
        aliasing the kernel is as much wider as the output is smaller.
        """
        narrow = min(scale, 1.0) if self.antialias else 1.0
        first = math.floor(-_REACH[self.mode] / narrow) + 1
        base: Floats = np.ceil(origins) - 1
        pixels: Floats = base[:, None] + first + np.arange(2.0 - 2 * first)
        shares = self._kernel(np.abs(pixels - origins[:, None]) * narrow)
        if self.inside:
            shares = np.where((pixels >= 0) & (pixels < size), shares, 0)
        total = shares.sum(1, keepdims=True)
        return pixels, shares / np.where(total == 0, 1, total)

    def _kernel(self, away: Floats) -> Floats:
        if self.mode == "linear":
            return np.maximum(1 - away, 0)
        a = self.sharpness
        near = ((a + 2) * away - (a + 3)) * away**2 + 1
        far = ((a * away - 5 * a) * away + 8 * a) * away - 4 * a
        return np.where(away <= 1, near, np.where(away < 2, far, 0))

    def along(self, x: Tensor, axis: int, count: int, scale: float, span: Range) -> Tensor:
        """The tensor with `count` numbers along an axis."""
        size = x.shape[axis]
        origins = self.origins(size, count, scale, span)
        if self.mode == "nearest":
            y = x.index_select(axis, _index(self.picked(origins), size, x))
        else:
            pixels, shares = self.taps(origins, size, scale)
            across = [1] * x.dim()
            across[axis] = count
            y = x.new_zeros([count if k == axis else n for k, n in enumerate(x.shape)])
            for pixel, share in zip(pixels.T, shares.T, strict=True):
                weight = torch.from_numpy(share).to(x.device, x.dtype).reshape(across)
                y = y + x.index_select(axis, _index(pixel, size, x)) * weight
        if self.places == "tf_crop_and_resize":
            beyond = torch.from_numpy((origins < 0) | (origins > size - 1)).to(x.device)
            y = y.masked_fill(beyond.reshape([-1 if k == axis else 1 for k in range(x.dim())]),
                              self.outside)  # fmt: skip
        return y


def _index(pixels: Floats, size: int, x: Tensor) -> Tensor:
    """Beyond the edge is the edge."""
    return torch.from_numpy(np.clip(pixels, 0, size - 1).astype(np.int64)).to(x.device)


def _resize(op: Op) -> Function:
    how = _Resize.of(op)

    def resize(
        x: Tensor, roi: Tensor | None = None, scales: Tensor | None = None,
        sizes: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        if how.mode != "nearest" and not x.is_floating_point():
            raise op.refuse(f"mode {how.mode} of integers; floats are supported")
        axes = [k % x.dim() for k in how.axes or range(x.dim())]
        here = [x.shape[k] for k in axes]
        if sizes is not None and sizes.numel():
            counts, factors = _fitted(how.policy, here, whole(sizes))
        elif scales is not None and scales.numel():
            factors = scales.tolist()
            counts = [math.floor(n * f) for n, f in zip(here, factors, strict=True)]
        else:
            raise op.refuse("neither scales nor sizes")
        spans = [(0.0, 1.0)] * len(axes)
        if roi is not None and roi.numel() and how.places == "tf_crop_and_resize":
            spans = list(zip(*roi.reshape(2, -1).tolist(), strict=True))
        for axis, count, factor, span in zip(axes, counts, factors, spans, strict=True):
            if count != x.shape[axis] or factor != 1 or span != (0, 1):
                x = how.along(x, axis, count, factor, span)
        return x

    return resize


def _fitted(policy: str, here: list[int], wanted: list[int]) -> tuple[list[int], list[float]]:
    """How large each axis becomes, and by which factor."""
    factors = [n / m for n, m in zip(wanted, here, strict=True)]
    if policy == "stretch":
        return wanted, factors
    factor = min(factors) if policy == "not_larger" else max(factors)
    return [math.floor(factor * n + 0.5) for n in here], [factor] * len(here)


_MODES = {"linear": "bilinear", "cubic": "bicubic"}


def _grid_sample(op: Op) -> Function:
    given, beyond = op.text("mode", "linear"), op.text("padding_mode", "zeros")
    mode, corners = _MODES.get(given, given), bool(op.integer("align_corners", 0))

    def grid_sample(x: Tensor, grid: Tensor) -> Tensor:
        if x.dim() not in (4, 5) or (x.dim() == 5 and mode == "bicubic"):
            raise op.refuse(
                f"mode {given} over {x.dim() - 2} axes; supported are nearest and linear over two "
                "or three, cubic over two"
            )
        return F.grid_sample(x, grid, mode, beyond, corners)

    return grid_sample


def _affine_grid(op: Op) -> Function:
    corners = bool(op.integer("align_corners", 0))
    return lambda theta, size: F.affine_grid(theta, whole(size), corners)


OPERATORS: Mapping[str, Builder] = {
    "AffineGrid": _affine_grid,
    "GridSample": _grid_sample,
    "Resize": _resize,
}
