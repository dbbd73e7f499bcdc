"""Figures on what changed: gates beside their intervals, a search's plans, causes of a drop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from rankc.reasons import measured
from rankc.recipe import Unit
from rankc.report import text
from rankc.report.charts import Intervals, Label, Tried, intervals, plain, scatter
from rankc.validate.quantities import QUANTITIES
from rankc.validate.schema import GateRow, Metrics, Point, Split

_CAUSES = {
    "floor": "floor",
    "compression": "compression",
    "lowering": "lowering",
    "total": "total",
}
_COSTS = {"bytes": text.size, "parameters": text.amount, "macs": text.amount}


def gate_figure(gate: GateRow) -> Intervals | None:
    """What was observed with its interval beside what the gate allows; None if it is exact."""
    interval = gate.get("interval")
    if interval is None:
        return None
    scale, unit = _unit(gate["metric"], gate["goal"])
    first = gate["text"].split(" ", 1)[0]
    name = first if first.isalpha() else "value"
    low, high = (f"{scale * end:.3g}" for end in interval)
    words = (
        f"{name} {scale * gate['observed']:.3g}{unit}, 95 % interval from {low} to {high}; "
        f"the gate: {gate['text']}"
    )
    values = [(name, gate["observed"], (interval[0], interval[1]))]
    return intervals(gate["metric"], words, values, _label(scale), gate["value"])


def splits(metrics: Metrics) -> list[dict[str, Any]]:
    """Where each metric's change comes from, target by target."""
    found = metrics.get("split") or {}
    return [
        _split(target, name, split)
        for target, names in sorted(found.items())
        for name, split in sorted(names.items())
    ]


def _split(target: str, name: str, split: Split) -> dict[str, Any]:
    spans = cast("dict[str, Any]", split)
    values = [(label, spans[key], spans[f"{key}_interval"]) for key, label in _CAUSES.items()]
    rows = [
        (label, change(name, value), "" if ends is None else _ends(name, ends))
        for label, value, ends in values
    ]
    words = "; ".join(f"{label} {value} {ends}".rstrip() for label, value, ends in rows)
    scale, unit = _unit(name, "")
    return {
        "name": f"{name} on {target}",
        "rows": rows,
        "unit": unit.strip(),
        "figure": intervals(f"Change of {name} on {target}", words, values, _label(scale)),
    }


def change(name: str, value: float) -> str:
    """A difference of a metric with its sign."""
    if name in QUANTITIES and QUANTITIES[name].share:
        return f"{text.signed(100 * value, 2)} points"
    if name in ("auc", "logloss"):
        return text.signed(value)
    return text.short(value) if value <= 0 else f"+{text.short(value)}"


def _ends(name: str, ends: Sequence[float]) -> str:
    low, high = (change(name, end).removesuffix(" points") for end in ends)
    return f"({low} to {high})"


def _unit(name: str, goal: str) -> tuple[float, str]:
    """By what a value is multiplied to be written, and its unit."""
    if goal.startswith("percent"):
        return 1.0, " %"
    if name in QUANTITIES and QUANTITIES[name].share:
        return 100.0, " %" if goal == "threshold" else " points"
    return 1.0, QUANTITIES[name].unit if name in QUANTITIES else ""


def _label(scale: float) -> Label:
    return lambda value, step: plain(scale * value, scale * step)


# --- the plans that a search tried ------------------------------------------------------------


def search(metrics: Metrics) -> dict[str, Any] | None:
    """Charts and a table of the plans; None if nothing was searched."""
    front = metrics.get("front")
    if not front:
        return None
    names = sorted({name for point in front for name in point["values"]})
    chosen = next((point for point in front if point["chosen"]), None)
    return {
        "charts": [_chart(worth, front, metrics) for worth in _worths(front, metrics)],
        "head": ["budget", *names, "predicted loss", "gates", ""],
        "rows": [_point(point, names) for point in front],
        "chosen": "" if chosen is None else measured(_as_unit(chosen), chosen["budget"]),
        "tried": len(front),
    }


def _worths(front: Sequence[Point], metrics: Metrics) -> list[str]:
    """What is drawn over the cost: accuracies that gates name, or else the predicted loss."""
    named = dict.fromkeys(g["metric"] for g in metrics["gates"] if g["kind"] == "accuracy")
    shown = [name for name in named if any(name in point["values"] for point in front)]
    return shown or ["loss"]


def _chart(worth: str, front: Sequence[Point], metrics: Metrics) -> Any:
    shown = [point for point in front if worth == "loss" or worth in point["values"]]
    tried = [
        Tried(
            _cost(point),
            point["loss"] if worth == "loss" else point["values"][worth],
            point["passed"],
            point["efficient"],
            point["chosen"],
        )
        for point in shown
    ]
    scale, percent = _unit(worth, "threshold")
    name = "predicted loss" if worth == "loss" else worth
    better = "higher" if worth in QUANTITIES and QUANTITIES[worth].higher_is_better else "lower"
    y_name = f"{name}{',' + percent if percent else ''} ({better} is better)"
    cost = _cost_name(front[0])
    return scatter(
        name,
        _words(name, cost, tried, scale),
        tried,
        _levels(worth, metrics),
        (cost, _cost_label(front[0])),
        (y_name, _label(scale)),
    )


def _words(name: str, cost: str, tried: Sequence[Tried], scale: float) -> str:
    worths = [scale * each.worth for each in tried]
    passed = sum(each.passed for each in tried)
    told = (
        f"{name} over {cost} of {len(tried)} plans, from {min(worths):.5g} to {max(worths):.5g}; "
        f"{passed} pass every gate."
    )
    found = [each for each in tried if each.chosen]
    return told + "".join(f" The chosen one has {scale * each.worth:.5g}." for each in found)


def _levels(worth: str, metrics: Metrics) -> list[tuple[str, str, float]]:
    """The original, and what gates allow."""
    pair = metrics["metrics"].get(worth)
    if pair is None:
        return []
    levels = [("original", "soft", pair["original"])]
    for gate in metrics["gates"]:
        if gate["metric"] == worth and gate.get("against") != "baseline":
            limit = _limit(gate, pair["original"])
            levels.append((f"gate: {gate['text']}", "most", limit))
    return levels


def _limit(gate: GateRow, original: float) -> float:
    """The value at which a gate begins to fail."""
    if gate["goal"] == "threshold":
        return gate["value"]
    amount = gate["value"] * (abs(original) / 100 if gate["goal"].startswith("percent") else 1.0)
    rises = QUANTITIES[gate["metric"]].higher_is_better == ("improvement" in gate["goal"])
    return original + amount if rises else original - amount


def _point(point: Point, names: Sequence[str]) -> list[str]:
    values = [_value(name, point["values"].get(name)) for name in names]
    state = "chosen" if point["chosen"] else "efficient" if point["efficient"] else ""
    budget = measured(_as_unit(point), point["budget"])
    gates = "pass" if point["passed"] else "FAIL"
    return [budget, *values, text.short(point["loss"]), gates, state]


def _value(name: str, value: float | None) -> str:
    if value is None:
        return text.DASH
    if name == "size_bytes":
        return text.size(value)
    scale, unit = _unit(name, "threshold")
    return f"{scale * value:.5g}{unit}"


def _as_unit(point: Point) -> Unit:
    return cast("Unit", point["unit"])


def _cost(point: Point) -> float:
    """Bytes as they came out; of other units only the budget is known."""
    size = point["values"].get("size_bytes")
    return size if size is not None and point["unit"] == "bytes" else point["budget"]


def _cost_name(point: Point) -> str:
    names = {"bytes": "size of the file", "parameters": "budget in parameters"}
    return names.get(point["unit"]) or f"budget in {'MACs' if point['unit'] == 'macs' else 'ms'}"


def _cost_label(point: Point) -> Label:
    short = _COSTS.get(point["unit"])
    return plain if short is None else lambda value, step: short(value)
