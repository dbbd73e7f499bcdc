"""The before/after table on a terminal."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from rankc.report.rows import Row, table_rows
from rankc.validate.schema import Metrics


def metrics_table(metrics: Metrics, *, everything: bool = False) -> Table:
    """Original, compressed, change and gate, a line a quantity.

    Args:
        metrics: The content of metrics.json.
        everything: Also the rows without a gate that few people read every time.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, **_timed_on(metrics))
    for name in ("", "original", "compressed", "change", "gate", ""):
        table.add_column(name, no_wrap=name != "gate")
    for row in table_rows(metrics):
        if row.essential or everything:
            cells = (row.label, row.original, row.compressed, row.brief, row.gate)
            table.add_row(*(Text(cell) for cell in cells), _mark(row))
    return table


def _timed_on(metrics: Metrics) -> dict[str, Any]:
    """A title that says whose times these are; none where nothing was timed."""
    if not metrics["latency"]:
        return {}
    how = metrics["latency_how"]
    title = Text(f"Times: {how['device']}, {how['backend']}, {how['clock']}", style="dim")
    return {"title": title, "title_justify": "left"}


def _mark(row: Row) -> Text:
    if row.passed is None:
        return Text("")
    if row.undecided:
        return Text("undecided", style="yellow" if row.passed else "bold red")
    return Text("pass", style="green") if row.passed else Text("FAIL", style="bold red")
