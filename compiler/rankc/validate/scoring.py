"""Run both models over the validation rows, one batch at a time, and keep what judging needs.

Kept: a few numbers a row, of which the kinds of outputs say what they are, and the first rows for
the latency measurement. Outputs themselves are not, but for those of one number a row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rankc.data import Array, Batch, Source, refused_rows
from rankc.errors import DataError, ModelError
from rankc.validate.distances import Distances
from rankc.validate.judgement import Judgement
from rankc.validate.kinds import Kind, Names, kinds_of
from rankc.validate.metrics import require_finite
from rankc.validate.own import Own, OwnSoFar
from rankrt.session import Session, TensorSpec

_ENTRIES = 1 << 22  # of an output that are judged at once; what that takes is a multiple of it


@dataclasses.dataclass(frozen=True, slots=True)
class Scored:
    """What both models answered."""

    output: str  # which output was compared
    rows: int
    judgement: Judgement
    head: Mapping[str, Array]  # the first rows


def score(
    original: Session,
    compressed: Session,
    source: Source,
    *,
    columns: tuple[str, str] = ("label", "group"),
    own: Sequence[Own] = (),
    head_rows: int = 1,
    tick: Callable[[int], None] = lambda rows: None,
) -> Scored:
    """One pass over the source with both models.

    Args:
        original: Its first output of a floating type is the one compared.
        compressed: Takes the same inputs and has that output too.
        source: At least one row.
        columns: Names of the label and of the group column, for messages.
        own: The recipe's own metrics, see `open_metrics`.
        head_rows: How many of the first rows to keep, if there are as many.
        tick: Told after each batch how many rows are done.

    Raises:
        DataError: No rows, or labels that do not fit the output: in number, in shape, no classes of
            the model, or all the same.
        ModelError: An output is missing, not finite, or of different shapes in the two models.
        RecipeError: A metric of the recipe's own fails.
    """
    name = scored_output(original.outputs)
    if name not in {spec.name for spec in compressed.outputs}:
        raise ModelError(f"compressed model: it has no output '{name}', which the original has")
    names = Names(name, *columns)
    collected = Collected(names, OwnSoFar(tuple(own)), head_rows, batched_inputs(original.inputs))
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
class Collected:
    """What is kept of two models' answers, batch by batch."""

    names: Names
    own: OwnSoFar
    head_rows: int
    batched: frozenset[str]
    rows: int = 0
    distances: Distances = dataclasses.field(default_factory=Distances)
    kinds: tuple[Kind, ...] = ()
    head: list[Mapping[str, Array]] = dataclasses.field(default_factory=list)

    def add(self, batch: Batch, before: Array, after: Array) -> None:
        """Take in one batch and the two models' answers to it."""
        if before.shape != after.shape or before.ndim == 0:
            raise ModelError(
                f"compressed model, output '{self.names.output}': shape {after.shape}, the "
                f"original's is {before.shape}; they must be equal, with the rows first"
            )
        if len(before) == 0:
            return
        if batch.labels is not None and len(batch.labels) != len(before):
            raise DataError(
                f"label column '{self.names.label}': {len(batch.labels)} labels for a batch of "
                f"{len(before)} rows"
            )
        if batch.groups is not None and len(batch.groups) != len(before):
            raise DataError(
                f"group column '{self.names.group}': {len(batch.groups)} values for a batch of "
                f"{len(before)} rows"
            )
        if self.rows < self.head_rows:
            self.head.append({name: array[: self.head_rows] for name, array in batch.feeds.items()})
        step = max(1, _ENTRIES * len(before) // before.size)
        for start in range(0, len(before), step):
            part = slice(start, start + step)
            labels, groups = (
                None if column is None else column[part] for column in (batch.labels, batch.groups)
            )
            self._add(before[part], after[part], labels, groups)

    def _add(self, before: Array, after: Array, labels: Array | None, groups: Array | None) -> None:
        x = require_finite(before, "original", self.names.output, self.rows)
        y = require_finite(after, "compressed", self.names.output, self.rows)
        self.kinds = self.kinds or kinds_of(x, labels, self.names)
        for kind in self.kinds:
            kind.add(x, y, labels, groups)
        self.distances.add(x, y)
        self.own.add(before, after, labels, self.rows)
        self.rows += len(x)

    def finish(self) -> Scored:
        """All batches are in."""
        if self.rows == 0:
            raise DataError("the validation data has no rows; at least one is needed")
        found = self.distances.judge()
        for kind in self.kinds:
            found.update(kind.judge())
        found.update(self.own.judge())
        return Scored(self.names.output, self.rows, found, self._joined_head())

    def _joined_head(self) -> dict[str, Array]:
        return {
            name: np.concatenate([part[name] for part in self.head])[: self.head_rows]
            if name in self.batched
            else first
            for name, first in self.head[0].items()
        }
