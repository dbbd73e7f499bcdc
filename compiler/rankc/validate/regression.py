"""One number a row that is to meet a number, the label; and, without labels, two models' numbers.

mse = mean of (output - label)^2. pearson and spearman are of outputs and labels.
"""

from __future__ import annotations

import numpy as np

from rankc.errors import DataError
from rankc.validate import correlation
from rankc.validate.bootstrap import Counts, Statistic
from rankc.validate.judgement import Judgement
from rankc.validate.metrics import Floats


def judge_numbers(
    labels: Floats, original: Floats, compressed: Floats, output: str, column: str
) -> Judgement:
    """Both models' numbers against the labels, (rows,) each.

    Raises:
        DataError: All labels are the same.
    """
    if correlation.constant(labels):
        raise DataError(
            f"label column '{column}': all {labels.size} labels are {labels[0].item()!r}; numbers "
            "that differ are needed to tell a good answer from a bad one. Take more rows, or "
            "another column"
        )
    found = Judgement()
    found.add_mean("mse", (original - labels) ** 2, (compressed - labels) ** 2)
    why = _undefined(output, original, compressed)
    if why:
        found.unavailable.update(pearson=why, spearman=why)
        return found
    for name, of_rows, on_draws in _CORRELATIONS:
        pair = of_rows(labels, original), of_rows(labels, compressed)
        found.add(name, pair, on_draws(labels, original), on_draws(labels, compressed))
    return found


def judge_likeness(original: Floats, compressed: Floats, about: str, every: int = 1) -> Judgement:
    """How far two models' numbers, one a row, move together; the original's with itself: 1.

    Args:
        original: (n,).
        compressed: (n,).
        about: What they are, for messages.
        every: The i-th number is that of row i * every, and is drawn as often as it.
    """
    found = Judgement()
    why = _undefined(about, original, compressed)
    if why:
        found.unavailable.update(pearson=why, spearman=why)
        return found
    for name, of_rows, on_draws in _CORRELATIONS:
        statistic = _every(on_draws(original, compressed), every, len(original))
        found.add(name, (1.0, of_rows(original, compressed)), None, statistic)
    return found


_CORRELATIONS = (
    ("pearson", correlation.pearson, correlation.pearson_of),
    ("spearman", correlation.spearman, correlation.spearman_of),
)


def _undefined(about: str, original: Floats, compressed: Floats) -> str:
    """Why there is no correlation; empty if there is."""
    if len(original) < correlation.FEWEST:
        return f"a correlation needs {correlation.FEWEST} numbers, and there are {len(original)}"
    for model, values in (("original", original), ("compressed", compressed)):
        if correlation.constant(values):
            return f"{about}: the {model} model gives the same number for all rows"
    return ""


def _every(statistic: Statistic, step: int, length: int) -> Statistic:
    def of(counts: Counts) -> float:
        return statistic(np.ascontiguousarray(counts[::step][:length]))

    return statistic if step == 1 else of
