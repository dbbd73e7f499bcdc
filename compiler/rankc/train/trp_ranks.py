"""Which ranks a truncation keeps: each layer by its energy, or all together by their MACs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from rankc.linalg import Floats
from rankc.passes.trp import Target, Trp
from rankc.train.shared_ranks import most_ranks


@dataclasses.dataclass(frozen=True, slots=True)
class Schedule:
    """What is kept at a step: all in the beginning, what is asked for after `anneal`."""

    pass_: Trp
    steps: int

    def ranks(self, step: int, squares: Mapping[Target, Floats]) -> dict[Target, int]:
        """Of every layer.

        Args:
            step: of the training; `steps` for what is kept in the end.
            squares: squared singular values of each layer, falling, (full,).
        """
        done = min((step + 1) / max(self.pass_.anneal * self.steps, 1.0), 1.0)
        if self.pass_.keep is not None:
            return jointly(squares, self.pass_.keep**done)
        energy = 1.0 - (1.0 - self.pass_.energy) * done
        return {target: fewest(one, energy) for target, one in squares.items()}


def fewest(squares: Floats, energy: float) -> int:
    """The smallest rank that keeps this share of the sum."""
    sums = np.cumsum(squares)
    return min(int((sums < energy * sums[-1]).sum()) + 1, len(squares))


def jointly(squares: Mapping[Target, Floats], share: float) -> dict[Target, int]:
    """Ranks with which all layers take this share of their MACs, or little less.

    Directions go in the order of their share of the layer's energy for each MAC; a layer whose
    factors would be no smaller stays whole, at full rank. At least one direction is left.
    """
    dense = sum(target.macs for target in squares)
    worth = [_shares(one) / target.macs_a_rank for target, one in squares.items()]

    def macs(found: Sequence[int]) -> int:
        return sum(
            target.macs if rank > target.most else rank * target.macs_a_rank
            for target, rank in zip(squares, found, strict=True)
        )

    found = dict(zip(squares, most_ranks(worth, macs, share * dense), strict=True))
    return {t: len(squares[t]) if rank > t.most else rank for t, rank in found.items()}


def _shares(squares: Floats) -> Floats:
    total = float(squares.sum())
    return squares / total if total > 0 else np.zeros_like(squares)
