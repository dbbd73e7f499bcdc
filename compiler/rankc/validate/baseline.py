"""Gates against a baseline: what was measured then, and how far from it the result is now.

On the same rows and against the same original, the change since then is the difference of two
differences that have an interval each. Their intervals are combined as if they were independent
(MOVER: Zou and Donner, Statistics in Medicine 27, 2008), which errs on the side of caution: both
are of the same rows and the same original, so they vary together.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from rankc.data import Source
from rankc.errors import RecipeError
from rankc.recipe import Gate, Recipe
from rankc.validate.baseline_file import (
    Accuracy,
    BaselineFile,
    Data,
    Subject,
    baseline_path,
    part_of,
    read_baseline,
    target_of,
)
from rankc.validate.quantities import QUANTITIES, available, observe
from rankc.validate.schema import FORMAT, Better, LatencyHow, Metrics
from rankrt.files import sha256

Interval = tuple[float, float]
Estimate = tuple[float, Interval | None]


@dataclasses.dataclass(frozen=True, slots=True)
class Reference:
    """What a gate counts the change from."""

    value: float  # that the baseline has
    interval: Interval | None  # of the result's value - `value`; None: exact, or not known


@dataclasses.dataclass(frozen=True, slots=True)
class Baseline:
    """The file beside a recipe, and what it is held against."""

    path: Path
    content: BaselineFile
    subject: Subject
    own: Mapping[str, Better]  # metrics that the recipe brings along

    def reference(self, gate: Gate, now: Metrics) -> Reference:
        """What the gate counts the change from.

        Args:
            gate: on something that was measured now.
            now: what was measured.

        Raises:
            RecipeError: the baseline has no such value, or has it of other rows, of another
                original or of another target.
        """
        then = self._then(gate, target_of(now))
        pair = observe(then, gate.metric, gate.batch, gate.percentile)
        assert pair is not None  # or _then would have said so
        return Reference(pair[1], self._interval(gate, now, then))

    def check(self, gates: Iterable[Gate], target: str) -> None:
        """Raise what `reference` would, before anything is measured on the target."""
        for gate in gates:
            if gate.against == "baseline":
                self._then(gate, target)

    def _then(self, gate: Gate, target: str) -> Metrics:
        """The part of the file that the gate is about, as if it had just been measured."""
        then, part = _nothing(self.content["recipe"]), part_of(gate.metric)
        then["own"] = dict(self.own)
        if part == "accuracy":
            then["metrics"] = self._accuracy(gate)["metrics"]
        elif part == "sizes":
            sizes = self.content["sizes"]
            then["metrics"], then["ratios"] = sizes["metrics"], sizes["ratios"]
        else:
            times = self.content["times"].get(target)
            if times is None:
                raise self._other_target(gate, target)
            then["metrics"], then["latency"] = times["metrics"], times["latency"]
            if "startup" in times:
                then["startup"] = times["startup"]
        if observe(then, gate.metric, gate.batch, gate.percentile) is None:
            at = "" if gate.batch is None else f" at batch {gate.batch}"
            has = ", ".join(available(then)) or "none of its kind"
            raise self._lacks(gate, f"no {gate.metric}{at}; it has {has}")
        return then

    def _accuracy(self, gate: Gate) -> Accuracy:
        known, data = self.content["accuracy"], self.subject["data"]
        entry = None if data is None else known.get(data["sha256"])
        if entry is None or entry["data"] != data:
            has = ", ".join(_data(one["data"]) for one in known.values()) or "no data at all"
            this = "there is none now" if data is None else f"this is {_data(data)}"
            told = f"accuracies on other validation data only: {has}; {this}"
            raise self._lacks(gate, f"{told}. They cannot be compared")
        if _is_distance(gate) and entry["original"] != self.subject["original"]:
            was, now = entry["original"][:12], self.subject["original"][:12]
            raise self._lacks(
                gate, f"a distance from another original model, sha256 {was}…; this is {now}…"
            )
        return entry

    def _other_target(self, gate: Gate, target: str) -> RecipeError:
        has = ", ".join(self.content["times"]) or "no target"
        return RecipeError(
            f"gate on {gate.metric}: {self.path} has times of {has}; this is {target}, of which "
            "those say nothing\n"
            "  add it: run `rankc baseline update BUNDLE --here` on this machine"
        )

    def _lacks(self, gate: Gate, what: str) -> RecipeError:
        return RecipeError(
            f"gate on {gate.metric}: {self.path} has {what}\n"
            "  run `rankc baseline update BUNDLE` with a bundle that has it, compiled with "
            "--set gates=[], or leave `against: baseline` out"
        )

    def _interval(self, gate: Gate, now: Metrics, then: Metrics) -> Interval | None:
        name = gate.metric
        if name == "latency_ratio":
            new, old = (m["latency"][str(gate.batch)] for m in (now, then))
            return _apart((new["ratio"], new["interval"]), (old["ratio"], old["interval"]))
        if part_of(name) != "accuracy":
            return None
        entry = self._accuracy(gate)
        if entry["compressed"] == self.subject["compressed"]:
            return 0.0, 0.0  # the very same model on the very same rows
        after, before = now["metrics"][name], then["metrics"][name]
        if entry["original"] == self.subject["original"]:
            return _apart(
                (after["difference"], after["interval"]),
                (before["difference"], before["interval"]),
            )
        return _apart(
            (after["compressed"], after.get("value_interval")),
            (before["compressed"], before.get("value_interval")),
        )


def open_baseline(recipe: Recipe, subject: Callable[[], Subject]) -> Baseline | None:
    """The baseline, if a gate of the recipe is against it.

    Args:
        recipe: its gates, and where it lies.
        subject: what is held against it; not asked for where there is nothing to hold.

    Raises:
        RecipeError: there is none, or it cannot be read.
    """
    gates = [gate for gate in recipe.gates if gate.against == "baseline"]
    if not gates:
        return None
    path = baseline_path(recipe)
    content = read_baseline(path)
    if content is None:
        raise RecipeError(
            f"gate on {gates[0].metric} against the baseline: there is no {path}\n"
            "  make it: compile with --set gates=[], then run `rankc baseline update BUNDLE`"
        )
    own: dict[str, Better] = {name: one.better for name, one in recipe.metrics.items()}
    return Baseline(path, content, subject(), own)


def subject_of(
    recipe: Recipe, original: str, compressed: Path | None, source: Source | None
) -> Subject:
    """What is measured.

    Args:
        recipe: its validation data are described.
        original: sha256 of the model as it came.
        compressed: the result; None: it is not there yet.
        source: the validation rows.
    """
    spec = recipe.data.validation
    data = None
    if source is not None and spec is not None:
        data = Data(sha256=source.digest(), rows=spec.rows, label=spec.label, group=spec.group)
    made = "" if compressed is None else identity(compressed)
    return Subject(original=original, compressed=made, data=data)


def identity(model: Path) -> str:
    """Of a bundle's model, its weights beside it included."""
    weights = model.with_name(f"{model.name}.data")
    parts = [sha256(path) for path in (model, weights) if path.exists()]
    return parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()


def _is_distance(gate: Gate) -> bool:
    """Whether it compares with the original's answers; what needs labels stands for itself."""
    quantity = QUANTITIES.get(gate.metric)
    return quantity is not None and quantity.needs == "rows"


def _data(data: Data) -> str:
    rows = "" if data["rows"] is None else f", rows: {data['rows']}"
    return f"sha256 {data['sha256'][:12]}…{rows}, label: {data['label'] or 'none'}"


def _apart(new: Estimate, old: Estimate) -> Interval | None:
    """The interval of new - old of two independent estimates: MOVER."""
    (a, first), (b, second) = new, old
    if first is None or second is None:
        return None
    low = math.hypot(a - first[0], second[1] - b)
    high = math.hypot(first[1] - a, b - second[0])
    return a - b - low, a - b + high


def _nothing(recipe: str) -> Metrics:
    """A metrics.json before anything was measured."""
    how = LatencyHow(scope="", clock="", device="", backend="", pinned=False, level=0.0)
    return Metrics(
        format=FORMAT,
        recipe=recipe,
        passed=False,
        gates=[],
        rows=0,
        output=None,
        metrics={},
        unavailable={},
        ratios={},
        latency={},
        latency_how=how,
        layers=[],
        memory_batch=None,
        backends={},
        environment={},
    )
