"""What a search tried, in the words that the terminal and report.md share."""

from __future__ import annotations

from collections.abc import Iterator

from rankc.reasons import measured
from rankc.report import text
from rankc.validate.schema import Metrics, Point

_STOPPED = {
    "found": "the limit is known to {tolerance}",
    "none": "no plan in the range keeps every gate",
    "steps": "stopped after as many plans as `search.steps` allows",
    "time": "stopped when `search.minutes` were over; run again, it goes on",
}


def search_section(metrics: Metrics) -> list[str]:
    """Paragraphs of report.md; none where nothing was searched."""
    if "front" not in metrics or "search" not in metrics:
        return []
    front = metrics["front"]
    names = list(dict.fromkeys(name for point in front for name in point["values"]))
    head = ["budget", *names, "predicted loss", "", ""]
    rows = [
        [
            measured(point["unit"], point["budget"]),  # type: ignore[arg-type]
            *(_value(name, point) for name in names),
            text.short(point["loss"]),
            "pass" if point["passed"] else f"fail: {'; '.join(point.get('failed', []))}",
            _mark(point),
        ]
        for point in front
    ]
    note = f"{how_searched(metrics)} Efficient: no other plan is smaller and no less accurate."
    return ["## Search", text.markdown_table(head, rows), note]


def how_searched(metrics: Metrics) -> str:
    """For what, on which rows, and why the search ended; empty where nothing was searched."""
    if "search" not in metrics:
        return ""
    how = metrics["search"]
    rests = "on the rows that decide the gates, so it is a little too good for them"
    if how["holdout"]:
        rests = "on every other validation row; the gates were decided by the rest"
    stopped = _stopped(metrics)
    return (
        f"The {how['objective']} plan that keeps every gate was searched {rests}. "
        f"{stopped[:1].upper()}{stopped[1:]}."
    )


def search_lines(metrics: Metrics) -> Iterator[str]:
    """For a terminal: what was chosen, and why not the next smaller one."""
    if "front" not in metrics or "search" not in metrics:
        return
    front, taken = metrics["front"], [p["chosen"] for p in metrics["front"]].index(True)
    passing = sum(point["passed"] for point in front)
    yield f"search: {len(front)} plans measured, {passing} keep every gate; {_stopped(metrics)}"
    chosen = "chosen" if front[taken]["passed"] else "closest"
    yield f"  {chosen} {_brief(front[taken])}"
    if taken and not front[taken - 1]["passed"]:
        failed = "; ".join(front[taken - 1].get("failed", []))
        yield f"  next smaller {_brief(front[taken - 1])}: {failed}"


def _stopped(metrics: Metrics) -> str:
    assert "search" in metrics
    how = metrics["search"]
    words = _STOPPED[how["stopped"]]
    return words.format(tolerance=f"{100 * how['tolerance']:g} % of the budget")


def _brief(point: Point) -> str:
    return f"{text.size(point['values']['size_bytes'])}, predicted loss {text.short(point['loss'])}"


def _value(name: str, point: Point) -> str:
    value = point["values"].get(name)
    if value is None:
        return ""
    return text.size(value) if name == "size_bytes" else f"{value:.5g}"


def _mark(point: Point) -> str:
    words = ["**chosen**"] if point["chosen"] else []
    return ", ".join(words + (["efficient"] if point["efficient"] else []))
