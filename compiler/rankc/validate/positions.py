"""Outputs that tell classes at many positions of a row: tokens of a text, pixels of a picture.

Every number is a mean over the positions whose label counts, of all rows together. Rows are what is
drawn for intervals, since positions of a row are not independent; so a row keeps sums over its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankc.errors import DataError
from rankc.validate.classes import FEWEST_FOR_TOP5, TOPS, as_classes, ranks_of
from rankc.validate.judgement import Judgement, of_sums
from rankc.validate.metrics import Floats, joined
from rankc.validate.readings import KL, LOSSES, Classes, Readings, mixed


@dataclasses.dataclass(frozen=True, slots=True)
class Counted:
    """The positions of some rows whose labels count."""

    rows: int
    row_of: NDArray[np.int64]  # (n,), rising
    labels: Classes  # (n,)
    original: Floats  # scores, (n, classes)
    compressed: Floats

    def by_row(self, numbers: NDArray[Any]) -> Floats:
        """Sums over the positions of each row. `numbers`: (k, n); gives (k, rows)."""
        sums: Floats = np.empty((len(numbers), self.rows))
        for i, one in enumerate(numbers):
            sums[i] = np.bincount(self.row_of, weights=one, minlength=self.rows)
        return sums


@dataclasses.dataclass(slots=True)
class Positions:
    """Takes in batches. What tokens and pixels have in common."""

    output: str
    label: str
    classes: int
    ignored: tuple[int, ...]  # labels of positions that do not count
    _sums: list[Floats] = dataclasses.field(default_factory=list)
    _readings: Readings = dataclasses.field(default_factory=Readings)

    def fitting(self, labels: NDArray[Any] | None, shape: tuple[int, ...]) -> NDArray[Any]:
        """The labels in the shape that the output asks for, (rows, ...).

        Raises:
            DataError: They have another one.
        """
        if labels is None or labels.size != np.prod(shape) or labels.ndim > len(shape):
            got = "none" if labels is None else f"shape {labels.shape}"
            raise DataError(
                f"label column '{self.label}': {got} in a batch in which output '{self.output}' "
                f"asks for {shape}, a label at each position"
            )
        return labels.reshape(shape)

    def add(self, original: Floats, compressed: Floats, labels: NDArray[Any]) -> Counted:
        """Scores of some rows, (rows, positions, classes), and labels, (rows, positions).

        Raises:
            DataError: A label is neither a class nor one of those ignored.
        """
        counts = ~np.isin(labels, self.ignored)
        others = "".join(f" or {number}, which is left out" for number in self.ignored)
        known = as_classes(labels[counts], self.classes, self.label, others)
        found = Counted(
            len(original), np.nonzero(counts)[0], known, original[counts], compressed[counts]
        )
        x, y = found.original, found.compressed
        same = x.argmax(axis=1) == y.argmax(axis=1)
        ranks = ranks_of(x, known), ranks_of(y, known)
        numbers = [np.ones(len(same)), same, *(rank < top for _, top in TOPS for rank in ranks)]
        self._sums.append(found.by_row(np.stack(numbers)))
        self._readings.add(x, y, known, found.by_row)
        return found

    def judge(
        self, derived: Callable[[Judgement, Floats, Floats], None] | None = None
    ) -> Judgement:
        """All batches are in.

        Args:
            derived: Told the judgement, the positions of each row, (rows,), and the sums of losses
                of both models, (2, rows), where there are any.

        Raises:
            DataError: No position counts.
        """
        found, sums = Judgement(), joined(self._sums)
        count = sums[0]
        if not count.any():
            listed = " or ".join(map(str, self.ignored))
            raise DataError(
                f"label column '{self.label}': every label is {listed}, so no position counts; "
                "give the class at each position that is to be judged"
            )
        self._add(found, "top1_agreement", count, sums[1])
        for (name, top), before in zip(TOPS, (2, 4), strict=True):
            if top == 1 or self.classes >= FEWEST_FOR_TOP5:
                self._add(found, name, count, sums[before + 1], sums[before])
        numbers = self._readings.finish()
        if numbers is None:
            why = mixed(self.output)
            found.unavailable.update(kl_div=why, logloss=why)
            return found
        self._add(found, "kl_div", count, numbers[KL])
        before, after = numbers[LOSSES]
        self._add(found, "logloss", count, after, before)
        if derived is not None:
            derived(found, count, numbers[LOSSES])
        return found

    @staticmethod
    def _add(
        found: Judgement, name: str, count: Floats, after: Floats, before: Floats | None = None
    ) -> None:
        """A mean over positions; without `before` the original against itself."""
        add_ratio(found, name, count, after, before, itself=float(name == "top1_agreement"))


def add_ratio(
    found: Judgement,
    name: str,
    count: Floats,
    after: Floats,
    before: Floats | None,
    *,
    itself: float = 0.0,
    of: Callable[[float], float] = float,
) -> None:
    """A function of the mean over positions.

    Args:
        found: Where it goes.
        name: Of the metric.
        count: Positions of each row, (rows,).
        after: Sums over them of the compressed model, (rows,).
        before: Of the original; None: it is compared with itself.
        itself: What it has then.
        of: What is made of the mean.
    """

    def value(sums: Floats) -> float:
        return of(float(sums[1] / sums[0])) if sums[0] else float("nan")

    columns = [None if sums is None else np.stack([count, sums]) for sums in (before, after)]
    first = itself if columns[0] is None else value(columns[0].sum(axis=1))
    assert columns[1] is not None
    found.add(
        name,
        (first, value(columns[1].sum(axis=1))),
        None if columns[0] is None else of_sums(columns[0], value),
        of_sums(columns[1], value),
    )
