"""Two classifiers compared: which class each row gets from either, and how sure they are.

The numbers of a row, one a class, are probabilities if those of every row lie in [0, 1] and add up
to one; else they are logits, and softmax makes probabilities of them. That shows only when all rows
are in, so what is kept of a row, a few numbers, is kept for both readings.
    kl = sum over classes of p (log p - log q), p the original's probabilities, q the compressed's;
    logloss = -log of the probability of the true class.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankc.errors import DataError
from rankc.validate.bootstrap import Statistic, mean_of
from rankc.validate.estimates import Estimate
from rankc.validate.metrics import CLIP, Floats, one_label_a_row
from rankc.validate.proportions import compare_accuracies, share_estimate

Classes = NDArray[np.int64]  # the class of each row, (rows,)

_FEWEST_FOR_TOP5 = 6  # with five classes every answer is among the top five
_SUM_TOLERANCE = 2e-3  # of probabilities that were rounded to float16


def classes_of(shape: tuple[int, ...]) -> int:
    """How many classes an output of this shape, rows first, tells apart; 0 if it is none of these.

    A classifier's has one number a class and row: (rows, k), or (rows, k, 1, 1) after a pooling.
    """
    if len(shape) < 2 or shape[1] < 2 or any(size != 1 for size in shape[2:]):
        return 0
    return shape[1]


def class_labels(values: NDArray[Any], classes: int, column: str) -> Classes:
    """Labels of one batch as class numbers, (rows,). Whole numbers may be stored as floats.

    Raises:
        DataError: A label is no class of the model, or there is more than one label a row.
    """
    flat = one_label_a_row(values, column)
    if flat.dtype.kind == "f" and (broken := flat != np.floor(flat)).any():
        raise DataError(
            f"label column '{column}': {int(broken.sum())} of {flat.size} labels are no whole "
            f"numbers (the first is {flat[broken][0].item()!r}); the output has {classes} numbers "
            f"a row, so a label is the number of a class, 0 to {classes - 1}"
        )
    wrong = (flat < 0) | (flat >= classes)
    if wrong.any():
        raise DataError(
            f"label column '{column}': {int(wrong.sum())} of {flat.size} labels are outside 0 to "
            f"{classes - 1} (the first is {flat[wrong][0].item()!r}); the output has {classes} "
            "numbers a row, one a class. Count classes from 0, in the order of the output"
        )
    return flat.astype(np.int64)


def ranks_of(scores: Floats, labels: Classes) -> NDArray[np.int64]:
    """How many classes come before the true one in each row, (rows,); 0: it is the answer.

    Of equal scores the lower class comes first, as with argmax. `scores`: (rows, classes).
    """
    true = np.take_along_axis(scores, labels[:, np.newaxis], axis=1)
    lower = np.arange(scores.shape[1]) < labels[:, np.newaxis]
    ranks: NDArray[np.int64] = ((scores > true) | ((scores == true) & lower)).sum(axis=1)
    return ranks


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


@dataclasses.dataclass(frozen=True, slots=True)
class Answers:
    """What is kept of both models' answers."""

    classes: int
    same: NDArray[np.bool_]  # whether both give the row the same class, (rows,)
    ranks: NDArray[np.int64] | None  # of the true class, (2, rows): original, compressed
    kl: Floats | None  # (rows,); None if one of the two gives probabilities and the other does not
    losses: Floats | None  # cross-entropy, (2, rows)


@dataclasses.dataclass(slots=True)
class AnswersSoFar:
    """Takes in batches; `finish` gives what was kept of them."""

    classes: int
    _same: list[NDArray[np.bool_]] = dataclasses.field(default_factory=list)
    _ranks: list[NDArray[np.int64]] = dataclasses.field(default_factory=list)
    _as_logits: list[Floats] = dataclasses.field(default_factory=list)  # (1 or 3, rows) each
    _as_probabilities: list[Floats] = dataclasses.field(default_factory=list)
    _original_sums_to_one: bool = True
    _compressed_sums_to_one: bool = True

    def add(self, x: Floats, y: Floats, labels: Classes | None) -> None:
        """The original's and the compressed model's outputs, (rows, classes) each."""
        self._same.append(x.argmax(axis=1) == y.argmax(axis=1))
        if labels is not None:
            self._ranks.append(np.stack([ranks_of(x, labels), ranks_of(y, labels)]))
        self._as_logits.append(_judged(log_softmax(x), log_softmax(y), None, labels))
        self._original_sums_to_one &= are_probabilities(x)
        self._compressed_sums_to_one &= are_probabilities(y)
        if self._original_sums_to_one and self._compressed_sums_to_one:
            self._as_probabilities.append(_judged(log_clipped(x), log_clipped(y), x, labels))

    def finish(self) -> Answers:
        """All batches are in."""
        sure = self._original_sums_to_one, self._compressed_sums_to_one
        judged = self._as_probabilities if all(sure) else self._as_logits
        numbers = np.concatenate(judged, axis=1) if sure[0] == sure[1] else None
        labelled = bool(self._ranks)
        return Answers(
            classes=self.classes,
            same=np.concatenate(self._same),
            ranks=np.concatenate(self._ranks, axis=1) if labelled else None,
            kl=None if numbers is None else numbers[0],
            losses=None if numbers is None or not labelled else numbers[1:],
        )


def _judged(log_p: Floats, log_q: Floats, weights: Floats | None, labels: Classes | None) -> Floats:
    """Divergence and, with labels, both losses of each row, (1, rows) or (3, rows).

    Args:
        log_p: Of the original, (rows, classes).
        log_q: Of the compressed model.
        weights: The original's probabilities as it gives them; None: exp(log_p).
        labels: (rows,).
    """
    p = np.exp(log_p) if weights is None else weights
    rows = [np.maximum((p * (log_p - log_q)).sum(axis=1), 0.0)]  # below 0 by rounding only
    if labels is not None:
        at = labels[:, np.newaxis]
        rows += [-np.take_along_axis(log, at, axis=1)[:, 0] for log in (log_p, log_q)]
    return np.stack(rows)


@dataclasses.dataclass(frozen=True, slots=True)
class Judgement:
    """What metrics.json says of how well both models tell right from wrong."""

    # original, compressed
    pairs: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    # compressed - original and, but for distances, the compressed model's own: for the bootstrap
    differences: dict[str, Statistic] = dataclasses.field(default_factory=dict)
    values: dict[str, Statistic] = dataclasses.field(default_factory=dict)
    # of metrics that have a closed form, in the place of those two
    estimates: dict[str, Estimate] = dataclasses.field(default_factory=dict)
    unavailable: dict[str, str] = dataclasses.field(default_factory=dict)  # metric: why


def judge(answers: Answers, output: str) -> Judgement:
    """Top-1, top-5, logloss, agreement and divergence, or the reasons why there are none."""
    found = Judgement()
    found.pairs["top1_agreement"] = (1.0, float(answers.same.mean()))
    found.estimates["top1_agreement"] = share_estimate(answers.same)
    _add_ranks(found, answers)
    if answers.kl is None:
        why = f"of one model all rows of output '{output}' add up to one, of the other they do not"
        found.unavailable.update(kl_div=why, logloss=why)
        return found
    found.pairs["kl_div"] = (0.0, float(answers.kl.mean()))
    found.differences["kl_div"] = mean_of(answers.kl)
    if answers.losses is None:
        found.unavailable["logloss"] = NO_LABELS
    else:
        _add(found, "logloss", *answers.losses)
    return found


NO_LABELS = "there are no labels; name their column in data.validation.label"


def _add_ranks(found: Judgement, answers: Answers) -> None:
    for name, top in (("accuracy_top1", 1), ("accuracy_top5", 5)):
        if answers.ranks is None:
            found.unavailable[name] = NO_LABELS
        elif top > 1 and answers.classes < _FEWEST_FOR_TOP5:
            found.unavailable[name] = f"it needs {_FEWEST_FOR_TOP5} classes or more"
        else:
            before, after = answers.ranks < top
            found.pairs[name] = (float(before.mean()), float(after.mean()))
            found.estimates[name] = compare_accuracies(before, after)


def _add(found: Judgement, name: str, before: Floats, after: Floats) -> None:
    """The mean of a quantity of each row, (rows,), in both models."""
    found.pairs[name] = (float(before.mean()), float(after.mean()))
    found.differences[name] = mean_of(after - before)
    found.values[name] = mean_of(after)
