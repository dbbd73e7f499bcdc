"""Shares of rows: accuracies of two models on the same rows, and single shares.

Of n rows let b be right in the original only and c in the compressed model only. With one row
added to each of the two, p = (b + 1) / (n + 2) and q = (c + 1) / (n + 2), the interval of the
difference of accuracies is
    q - p -/+ z sqrt((p + q - (q - p)^2) / (n + 2))
[Bonett and Price, 2012, after Agresti and Min, 2005]. Unlike the bootstrap's or Wald's it has a
width where no row, or hardly one, changed sides: what was not seen in n rows may yet happen.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from rankc.validate.bootstrap import Interval
from rankc.validate.estimates import Estimate, Z

Right = NDArray[np.bool_]  # whether each row counts, (rows,)

PAIRED = "Bonett-Price"
SINGLE = "Wilson"


def compare_accuracies(original: Right, compressed: Right) -> Estimate:
    """Intervals of the difference and of the second, and McNemar's test of equality.

    Args:
        original: Which rows the model as it came gets right, (rows,); at least one row.
        compressed: The same of the compressed model.
    """
    lost = int(np.count_nonzero(original & ~compressed))
    won = int(np.count_nonzero(compressed & ~original))
    value = wilson(int(np.count_nonzero(compressed)), len(compressed))
    return Estimate(PAIRED, bonett_price(lost, won, len(original)), value, mcnemar(lost, won))


def share_estimate(counted: Right) -> Estimate:
    """Of a share of rows that has no counterpart in the original, which by itself has all of them.

    Args:
        counted: (rows,), at least one row.
    """
    low, high = wilson(int(np.count_nonzero(counted)), len(counted))
    return Estimate(SINGLE, (low - 1.0, high - 1.0), (low, high))


def bonett_price(lost: int, won: int, rows: int) -> Interval:
    """95 % interval of (won - lost) / rows, inside of [-1, 1]."""
    total = rows + 2
    p, q = (lost + 1) / total, (won + 1) / total
    half = Z * math.sqrt((p + q - (q - p) ** 2) / total)
    return max(q - p - half, -1.0), min(q - p + half, 1.0)


def wilson(count: int, rows: int) -> Interval:
    """95 % interval of a share, inside of [0, 1]; it has a width at 0 and at 1, too.

    [Wilson, 1927; recommended by Brown, Cai and DasGupta, 2001.]
    """
    share, z2 = count / rows, Z * Z
    centre = (share + z2 / (2 * rows)) / (1 + z2 / rows)
    half = Z * math.sqrt(share * (1 - share) / rows + z2 / (4 * rows * rows)) / (1 + z2 / rows)
    low = 0.0 if count == 0 else centre - half
    return low, 1.0 if count == rows else centre + half


def mcnemar(lost: int, won: int) -> float:
    """Two-sided p-value of equal accuracies: are as many rows lost as won?

    The exact binomial test with half the weight of the outcome that was seen (mid-p). The exact
    one rejects far less often than it says; this one comes close to what it says and hardly ever
    above it [Fagerland, Lydersen and Laake, 2013], as the interval does.
    """
    from scipy.stats import binom, binomtest

    rows = lost + won
    if lost == won:
        return 1.0
    exact = binomtest(min(lost, won), rows, 0.5).pvalue
    return float(exact - binom.pmf(min(lost, won), rows, 0.5))
