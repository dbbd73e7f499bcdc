"""What a convolution reads for one of its outputs: a patch of its input, padding included.

y at a position is W p + b with p the patch under the kernel there, zeros where it hangs over the
border. So a convolution is a linear layer whose input rows are patches, and its moments are those
of patches drawn at random positions. Only the pixels of drawn patches leave the model: a Gather at
indices that the caller feeds.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """Geometry of a convolution over an input of fixed size; one entry an axis of space."""

    size: tuple[int, ...]  # of the input
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    begins: tuple[int, ...]  # padding before the first pixel
    ends: tuple[int, ...]  # padding after the last
    dilations: tuple[int, ...]
    groups: int = 1
    positions: int = 64  # patches drawn from an image, at most

    @property
    def output(self) -> tuple[int, ...]:
        """Size of the output."""
        axes = zip(
            self.size,
            self.kernel,
            self.strides,
            self.begins,
            self.ends,
            self.dilations,
            strict=True,
        )
        return tuple((n + a + b - d * (k - 1) - 1) // s + 1 for n, k, s, a, b, d in axes)

    @property
    def taps(self) -> int:
        """Pixels under the kernel."""
        return math.prod(self.kernel)

    def draw(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Flat indices into the output, rising, without repetition: all of them if they are few."""
        whole = math.prod(self.output)
        if whole <= self.positions:
            return np.arange(whole)
        return np.sort(rng.choice(whole, self.positions, replace=False))

    def under(self, drawn: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Flat input indices under the kernel (P, taps), and whether they are inside the input."""
        index, inside = np.zeros((len(drawn), 1), np.int64), np.ones((len(drawn), 1), bool)
        for axis, at in enumerate(np.unravel_index(drawn, self.output)):
            n, taps = self.size[axis], np.arange(self.kernel[axis])
            start = at * self.strides[axis] - self.begins[axis]
            pixel = start[:, None] + taps * self.dilations[axis]  # (P, k)
            valid = (pixel >= 0) & (pixel < n)
            index = (index[:, :, None] * n + np.clip(pixel, 0, n - 1)[:, None]).reshape(len(at), -1)
            inside = (inside[:, :, None] & valid[:, None]).reshape(len(at), -1)
        return index, inside

    def rows(self, pixels: Array, inside: NDArray[np.bool_]) -> Array:
        """Patches (groups, N P, channels of a group x taps) from gathered pixels (N, C, P taps)."""
        n, channels = pixels.shape[:2]
        patches = pixels.reshape(n, self.groups, channels // self.groups, *inside.shape)
        if not inside.all():
            patches = patches * inside.astype(pixels.dtype)
        rows = patches.transpose(1, 0, 3, 2, 4)
        return np.asarray(rows.reshape(self.groups, n * len(inside), -1))


def gather_pixels(value: ir.Value, index: ir.Value) -> tuple[list[ir.Node], ir.Value]:
    """Nodes that take pixels at flat indices (K,) from an image value (N, C, ...): (N, C, K)."""
    tape = ir.tape.Tape()
    shape = tape.op("Constant", [], attributes={"value": ir.tensor(np.array([0, 0, -1]))})
    flat = tape.op("Reshape", [value, shape], name=f"{index.name}.flat")
    taken = tape.op("Gather", [flat, index], attributes={"axis": 2}, name=f"{index.name}.pixels")
    return list(tape.nodes), taken
