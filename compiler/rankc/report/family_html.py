"""A family of models as a table, and as a page with their front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rankc.report import text
from rankc.report.front import charts
from rankc.report.page import printable, render
from rankc.report.rows import row_of
from rankc.validate.schema import Metrics, Point

Index = Mapping[str, Any]  # the content of family.json
Measured = Sequence[Metrics | None]  # of each member the content of metrics.json

_COSTS = ("macs", "size_bytes")
# of what gates name none of, the first that was measured
_WORTHS = (
    *("auc", "accuracy_top1", "mean_iou", "perplexity", "mse", "top1_agreement"),
    *("kl_div", "max_abs_err"),
)


def family_table(index: Index, measured: Measured) -> tuple[list[str], list[list[str]]]:
    """The head, and a line for the original and for each member; its last cell is the verdict."""
    known = [metrics for metrics in measured if metrics is not None]
    if not known:
        return ["keep", "gates"], [_impossible(member, 0) for member in index["members"]]
    names = [n for n in _COSTS if n in known[0]["metrics"]] + _worths(known[0])
    labels = [row_of(name, known[0]).label for name in names]
    original = ["original", *(row_of(name, known[0]).original for name in names), ""]
    rows = [
        _impossible(member, len(names)) if metrics is None else _member(member, metrics, names)
        for member, metrics in zip(index["members"], measured, strict=True)
    ]
    return ["keep", *labels, "gates"], [original, *rows]


def _worths(metrics: Metrics) -> list[str]:
    """The accuracies that are shown."""
    named = dict.fromkeys(g["metric"] for g in metrics["gates"] if g["kind"] == "accuracy")
    found = [name for name in named if name in metrics["metrics"]]
    return found or [name for name in _WORTHS if name in metrics["metrics"]][:1]


def _member(member: Mapping[str, Any], metrics: Metrics, names: Sequence[str]) -> list[str]:
    rows = [row_of(name, metrics) for name in names]
    cells = [f"{row.compressed} ({row.brief})" if row.brief else row.compressed for row in rows]
    gates = ("pass" if metrics["gates"] else text.DASH) if member["passed"] else "FAIL"
    return [f"{member['keep']:g}", *cells, gates]


def _impossible(member: Mapping[str, Any], columns: int) -> list[str]:
    return [f"{member['keep']:g}", *[text.DASH] * columns, "impossible"]


def family_html(index: Index, measured: Measured, points: Sequence[Point]) -> str:
    """The whole page; the same content gives the same bytes."""
    head, rows = family_table(index, measured)
    known = next((metrics for metrics in measured if metrics is not None), None)
    return render(
        "family.html.jinja",
        index=printable(index),
        head=head,
        rows=printable(rows),
        charts=[] if known is None else charts(points, known),
    )
