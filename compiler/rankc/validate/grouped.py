"""AUC within groups of rows, such as the impressions of one user, averaged.

    grouped_auc = sum over groups g of rows_g auc_g / sum over groups of rows_g
[Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", 2018, there by impressions
of a user]. A group of one class has no auc and is left out, of both sums.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankc.validate.bootstrap import Counts
from rankc.validate.judgement import Judgement
from rankc.validate.metrics import Floats, Labels

Codes = NDArray[np.int64]


@dataclasses.dataclass(slots=True)
class Groups:
    """Values of the group column, of numbers or text, as numbers from 0."""

    _numbers: dict[Any, int] = dataclasses.field(default_factory=dict)

    def codes(self, values: NDArray[Any]) -> Codes:
        """Of one batch, (rows,)."""
        distinct, which = np.unique(values.reshape(-1), return_inverse=True)
        numbers = [self._numbers.setdefault(v, len(self._numbers)) for v in distinct.tolist()]
        return np.array(numbers, np.int64)[which]


@dataclasses.dataclass(frozen=True, slots=True)
class GroupedAuc:
    """Grouped AUC of one model's scores under any row counts, in O(rows) after one sort."""

    positives: NDArray[np.intp]  # rows of the positives, (P,)
    negatives: NDArray[np.intp]  # rows of the negatives by group, then by rising score, (N,)
    below: NDArray[np.intp]  # how many negatives of any group come before each positive, (P,)
    not_above: NDArray[np.intp]  # the same with those of its group that score the same, (P,)
    group_of: Codes  # of each positive, (P,)
    starts: NDArray[np.intp]  # where the negatives of each group start, and the end, (groups + 1,)

    @classmethod
    def of(cls, labels: Labels, scores: Floats, groups: Codes) -> GroupedAuc:
        """Sort once. All (rows,); groups are numbered from 0."""
        # Scores as whole numbers, so that group and score are one number to sort and to search by.
        distinct, rank = np.unique(scores, return_inverse=True)
        key = groups * len(distinct) + rank
        positives, negatives = np.flatnonzero(labels), np.flatnonzero(~labels)
        negatives = negatives[np.argsort(key[negatives], kind="stable")]
        ranked = key[negatives]
        below = np.searchsorted(ranked, key[positives], side="left")
        not_above = np.searchsorted(ranked, key[positives], side="right")
        starts = np.searchsorted(groups[negatives], np.arange(groups.max(initial=-1) + 2))
        return cls(positives, negatives, below, not_above, groups[positives], starts)

    def __call__(self, counts: Counts) -> float:
        """NaN if no group has rows of both classes in the draw."""
        drawn = counts[self.positives]
        before = np.zeros(len(self.negatives) + 1, np.int64)  # drawn ones of the first i negatives
        np.cumsum(counts[self.negatives], out=before[1:])
        groups = len(self.starts) - 1
        positives = np.bincount(self.group_of, weights=drawn, minlength=groups)
        negatives = np.diff(before[self.starts])
        # Counted from the group's first negative.
        twice = before[self.below] + before[self.not_above] - 2 * before[self.starts[self.group_of]]
        wins = np.bincount(self.group_of, weights=drawn * twice, minlength=groups)
        both = (positives > 0) & (negatives > 0)
        if not both.any():
            return float("nan")
        p, n = positives[both], negatives[both]
        return float(np.average(wins[both] / (2 * p * n), weights=p + n))


def add_grouped_auc(
    found: Judgement, labels: Labels, scores: tuple[Floats, Floats], groups: Codes, column: str
) -> None:
    """Grouped AUC of both models, with what was left out, or why there is none.

    Args:
        found: Where it goes.
        labels: (rows,).
        scores: Of the original and of the compressed model, (rows,) each.
        groups: (rows,), numbered from 0.
        column: Of the groups, for messages.
    """
    before, after = (GroupedAuc.of(labels, one, groups) for one in scores)
    rows = np.bincount(groups)
    positives = np.bincount(groups, weights=labels)
    single = (positives == 0) | (positives == rows)
    if single.all():
        found.unavailable["grouped_auc"] = (
            f"each of the {len(rows)} groups of column '{column}' has rows of one class only; "
            "group by another column, or take more rows"
        )
        return
    once = np.ones(len(labels), np.int64)
    found.add("grouped_auc", (before(once), after(once)), before, after)
    if single.any():
        found.notes["grouped_auc"] = (
            f"{int(single.sum()):,} of {len(rows):,} groups of column '{column}', with "
            f"{int(rows[single].sum()):,} of {len(labels):,} rows, have one class only and are "
            "left out"
        )
