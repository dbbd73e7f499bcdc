"""What the project promised of these models, sentence by sentence, against what was measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rankc.report.text import TIMES, signed, size

Row = Mapping[str, Any]
Raw = Mapping[str, Any]

DEVIATION = 0.01  # of a measured error from its prediction
CALIBRATION = 1.5  # times plain inference over the same rows
PLANNING = 5.0  # seconds
MEMORY = 500e6  # bytes, on top of three times the model


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """One number that has to hold."""

    name: str  # what it is of; named where it does not hold
    text: str
    holds: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """One sentence; it holds if all its parts do."""

    text: str
    parts: tuple[Part, ...]

    @property
    def seen(self) -> str:
        """All numbers."""
        return "; ".join(f"{p.name} {p.text}" if p.name else p.text for p in self.parts)

    @property
    def verdict(self) -> str:
        """Yes, or which part does not hold."""
        failing = [p.name for p in self.parts if not p.holds]
        names = ", ".join(name for name in failing if name)
        return "yes" if not failing else f"**no**: {names}" if names else "**no**"


Measure = Callable[[Sequence[Row]], Iterator[Part]]


def targets(raw: Raw) -> list[Target]:
    """Every sentence that the rows and checks in `raw` can answer."""
    found = []
    for text, arch, variant, measures in _OF_ROWS:
        rows = [r for r in raw["rows"] if (r["arch"], r["variant"]) == (arch, variant)]
        if rows:
            rows.sort(key=lambda row: row["seed"])
            found.append(Target(text, tuple(p for m in measures for p in m(rows))))
    return found + list(_of_checks(raw["checks"]))


# --- about rows -------------------------------------------------------------------------------


def at_least(times: float) -> Measure:
    """Size of every seed's model."""

    def measure(rows: Sequence[Row]) -> Iterator[Part]:
        ratio = min(row["ratios"]["size_bytes"] for row in rows)
        yield Part("size", f"{ratio:.2f}{TIMES}", ratio >= times)

    return measure


def within(limit: float) -> Measure:
    """The difference in AUC, either way, of every seed."""

    def measure(rows: Sequence[Row]) -> Iterator[Part]:
        for row in rows:
            found = row["metrics"]["auc"]["difference"]
            yield Part(_seed(row), signed(found, 6), abs(found) <= limit)

    return measure


def interval_within(limit: float) -> Measure:
    """Both ends of the interval of the difference in AUC, of every seed."""

    def measure(rows: Sequence[Row]) -> Iterator[Part]:
        for row in rows:
            low, high = row["metrics"]["auc"]["interval"]
            text = f"[{signed(low)}, {signed(high)}]"
            yield Part(_seed(row), text, -limit <= low and high <= limit)

    return measure


def time_at_most(ratio: float, batches: Sequence[int] | None = None) -> Measure:
    """CPU time of one call against the original's, at some batch sizes or at all."""

    def measure(rows: Sequence[Row]) -> Iterator[Part]:
        for row in rows:
            for batch, timed in sorted(row["latency"].items(), key=lambda item: int(item[0])):
                if batches is None or int(batch) in batches:
                    found = timed["ratio"]
                    yield Part(f"time at {batch}", f"{found:.2f}{TIMES}", found <= ratio)

    return measure


def largest_change(limit: float) -> Measure:
    """The largest change of any answer, of every seed."""

    def measure(rows: Sequence[Row]) -> Iterator[Part]:
        for row in rows:
            found = row["metrics"]["max_abs_err"]["compressed"]
            yield Part(_seed(row), f"{found:.1e}", found <= limit)

    return measure


def _seed(row: Row) -> str:
    return f"seed {row['seed']}"


_OF_ROWS: tuple[tuple[str, str, str, tuple[Measure, ...]], ...] = (
    (
        f"exact: max |Δp| ≤ 1e-5, time at batch 1 ≤ 0.65{TIMES}",
        "deepfm",
        "exact",
        (largest_change(1e-5), time_at_most(0.65, (1,))),
    ),
    (
        f"float: ≥ 3{TIMES} smaller, interval of ΔAUC in ±0.0005, time ≤ 0.5{TIMES} at all batches",
        "deepfm",
        "float-3x",
        (at_least(3), interval_within(5e-4), time_at_most(0.5)),
    ),
    (
        f"float: ≥ 5{TIMES} smaller, |ΔAUC| ≤ 0.0003",
        "deepfm",
        "float-5x",
        (at_least(5), within(3e-4)),
    ),
    (
        f"float: ≥ 8{TIMES} smaller, |ΔAUC| ≤ 0.0007",
        "deepfm",
        "float-8x",
        (at_least(8), within(7e-4)),
    ),
    (
        f"int8 tables: ≥ 12{TIMES} smaller, |ΔAUC| ≤ 0.0002 (`ctr-lowrank`)",
        "deepfm",
        "int8-12x",
        (at_least(12), within(2e-4)),
    ),
    (
        f"int8 tables: ≥ 16{TIMES} smaller, |ΔAUC| ≤ 0.0003",
        "deepfm",
        "int8-16x",
        (at_least(16), within(3e-4)),
    ),
    (
        f"DCN-v2, float: ≥ 4.5{TIMES} smaller, |ΔAUC| ≤ 0.0002",
        "dcn",
        "float-4.5x",
        (at_least(4.5), within(2e-4)),
    ),
    (
        f"DCN-v2, int8 tables: ≥ 12{TIMES} smaller, |ΔAUC| ≤ 0.0002",
        "dcn",
        "int8-12x",
        (at_least(12), within(2e-4)),
    ),
)


# --- about checks -----------------------------------------------------------------------------


def _of_checks(checks: Raw) -> Iterator[Target]:
    parts = []
    for arch, sites in checks["errors"].items():
        worst = max(site["deviation"] for site in sites)
        text = f"{len(sites)} sites, worst {100 * worst:.2g} %"
        parts.append(Part(arch, text, worst <= DEVIATION))
    text = "predicted error = measured error on the calibration rows within 1 %, every site"
    yield Target(text, tuple(parts))
    yield Target(
        f"calibration costs ≤ {CALIBRATION}{TIMES} plain inference over the same rows (CPU time)",
        tuple(
            Part(arch, f"{cost['ratio']:.2f}{TIMES}", cost["ratio"] <= CALIBRATION)
            for arch, cost in checks["calibration"].items()
        ),
    )
    yield from _of_compiles(checks["compiles"])


def _of_compiles(compiles: Sequence[Raw]) -> Iterator[Target]:
    usual = [one for one in compiles if one["blas_threads"] is None]
    planning = max(planning_seconds(one) for one in usual)
    text = "planning and rewriting < 5 s (wall clock, exact rewrites included)"
    yield Target(text, (Part("", f"{planning:.1f} s", planning < PLANNING),))
    peak = max(one["peak_memory_bytes"] for one in usual)
    limit = 3 * usual[0]["model_bytes"] + MEMORY
    text = f"peak memory of a compile ≤ 3{TIMES} model size + 500 MB"
    yield Target(text, (Part("", f"{size(peak)} of {size(limit)}", peak <= limit),))
    same = all(one["sha256"] == usual[0]["sha256"] for one in usual)
    text = "the same recipe twice, in fresh processes: byte-identical `model.onnx` and `plan.json`"
    seen = f"{len(usual)} compiles, {'identical' if same else 'different'}"
    yield Target(text, (Part("", seen, same),))


def planning_seconds(one: Raw) -> float:
    """Wall-clock seconds of a compile's rewriting stages."""
    return sum(float(one["stages"][stage]["wall_seconds"]) for stage in ("cleanup", "plan"))
