"""Network decoupling: 1 x 1 to T channels for every output, then a kernel for each, summed.

For an output o the kernel is a matrix C x taps; its rank-T part is T pairs of a 1 x 1 and a
depthwise kernel. All of them are two convolutions: 1 x 1 to m T channels, then one with m groups
of T channels. Directions from the moment of the channels (mean over taps); the kernels then are
refitted by least squares, each output on its own. Guo et al., BMVC 2018; refit ours.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from rankc.convolution.kernel import Kernel, Stage, pointwise
from rankc.convolution.refit import Refit, refit
from rankc.convolution.split import first_factors, map_of
from rankc.linalg import Floats
from rankc.windows import Window


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Decoupled:
    """Pointwise, then depthwise, at every T."""

    kernel: Kernel
    firsts: tuple[Floats, ...]  # an output's 1 x 1 kernels, (T, C)
    fits: tuple[Refit, ...]
    maps: tuple[Floats, ...]  # P of each output, (T taps, C taps)
    felt: Floats

    name = "decoupled"

    @property
    def lost(self) -> Floats:
        return np.asarray(np.sum([fit.lost for fit in self.fits], axis=0), np.float64)

    def stages(self, rank: int) -> tuple[Stage, ...]:
        _, m, channels = self.kernel.weight.shape[:3]
        window = self.kernel.window
        first: Window = pointwise(window, window.size)
        second = dataclasses.replace(window, groups=m)
        return (
            Stage((m * rank, channels, *first.kernel), first),
            Stage((m, rank, *window.kernel), second),
        )

    def weights(self, rank: int) -> list[Floats]:
        first = np.concatenate([v[:rank] for v in self.firsts])
        return [first, np.concatenate([fit.second(rank) for fit in self.fits])]

    def matrix(self, rank: int) -> Floats:
        pairs = zip(self.fits, self.maps, strict=True)
        rows = [fit.second(rank) @ p[: rank * fit.block] for fit, p in pairs]
        return np.concatenate(rows)[None]


def decoupled(
    kernel: Kernel, moments: Floats, felt: Floats | None, deciding: Floats | None = None
) -> Decoupled:
    """The form.

    Args:
        kernel: The convolution, of one group.
        moments: Of its patches, (1, n, n).
        felt: Weight of an error at its outputs, (1, m, m); its diagonal counts here.
        deciding: The moments that the factors are best under; by default `moments`.
    """
    window, best = kernel.window, (moments if deciding is None else deciding)[0]
    firsts, fits, maps, heavy = [], [], [], []
    for o, weight in enumerate(kernel.weight[0]):
        v = first_factors(weight[None], best, (), None)  # (T, C, 1)
        p = map_of(v, window.kernel, ())
        flat = weight.reshape(1, -1)
        fit = refit(flat, moments[0], p, math.prod(window.kernel), deciding=best)
        firsts.append(v[:, :, 0])
        fits.append(fit)
        maps.append(p)
        heavy.append(fit.lost * (1.0 if felt is None else float(felt[0, o, o])))
    return Decoupled(kernel, tuple(firsts), tuple(fits), tuple(maps), np.sum(heavy, axis=0))
