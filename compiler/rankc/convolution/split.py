"""Two convolutions in the place of one: some axes of the kernel first, then the others.

The kernel (m, C, *taps), taps = a x b, is a matrix (C a) x (m b) of rank r at most min(C a, m b):
  channel     a = all taps, b = 1      k x k to r channels, then 1 x 1
  input       a = 1, b = all taps      1 x 1 to r channels, then k x k
  vertical    a = first axis           k x 1, then 1 x k
  horizontal  a = the other axes       1 x k, then k x 1
First factor: leading directions of that matrix under the moment of what it reads (the mean over b
of the moment of (C a)), and of what is felt behind. Second factor: least squares, see `refit`.
Stride, padding and dilation of an axis go with the factor that has it; the first has no bias, so
padding stays zero. Zhang et al., TPAMI 2016 (channel, from outputs), Jaderberg et al., BMVC 2014
(vertical, from weights); the moments and the closed-form refit are what the accuracy comes from.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from rankc.convolution.kernel import Kernel, Stage, along
from rankc.convolution.refit import Refit, damp, refit
from rankc.linalg import Floats, eigh_descending, square_root
from rankc.windows import Window


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Split:
    """The two factors, at every rank."""

    name: str
    kernel: Kernel
    first: tuple[Window, tuple[Floats, ...]]  # geometry; a group's V, (R, C, a)
    second: tuple[Window, tuple[Refit, ...]]
    maps: tuple[Floats, ...]  # P of each group, (R b, C taps)

    @property
    def lost(self) -> Floats:
        return np.asarray(np.sum([fit.lost for fit in self.second[1]], axis=0), np.float64)

    @property
    def felt(self) -> Floats:
        return np.asarray(np.sum([fit.felt for fit in self.second[1]], axis=0), np.float64)

    def stages(self, rank: int) -> tuple[Stage, ...]:
        groups, m, channels = self.kernel.weight.shape[:3]
        a, b = self.first[0], self.second[0]
        return (
            Stage((groups * rank, channels, *a.kernel), a),
            Stage((groups * m, rank, *b.kernel), b),
        )

    def weights(self, rank: int) -> list[Floats]:
        first = np.stack([v[:rank] for v in self.first[1]])
        return [first, np.stack([fit.second(rank) for fit in self.second[1]])]

    def matrix(self, rank: int) -> Floats:
        pairs = zip(self.second[1], self.maps, strict=True)
        return np.stack([fit.second(rank) @ p[: rank * fit.block] for fit, p in pairs])


def axes_of(name: str, kernel: Kernel) -> tuple[int, ...]:
    """The axes of space in the first factor."""
    every = tuple(range(len(kernel.window.kernel)))
    wide = tuple(axis for axis in every if kernel.window.kernel[axis] > 1)
    if name == "channel":
        return every
    if name == "input":
        return ()
    head, tail = wide[:1], wide[1:]
    return tuple(a for a in every if a not in (tail if name == "vertical" else head))


def split(
    name: str,
    kernel: Kernel,
    moments: Floats,
    felt: Floats | None,
    deciding: Floats | None = None,
    weighted: bool = True,
) -> Split:
    """The form `name`.

    Args:
        name: channel, input, vertical or horizontal.
        kernel: The convolution.
        moments: Of its patches, (groups, n, n).
        felt: Weight of an error at its outputs, (groups, m, m).
        deciding: The moments that the factors are best under; by default `moments`.
        weighted: Whether `felt` decides on the directions, too.
    """
    axes = axes_of(name, kernel)
    a, b = windows(kernel.window, axes)
    firsts, fits, maps = [], [], []
    for g, weight in enumerate(kernel.weight):
        heavy = None if felt is None else felt[g]
        best = (moments if deciding is None else deciding)[g]
        v = first_factors(weight, best, axes, heavy if weighted else None)
        p = map_of(v, kernel.window.kernel, axes)
        firsts.append(v)
        maps.append(p)
        fits.append(refit(kernel.matrix[g], moments[g], p, math.prod(b.kernel), heavy, best))
    return Split(name, kernel, (a, tuple(firsts)), (b, tuple(fits)), tuple(maps))


def windows(window: Window, axes: tuple[int, ...]) -> tuple[Window, Window]:
    """Of the first factor, which runs along `axes`, and of the second."""
    a = along(window, axes, window.groups)
    rest = tuple(axis for axis in range(len(window.kernel)) if axis not in axes)
    return a, along(dataclasses.replace(window, size=a.output), rest, window.groups)


def first_factors(
    weight: Floats, moment: Floats, axes: tuple[int, ...], felt: Floats | None
) -> Floats:
    """First factors V, (R, C, a), the most useful first: no moment is inverted."""
    m, channels, *taps = weight.shape
    unfolded = unfold(weight, axes)  # (C a, m b)
    moment = damp(_moment_of(moment, channels, tuple(taps), axes))
    heavy = unfolded
    if felt is not None:
        root, _ = square_root(felt)
        heavy = np.einsum("imb,mk->ikb", unfolded.reshape(len(unfolded), m, -1), root)
        heavy = heavy.reshape(unfolded.shape)
    if heavy.shape[1] <= heavy.shape[0]:
        _, right = eigh_descending(heavy.T @ moment @ heavy)
        found = right.T @ heavy.T
    else:
        values, vectors = eigh_descending(moment)
        root = (vectors * np.sqrt(values)) @ vectors.T
        _, left = eigh_descending(root @ (heavy @ heavy.T) @ root)
        found = left.T @ root @ (heavy @ heavy.T)
    size = np.linalg.norm(found, axis=1, keepdims=True)
    found = found / np.where(size > 0, size, 1.0)
    return np.asarray(found.reshape(len(found), channels, -1), np.float64)


def unfold(weight: Floats, axes: tuple[int, ...]) -> Floats:
    """(m, C, *taps) as (C a, m b)."""
    rest = [axis for axis in range(weight.ndim - 2) if axis not in axes]
    order = (1, *(2 + a for a in axes), 0, *(2 + a for a in rest))
    rows = weight.shape[1] * math.prod(weight.shape[2 + a] for a in axes)
    return np.asarray(weight.transpose(order).reshape(rows, -1), np.float64)


def _moment_of(
    moment: Floats, channels: int, taps: tuple[int, ...], axes: tuple[int, ...]
) -> Floats:
    """Of (C a), averaged over the taps b, (C a, C a)."""
    if len(axes) == len(taps):
        return moment
    rest = [axis for axis in range(len(taps)) if axis not in axes]
    order = (0, *(1 + a for a in axes), *(1 + a for a in rest))
    both = (*order, *(len(order) + o for o in order))
    rows = channels * math.prod(taps[a] for a in axes)
    whole = moment.reshape(channels, *taps, channels, *taps).transpose(both)
    whole = whole.reshape(rows, -1, rows, math.prod(taps[a] for a in rest))
    return np.asarray(np.einsum("ibjb->ij", whole) / whole.shape[1], np.float64)


def map_of(first: Floats, taps: tuple[int, ...], axes: tuple[int, ...]) -> Floats:
    """P (R b, C taps) of first factors (R, C, a): each tap of b sees its own pixels."""
    rest = [axis for axis in range(len(taps)) if axis not in axes]
    b = math.prod(taps[axis] for axis in rest)
    whole = np.einsum("rca,bd->rbcad", first, np.eye(b))
    shape = (*whole.shape[:3], *(taps[a] for a in axes), *(taps[a] for a in rest))
    places = [*axes, *rest]
    order = (0, 1, 2, *(3 + places.index(axis) for axis in range(len(taps))))
    return np.asarray(whole.reshape(shape).transpose(order).reshape(len(first) * b, -1), np.float64)
