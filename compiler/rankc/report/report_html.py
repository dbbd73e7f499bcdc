"""report.html: what a recipe came to, as one page that needs nothing else; the verdict first."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from rankc.report import text
from rankc.report.changes import gate_figure, splits
from rankc.report.front import search
from rankc.report.layer_rows import (
    Layers,
    Plan,
    entries,
    figures,
    largest_batch,
    layer_rows,
    time_rows,
)
from rankc.report.markdown import how_measured, plan_summary, state_of
from rankc.report.page import printable, render
from rankc.report.rows import Row, table_rows
from rankc.report.training import lessons
from rankc.validate.schema import GateRow, Metrics

Lock = Mapping[str, Any]  # the content of recipe.lock.json
FIGURES = 12  # spectra that are seen at once; the others have to be unfolded
LINES = 30  # of a table, the same
TIMES = 12  # of the layers that take longest, the same

T = TypeVar("T")


def report_html(
    metrics: Metrics,
    plan: Plan | None = None,
    *,
    layers: Layers | None = None,
    lock: Lock | None = None,
    recipe: str = "",
) -> str:
    """The whole page; the same content gives the same bytes.

    Args:
        metrics: The content of metrics.json.
        plan: The content of plan.json; None: the recipe has exact passes only.
        layers: The content of layers.json; None: no spectra are drawn.
        lock: The content of recipe.lock.json; None: no hashes are listed.
        recipe: The recipe with its defaults filled in, YAML; empty: not shown.
    """
    metrics, plan, layers, lock = (printable(each) for each in (metrics, plan, layers, lock))
    found, timed = entries(plan, layers), metrics["layers"]
    gates = sorted(metrics["gates"], key=lambda gate: list(_WORDS).index(_state(gate)))
    return render(
        "report.html.jinja",
        metrics=metrics,
        verdict=_verdict(metrics),
        gates=[_gate(gate, metrics["rows"]) for gate in gates],
        gate_figures=[gate_figure(gate, metrics) for gate in gates],
        rows=[_row(row) for row in table_rows(metrics)],
        search=search(metrics),
        training=lessons(metrics),
        splits=splits(metrics),
        summary="" if plan is None else plan_summary(plan),
        figures=_parted(figures(found), FIGURES),
        layers=_parted(layer_rows(found, timed), LINES),
        batch=largest_batch(timed),
        times=_parted(time_rows(metrics), TIMES),
        largest=max(map(int, metrics["latency"]), default=None),
        skips=_parted([] if plan is None else plan["skips"], LINES),
        backends=_backends(metrics),
        how=[line.removeprefix("- ") for line in how_measured(metrics).splitlines()],
        environment=_environment(metrics, lock),
        hashes=[] if lock is None else sorted(lock["sha256"].items()),
        recipe=printable(recipe),
    )


def _parted(found: Sequence[T], most: int) -> tuple[Sequence[T], Sequence[T]]:
    """Those that are seen at once, and the rest; a rest of a few is not worth a fold."""
    cut = most if len(found) > most + most // 4 else len(found)
    return found[:cut], found[cut:]


def _verdict(metrics: Metrics) -> str:
    """How many gates did what, in a sentence."""
    gates = metrics["gates"]
    if not gates:
        return "The recipe sets no gates, so nothing was asked of the result."
    counts = {word: sum(_state(gate) == word for gate in gates) for word in _WORDS}
    if counts["pass"] == len(gates):
        return "The only gate held." if len(gates) == 1 else f"All {len(gates)} gates held."
    told = [f"{counts[word]} {how}" for word, how in _WORDS.items() if counts[word]]
    return f"Of {len(gates)} gate{'s' * (len(gates) > 1)}, {_listed(told)}."


_WORDS = {
    "fail": "failed",
    "undecided": "could not be decided",
    "warning": "could not be decided, which is only a warning",
    "pass": "held",
}


def _state(gate: GateRow) -> str:
    """As in _WORDS."""
    if gate["verdict"] == "undecided":
        return "warning" if gate["passed"] else "undecided"
    return "pass" if gate["passed"] else "fail"


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _gate(gate: GateRow, rows: int) -> dict[str, str]:
    """One gate in words."""
    state = _state(gate)
    at = "" if gate["batch"] is None else f" at batch {gate['batch']}"
    percentile = gate.get("percentile")
    which = f" p{percentile}" if percentile and gate["metric"] == "latency_ms" else ""
    more = [
        _needed(gate, rows) if state in ("undecided", "warning") else "",
        f"line {line} of the recipe" if (line := gate.get("line")) else "",
    ]
    return {
        "state": state,
        "word": {"pass": "pass", "fail": "FAIL"}.get(state, state),
        "name": f"{gate['metric']}{which}{at}",
        "text": gate["text"],
        "message": gate["message"].removeprefix("undecided: "),
        "more": "; ".join(filter(None, more)),
    }


def _needed(gate: GateRow, rows: int) -> str:
    """What would decide a gate, unless its message has said so."""
    if "would decide" in gate["message"] or gate["batch"] is not None:
        return ""
    needed = gate["rows_needed"]
    if needed is None:
        return "no number of validation rows would decide it"
    return f"about {needed:,} validation rows would decide it, there are {rows:,}"


def _row(row: Row) -> dict[str, Any]:
    """A line of the table, the interval by itself."""
    parts = re.fullmatch(r"(.*?)\s*(\(.*\))?", row.change)
    change, interval = (row.change, "") if parts is None else (parts[1], parts[2] or "")
    return {"row": row, "change": change or interval, "interval": interval if change else ""}


def _backends(metrics: Metrics) -> list[tuple[str, ...]]:
    return [
        (
            name,
            one["precision"],
            state_of(one),
            text.size(one["size_bytes"]) if one["built"] else text.DASH,
            one.get("note", ""),
        )
        for name, one in sorted(metrics["backends"].items())
    ]


def _environment(metrics: Metrics, lock: Lock | None) -> list[tuple[str, str]]:
    """Where it was measured, and what it was made with."""
    found = dict(metrics["environment"])
    if lock is not None:
        found |= {name: str(version) for name, version in lock["packages"].items()}
        found |= {"python": str(lock["python"]), "seed": str(lock["seed"])}
    return sorted(found.items())
