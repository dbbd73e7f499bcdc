"""Paired bootstrap: how much a difference between two models would move on other rows.

Rows are drawn with replacement, as many as there are, and both models are judged on the same draw
[Efron, 1979]. A draw is kept as how often each row occurs, c, so that a score is sorted only once:
with C(i) the sum of c over the i lowest negatives, the draw's AUC is
    sum over positives p of c_p (C(negatives below p) + C(negatives not above p)) / (2 P N),
P and N the drawn positives and negatives. All of it is in integers, hence exact, ties included.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from rankc.validate.metrics import Floats, Labels

Counts = NDArray[np.int64]  # how often each row was drawn, (rows,)
Interval = tuple[float, float]
Statistic = Callable[[Counts], float]
Key = TypeVar("Key", bound=Hashable)

LEVEL = 0.95


@dataclasses.dataclass(frozen=True, slots=True)
class WeightedAuc:
    """AUC of one model's scores under any row counts, in O(rows) after one sort."""

    positives: NDArray[np.intp]  # rows of the positives, (P,)
    negatives: NDArray[np.intp]  # rows of the negatives by rising score, (N,)
    below: NDArray[np.intp]  # how many negatives score below each positive, (P,)
    not_above: NDArray[np.intp]  # how many score below it or the same, (P,)

    @classmethod
    def of(cls, labels: Labels, scores: Floats) -> WeightedAuc:
        """Sort once. `labels`, `scores`: (rows,)."""
        positives, negatives = np.flatnonzero(labels), np.flatnonzero(~labels)
        negatives = negatives[np.argsort(scores[negatives], kind="stable")]
        ranked = scores[negatives]
        below = np.searchsorted(ranked, scores[positives], side="left")
        not_above = np.searchsorted(ranked, scores[positives], side="right")
        return cls(positives, negatives, below, not_above)

    def __call__(self, counts: Counts) -> float:
        """NaN if the draw has rows of one class only."""
        drawn = counts[self.positives]
        drawn_negatives = np.zeros(len(self.negatives) + 1, np.int64)  # of the lowest i negatives
        np.cumsum(counts[self.negatives], out=drawn_negatives[1:])
        pairs = int(drawn.sum()) * int(drawn_negatives[-1])
        if pairs == 0:
            return float("nan")
        wins = np.dot(drawn, drawn_negatives[self.below] + drawn_negatives[self.not_above])
        return int(wins) / (2 * pairs)


def auc_difference(labels: Labels, original: Floats, compressed: Floats) -> Statistic:
    """AUC of the compressed model less that of the original, on a draw."""
    before, after = WeightedAuc.of(labels, original), WeightedAuc.of(labels, compressed)
    return lambda counts: after(counts) - before(counts)


@dataclasses.dataclass(frozen=True, slots=True)
class Mean:
    """Mean of a per-row quantity on a draw."""

    values: Floats  # (rows,)

    def __call__(self, counts: Counts) -> float:
        return self.weighted(counts.astype(np.float64))

    def weighted(self, weights: Floats) -> float:
        """The same, of counts that are floats already."""
        # Not np.dot: its BLAS threads wait for each other, 10 ms a call on a machine with other
        # work. einsum has none, and needs no memory of its own.
        return float(np.einsum("i,i->", weights, self.values)) / len(self.values)


def mean_of(values: Floats) -> Mean:
    """Mean of a per-row quantity on a draw; `values`: (rows,)."""
    return Mean(np.ascontiguousarray(values))


def intervals(
    statistics: Mapping[Key, Statistic],
    rows: int,
    *,
    resamples: int = 1000,
    seed: int = 0,
    tick: Callable[[int], None] = lambda done: None,
) -> dict[Key, Interval | None]:
    """95 % percentile interval of each statistic, all on the same draws.

    Args:
        statistics: Functions of how often each row was drawn.
        rows: Number of rows to draw from and to draw.
        resamples: Number of draws.
        seed: Same seed, same draws.
        tick: Told after each draw how many are done.

    Returns:
        An interval a statistic; None where more than half of the draws had one class only.
    """
    rng = np.random.default_rng(seed)
    values = np.empty((resamples, len(statistics)))
    for i in range(resamples):
        counts = np.bincount(rng.integers(0, rows, rows), minlength=rows)
        weights = counts.astype(np.float64)  # once, for all the means
        values[i] = [
            one.weighted(weights) if isinstance(one, Mean) else one(counts)
            for one in statistics.values()
        ]
        tick(i + 1)
    return {name: percentile_interval(values[:, j]) for j, name in enumerate(statistics)}


def percentile_interval(samples: Floats) -> Interval | None:
    """The central 95 % of what was drawn; None if over half of it is NaN. `samples`: (draws,)."""
    valid = samples[~np.isnan(samples)]
    if 2 * len(valid) <= len(samples):
        return None
    low, high = np.quantile(valid, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def median_interval(samples: Floats, *, resamples: int = 1000, seed: int = 0) -> Interval:
    """95 % bootstrap interval of a median. `samples`: (pairs,), a few dozen."""
    rng = np.random.default_rng(seed)
    draws = samples[rng.integers(0, len(samples), (resamples, len(samples)))]
    low, high = np.quantile(np.median(draws, axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
