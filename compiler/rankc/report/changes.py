"""Figures on what changed: gates beside their intervals, causes of a drop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from rankc.report import text
from rankc.report.charts import Intervals, Label, intervals, plain
from rankc.validate.quantities import Quantity, known_to
from rankc.validate.schema import GateRow, Metrics, Split

PERCENT = 100.0
_CAUSES = ("floor", "compression", "lowering", "total")


def gate_figure(gate: GateRow, metrics: Metrics) -> Intervals | None:
    """What was observed with its interval beside what the gate allows; None if it is exact."""
    interval = gate["interval"]
    if interval is None:
        return None
    scale, unit = unit_of(known_to(metrics).get(gate["metric"]), gate["goal"])
    first = gate["text"].split(" ", 1)[0]
    name = first if first.isalpha() else "value"
    low, high = (f"{scale * end:.3g}" for end in interval)
    words = (
        f"{name} {scale * gate['observed']:.3g}{unit}, interval from {low} to {high}; "
        f"the gate: {gate['text']}"
    )
    values = [(name, gate["observed"], (interval[0], interval[1]))]
    return intervals(gate["metric"], words, values, scaled(scale), gate["value"])


def splits(metrics: Metrics) -> list[dict[str, Any]]:
    """Where each metric's change comes from, target by target."""
    found, known = metrics.get("split") or {}, known_to(metrics)
    return [
        _split(target, name, known.get(name), split)
        for target, names in sorted(found.items())
        for name, split in sorted(names.items())
    ]


def _split(target: str, name: str, quantity: Quantity | None, split: Split) -> dict[str, Any]:
    spans = cast("dict[str, Any]", split)
    scale, unit = unit_of(quantity, "")
    values = [(cause, spans[cause], spans[f"{cause}_interval"]) for cause in _CAUSES]
    rows = [
        (cause, f"{_change(name, value, scale)}{unit}", _ends(name, ends, scale))
        for cause, value, ends in values
    ]
    words = "; ".join(f"{cause} {value} {ends}".rstrip() for cause, value, ends in rows)
    return {
        "name": f"{name} on {target}",
        "rows": rows,
        "unit": unit.strip(),
        "figure": intervals(f"Change of {name} on {target}", words, values, scaled(scale)),
    }


def _change(name: str, value: float, scale: float) -> str:
    """A difference of a metric with its sign."""
    if scale == PERCENT:
        return text.signed(scale * value, 2)
    if name in ("auc", "logloss"):
        return text.signed(value)
    return text.short(value) if value <= 0 else f"+{text.short(value)}"


def _ends(name: str, ends: Sequence[float] | None, scale: float) -> str:
    if ends is None:
        return ""
    low, high = (_change(name, end, scale) for end in ends)
    return f"({low} to {high})"


def unit_of(quantity: Quantity | None, goal: str) -> tuple[float, str]:
    """By what a value is multiplied to be written, and its unit.

    Args:
        quantity: None: nothing is known of it.
        goal: Of a gate; empty: the value is a change.
    """
    if goal.startswith("percent"):
        return 1.0, " %"
    if quantity is None:
        return 1.0, ""
    if quantity.share:
        return PERCENT, " %" if goal == "threshold" else " points"
    return 1.0, quantity.unit


def scaled(scale: float) -> Label:
    """Labels of values that are multiplied before they are written."""
    return lambda value, step: plain(scale * value, scale * step)
