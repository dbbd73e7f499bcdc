"""Tucker-2: 1 x 1 to fewer channels, the kernel on those, 1 x 1 back to all.

The first factor is that of the form `input` at a fixed number s of channels, refitted; what it
computes, y' = B P p, is then projected on the r leading directions U of its own outputs:
    W' = U UT B P        lost(r) = tr(W G WT) - 2 tr(UT W G (B P)T U) + tr(UT (B P) G (B P)T U)
Each s is a form of its own, `tucker-s`, nested in r. Its last rank is exact only if s is all of the
rank of `input`, so that is always offered. Kim et al., ICLR 2016, from weights; moments and refit
as in `split`.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from rankc.convolution.kernel import Kernel, Stage, pointwise
from rankc.convolution.split import Split
from rankc.linalg import Floats, directions, nested_tail


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Tucker:
    """Three convolutions, at every rank of the outputs."""

    kernel: Kernel
    inner: int  # channels after the first 1 x 1
    reduced: Split  # the form `input`
    bases: tuple[tuple[Floats, Floats], ...]  # encode and decode of the outputs, (m, R) each
    lost: Floats
    felt: Floats

    @property
    def name(self) -> str:
        return f"tucker-{self.inner}"

    def stages(self, rank: int) -> tuple[Stage, ...]:
        groups, m = self.kernel.weight.shape[:2]
        first, core = self.reduced.stages(self.inner)
        last = pointwise(core.window, core.window.output, groups)
        core = Stage((groups * rank, *core.shape[1:]), core.window)
        return first, core, Stage((groups * m, rank, *last.kernel), last)

    def weights(self, rank: int) -> list[Floats]:
        first, second = self.reduced.weights(self.inner)
        pairs = zip(self.bases, second, strict=True)
        core = np.stack([encode[:, :rank].T @ b for (encode, _), b in pairs])
        return [first, core, np.stack([decode[:, :rank] for _, decode in self.bases])]

    def matrix(self, rank: int) -> Floats:
        pairs = zip(self.bases, self.reduced.matrix(self.inner), strict=True)
        return np.stack([d[:, :rank] @ (e[:, :rank].T @ w) for (e, d), w in pairs])


def tucker(
    reduced: Split,
    inner: int,
    moments: Floats,
    metrics: Floats | None,
    felt: Floats | None,
    deciding: Floats | None = None,
) -> Tucker:
    """Project the outputs of the form `input` at `inner` channels.

    Args:
        reduced: The form `input`.
        inner: Its rank.
        moments: Of the patches, (groups, n, n).
        metrics: What the projection is best under, (groups, m, m); by default the identity.
        felt: Weight of an error at the outputs, (groups, m, m).
        deciding: The moments that it is best under; by default `moments`.
    """
    kernel, bases, lost, heavy = reduced.kernel, [], [], []
    for g, fitted in enumerate(reduced.matrix(inner)):
        weight, moment = kernel.matrix[g], moments[g]
        best = moment if deciding is None else deciding[g]
        found = directions(fitted @ best @ fitted.T, None if metrics is None else metrics[g])
        bases.append((found.encode, found.decode))
        seen = weight @ moment @ fitted.T, fitted @ moment @ fitted.T
        total = weight @ moment @ weight.T
        lost.append(_lost(found.encode, found.decode, total, *seen, None))
        heavy.append(
            _lost(found.encode, found.decode, total, *seen, None if felt is None else felt[g])
        )
    return Tucker(kernel, inner, reduced, tuple(bases), np.sum(lost, axis=0), np.sum(heavy, axis=0))


def _lost(
    encode: Floats,
    decode: Floats,
    total: Floats,
    cross: Floats,
    spread: Floats,
    metric: Floats | None,
) -> Floats:
    """tr(metric E[Δ ΔT]) with Δ = y - D ET y', at every rank, (R + 1,)."""
    heavy = decode if metric is None else metric @ decode
    whole = float(np.trace(total)) if metric is None else float(np.sum(metric * total))
    linear = np.einsum("mr,mr->r", cross @ encode, heavy)
    return nested_tail(whole, linear, (decode.T @ heavy) * (encode.T @ spread @ encode))


def inner_channels(reduced: Split, step: int) -> list[int]:
    """Which s to offer: quarters of the rank of `input`, in steps, and all of it."""
    full = len(reduced.lost) - 1
    some = {max(step, round(full * q / 4 / step) * step) for q in (1, 2, 3)}
    return sorted({s for s in some if s < full} | {full})
