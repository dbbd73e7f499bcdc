"""Outputs of one number a row: of a click, a risk, a price.

What the number is shows in the labels, when all are in: with 0 and 1 only it is a score, which
ranks and, in [0, 1], is a probability; with other numbers it is to meet them. Without labels the
two models' numbers are held against each other.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankc.errors import DataError
from rankc.validate.calibration_error import add_ece
from rankc.validate.delong import compare_aucs
from rankc.validate.grouped import Codes, Groups, add_grouped_auc
from rankc.validate.judgement import NO_LABELS, Judgement
from rankc.validate.metrics import (
    Floats,
    Labels,
    joined,
    log_losses,
    one_label_a_row,
    require_both_classes,
)
from rankc.validate.regression import judge_likeness, judge_numbers


@dataclasses.dataclass(slots=True)
class Scores:
    """Takes in batches; keeps both numbers of a row, its label and its group."""

    output: str
    label: str  # name of the column, for messages
    group: str
    _numbers: list[Floats] = dataclasses.field(default_factory=list)  # (2, rows) each
    _labels: list[NDArray[Any]] = dataclasses.field(default_factory=list)
    _groups: list[Codes] = dataclasses.field(default_factory=list)
    _codes: Groups = dataclasses.field(default_factory=Groups)

    def add(
        self,
        x: Floats,
        y: Floats,
        labels: NDArray[Any] | None,
        groups: NDArray[Any] | None = None,
    ) -> None:
        """Outputs of some rows, (rows,) or (rows, 1, ...), with labels and groups, (rows,)."""
        self._numbers.append(np.stack([x.reshape(-1), y.reshape(-1)]))
        if labels is not None:
            self._labels.append(one_label_a_row(labels, self.label))
        if groups is not None:
            self._groups.append(self._codes.codes(groups))

    def judge(self) -> Judgement:
        """All batches are in.

        Raises:
            DataError: All labels are the same, or one is not finite.
        """
        numbers = joined(self._numbers)
        x, y = numbers
        if not self._labels:
            found = judge_likeness(x, y, f"output '{self.output}'")
            found.unavailable.update(dict.fromkeys(_OF_CLASSES, NO_LABELS))
            return found
        labels = joined(self._labels)
        positive = labels == 1
        if (others := ~(positive | (labels == 0))).any():
            return self._judge_numbers(labels, others, x, y)
        require_both_classes(positive, self.label)
        found = judge_scores(positive, numbers, self.output)
        if self._groups:
            add_grouped_auc(found, positive, (x, y), joined(self._groups), self.group)
        return found

    def _judge_numbers(
        self, labels: NDArray[Any], others: NDArray[np.bool_], x: Floats, y: Floats
    ) -> Judgement:
        values = labels.astype(np.float64)
        if (bad := ~np.isfinite(values)).any():
            raise DataError(
                f"label column '{self.label}', row {int(np.flatnonzero(bad)[0])}: "
                f"{labels[bad][0].item()!r}; every label must be finite"
            )
        found = judge_numbers(values, x, y, f"output '{self.output}'", self.label)
        why = (
            f"{int(others.sum())} of {labels.size} labels in column '{self.label}' are neither 0 "
            f"nor 1 (the first is {labels[others][0].item()!r}), so they are numbers to meet, and "
            "no classes"
        )
        found.unavailable.update(dict.fromkeys(_OF_CLASSES, why))
        return found


_OF_CLASSES = ("auc", "logloss", "ece")


def judge_scores(labels: Labels, scores: Floats, output: str) -> Judgement:
    """AUC, and of probabilities logloss and calibration error.

    Args:
        labels: (rows,), both classes being there.
        scores: Of the original and of the compressed model, (2, rows).
        output: Its name, for messages.
    """
    from sklearn.metrics import roc_auc_score

    found, (x, y) = Judgement(), scores
    found.pairs["auc"] = float(roc_auc_score(labels, x)), float(roc_auc_score(labels, y))
    found.estimates["auc"] = partial(compare_aucs, labels, x, y)
    if scores.min() < 0 or scores.max() > 1:
        why = f"output '{output}' leaves [0, 1], so it is no probability"
        found.unavailable.update(logloss=why, ece=why)
        return found
    found.add_mean("logloss", log_losses(labels, x), log_losses(labels, y))
    add_ece(found, scores, np.broadcast_to(labels, scores.shape))
    return found
