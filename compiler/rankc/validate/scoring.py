"""Run both models over the validation rows, one batch at a time, and keep what judging needs.

Kept: a few numbers a row (score of each model, label, mean absolute error, and what `classes`
keeps), running sums, and the first rows for the latency measurement. Outputs themselves are not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rankc.data import Array, Batch, Source, refused_rows
from rankc.errors import DataError, ModelError
from rankc.validate.classes import Answers, AnswersSoFar, class_labels, classes_of
from rankc.validate.metrics import (
    Distance,
    Floats,
    Labels,
    binary_labels,
    require_both_classes,
    require_finite,
)
from rankrt.session import Session, TensorSpec


@dataclasses.dataclass(frozen=True, slots=True)
class Scored:
    """What both models answered."""

    output: str  # which output was compared
    rows: int
    distance: Distance
    row_errors: Floats  # mean absolute error of each row, (rows,)
    answers: Answers | None  # of classifiers: outputs of two or more numbers a row
    labels: Labels | None  # (rows,); None without labels, and of classifiers
    original: Floats | None  # one score a row, (rows,); None without labels or with wide outputs
    compressed: Floats | None
    head: Mapping[str, Array]  # the first rows


def score(
    original: Session,
    compressed: Session,
    source: Source,
    *,
    label: str = "label",
    head_rows: int = 1,
    tick: Callable[[int], None] = lambda rows: None,
) -> Scored:
    """One pass over the source with both models.

    Args:
        original: Its first output of a floating type is the one compared.
        compressed: Takes the same inputs and has that output too.
        source: At least one row.
        label: Name of the label column, for messages.
        head_rows: How many of the first rows to keep, if there are as many.
        tick: Told after each batch how many rows are done.

    Raises:
        DataError: No rows, labels that are not one a row, or that are no classes of the model:
            with one number a row in the output binary, and not all the same.
        ModelError: An output is missing, not finite, or of different shapes in the two models.
    """
    name = scored_output(original.outputs)
    if name not in {spec.name for spec in compressed.outputs}:
        raise ModelError(f"compressed model: it has no output '{name}', which the original has")
    collected = _Collected(name, label, head_rows, batched_inputs(original.inputs))
    for batch in source.batches():
        with refused_rows(source, collected.rows, batch.rows):
            before, after = original.run(batch.feeds)[name], compressed.run(batch.feeds)[name]
        collected.add(batch, before, after)
        tick(collected.rows)
    return collected.finish()


def scored_output(outputs: Sequence[TensorSpec]) -> str:
    """The first output of a floating type.

    Raises:
        ModelError: There is none.
    """
    floating = [spec.name for spec in outputs if spec.dtype in ("float16", "float32", "float64")]
    if not floating:
        listed = ", ".join(map(str, outputs))
        raise ModelError(f"original model: no output of a floating type to compare, only {listed}")
    return floating[0]


def batched_inputs(inputs: Sequence[TensorSpec]) -> frozenset[str]:
    """Inputs whose first axis is free, hence the batch."""
    return frozenset(s.name for s in inputs if s.shape and not isinstance(s.shape[0], int))


@dataclasses.dataclass(slots=True)
class _Collected:
    output: str
    label: str
    head_rows: int
    batched: frozenset[str]
    rows: int = 0
    distance: Distance = dataclasses.field(default_factory=Distance)
    errors: list[Floats] = dataclasses.field(default_factory=list)
    answers: AnswersSoFar | None = None
    labels: list[Labels] = dataclasses.field(default_factory=list)
    scores: list[tuple[Floats, Floats]] = dataclasses.field(default_factory=list)
    head: list[Mapping[str, Array]] = dataclasses.field(default_factory=list)

    def add(self, batch: Batch, before: Array, after: Array) -> None:
        """Take in one batch and the two models' answers to it."""
        if before.shape != after.shape or before.ndim == 0:
            raise ModelError(
                f"compressed model, output '{self.output}': shape {after.shape}, the original's is "
                f"{before.shape}; they must be equal, with the rows first"
            )
        if len(before) == 0:
            return
        x = require_finite(before, "original", self.output, self.rows)
        y = require_finite(after, "compressed", self.output, self.rows)
        self.errors.append(self.distance.add(x, y))
        if batch.labels is not None and len(batch.labels) != len(x):
            raise DataError(
                f"label column '{self.label}': {len(batch.labels)} labels for a batch of {len(x)} "
                "rows"
            )
        if classes := classes_of(x.shape):
            self._add_classes(classes, batch.labels, x, y)
        elif batch.labels is not None:
            self._add_labels(batch.labels, x, y)
        if self.rows < self.head_rows:
            self.head.append({name: array[: self.head_rows] for name, array in batch.feeds.items()})
        self.rows += len(x)

    def _add_classes(self, classes: int, labels: Array | None, x: Floats, y: Floats) -> None:
        if self.answers is None:
            self.answers = AnswersSoFar(classes)
        numbers = None if labels is None else class_labels(labels, classes, self.label)
        self.answers.add(x.reshape(len(x), -1), y.reshape(len(y), -1), numbers)

    def _add_labels(self, labels: Array, x: Floats, y: Floats) -> None:
        self.labels.append(binary_labels(labels, self.label))
        if x.size == len(x):
            self.scores.append((x.reshape(-1), y.reshape(-1)))

    def finish(self) -> Scored:
        """All batches are in."""
        if self.rows == 0:
            raise DataError("the validation data has no rows; at least one is needed")
        labels = np.concatenate(self.labels) if self.labels else None
        if labels is not None:
            require_both_classes(labels, self.label)
        before, after = zip(*self.scores, strict=True) if self.scores else ((), ())
        return Scored(
            output=self.output,
            rows=self.rows,
            distance=self.distance,
            row_errors=np.concatenate(self.errors),
            answers=None if self.answers is None else self.answers.finish(),
            labels=labels,
            original=np.concatenate(before) if before else None,
            compressed=np.concatenate(after) if after else None,
            head=self._joined_head(),
        )

    def _joined_head(self) -> dict[str, Array]:
        return {
            name: np.concatenate([part[name] for part in self.head])[: self.head_rows]
            if name in self.batched
            else first
            for name, first in self.head[0].items()
        }
