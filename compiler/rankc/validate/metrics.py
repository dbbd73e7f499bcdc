"""How far two models' answers are apart, and how good each is against labels.

Area under the ROC curve: the chance that a positive row scores above a negative one, ties counting
half: AUC = (sum of the positives' midranks - P (P + 1) / 2) / (P N)  [Mann and Whitney, 1947].
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankc.errors import DataError, ModelError

Floats = NDArray[np.float64]
Labels = NDArray[np.bool_]

CLIP = float(np.finfo(np.float64).eps)  # as scikit-learn's log_loss does for float64


def auc(labels: Labels, scores: Floats) -> float:
    """Area under the ROC curve; equal to scikit-learn's `roc_auc_score`, ties included.

    Args:
        labels: (rows,), True for a positive; both classes occur.
        scores: (rows,), finite; larger means more likely positive.
    """
    _, tie, count = np.unique(scores, return_inverse=True, return_counts=True)
    midrank = np.cumsum(count) - (count - 1) / 2.0  # 1-based mean rank of each tie
    positives = int(np.count_nonzero(labels))
    negatives = labels.size - positives
    rank_sum = float(midrank[tie[labels]].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


def log_losses(labels: Labels, probabilities: Floats) -> Floats:
    """-log of the probability given to the true class of each row, in nats, (rows,).

    Probabilities are clipped to [eps, 1 - eps] of float64, so a sure mistake costs 36 nats.
    """
    clipped = np.clip(probabilities, CLIP, 1.0 - CLIP)
    chosen: Floats = np.where(labels, clipped, 1.0 - clipped)
    return -np.log(chosen)


def binary_labels(values: NDArray[Any], column: str) -> Labels:
    """Labels of one batch as booleans, (rows,).

    Raises:
        DataError: A label is neither 0 nor 1, or there is more than one label a row.
    """
    flat = one_label_a_row(values, column)
    wrong = ~((flat == 0) | (flat == 1))
    if wrong.any():
        raise DataError(
            f"label column '{column}': {int(wrong.sum())} of {flat.size} labels are neither 0 nor "
            f"1 (the first is {flat[wrong][0].item()!r}); auc and logloss need binary labels"
        )
    positive: Labels = flat == 1
    return positive


def one_label_a_row(values: NDArray[Any], column: str) -> NDArray[Any]:
    """Labels of one batch, (rows,).

    Raises:
        DataError: There is more than one label a row.
    """
    if values.size != values.shape[0]:
        raise DataError(
            f"label column '{column}': shape {values.shape}; one number a row is needed: [rows] "
            "or [rows, 1]"
        )
    return values.reshape(-1)


def require_both_classes(labels: Labels, column: str) -> None:
    """Refuse labels from which no ranking can be judged.

    Raises:
        DataError: All labels are of one class.
    """
    positives = int(np.count_nonzero(labels))
    if positives in (0, labels.size):
        raise DataError(
            f"label column '{column}': all {labels.size} labels are {int(positives > 0)}; auc "
            "needs rows of both classes. Take more rows, or shuffle them before cutting"
        )


def require_finite(output: NDArray[Any], model: str, name: str, first_row: int) -> Floats:
    """The output in float64.

    Args:
        output: Any shape; rows first.
        model: "original" or "compressed".
        name: Of the output.
        first_row: Index of the batch's first row in the data.

    Raises:
        ModelError: The output has NaN or infinite entries.
    """
    values = output.astype(np.float64)
    bad = ~np.isfinite(values)
    if bad.any():
        row = first_row + int(np.argwhere(bad)[0][0]) if bad.ndim else first_row
        raise ModelError(
            f"{model} model, output '{name}': {int(bad.sum())} of {bad.size} values are NaN or "
            f"infinite, the first in row {row}. {_BLAME[model]}"
        )
    return values


_BLAME = {
    "original": "Nothing can be compared with it: check its weights and this row's inputs",
    "compressed": "The original's are finite there, so the compression overflowed",
}


@dataclasses.dataclass(slots=True)
class Distance:
    """Running distance of the compressed output from the original one, over all entries."""

    max_abs_err: float = 0.0
    _dot: float = 0.0
    _original: float = 0.0
    _compressed: float = 0.0

    def add(self, original: Floats, compressed: Floats) -> Floats:
        """Take in a batch, (rows, ...); gives each row's mean absolute error, (rows,)."""
        x = original.reshape(len(original), -1)
        y = compressed.reshape(len(compressed), -1)
        error: Floats = np.abs(x - y)
        self.max_abs_err = max(self.max_abs_err, float(error.max(initial=0.0)))
        self._dot += float((x * y).sum())
        self._original += float((x * x).sum())
        self._compressed += float((y * y).sum())
        means: Floats = error.mean(axis=1)
        return means

    @property
    def cosine(self) -> float:
        """Of the angle between the two outputs, each as one long vector; 1 if both are zero."""
        if self._original == 0.0 or self._compressed == 0.0:
            return float(self._original == self._compressed)
        # math.sqrt twice: the product of two sums of squares may overflow where neither does.
        return self._dot / (math.sqrt(self._original) * math.sqrt(self._compressed))
