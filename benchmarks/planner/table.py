"""raw.json → table.md: the same raw data, the same bytes. `python -m benchmarks.planner.table`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rankc.report.text import markdown_table

RESULTS = Path(__file__).with_name("results")

Raw = Mapping[str, Any]


def render(raw: Raw) -> str:
    """The whole of table.md."""
    parts = ["# The planner: what was measured", _HOW]
    parts += ["## Against brute force", _brute_force(raw["brute_force"])]
    parts += ["## Against other strategies", _STRATEGIES, _strategies(raw["strategies"])]
    parts += ["## A larger budget", _monotone(raw["monotone"])]
    parts += ["## Time", _TIME, _scale(raw["scale"])]
    versions = ", ".join(f"{name} {version}" for name, version in raw["environment"].items())
    return "\n\n".join([*parts, f"Measured with {versions}."]) + "\n"


_HOW = """\
Made by `python -m benchmarks.planner.run` from `raw.json`; do not edit. All problems are random
(`instances.py`); losses are given, so this says how well ranks are chosen by them, not how good the
predictions are."""

_STRATEGIES = """\
Twenty nets of 30 sites, three forms, up to 64 ranks each; budgets of multiply-accumulates between
the smallest (0) and all dense (1). *Times the loss*: of the optimal plan, median and worst.
*noise*: of the losses, as where they are measured and no spectrum gives them. How far apart the
strategies are says little about a given net: here the losses of sites differ by up to four decades,
and so do their spectra."""

_TIME = """\
From candidates to a plan with its reasons, one thread, budgets at four sizes: median and worst.
*gap*: the worst distance to what could be proven; *optimal*: plans proven to be the optimum, of
four."""


def _brute_force(rows: Sequence[Raw]) -> str:
    head = ["limits", "instances", "impossible", "optimal", "within 1 %", "worst", "bound too high"]
    return markdown_table(
        head,
        [
            [
                str(row["limits"]),
                f"{row['instances']:,}",
                str(row["impossible"]),
                f"{row['optimal']:,} of {row['instances'] - row['impossible']:,}",
                f"{row['within_a_hundredth']:,}",
                f"+{100 * row['worst_excess']:.2g} %",
                str(row["bound_above_optimum"]),
            ]
            for row in rows
        ],
    )


def _strategies(rows: Sequence[Raw]) -> str:
    names = ("greedy", "uniform")
    found = {(row["noise"], row["share"], row["strategy"]): row for row in rows}
    keys = sorted({(noise, share) for noise, share, _ in found})
    head = [
        "noise",
        "budget",
        *(f"{name}: times the loss" for name in names),
        "proven optimal",
    ]
    return markdown_table(
        head,
        [
            [
                f"{noise:g}",
                f"{share:g}",
                *(_times(found[noise, share, name]) for name in names),
                f"{best['exact']} of {len(best['gap'])}",
            ]
            for noise, share in keys
            for best in [found[noise, share, "optimal"]]
        ],
    )


def _times(row: Raw) -> str:
    return f"{median(row['times_the_optimum']):.3g} ({max(row['times_the_optimum']):.3g})"


def _monotone(rows: Sequence[Raw]) -> str:
    head = [
        "sites",
        "ranks",
        "forms",
        "noise",
        "budgets tried",
        "of which lost more than a smaller",
    ]
    names = ("sites", "ranks", "forms", "noise", "budgets", "worse")
    return markdown_table(head, [[f"{row[name]:,g}" for name in names] for row in rows])


def _scale(rows: Sequence[Raw]) -> str:
    head = ["", "sites", "ranks", "forms", "points", "limits", "CPU s", "wall s", "gap", "optimal"]
    return markdown_table(
        head,
        [
            [
                row["name"],
                f"{row['sites']:,}",
                f"{row['ranks']:,}",
                str(row["forms"]),
                f"{row['points']:,}",
                ", ".join(row["units"]),
                _seconds(row["cpu_seconds"]),
                _seconds(row["wall_seconds"]),
                f"{100 * max(row['gaps']):.2g} %",
                f"{row['exact']} of {len(row['gaps'])}",
            ]
            for row in rows
        ],
    )


def _seconds(values: Sequence[float]) -> str:
    return f"{median(values):.3f} ({max(values):.3f})"


def write(folder: Path = RESULTS) -> Path:
    """Write table.md beside raw.json."""
    raw = json.loads((folder / "raw.json").read_text(encoding="utf-8"))
    path = folder / "table.md"
    path.write_text(render(raw), encoding="utf-8", newline="\n")
    return path


if __name__ == "__main__":
    print(write())
