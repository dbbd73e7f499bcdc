"""A convolution solved: every form that it may take, with its error and its cost at every rank."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np

from rankc.convolution.chain import Chain
from rankc.convolution.kernel import Kernel, Stage
from rankc.linalg import Floats, share_lost
from rankc.passbase import Curve, SiteStats
from rankc.pivot import index_bytes


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """A convolution in every form."""

    kernel: Kernel
    mean: Floats | None  # of the patches, (groups, n); None: the bias is not to be corrected
    chains: dict[str, Chain]
    variance: float  # of the outputs, summed over channels
    energy: float  # E|y - bias|^2
    scale: float  # what is felt of an error, where it is one number

    @classmethod
    def of(
        cls, kernel: Kernel, stats: SiteStats, chains: Iterable[Chain], centred: bool
    ) -> Solution:
        """Chains of a kernel, held against what calibration found.

        Args:
            kernel: the convolution.
            stats: with the moments of its patches.
            chains: a form each.
            centred: whether the bias is to keep the mean output.
        """
        inputs = stats.inputs
        assert inputs is not None
        energy, variance = (
            float(np.einsum("gmn,gnk,gmk->", kernel.matrix, m, kernel.matrix, optimize=True))
            for m in (inputs.second, inputs.covariance)
        )
        scale = stats.output_weight if isinstance(stats.output_weight, float) else 1.0
        named = {chain.name: chain for chain in chains}
        return cls(kernel, inputs.mean if centred else None, named, variance, energy, scale)

    def error(self, form: str) -> Floats:
        """Share of the output's variance lost at every rank of a form, (full + 1,)."""
        return share_lost(self.chains[form].lost, self.variance, self.energy)

    def curve(self, ranks: Mapping[str, Sequence[int]]) -> Curve:
        """What the ranks of every form would cost."""
        m = int(np.prod(self.kernel.weight.shape[:2]))
        added = m if self.kernel.bias is not None or self.mean is not None else 0
        entries = [
            (name, rank, self.chains[name].stages(rank))
            for name, all_ in ranks.items()
            for rank in all_
        ]
        errors = {name: self.error(name) for name in ranks}
        losses = {name: self.scale * self.chains[name].felt for name in ranks}
        count = np.array([added + _sum(stages, "parameters") for _, _, stages in entries])
        index = [index_bytes(r, m) if f == "pivot" else 0 for f, r, _ in entries]
        return Curve(
            ranks=np.array([rank for _, rank, _ in entries]),
            error=np.array([errors[name][rank] for name, rank, _ in entries]),
            loss=np.array([losses[name][rank] for name, rank, _ in entries]),
            parameters=count,
            macs=np.array([_sum(stages, "macs") for _, _, stages in entries]),
            size_bytes=4 * count + np.array(index),
            forms=tuple(name for name, _, _ in entries),
        )

    def bias(self, chain: Chain, rank: int) -> Floats | None:
        """Of the last stage: it keeps the mean output, where that is asked for."""
        bias = self.kernel.bias
        if self.mean is None:
            return bias
        missing = (self.kernel.matrix - chain.matrix(rank)) @ self.mean[:, :, None]
        return missing.reshape(-1) + (0.0 if bias is None else bias)


def within_groups(weight: Floats | float | None, kernel: Kernel) -> Floats | None:
    """The part of E[g gT] within each group, (groups, m, m); None where there is no matrix."""
    if not isinstance(weight, np.ndarray):
        return None
    groups, m = kernel.weight.shape[:2]
    blocks = np.einsum("gigj->gij", weight.reshape(groups, m, groups, m))
    return np.asarray(blocks, np.float64)


def _sum(stages: Sequence[Stage], figure: Literal["parameters", "macs"]) -> int:
    return sum(getattr(stage, figure) for stage in stages)
