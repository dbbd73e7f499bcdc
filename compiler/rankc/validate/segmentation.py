"""Segmentation: mean intersection over union of the classes.

iou of a class = pixels that are of it and said to be / pixels that are of it or said to be, over
all rows; mean_iou is the mean over the classes that occur in labels or answers. Three counts a row
and class are kept, not a confusion matrix a row.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankc.validate.judgement import Judgement, of_sums
from rankc.validate.metrics import Floats, joined
from rankc.validate.positions import Counted, Positions

Occurrences = NDArray[np.int32]

IGNORED = 255  # as in PASCAL VOC and Cityscapes: pixels that nobody labelled
_ALSO_IGNORED = -100  # as PyTorch's cross_entropy


@dataclasses.dataclass(slots=True)
class Segmentation:
    """Outputs (rows, classes, height, width), or classes last; labels (rows, height, width)."""

    positions: Positions
    axis: int  # of the classes
    _counts: list[Occurrences] = dataclasses.field(default_factory=list)

    @classmethod
    def of(cls, output: str, label: str, classes: int, axis: int) -> Segmentation:
        """For an output, a label column, the number of classes and where they lie."""
        ignored = (IGNORED, _ALSO_IGNORED) if classes <= IGNORED else (_ALSO_IGNORED,)
        return cls(Positions(output, label, classes, ignored), axis)

    def add(
        self, x: Floats, y: Floats, labels: NDArray[Any] | None, groups: NDArray[Any] | None = None
    ) -> None:
        """Outputs of some rows and their labels."""
        x, y = np.moveaxis(x, self.axis, 3), np.moveaxis(y, self.axis, 3)
        known = self.positions.fitting(labels, x.shape[:3]).reshape(len(x), -1)
        flat = len(x), -1, self.positions.classes
        self._counts.append(
            self._occurrences(self.positions.add(x.reshape(flat), y.reshape(flat), known))
        )

    def _occurrences(self, counted: Counted) -> Occurrences:
        """(5, classes, rows): how often labels; then answers and hits of each model."""
        classes = self.positions.classes
        of_row = counted.row_of * classes

        def each(values: NDArray[np.int64], where: NDArray[np.bool_] | slice) -> Occurrences:
            flat = np.bincount(of_row[where] + values[where], minlength=counted.rows * classes)
            shaped: Occurrences = flat.reshape(counted.rows, classes).T.astype(np.int32)
            return shaped

        labels, found = counted.labels, []
        for scores in (counted.original, counted.compressed):
            answers = scores.argmax(axis=1)
            found += [each(answers, slice(None)), each(labels, answers == labels)]
        return np.stack([each(labels, slice(None)), *found])

    def judge(self) -> Judgement:
        """Mean IoU; and accuracies, logloss, agreement and divergence, over pixels."""
        found = self.positions.judge()
        counts = joined(self._counts)
        statistics = []
        for first in (1, 3):
            columns = np.concatenate([counts[0], *counts[first : first + 2]])  # (3 classes, rows)
            statistics.append(of_sums(columns, mean_iou))
        once = np.ones(counts.shape[2], np.int64)
        before, after = statistics
        found.add("mean_iou", (before(once), after(once)), before, after)
        return found


def mean_iou(sums: Floats) -> float:
    """Mean over the classes that occur.

    Args:
        sums: Pixels of each class in labels, then in answers, then in both, (3 classes,).
    """
    labels, answers, hits = sums.reshape(3, -1)
    union = labels + answers - hits
    occurs = union > 0
    return float((hits[occurs] / union[occurs]).mean()) if occurs.any() else float("nan")
