"""What judging both models' answers comes to: values, and how each would move on other rows.

A statistic is a function of how often each row occurs. Most metrics are means of a number a row;
the others are functions of sums over rows, which is why a few numbers a row are all that is kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from rankc.validate.bootstrap import Counts, Statistic, mean_of
from rankc.validate.estimates import Estimate
from rankc.validate.metrics import Floats

NO_LABELS = "there are no labels; name their column in data.validation.label"


@dataclasses.dataclass(slots=True)
class Judgement:
    """What metrics.json says of the answers, and what its intervals are made from."""

    # original, compressed
    pairs: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    # compressed - original and, but for distances, the compressed model's own: for the bootstrap
    differences: dict[str, Statistic] = dataclasses.field(default_factory=dict)
    values: dict[str, Statistic] = dataclasses.field(default_factory=dict)
    # of metrics that have a closed form, in the place of those two; made when asked for
    estimates: dict[str, Callable[[], Estimate]] = dataclasses.field(default_factory=dict)
    unavailable: dict[str, str] = dataclasses.field(default_factory=dict)  # metric: why
    notes: dict[str, str] = dataclasses.field(default_factory=dict)  # metric: what it leaves out

    def add_mean(self, name: str, before: Floats | float, after: Floats) -> None:
        """The mean of a quantity of each row, (rows,), in both models.

        Args:
            name: Of the metric.
            before: Of the original; a number where it is compared with itself: 0, or 1.
            after: Of the compressed model.
        """
        self.pairs[name] = (float(np.mean(before)), float(after.mean()))
        self.differences[name] = mean_of(after - before)
        if isinstance(before, np.ndarray):
            self.values[name] = mean_of(after)

    def add(
        self, name: str, pair: tuple[float, float], before: Statistic | None, after: Statistic
    ) -> None:
        """A metric that is no mean. `before` None: the original's is `pair[0]` on any rows."""
        once = _Once(after)
        self.pairs[name] = pair
        self.differences[name] = _difference(before, once, pair[0])
        if before is not None:
            self.values[name] = once

    def update(self, other: Judgement) -> None:
        """Take in another one; of the same metric the other's holds."""
        for field in dataclasses.fields(self):
            getattr(self, field.name).update(getattr(other, field.name))


@dataclasses.dataclass(slots=True)
class _Once:
    """A statistic that is asked for twice on each draw, which is a new array, and counts once."""

    statistic: Statistic
    _counts: Counts | None = None
    _value: float = 0.0

    def __call__(self, counts: Counts) -> float:
        if counts is not self._counts:
            self._counts, self._value = counts, self.statistic(counts)
        return self._value


def _difference(before: Statistic | None, after: Statistic, constant: float) -> Statistic:
    if before is None:
        return lambda counts: after(counts) - constant
    return lambda counts: after(counts) - before(counts)


def of_sums(columns: Floats, value: Callable[[Floats], float]) -> Statistic:
    """A function of sums over rows.

    Args:
        columns: What is added up, (k, rows), floats or whole numbers.
        value: Of the k sums over the drawn rows; NaN where it is not defined.
    """
    # einsum and not a matrix product, whose BLAS threads wait for each other, see `Mean`.
    return lambda counts: value(np.einsum("kr,r->k", columns, counts.astype(np.float64)))
