"""Language models: perplexity, and what else there is to say of a class at each position.

perplexity = exp( mean of -log p(label) over all tokens that count ), natural logarithm. Output t is
held against label t: labels of a model that predicts the next token are its inputs, moved by one.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from numpy.typing import NDArray

from rankc.validate.judgement import Judgement
from rankc.validate.metrics import Floats
from rankc.validate.positions import Positions, add_ratio

IGNORED = -100  # as PyTorch's cross_entropy
_MOST = 700.0  # nats; exp of more leaves float64


@dataclasses.dataclass(slots=True)
class Tokens:
    """Outputs (rows, tokens, vocabulary) with labels (rows, tokens)."""

    positions: Positions

    @classmethod
    def of(cls, output: str, label: str, vocabulary: int) -> Tokens:
        """For an output, a label column and the number of classes."""
        return cls(Positions(output, label, vocabulary, (IGNORED,)))

    def add(
        self, x: Floats, y: Floats, labels: NDArray[Any] | None, groups: NDArray[Any] | None = None
    ) -> None:
        """Outputs of some rows and their labels."""
        self.positions.add(x, y, self.positions.fitting(labels, x.shape[:2]))

    def judge(self) -> Judgement:
        """Perplexity, logloss, accuracies, agreement and divergence, over tokens."""
        found = self.positions.judge(_add_perplexity)
        if "logloss" not in found.pairs:
            found.unavailable["perplexity"] = found.unavailable["logloss"]
        return found


def _add_perplexity(found: Judgement, count: Floats, losses: Floats) -> None:
    before, after = losses
    add_ratio(found, "perplexity", count, after, before, of=_perplexity)


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, _MOST))
