"""Pearson's and Spearman's correlation of two numbers a row, on any draw of rows.

With c how often a row is drawn, Pearson's is that of sums weighted by c. Spearman's is Pearson's of
midranks: those of a draw are C - (c_tie - 1) / 2 with c_tie the rows drawn of a tie and C those up
to and with it, so that values are sorted only once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankc.validate.bootstrap import Counts, Statistic
from rankc.validate.metrics import Floats

FEWEST = 3  # of two rows the correlation is 1 or -1, whatever they are


def pearson(x: Floats, y: Floats) -> float:
    """Of (rows,) each; NaN if one of them is constant."""
    from scipy.stats import pearsonr

    return _value(pearsonr, x, y)


def spearman(x: Floats, y: Floats) -> float:
    """Of (rows,) each; NaN if one of them is constant."""
    from scipy.stats import spearmanr

    return _value(spearmanr, x, y)


def _value(correlate: Callable[[Floats, Floats], Any], x: Floats, y: Floats) -> float:
    return math.nan if constant(x) or constant(y) else float(correlate(x, y).statistic)


def constant(values: Floats) -> bool:
    """Whether all are the same."""
    return bool((values == values[0]).all())


def pearson_of(x: Floats, y: Floats) -> Statistic:
    """On a draw; NaN if one of them is constant on it. `x`, `y`: (rows,)."""
    centred = x - x.mean(), y - y.mean()  # far from zero the sums would lose their digits
    return lambda counts: _weighted(*centred, counts)


def spearman_of(x: Floats, y: Floats) -> Statistic:
    """On a draw; NaN if one of them is constant on it. `x`, `y`: (rows,)."""
    first, second = Ties.of(x), Ties.of(y)
    return lambda counts: _weighted(first.midranks(counts), second.midranks(counts), counts)


def _weighted(x: Floats, y: Floats, counts: Counts) -> float:
    total = counts.sum()
    if not total:
        return math.nan
    dx, dy = (values - (counts * values).sum() / total for values in (x, y))
    xx, yy = (float((counts * d * d).sum()) for d in (dx, dy))
    if not xx or not yy:
        return math.nan
    found = float((counts * dx * dy).sum()) / (math.sqrt(xx) * math.sqrt(yy))
    return max(-1.0, min(1.0, found))


@dataclasses.dataclass(frozen=True, slots=True)
class Ties:
    """Values sorted once."""

    tie_of: NDArray[np.intp]  # which of the distinct values, by rising value, each row has, (rows,)

    @classmethod
    def of(cls, values: Floats) -> Ties:
        """`values`: (rows,)."""
        return cls(np.unique(values, return_inverse=True)[1])

    def midranks(self, counts: Counts) -> Floats:
        """Mean 1-based rank of each row's value in a draw, (rows,)."""
        drawn = np.bincount(self.tie_of, weights=counts)
        ranks: Floats = np.cumsum(drawn) - (drawn - 1) / 2.0
        return ranks[self.tie_of]
