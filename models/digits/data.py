"""Scikit-learn's handwritten digits in three parts. No torch here."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SPLIT_SEED = 0
CALIBRATION, VALIDATION = 300, 400  # rows; the others are for training
SIDE = 8  # pixels


class Digits(NamedTuple):
    """Some images of digits."""

    image: NDArray[np.uint8]  # (rows, 1, 8, 8), 0 background to 16 ink
    label: NDArray[np.int64]  # (rows,), 0 to 9

    def take(self, which: NDArray[np.int64]) -> Digits:
        """Some of the rows, by number."""
        return Digits(self.image[which], self.label[which])


@dataclasses.dataclass(frozen=True, slots=True)
class Parts:
    """A data set cut in three."""

    train: Digits
    calibration: Digits  # held out; its labels chose the settings, a compiler gets none of them
    validation: Digits  # held out; decides gates, and nothing is fitted on it


def split(count: int, seed: int = SPLIT_SEED) -> tuple[NDArray[np.int64], ...]:
    """Numbers of the rows for training, calibration and validation, shuffled.

    Args:
        count: Rows in all; more than CALIBRATION + VALIDATION.
        seed: Draws the order.
    """
    if count <= CALIBRATION + VALIDATION:
        raise ValueError(
            f"{count} rows leave none to train on; need {CALIBRATION + VALIDATION + 1}"
        )
    order = np.random.default_rng(seed).permutation(count)
    held_out = CALIBRATION + VALIDATION
    return order[held_out:], order[:CALIBRATION], order[CALIBRATION:held_out]


def load() -> Parts:
    """Read scikit-learn's copy and cut it."""
    from sklearn.datasets import load_digits

    found = load_digits()
    image = found.images.astype(np.uint8).reshape(-1, 1, SIDE, SIDE)
    digits = Digits(image, found.target.astype(np.int64))
    return Parts(*(digits.take(rows) for rows in split(len(image))))
