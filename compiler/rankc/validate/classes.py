"""Two classifiers compared: which class each row gets from either, and how sure they are."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankc.errors import DataError
from rankc.validate.calibration_error import add_ece
from rankc.validate.judgement import NO_LABELS, Judgement
from rankc.validate.metrics import Floats, joined, one_label_a_row
from rankc.validate.proportions import compare_accuracies, share_estimate
from rankc.validate.readings import CONFIDENCES, KL, LOSSES, Classes, Readings, mixed

FEWEST_FOR_TOP5 = 6  # with five classes every answer is among the top five
TOPS = (("accuracy_top1", 1), ("accuracy_top5", 5))


def classes_of(shape: tuple[int, ...]) -> int:
    """How many classes an output of this shape, rows first, tells apart; 0 if it is none of these.

    A classifier's has one number a class and row: (rows, k), or (rows, k, 1, 1) after a pooling.
    """
    if len(shape) < 2 or shape[1] < 2 or any(size != 1 for size in shape[2:]):
        return 0
    return shape[1]


def class_labels(values: NDArray[Any], classes: int, column: str) -> Classes:
    """Labels of one batch as class numbers, (rows,). Whole numbers may be stored as floats.

    Raises:
        DataError: A label is no class of the model, or there is more than one label a row.
    """
    return as_classes(one_label_a_row(values, column), classes, column)


def as_classes(flat: NDArray[Any], classes: int, column: str, others: str = "") -> Classes:
    """Labels as class numbers.

    Args:
        flat: (n,).
        classes: How many the output tells apart.
        column: Of the labels.
        others: What else a label may be, for the message.

    Raises:
        DataError: A label is no class of the model.
    """
    if flat.dtype.kind == "f" and (broken := flat != np.floor(flat)).any():
        raise DataError(
            f"label column '{column}': {int(broken.sum())} of {flat.size} labels are no whole "
            f"numbers (the first is {flat[broken][0].item()!r}); the output has {classes} numbers "
            f"a row, so a label is the number of a class, 0 to {classes - 1}{others}"
        )
    wrong = (flat < 0) | (flat >= classes)
    if wrong.any():
        raise DataError(
            f"label column '{column}': {int(wrong.sum())} of {flat.size} labels are outside 0 to "
            f"{classes - 1}{others} (the first is {flat[wrong][0].item()!r}); the output has "
            f"{classes} numbers a row, one a class. Count classes from 0, in the order of the "
            "output"
        )
    return flat.astype(np.int64)


def ranks_of(scores: Floats, labels: Classes) -> NDArray[np.int32]:
    """How many classes come before the true one in each row, (rows,); 0: it is the answer.

    Of equal scores the lower class comes first, as with argmax. `scores`: (rows, classes).
    """
    true = np.take_along_axis(scores, labels[:, np.newaxis], axis=1)
    lower = np.arange(scores.shape[1]) < labels[:, np.newaxis]
    before: NDArray[np.bool_] = (scores > true) | ((scores == true) & lower)
    ranks: NDArray[np.int32] = before.sum(axis=1, dtype=np.int32)
    return ranks


@dataclasses.dataclass(slots=True)
class Classifier:
    """Outputs of two or more numbers a row, one a class; labels, if any, are classes."""

    output: str
    label: str
    classes: int
    _same: list[NDArray[np.bool_]] = dataclasses.field(default_factory=list)
    _ranks: list[NDArray[np.int32]] = dataclasses.field(default_factory=list)  # (2, rows) each
    _readings: Readings = dataclasses.field(default_factory=Readings)

    def add(
        self, x: Floats, y: Floats, labels: NDArray[Any] | None, groups: NDArray[Any] | None = None
    ) -> None:
        """Outputs of some rows, (rows, classes, ...), and their labels, (rows,) or (rows, 1)."""
        x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
        numbers = None if labels is None else class_labels(labels, self.classes, self.label)
        self._same.append(x.argmax(axis=1) == y.argmax(axis=1))
        if numbers is not None:
            self._ranks.append(np.stack([ranks_of(x, numbers), ranks_of(y, numbers)]))
        self._readings.add(x, y, numbers)

    def judge(self) -> Judgement:
        """Accuracies, logloss, calibration, agreement and divergence, or why there are none."""
        found = Judgement()
        same = joined(self._same)
        found.pairs["top1_agreement"] = (1.0, float(same.mean()))
        found.estimates["top1_agreement"] = partial(share_estimate, same)
        ranks = joined(self._ranks) if self._ranks else None
        wide = f"output '{self.output}' has more than one number a row"
        found.unavailable["auc"] = NO_LABELS if ranks is None else wide
        self._add_accuracies(found, ranks)
        numbers = self._readings.finish()
        if numbers is None:
            why = mixed(self.output)
            found.unavailable.update(kl_div=why, logloss=why, ece=why)
            return found
        found.add_mean("kl_div", 0.0, numbers[KL])
        if ranks is None:
            found.unavailable.update(logloss=NO_LABELS, ece=NO_LABELS)
        else:
            found.add_mean("logloss", *numbers[LOSSES])
            add_ece(found, numbers[CONFIDENCES], ranks == 0)
        return found

    def _add_accuracies(self, found: Judgement, ranks: NDArray[np.int32] | None) -> None:
        for name, top in TOPS:
            if ranks is None:
                found.unavailable[name] = NO_LABELS
            elif top > 1 and self.classes < FEWEST_FOR_TOP5:
                found.unavailable[name] = f"it needs {FEWEST_FOR_TOP5} classes or more"
            else:
                before, after = ranks < top
                found.pairs[name] = (float(before.mean()), float(after.mean()))
                found.estimates[name] = partial(compare_accuracies, before, after)
