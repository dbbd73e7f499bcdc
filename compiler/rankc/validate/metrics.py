"""Checks of labels and outputs, and the loss of a probability: what several metrics share."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from rankc.errors import DataError, ModelError

Floats = NDArray[np.float64]
Labels = NDArray[np.bool_]

CLIP = float(np.finfo(np.float64).eps)  # as scikit-learn's log_loss does for float64


Entry = TypeVar("Entry", bound=np.generic)


def joined(parts: list[NDArray[Entry]]) -> NDArray[Entry]:
    """What was kept of all batches, (..., rows); the list is emptied, so that it is there once."""
    whole = np.concatenate(parts, axis=-1)
    parts.clear()
    return whole


def log_losses(labels: Labels, probabilities: Floats) -> Floats:
    """-log of the probability given to the true class of each row, in nats, (rows,).

    Probabilities are clipped to [eps, 1 - eps] of float64, so a sure mistake costs 36 nats.
    """
    clipped = np.clip(probabilities, CLIP, 1.0 - CLIP)
    chosen: Floats = np.where(labels, clipped, 1.0 - clipped)
    return -np.log(chosen)


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
