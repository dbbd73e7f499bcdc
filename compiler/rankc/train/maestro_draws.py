"""Which ranks Maestro's layers run at in a step: one layer's at a time, or all within a budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rankc.linalg import Floats
from rankc.passes.maestro import Target
from rankc.train.shared_ranks import most_ranks

LEVELS = 12  # budgets that are drawn from
PLANNED = 50  # steps for which the ranks of a budget hold


class Pairs:
    """Pairs of a layer and a rank, without replacement; in another order every time round."""

    def __init__(self, seed: int, ranks: Sequence[int]) -> None:
        self._seed, self.ranks, self.cycle, self.at = seed, list(ranks), 0, 0
        self._shuffle()

    def _shuffle(self) -> None:
        rng = np.random.default_rng([self._seed, self.cycle])
        self._order = rng.permutation(sum(self.ranks))
        self._starts = np.concatenate([[0], np.cumsum(self.ranks)])

    def next(self) -> tuple[int, int]:
        """The number of a layer, and a rank of it from 1 to all that it has."""
        if self.at == len(self._order):
            self._go_to(self.cycle + 1, 0)
        pair = int(self._order[self.at])
        self.at += 1
        layer = int(np.searchsorted(self._starts, pair, side="right")) - 1
        return layer, pair - int(self._starts[layer]) + 1

    def restart(self, ranks: Sequence[int]) -> None:
        """Begin anew where ranks have changed."""
        if list(ranks) != self.ranks:
            self.ranks = list(ranks)
            self._go_to(self.cycle + 1, 0)

    def _go_to(self, cycle: int, at: int) -> None:
        self.cycle, self.at = cycle, at
        self._shuffle()

    def state_dict(self) -> dict[str, Any]:
        """Where the draws are."""
        return {"cycle": self.cycle, "at": self.at, "ranks": self.ranks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The other way round."""
        self.ranks = list(state["ranks"])
        self._go_to(state["cycle"], state["at"])


class Budgets:
    """Ranks of all layers together, within a share of their MACs that is drawn for every step."""

    def __init__(self, seed: int, targets: Sequence[Target], smallest: float) -> None:
        """Make one; shares go from `smallest` to 1, each as likely on a logarithmic scale."""
        self._seed, self._targets = seed, targets
        self._shares = np.geomspace(smallest, 1.0, LEVELS)
        self._plans: list[list[int]] = []

    def due(self, step: int) -> bool:
        """Whether it has to be planned before that step is drawn."""
        return not self._plans or step % PLANNED == 0

    def plan(self, gains: Sequence[Floats]) -> None:
        """Fix the ranks of every share, by what the directions of each layer are worth, (k,)."""
        self._plans = [ranks_within(gains, self._targets, float(s)) for s in self._shares]

    def next(self, step: int) -> list[int]:
        """A rank for every layer."""
        level = int(np.random.default_rng([self._seed, step]).integers(LEVELS))
        return self._plans[level]

    def forget(self) -> None:
        """Plan anew: ranks have changed."""
        self._plans = []

    def state_dict(self) -> dict[str, Any]:
        """The plans."""
        return {"plans": self._plans}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The other way round."""
        self._plans = [list(ranks) for ranks in state["plans"]]


def ranks_within(gains: Sequence[Floats], targets: Sequence[Target], share: float) -> list[int]:
    """Ranks with which all layers take this share of their MACs, or little less.

    A direction counts by its share of its layer's gains for each MAC, and no less than any behind
    it, which need it. A layer whose factors would be no cheaper has all of its directions.

    Args:
        gains: of each layer's directions, in their order, (k,).
        targets: the layers.
        share: of their MACs when dense.
    """
    dense = sum(target.macs for target in targets)
    worth = [
        np.maximum.accumulate(g[::-1])[::-1] / (max(float(g.sum()), 1e-300) * t.macs_a_rank)
        for g, t in zip(gains, targets, strict=True)
    ]

    def macs(found: Sequence[int]) -> int:
        pairs = zip(found, targets, strict=True)
        return sum(min(rank * target.macs_a_rank, target.macs) for rank, target in pairs)

    found = zip(most_ranks(worth, macs, share * dense), targets, worth, strict=True)
    return [len(w) if rank * t.macs_a_rank >= t.macs else rank for rank, t, w in found]
