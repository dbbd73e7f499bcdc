"""Whether embeddings still say who is close to whom; needs no labels.

All pairs of rows would be their square, so neighbours in the data make the pairs: rows 0 and 1, 2
and 3, and so on. Each pair's cosine is taken in either model, and `pearson` and `spearman` are the
correlations of the two models' cosines over the pairs. No row is in two pairs, so that pairs are as
independent as rows are.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankc.validate.judgement import Judgement
from rankc.validate.metrics import Floats, joined
from rankc.validate.regression import judge_likeness


@dataclasses.dataclass(slots=True)
class Similarities:
    """Takes in batches of outputs of two or more numbers a row; keeps two numbers a pair."""

    output: str
    _cosines: list[Floats] = dataclasses.field(default_factory=list)  # (2, pairs) each
    _odd: Floats | None = None  # the last row, of both models, if its neighbour is yet to come

    def add(
        self, x: Floats, y: Floats, labels: NDArray[Any] | None, groups: NDArray[Any] | None = None
    ) -> None:
        """Outputs of some rows, (rows, ...) each."""
        both = np.stack([x.reshape(len(x), -1), y.reshape(len(y), -1)])
        if self._odd is not None:
            both = np.concatenate([self._odd, both], axis=1)
        even = both.shape[1] // 2 * 2
        self._odd = both[:, even:].copy() if even < both.shape[1] else None
        if even:
            self._cosines.append(_cosines(both[:, 0:even:2], both[:, 1:even:2]))

    def judge(self) -> Judgement:
        """All batches are in."""
        cosines = joined(self._cosines) if self._cosines else np.empty((2, 0))
        about = f"cosines of neighbouring rows of output '{self.output}'"
        return judge_likeness(cosines[0], cosines[1], about, every=2)


def _cosines(a: Floats, b: Floats) -> Floats:
    """Of the angles between rows; 0 where one of them is zero. (2, pairs, entries) each."""
    norms = np.sqrt((a * a).sum(axis=2)) * np.sqrt((b * b).sum(axis=2))
    products: Floats = (a * b).sum(axis=2)
    cosines: Floats = np.divide(products, norms, out=np.zeros_like(products), where=norms > 0)
    return cosines
