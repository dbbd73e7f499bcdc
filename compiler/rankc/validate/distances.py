"""How far the compressed model's output is from the original's; needs no labels.

    sqnr_db = 10 log10( sum x^2 / sum (x - y)^2 ),  psnr = 10 log10( (max x - min x)^2 / mse ),
x the original's entries and y the compressed model's, mse the mean of (x - y)^2, all of them over
all entries of all rows. cosine = sum x y / sqrt(sum x^2 sum y^2).
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from rankc.validate.judgement import Judgement, of_sums
from rankc.validate.metrics import Floats, joined

EQUAL_DB = 320.0  # decibels of outputs that are equal: above what float64 tells apart, 319

_DOT, _ORIGINAL, _COMPRESSED, _SQUARED = range(4)  # what the sums of a row are


@dataclasses.dataclass(slots=True)
class Distances:
    """Takes in batches, and keeps five numbers a row."""

    max_abs_err: float = 0.0
    _entries: int = 0  # of a row
    _low: float = math.inf
    _high: float = -math.inf
    _means: list[Floats] = dataclasses.field(default_factory=list)  # of |x - y|, (rows,) each
    _sums: list[Floats] = dataclasses.field(default_factory=list)  # (4, rows) each

    def add(self, original: Floats, compressed: Floats) -> None:
        """Outputs of some rows, (rows, ...) each."""
        x = original.reshape(len(original), -1)
        y = compressed.reshape(len(compressed), -1)
        error: Floats = np.abs(x - y)
        self._entries = x.shape[1]
        self.max_abs_err = max(self.max_abs_err, float(error.max(initial=0.0)))
        self._low = min(self._low, float(x.min(initial=math.inf)))
        self._high = max(self._high, float(x.max(initial=-math.inf)))
        self._means.append(error.mean(axis=1))
        products = ((x, y), (x, x), (y, y), (error, error))
        self._sums.append(np.stack([(a * b).sum(axis=1) for a, b in products]))

    def judge(self) -> Judgement:
        """All batches are in; there is at least one row."""
        found = Judgement()
        found.add_mean("mean_abs_err", 0.0, joined(self._means))
        found.pairs["max_abs_err"] = (0.0, self.max_abs_err)
        sums = joined(self._sums)
        totals, rows = sums.sum(axis=1), sums.shape[1]
        similar = of_sums(sums[:_SQUARED], cosine)
        found.add("cosine", (1.0, cosine(totals)), None, similar)
        self._add_decibels(found, sums, totals, rows)
        return found

    def _add_decibels(self, found: Judgement, sums: Floats, totals: Floats, rows: int) -> None:
        signal_and_noise = sums[[_ORIGINAL, _SQUARED]]
        if totals[_ORIGINAL] == 0.0:
            found.unavailable["sqnr_db"] = "the original's output is zero in all rows"
        else:
            pair = (EQUAL_DB, decibels(*totals[[_ORIGINAL, _SQUARED]]))
            found.add("sqnr_db", pair, None, of_sums(signal_and_noise, lambda s: decibels(*s)))
        peak = (self._high - self._low) ** 2 * self._entries  # of a row, to set against its noise
        if peak == 0.0:
            found.unavailable["psnr"] = "the original's output is the same number everywhere"
        else:
            pair = (EQUAL_DB, decibels(peak * rows, totals[_SQUARED]))
            noise = sums[_SQUARED:]
            statistic = of_sums(noise, lambda s: decibels(peak * rows, s[0]))
            found.add("psnr", pair, None, statistic)


def cosine(sums: Floats) -> float:
    """Of the angle between two outputs, each as one long vector; 1 if both are zero.

    Args:
        sums: Of x y, x x and y y, (3,) or more.
    """
    original, compressed = float(sums[_ORIGINAL]), float(sums[_COMPRESSED])
    if original == 0.0 or compressed == 0.0:
        return float(original == compressed)
    # math.sqrt twice: the product of two sums of squares may overflow where neither does.
    return float(sums[_DOT]) / (math.sqrt(original) * math.sqrt(compressed))


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise), at most `EQUAL_DB`; NaN without a signal."""
    if signal == 0.0:
        return math.nan
    if noise == 0.0:
        return EQUAL_DB
    return min(10.0 * (math.log10(signal) - math.log10(noise)), EQUAL_DB)
