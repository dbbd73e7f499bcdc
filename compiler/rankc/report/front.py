"""The plans that a search tried: what each costs and what it is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from rankc.reasons import measured
from rankc.recipe import Unit
from rankc.report import text
from rankc.report.changes import scaled, unit_of
from rankc.report.charts import Label, Scatter, Tried, plain, scatter
from rankc.report.search import how_searched
from rankc.validate.quantities import Quantity, known_to
from rankc.validate.schema import GateRow, Metrics, Point

_COSTS = {"bytes": text.size, "parameters": text.amount, "macs": text.amount}
_COST_NAMES = {
    "bytes": "size of the file",
    "parameters": "budget in parameters",
    "macs": "budget in MACs",
    "ms": "budget in ms",
}


def charts(front: Sequence[Point], metrics: Metrics) -> list[Scatter]:
    """What plans are worth over what they cost, a chart for each accuracy that a gate names."""
    return [_chart(worth, front, metrics) for worth in _worths(front, metrics)]


def search(metrics: Metrics) -> dict[str, Any] | None:
    """Charts and a table of the plans; None if nothing was searched."""
    front = metrics.get("front")
    if not front:
        return None
    names = sorted({name for point in front for name in point["values"]})
    chosen = next((point for point in front if point["chosen"]), None)
    return {
        "charts": charts(front, metrics),
        "head": ["budget", *names, "predicted loss", "gates", "state"],
        "rows": [_point(point, names, known_to(metrics)) for point in front],
        "chosen": _chosen(chosen),
        "tried": len(front),
        "how": how_searched(metrics),
    }


def _chosen(point: Point | None) -> str:
    """What was taken, or why nothing was."""
    if point is None:
        return "No plan was chosen."
    budget = measured(_as_unit(point), point["budget"])
    if point["passed"]:
        return f"Chosen: a budget of {budget} (ring)."
    return f"None keeps every gate; the closest was taken, a budget of {budget} (ring)."


def _worths(front: Sequence[Point], metrics: Metrics) -> list[str]:
    """What is drawn over the cost: accuracies that gates name, or else the predicted loss."""
    named = dict.fromkeys(g["metric"] for g in metrics["gates"] if g["kind"] == "accuracy")
    shown = [name for name in named if any(name in point["values"] for point in front)]
    return shown or ["loss"]


def _chart(worth: str, front: Sequence[Point], metrics: Metrics) -> Scatter:
    quantity = known_to(metrics).get(worth)
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
    scale, unit = unit_of(quantity, "threshold")
    name = "predicted loss" if worth == "loss" else worth
    better = "higher" if quantity is not None and quantity.higher_is_better else "lower"
    y_name = f"{name}{',' + unit if unit else ''} ({better} is better)"
    cost = _COST_NAMES.get(front[0]["unit"], "budget")
    return scatter(
        name,
        _words(name, cost, tried, scale),
        tried,
        [] if quantity is None else _levels(quantity, metrics),
        (cost, _cost_label(front[0])),
        (y_name, scaled(scale)),
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


def _levels(quantity: Quantity, metrics: Metrics) -> list[tuple[str, str, float]]:
    """The original, and what gates allow."""
    pair = metrics["metrics"].get(quantity.name)
    if pair is None:
        return []
    levels = [("original", "soft", pair["original"])]
    for gate in metrics["gates"]:
        if gate["metric"] == quantity.name and gate.get("against") != "baseline":
            limit = _limit(gate, quantity, pair["original"])
            levels.append((f"gate: {gate['text']}", "most", limit))
    return levels


def _limit(gate: GateRow, quantity: Quantity, original: float) -> float:
    """The value at which a gate begins to fail."""
    if gate["goal"] == "threshold":
        return gate["value"]
    amount = gate["value"] * (abs(original) / 100 if gate["goal"].startswith("percent") else 1.0)
    rises = quantity.higher_is_better == ("improvement" in gate["goal"])
    return original + amount if rises else original - amount


def _point(point: Point, names: Sequence[str], known: Mapping[str, Quantity]) -> list[str]:
    values = [_value(known.get(name), point["values"].get(name)) for name in names]
    state = "chosen" if point["chosen"] else "efficient" if point["efficient"] else ""
    budget = measured(_as_unit(point), point["budget"])
    failed = "; ".join(point.get("failed", []))
    gates = "pass" if point["passed"] else f"FAIL: {failed}" if failed else "FAIL"
    return [budget, *values, text.short(point["loss"]), gates, state]


def _value(quantity: Quantity | None, value: float | None) -> str:
    if value is None:
        return text.DASH
    if quantity is not None and quantity.name == "size_bytes":
        return text.size(value)
    scale, unit = unit_of(quantity, "threshold")
    return f"{scale * value:.5g}{unit}"


def _as_unit(point: Point) -> Unit:
    return cast("Unit", point["unit"])


def _cost(point: Point) -> float:
    """Bytes as they came out; of other units only the budget is known."""
    size = point["values"].get("size_bytes")
    return size if size is not None and point["unit"] == "bytes" else point["budget"]


def _cost_label(point: Point) -> Label:
    short = _COSTS.get(point["unit"])
    return plain if short is None else lambda value, step: short(value)
