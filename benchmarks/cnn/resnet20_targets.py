"""What the project promised of ResNet-20, sentence by sentence, against what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.ctr.targets import Part, Target
from rankc.report.text import TIMES, signed

Row = Mapping[str, Any]

MOST_LOST = {2.0: 0.015, 2.8: 0.05}  # of accuracy, by how many times fewer operations
ROUNDING = 1e-9  # an accuracy is a whole number of images, its difference is not
SEEDS = ("ours", "seed-1", "seed-2")
COMPILE = 90.0  # seconds
PAYS = 0.8  # of what the operations promise
DEVIATION = 0.01  # of a measured error from its prediction


def targets(raw: Mapping[str, Any]) -> list[Target]:
    """Every sentence that the raw data can answer."""
    rows = [row for row in raw["rows"] if "refused" not in row]
    ours = [row for row in rows if row["variant"] == "ours"]
    parts = {
        f"loses at most 1.5 points at 2{TIMES}, 5 at 2.8{TIMES}, on every seed": tuple(_lost(rows)),
        "loses less than every baseline, beyond noise": tuple(_baselines(rows, ours)),
        f"compiles in {COMPILE:.0f} s at most": tuple(_compiles(ours)),
        f"rewritten layers give {100 * PAYS:.0f} % of what their MACs promise": tuple(_pays(ours)),
        "measured errors are the predicted ones within 1 %, moments of all positions": tuple(
            _errors(raw["predictions"])
        ),
    }
    return [Target(text, found) for text, found in parts.items() if found]


def share(macs_ratio: float, time_ratio: float) -> float:
    """How much of what the operations promise the clock gives; 1: all of it.

    Args:
        macs_ratio: original / compressed.
        time_ratio: compressed / original.

    >>> share(2.0, 0.5)
    1.0
    """
    return 1 / (macs_ratio * time_ratio)


def layer_shares(row: Row, batch: str) -> list[float]:
    """The share of every rewritten layer that was timed."""
    return [
        share(layer["dense_macs"] / layer["macs"], layer["latency"][batch]["ratio"])
        for layer in row["layers"]
        if "macs" in layer and batch in layer["latency"]
    ]


def _lost(rows: Sequence[Row]) -> Iterator[Part]:
    for row in rows:
        if row["variant"] in SEEDS and row["ratio"] in MOST_LOST:
            found = row["metrics"]["accuracy_top1"]["difference"]
            holds = -found <= MOST_LOST[row["ratio"]] + ROUNDING
            where = f"{_at(row)}, seed {SEEDS.index(row['variant'])}"
            yield Part(where, f"{signed(100 * found, 2)} points", holds)


def _baselines(rows: Sequence[Row], ours: Sequence[Row]) -> Iterator[Part]:
    for row in ours:
        others = [r for r in rows if r["ratio"] == row["ratio"] and r["baseline"]]
        if others:
            best = max(r["metrics"]["accuracy_top1"]["interval"][1] for r in others)
            own = row["metrics"]["accuracy_top1"]["interval"][0]
            text = f"{signed(100 * own, 2)} or better, and they {signed(100 * best, 2)} at best"
            yield Part(_at(row), text, own > best)


def _compiles(ours: Sequence[Row]) -> Iterator[Part]:
    for row in ours:
        found = row["seconds"]["wall"]
        yield Part(_at(row), f"{found:.0f} s", found <= COMPILE)


def _pays(ours: Sequence[Row]) -> Iterator[Part]:
    for row in ours:
        for batch in sorted(row["latency"], key=int):
            shares = layer_shares(row, batch)
            if shares:
                good = sum(one >= PAYS for one in shares)
                text = f"{good} of {len(shares)}, the least {100 * min(shares):.0f} %"
                yield Part(f"{_at(row)} at batch {batch}", text, good == len(shares))


def _errors(found: Mapping[str, Sequence[Row]]) -> Iterator[Part]:
    worst = max(float(one["deviation"]) for one in found["exact"])
    yield Part("", f"{100 * worst:.1g} % at worst", worst <= DEVIATION)


def _at(row: Row) -> str:
    return f"{row['ratio']:g}{TIMES}"
