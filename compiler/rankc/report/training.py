"""What came of training: how the loss of rows held out fell, what was kept, ranks over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rankc.report import text
from rankc.report.charts import Scatter, Tried, plain, scatter
from rankc.validate.schema import Lesson, Metrics

_NAMES = {"train": "Training before the plan", "recover": "Recovery of the compressed model"}


def lessons(metrics: Metrics) -> list[dict[str, Any]]:
    """Of each training what the page shows; empty where nothing was trained."""
    return [
        {
            "name": _NAMES[lesson["stage"]],
            "told": told(lesson),
            "chart": _chart(lesson),
            "ranks": _ranks(lesson),
        }
        for lesson in metrics.get("training", [])
    ]


def section(metrics: Metrics) -> list[str]:
    """The heading and the text of the report in Markdown; empty where nothing was trained."""
    found = metrics.get("training", [])
    if not found:
        return []
    return ["## Training", *(f"**{_NAMES[x['stage']]}.** {told(x)}" for x in found)]


def told(lesson: Lesson) -> str:
    """A lesson in a few sentences."""
    spent = f"{lesson['epochs']:.3g} epochs, {lesson['steps']:,} steps, {lesson['seconds']:.0f} s"
    kept = "Kept" if lesson["kept"] else "Not kept: the model is as it was before"
    return f"{spent}; ended by: {lesson['stopped']}. {kept}; {lesson['why']}."


def _chart(lesson: Lesson) -> Scatter:
    looks = lesson["looks"]
    tried = [
        Tried(look["epoch"], look["loss"], True, True, look["epoch"] == lesson["best"])
        for look in looks
    ]
    losses = [look["loss"] for look in looks]
    words = (
        f"Loss of the rows held out at {len(looks)} looks, from {losses[0]:.5g} to "
        f"{losses[-1]:.5g}; the weights of epoch {lesson['best']:.3g} were taken."
    )
    return scatter(
        _NAMES[lesson["stage"]],
        words,
        tried,
        [("before training", "soft", losses[0])],
        ("epochs", plain),
        ("loss of rows held out", plain),
    )


def _ranks(lesson: Lesson) -> list[tuple[str, str, str]]:
    """Layer, first and last rank, and how often it changed."""
    rows: list[tuple[str, str, str]] = []
    for layer, over in lesson.get("ranks", {}).items():
        first, last = over[0][1], over[-1][1]
        rows.append((layer, f"{first} → {last}", _over(over)))
    return rows


def _over(over: Sequence[tuple[int, int]]) -> str:
    """Some of the ranks on the way, with the step since which they held."""
    some = over if len(over) <= 6 else [over[k * (len(over) - 1) // 5] for k in range(6)]
    return ", ".join(f"{text.amount(rank)} from step {step:,}" for step, rank in some)
