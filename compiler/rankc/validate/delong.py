"""How much the areas under two ROC curves of the same rows would move on other rows.

With psi(x, y) = 1, 1/2 or 0 as x > y, x = y or x < y, the placement of a positive is the share of
negatives that it beats, V10(i) = mean over j of psi(x_i, y_j), and of a negative the share of
positives that beat it, V01(j). Both have the AUC as their mean, and of P positives, N negatives
    cov(AUC_1, AUC_2) = cov(V10_1, V10_2) / P + cov(V01_1, V01_2) / N
[DeLong, DeLong and Clarke-Pearson, 1988]. By that the variance of a difference is the one of the
placements' differences. A placement is (rank among all - rank among its own class) / N, with the
mean rank of ties, so sorting gives all of them in O(n log n) [Sun and Xu, 2014]; here the ranks
are found by binary search in the sorted other class.
"""

from __future__ import annotations

import dataclasses
import math
from statistics import NormalDist

import numpy as np

from rankc.validate.bootstrap import Interval
from rankc.validate.estimates import Estimate, Z
from rankc.validate.metrics import Floats, Labels
from rankc.validate.proportions import wilson

METHOD = "DeLong"


@dataclasses.dataclass(frozen=True, slots=True)
class Placements:
    """Of the rows of one model's scores."""

    positives: Floats  # V10: share of negatives below each positive, ties half, (P,)
    negatives: Floats  # V01: share of positives above each negative, ties half, (N,)

    @classmethod
    def of(cls, labels: Labels, scores: Floats) -> Placements:
        """Both classes occur. `labels`, `scores`: (rows,)."""
        high, low = scores[labels], scores[~labels]
        return cls(_share_below(high, low), 1.0 - _share_below(low, high))

    @property
    def auc(self) -> float:
        return float(self.positives.mean())

    @property
    def variance(self) -> float:
        """Of the AUC; NaN with a single row of a class."""
        return _variance(self.positives) + _variance(self.negatives)

    def __sub__(self, other: Placements) -> Placements:
        return Placements(self.positives - other.positives, self.negatives - other.negatives)


def _share_below(scores: Floats, others: Floats) -> Floats:
    """Which share of `others` each score beats, ties half, (scores,)."""
    ranked, order = np.sort(others), np.argsort(scores)
    queries = scores[order]  # sorted, so that the search walks through memory in one direction
    below = np.searchsorted(ranked, queries, side="left")
    not_above = np.searchsorted(ranked, queries, side="right")
    share = np.empty(len(scores))
    share[order] = (below + not_above) / (2 * len(others))
    return share


def _variance(placements: Floats) -> float:
    """Of their mean."""
    if len(placements) < 2:
        return math.nan
    return float(placements.var(ddof=1)) / len(placements)


def compare_aucs(labels: Labels, original: Floats, compressed: Floats) -> Estimate:
    """Intervals of the difference of two AUCs and of the second one, and the test of equality.

    With a single row of a class nothing can be said, and the intervals are all that is possible.
    Models that rank every row alike have a difference of exactly 0, without an interval around it.

    Args:
        labels: (rows,), True for a positive; both classes occur.
        original: Scores, (rows,), finite.
        compressed: Scores of the same rows.
    """
    before, after = Placements.of(labels, original), Placements.of(labels, compressed)
    difference, error = after.auc - before.auc, math.sqrt((after - before).variance)
    if math.isnan(error):
        return Estimate(METHOD, (-1.0, 1.0), (0.0, 1.0), 1.0)
    interval = (max(difference - Z * error, -1.0), min(difference + Z * error, 1.0))
    return Estimate(METHOD, interval, auc_interval(after), _p_value(difference, error))


def auc_interval(placements: Placements) -> Interval:
    """Of one AUC, symmetric on the scale of its logit, so that it stays inside of (0, 1).

    [Pepe, The statistical evaluation of medical tests, 2003, section 5.2.4.] An AUC of exactly 0 or
    1 has no variance to go by. It is a mean over min(P, N) disjoint pairs, for any pairing
    [Hoeffding, 1963], of which all came out alike: Wilson's interval of so many rows.
    """
    area, error = placements.auc, math.sqrt(placements.variance)
    fewer = min(len(placements.positives), len(placements.negatives))
    if area in (0.0, 1.0):
        return wilson(round(area) * fewer, fewer)
    centre, half = math.log(area / (1 - area)), Z * error / (area * (1 - area))
    return _logistic(centre - half), _logistic(centre + half)


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def _p_value(difference: float, error: float) -> float:
    if error == 0.0:
        return 1.0 if difference == 0.0 else 0.0
    return 2 * NormalDist().cdf(-abs(difference) / error)
