"""Scores of classes read as logits and as probabilities, until all rows are in.

They are probabilities if those of every row lie in [0, 1] and add up to one; else they are logits,
and softmax makes probabilities of them. That shows only at the end, so what is kept of a row, a few
numbers, is kept for both readings.
    kl = sum over classes of p (log p - log q), p the original's probabilities, q the compressed's;
    loss = -log of the probability of the true class;  confidence = the largest probability.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from rankc.validate.metrics import CLIP, Floats, joined

Classes = NDArray[np.int64]  # the class of each row, (rows,)

KL, LOSSES, CONFIDENCES = 0, slice(1, 3), slice(3, 5)  # the numbers of a row; losses: with labels

_SUM_TOLERANCE = 2e-3  # of probabilities that were rounded to float16


@dataclasses.dataclass(slots=True)
class Readings:
    """Takes in batches; `finish` gives the numbers of the reading that holds."""

    _as_logits: list[Floats] = dataclasses.field(default_factory=list)  # (1 or 5, rows) each
    _as_probabilities: list[Floats] = dataclasses.field(default_factory=list)
    _original_sums_to_one: bool = True
    _compressed_sums_to_one: bool = True

    def add(
        self,
        x: Floats,
        y: Floats,
        labels: Classes | None,
        reduced: Callable[[Floats], Floats] = lambda numbers: numbers,
    ) -> None:
        """The original's and the compressed model's scores, (n, classes) each.

        Args:
            x: Of the original.
            y: Of the compressed model.
            labels: True classes, (n,).
            reduced: What to keep of the numbers, (1 or 5, n).
        """
        numbers = _numbers(log_softmax(x), log_softmax(y), None, labels)
        self._as_logits.append(reduced(numbers))
        self._original_sums_to_one &= are_probabilities(x)
        self._compressed_sums_to_one &= are_probabilities(y)
        if self._original_sums_to_one and self._compressed_sums_to_one:
            numbers = _numbers(log_clipped(x), log_clipped(y), (x, y), labels)
            self._as_probabilities.append(reduced(numbers))

    def finish(self) -> Floats | None:
        """Numbers of each row, (1 or 5, rows): KL and, with labels, LOSSES and CONFIDENCES.

        None if one model gives probabilities and the other does not.
        """
        sure = self._original_sums_to_one, self._compressed_sums_to_one
        if sure[0] != sure[1]:
            return None
        return joined(self._as_probabilities if all(sure) else self._as_logits)


def _numbers(
    log_p: Floats, log_q: Floats, given: tuple[Floats, Floats] | None, labels: Classes | None
) -> Floats:
    """Divergence and, with labels, losses and confidences of each row, (1, rows) or (5, rows).

    Args:
        log_p: Of the original, (rows, classes).
        log_q: Of the compressed model.
        given: Probabilities as the models give them; None: exp(log_p), exp(log_q).
        labels: (rows,).
    """
    p, q = given or (np.exp(log_p), np.exp(log_q))
    rows = [np.maximum((p * (log_p - log_q)).sum(axis=1), 0.0)]  # below 0 by rounding only
    if labels is not None:
        at = labels[:, np.newaxis]
        rows += [-np.take_along_axis(log, at, axis=1)[:, 0] for log in (log_p, log_q)]
        rows += [p.max(axis=1), q.max(axis=1)]
    return np.stack(rows)


def are_probabilities(scores: Floats) -> bool:
    """Whether every row, (rows, classes), lies in [0, 1] and adds up to one."""
    sums = scores.sum(axis=1)
    inside = scores.min(initial=0.0) >= 0 and scores.max(initial=0.0) <= 1
    return bool(inside and (np.abs(sums - 1) <= _SUM_TOLERANCE).all())


def log_softmax(logits: Floats) -> Floats:
    """Logarithms of softmax over the last axis, (rows, classes); nothing overflows."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def log_clipped(probabilities: Floats) -> Floats:
    """Logarithms of probabilities that are clipped as in `log_losses`, (rows, classes)."""
    return np.log(np.clip(probabilities, CLIP, 1.0 - CLIP))


def mixed(output: str) -> str:
    """Why there is no reading that holds of both models."""
    return f"of one model all rows of output '{output}' add up to one, of the other they do not"
