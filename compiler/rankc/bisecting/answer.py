"""What was found, for people and for programs."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import yaml

from rankc.bisecting.measuring import AWFUL, Measure, Seen
from rankc.validate.gates import number

Level = Literal["graph", "file", "precision", "engine"]
Cause = Literal[
    "rank too low", "pass", "data", "file", "overflow", "rounding", "engine"
]  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """What to write into the recipe."""

    key: str  # dotted, "passes[1].lowrank.ignore"
    value: Any

    def text(self) -> str:
        """As in a recipe."""
        text = yaml.safe_dump(self.value, default_flow_style=True, allow_unicode=True, width=1000)
        return f"{self.key}: {text.removesuffix('...' + chr(10)).strip()}"


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """A layer, or a whole engine, that is to blame."""

    level: Level
    cause: Cause
    layer: str
    pass_name: str | None
    what: str  # in brackets: "rank 4 of 400"
    why: str  # a sentence
    alone: float | None  # harm of it by itself; None: it cannot be taken by itself
    before: float  # harm with it
    after: float | None  # harm without it
    changes: tuple[Change, ...] = ()
    advice: str = ""

    @property
    def name(self) -> str:
        """With the pass, if any: "lowrank:mlp.1"."""
        return self.layer if self.pass_name is None else f"{self.pass_name}:{self.layer}"


@dataclasses.dataclass(slots=True)
class Answer:
    """All that is known so far; filled in as it is found out."""

    rows: int = 0
    measure: Measure | None = None
    seen: dict[str, Seen] = dataclasses.field(default_factory=dict)  # variant: what it answered
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)  # engine: why it did not run
    findings: list[Finding] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    evaluations: int = 0
    seconds: float = 0.0

    def lines(self) -> list[str]:
        """For people."""
        if self.measure is None:
            return ["nothing is known yet"]
        lines = [f"{self.measure.name} on {self.rows:,} validation rows, from the original's"]
        width = max(map(len, self.seen), default=0)
        for name, seen in self.seen.items():
            harm = self.measure.harm(seen)
            lines.append(f"  {name:<{width}}  {self.measure.told(harm)}{self._gate(harm)}")
        lines += [f"  {name:<{width}}  not run: {why}" for name, why in self.skipped.items()]
        for k, finding in enumerate(self.findings):
            again = any(one.level == finding.level for one in self.findings[:k])
            lines += self._told(finding, "the rest" if again else "it")
        return lines + [f"note: {note}" for note in self.notes]

    def _gate(self, harm: float) -> str:
        assert self.measure is not None
        if self.measure.allowed is None:
            return ""
        allowed = f"the gate allows {self.measure.amount(self.measure.allowed)}"
        return f", {allowed}" if self.measure.fails(harm) else ""

    def _told(self, found: Finding, of: str) -> list[str]:
        measure = self.measure
        assert measure is not None
        what = f" ({found.what})" if found.what else ""
        line = f"{found.level}: {_share(found, of)} comes from {found.name}{what}"
        if found.after is not None:
            line += f": swapping it back leaves {measure.amount(max(found.after, 0.0))}"
        lines = [line, f"  {found.why}"]
        lines += [f"  try: {change.text()}" for change in found.changes]
        return lines + ([f"  {found.advice}"] if found.advice else [])

    def summary(self) -> str:
        """One line."""
        if not self.findings:
            return self.notes[0] if self.notes else "nothing was found"
        first = self.findings[0]
        more = len(self.findings) - 1
        return f"{first.level}: {first.name}, {first.cause}" + (
            f", and {more} more" if more else ""
        )

    def to_dict(self) -> dict[str, Any]:
        """For programs; every number is finite, null stands for an answer that is no number."""
        measure = self.measure
        if measure is None:
            return {"format": 1, "findings": [], "notes": self.notes}
        return {
            "format": 1,
            "metric": measure.name,
            "allowed": measure.allowed,
            "rows": self.rows,
            "drops": {
                name: {"drop": _finite(measure.harm(seen)), "broken_rows": seen.broken}
                for name, seen in self.seen.items()
            },
            "not_run": self.skipped,
            "findings": [_as_dict(finding) for finding in self.findings],
            "notes": self.notes,
            "evaluations": self.evaluations,
            "seconds": round(self.seconds, 3),
        }


def _as_dict(found: Finding) -> dict[str, Any]:
    return {
        "level": found.level,
        "cause": found.cause,
        "layer": found.layer,
        "pass": found.pass_name,
        "what": found.what,
        "why": found.why,
        "alone": _finite(found.alone),
        "with": _finite(found.before),
        "without": _finite(found.after),
        "share": share(found),
        "changes": [dataclasses.asdict(change) for change in found.changes],
        "advice": found.advice,
    }


def share(found: Finding) -> float | None:
    """Part of the harm that leaving it out wins back."""
    if found.after is None:
        return None
    if found.before >= AWFUL:
        return 1.0 if found.after < AWFUL else max(0.0, 1 - found.after / found.before)
    return (found.before - found.after) / found.before if found.before > 0 else 0.0


def _share(found: Finding, of: str) -> str:
    part = share(found)
    if part is None:
        return of
    return f"all of {of}" if part > 0.995 else f"{number(100 * part, 2)} % of {of}"


def _finite(harm: float | None) -> float | None:
    return None if harm is None or harm >= AWFUL / 2 else harm
