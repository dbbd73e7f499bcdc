"""Expected calibration error: how far stated probabilities are from how often they come true.

    ece = sum over bins b of |sum over rows in b of (confidence - correct)| / rows,
15 bins of equal width, (0, 1/15], (1/15, 2/15], ...  [Guo, Pleiss, Sun and Weinberger, "On
Calibration of Modern Neural Networks", 2017, section 2]. Of classifiers confidence is the largest
probability, and correct whether its class is the true one; with one probability a row, as of a
click, they are that probability and the label: its class would be "no" nearly always.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rankc.validate.bootstrap import Counts, Statistic
from rankc.validate.judgement import Judgement
from rankc.validate.metrics import Floats

BINS = 15

_EDGES = np.linspace(0.0, 1.0, BINS + 1)[1:-1]


def add_ece(found: Judgement, confidence: Floats, right: NDArray[np.bool_]) -> None:
    """The error of both models.

    Args:
        found: Where it goes.
        confidence: Of the original and of the compressed model in each row, 0 to 1, (2, rows).
        right: Whether each was right, (2, rows).
    """
    before, after = (_statistic(*_binned(*one)) for one in zip(confidence, right, strict=True))
    once = np.ones(confidence.shape[1], np.int64)
    found.add("ece", (before(once), after(once)), before, after)


def _binned(confidence: Floats, correct: NDArray[np.bool_]) -> tuple[NDArray[np.uint8], Floats]:
    """The bin of each row, and what it adds to it."""
    return np.searchsorted(_EDGES, confidence).astype(np.uint8), confidence - correct


def _statistic(bins: NDArray[np.uint8], gaps: Floats) -> Statistic:
    def of(counts: Counts) -> float:
        sums = np.bincount(bins, weights=counts * gaps, minlength=BINS)
        return float(np.abs(sums).sum() / len(bins))

    return of
