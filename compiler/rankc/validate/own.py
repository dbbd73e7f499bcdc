"""A metric of the user's own: a function in a Python file, called with labels and outputs.

    def score(labels, outputs):
        return abs(outputs[:, 0] - labels)  # one number a row

`labels` is None without a label column; `outputs` is what the model gave for some of the rows, rows
first. The metric is the mean of what is returned for all rows, so it streams, and its interval is
that of a mean.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankc.data.user_code import CODE_PATH, load_function
from rankc.errors import RecipeError
from rankc.recipe import Recipe
from rankc.validate.judgement import Judgement
from rankc.validate.metrics import Floats, joined


@dataclasses.dataclass(frozen=True, slots=True)
class Own:
    """A metric that the recipe brings along."""

    name: str
    code: str  # as written: `scoring.py:score`
    function: Callable[[NDArray[Any] | None, NDArray[Any]], Any]

    def of(self, labels: NDArray[Any] | None, outputs: NDArray[Any], first_row: int) -> Floats:
        """What it says of some rows, (rows,).

        Args:
            labels: (rows, ...), or None.
            outputs: (rows, ...).
            first_row: Index of the first one in the data, for messages.

        Raises:
            RecipeError: The code fails, or returns something else than a finite number a row.
        """
        where = f"metrics.{self.name}: {self.code}"
        try:
            returned = self.function(labels, outputs)
        except Exception as error:
            raise RecipeError(f"{where} raised {type(error).__name__}: {error}") from error
        values = _as_array(returned)
        if values is None or values.dtype.kind not in "fiub":
            kind = type(returned).__name__ if values is None else f"an array of {values.dtype}"
            raise RecipeError(f"{where} returned {kind}; it must return an array, a number a row")
        if values.shape not in ((len(outputs),), (len(outputs), 1)):
            raise RecipeError(
                f"{where} returned shape {values.shape} for {len(outputs)} rows; it must return "
                f"one number a row, ({len(outputs)},), not their mean"
            )
        numbers: Floats = values.reshape(-1).astype(np.float64)
        if (bad := ~np.isfinite(numbers)).any():
            row = first_row + int(np.flatnonzero(bad)[0])
            raise RecipeError(
                f"{where} returned {numbers[bad][0].item()} for row {row}; every number must be "
                "finite"
            )
        return numbers


def _as_array(returned: Any) -> NDArray[Any] | None:
    """As an array; None if it is none, such as None itself or lists of different lengths."""
    try:
        return np.asarray(returned)
    except (ValueError, TypeError):
        return None


def open_metrics(recipe: Recipe, *, trust_code: bool = False) -> tuple[Own, ...]:
    """Load the code of the recipe's own metrics.

    Raises:
        RecipeError: There are some, and `trust_code` is False.
        DataError: A file or function is missing, or the file fails.
    """
    if recipe.metrics and not trust_code:
        name, metric = next(iter(recipe.metrics.items()))
        raise RecipeError(
            f"metrics.{name}: {metric.code!r} is Python code, which a recipe may not run by "
            "itself; read it, and then allow it with --trust-recipe-code"
        )
    return tuple(_open(recipe.folder, name, one.code) for name, one in recipe.metrics.items())


def _open(folder: Path, name: str, code: str) -> Own:
    match = CODE_PATH.fullmatch(code)
    assert match is not None, code  # OwnMetric has checked it
    return Own(name, code, load_function(folder / match["file"], match["function"]))


@dataclasses.dataclass(slots=True)
class OwnSoFar:
    """Takes in batches."""

    metrics: tuple[Own, ...]
    _values: list[Floats] = dataclasses.field(default_factory=list)  # (metrics, 2, rows) each

    def add(
        self,
        original: NDArray[Any],
        compressed: NDArray[Any],
        labels: NDArray[Any] | None,
        first_row: int,
    ) -> None:
        """Outputs of some rows as the models gave them, (rows, ...), and labels."""
        if self.metrics:
            both = [
                [one.of(labels, outputs, first_row) for outputs in (original, compressed)]
                for one in self.metrics
            ]
            self._values.append(np.array(both))

    def judge(self) -> Judgement:
        """All batches are in."""
        found = Judgement()
        if self.metrics:
            values = joined(self._values)
            for one, (before, after) in zip(self.metrics, values, strict=True):
                found.add_mean(one.name, before, after)
        return found
