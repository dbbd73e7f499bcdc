"""How far a model's answers fall short of the original's, on the same rows each time.

An answer that is NaN or infinite is no error here but the worst that can be: that is what is
looked for.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from rankc.data import Array, Batch, Source, refused_rows
from rankc.errors import RecipeError
from rankc.recipe import Gate, Recipe
from rankc.serialize import save
from rankc.validate.gates import number
from rankc.validate.own import Own
from rankc.validate.quantities import QUANTITIES, Quantity, own_quantity
from rankc.validate.scoring import batched_inputs, score, scored_output
from rankrt.session import Session, TensorSpec, open_model

ROWS = 4096  # that are looked at, unless asked otherwise
MOST_BYTES = 256 << 20  # of rows in memory
AWFUL = 1e9  # harm of answers that are no numbers: more than any metric can fall

Pairs = Mapping[str, tuple[float, float]]  # metric: the original's, the model's


@dataclasses.dataclass(frozen=True, slots=True)
class Seen:
    """What a model answered."""

    pairs: Pairs  # empty where an answer is NaN or infinite
    broken: int  # rows with such an answer
    rows: int


@dataclasses.dataclass(frozen=True, slots=True)
class Measure:
    """The metric by which harm is counted."""

    quantity: Quantity
    allowed: float | None  # drop that the gate allows; None: there is no gate on it

    @property
    def name(self) -> str:
        """As in a recipe's gates."""
        return self.quantity.name

    def harm(self, seen: Seen) -> float:
        """How much worse than the original's, in the metric's unit; at least AWFUL if broken."""
        if seen.broken:
            return AWFUL * (1 + seen.broken / seen.rows)
        before, after = seen.pairs[self.name]
        return before - after if self.quantity.higher_is_better else after - before

    def fails(self, harm: float) -> bool:
        """Whether the gate refuses it; AWFUL is refused by every gate."""
        return harm >= AWFUL or (self.allowed is not None and harm > self.allowed + 1e-12)

    def told(self, harm: float) -> str:
        """In words: fell by 0.0031, fell by 3 points."""
        if harm >= AWFUL:
            share = harm / AWFUL - 1
            return f"is NaN or infinite in {number(100 * share)} % of the rows"
        fell = (harm >= 0) == self.quantity.higher_is_better
        return f"{'fell' if fell else 'rose'} by {self.amount(abs(harm))}"

    def amount(self, value: float) -> str:
        """A difference of the metric with its unit."""
        if value >= AWFUL:
            return "everything"
        if not self.quantity.share:
            return number(value)
        return f"{number(100 * value)} points"


class _Rows(Source):
    """Rows of another source, kept in memory."""

    def __init__(self, source: Source, most: int | None, cut: bool) -> None:
        self.path, self.kept = source.path, list(_first(source, most, cut))
        self.rows = self.count = sum(batch.rows for batch in self.kept)

    def batches(self) -> Iterator[Batch]:
        return iter(self.kept)

    def digest(self) -> str:
        raise NotImplementedError("rows in memory are of no file")


def _first(source: Source, most: int | None, cut: bool) -> Iterator[Batch]:
    """At most so many rows; where a batch may not be `cut`, it counts as a whole."""
    rows = size = 0
    for batch in source.batches():
        room = batch.rows if most is None or not cut else min(batch.rows, most - rows)
        feeds = {name: array[:room] for name, array in batch.feeds.items()}
        labels, groups = (None if a is None else a[:room] for a in (batch.labels, batch.groups))
        yield Batch(feeds, labels, groups)
        rows += room
        size += sum(array.nbytes for array in feeds.values())
        if (most is not None and rows >= most) or size >= MOST_BYTES:
            return


@dataclasses.dataclass(slots=True)
class _Recorded:
    """A session that has run already: gives its answers again, batch after batch."""

    backend: str
    version: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    answers: Iterator[Array]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {self.outputs[0].name: next(self.answers)}


@dataclasses.dataclass(slots=True)
class Bench:
    """The rows, and what the original answers to them."""

    rows: _Rows
    original: Session
    wanted: Sequence[Array]
    recipe: Recipe
    own: Sequence[Own]  # metrics that the recipe brings along
    folder: Path  # for models that are opened
    runs: int = 0

    @classmethod
    def of(
        cls, original: Session, source: Source, recipe: Recipe, own: Sequence[Own], *,
        rows: int | None, folder: Path,
    ) -> Bench:  # fmt: skip
        """Run the original over the first `rows` rows, or as many as fit into memory."""
        kept = _Rows(source, rows, bool(batched_inputs(original.inputs)))
        bench = cls(kept, original, (), recipe, own, folder)
        bench.wanted = bench.answers(original)
        return bench

    @property
    def output(self) -> str:
        """The output that is compared."""
        return scored_output(self.original.outputs)

    def answers(self, session: Session) -> list[Array]:
        """What a model puts out, a batch at a time."""
        found, start = [], 0
        for batch in self.rows.kept:
            with refused_rows(self.rows, start, batch.rows):
                found.append(session.run(batch.feeds)[self.output])
            start += batch.rows
        return found

    def model(self, model: ir.Model, *, as_written: bool = False) -> Seen:
        """Measure a model that is in memory; `as_written`: without ONNX Runtime's rewrites."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            path = Path(folder) / "model.onnx"
            save(model, path)
            return self.session(open_model(path, optimize=not as_written))

    def session(self, session: Session) -> Seen:
        """Measure a model that is open."""
        self.runs += 1
        return self.seen(self.answers(session))

    def seen(self, answers: Sequence[Array]) -> Seen:
        """Measure recorded answers."""
        broken = sum(_broken(array) for array in answers)
        rows = self.rows.count
        if broken:
            return Seen({}, broken, rows)
        spec = self.recipe.data.validation
        assert spec is not None
        columns = spec.label or "label", spec.group or "group"
        pair = [self._recorded(self.wanted), self._recorded(answers)]
        found = score(pair[0], pair[1], self.rows, columns=columns, own=self.own)
        return Seen(found.judgement.pairs, 0, rows)

    def _recorded(self, answers: Sequence[Array]) -> _Recorded:
        known = self.original
        (output,) = (spec for spec in known.outputs if spec.name == self.output)
        return _Recorded(known.backend, known.version, known.inputs, (output,), iter(answers))


def _broken(array: Array) -> int:
    """Rows with NaN or an infinity."""
    good = np.isfinite(array.reshape(len(array), -1)).all(axis=1)
    return len(array) - int(np.count_nonzero(good))


def measure_of(recipe: Recipe, own: Pairs, seen: Sequence[Seen], asked: str | None) -> Measure:
    """The metric to go by: the one asked for, else that of the gate that is missed by most.

    Args:
        recipe: its gates are looked at.
        own: every metric of the original against itself.
        seen: what is to be explained.
        asked: for this one.

    Raises:
        RecipeError: the metric that was asked for was not measured.
    """
    known = {**QUANTITIES, **{n: own_quantity(n, m.better) for n, m in recipe.metrics.items()}}
    gates = [g for g in recipe.gates if g.metric in own and g.against == "original"]
    gated = [_gated(gate, known[gate.metric], own) for gate in gates]
    if asked is not None:
        if asked not in own:
            raise RecipeError(f"--metric {asked}: measured here are {', '.join(own)}")
        gated = [one for one in gated if one.name == asked] or [Measure(known[asked], None)]
    if len(gated) > 1:
        return max(gated, key=lambda one: max(_excess(one, model) for model in seen))
    return gated[0] if gated else Measure(next(q for n, q in known.items() if n in own), None)


def _gated(gate: Gate, quantity: Quantity, own: Pairs) -> Measure:
    """What a gate allows as a drop from the original."""
    before = own[gate.metric][0]
    sign = 1.0 if quantity.higher_is_better else -1.0
    allowed = {
        "threshold": sign * (before - gate.value),
        "max-degradation": gate.value,
        "percent-max-degradation": gate.value / 100 * abs(before),
        "min-improvement": -gate.value,
        "percent-min-improvement": -gate.value / 100 * abs(before),
    }[gate.goal]
    return Measure(quantity, allowed)


def _excess(measure: Measure, seen: Seen) -> float:
    harm = measure.harm(seen)
    allowed = measure.allowed or 0.0
    return harm - allowed if harm >= AWFUL else harm / max(abs(allowed), 1e-12)
