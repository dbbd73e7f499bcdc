"""Charts with axes: intervals side by side, and the plans that a search tried.

As wide as a phone, so that nothing shrinks there. Numbers and places are worked out here,
`charts.html.jinja` draws them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from rankc.report.spectrum import Tick

WIDTH = 320
LEFT, RIGHT = 62, 308  # of the points of a search
TOP, BOTTOM = 30, 190
NAMES = 88  # where the names beside intervals end
ROW = 22  # from one interval to the next

Label = Callable[[float, float], str]  # a value and the step between ticks → its label


@dataclasses.dataclass(frozen=True, slots=True)
class Axis:
    """A linear scale from values to places."""

    low: float
    high: float
    start: float  # where `low` is
    end: float
    ticks: tuple[Tick, ...]

    def at(self, value: float) -> float:
        """Where a value is; one outside is at the end."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + (self.end - self.start) * min(max(share, 0.0), 1.0), 2)


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """A value with its interval."""

    name: str
    at: float
    low: float | None
    high: float | None
    y: float


@dataclasses.dataclass(frozen=True, slots=True)
class Intervals:
    """Values of one kind below each other, on one scale that has 0."""

    name: str
    words: str
    height: int
    spans: tuple[Span, ...]
    ticks: tuple[Tick, ...]
    zero: float
    limit: float | None  # what a gate allows


@dataclasses.dataclass(frozen=True, slots=True)
class Dot:
    """A plan that was tried."""

    x: float
    y: float
    passed: bool
    chosen: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Level:
    """A horizontal line with its label."""

    label: str
    kind: str  # CSS class
    y: float
    label_y: float


@dataclasses.dataclass(frozen=True, slots=True)
class Scatter:
    """What plans cost and what they are worth."""

    name: str
    words: str
    dots: tuple[Dot, ...]
    front: str  # SVG path
    levels: tuple[Level, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    x_name: str
    y_name: str


def axis(values: Sequence[float], start: float, end: float, label: Label, most: int = 4) -> Axis:
    """A scale that has all values, with at most `most` + 1 round ticks."""
    low, high = min(values), max(values)
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        pad = abs(low) / 10 or 1.0
        low, high = low - pad, high + pad
    step = _step((high - low) / most)
    marks = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    bare = Axis(low, high, start, end, ())
    ticks = tuple(Tick(label(k * step, step), bare.at(k * step)) for k in marks)
    return dataclasses.replace(bare, ticks=ticks)


def _step(least: float) -> float:
    """The least of 1, 2, 5, 10, 20, ... that is no less."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(k * power for k in (1, 2, 5, 10) if k * power >= least * (1 - 1e-9))


def plain(value: float, step: float) -> str:
    """As many digits as the step has."""
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    text = f"{value:.{digits}f}" if digits < 6 else f"{value:.2g}"
    return text.replace("-", "\N{MINUS SIGN}", 1) if value < 0 else text


def short(label: str, most: int) -> str:
    """A label that has no more characters than fit."""
    return label if len(label) <= most else f"{label[: most - 1]}\N{HORIZONTAL ELLIPSIS}"


def intervals(
    name: str,
    words: str,
    values: Sequence[tuple[str, float, tuple[float, float] | None]],
    label: Label,
    limit: float | None = None,
) -> Intervals:
    """Work out where each (name, value, interval) goes."""
    ends = [end for _, _, interval in values for end in interval or ()]
    reach = [0.0, *(value for _, value, _ in values), *ends]
    scale = axis(reach if limit is None else [*reach, limit], NAMES, WIDTH - 26, label, 3)
    spans = tuple(
        Span(
            short(each, 14),
            scale.at(value),
            None if interval is None else scale.at(interval[0]),
            None if interval is None else scale.at(interval[1]),
            ROW * k + ROW / 2,
        )
        for k, (each, value, interval) in enumerate(values)
    )
    return Intervals(
        name,
        words,
        ROW * len(values) + 22,
        spans,
        scale.ticks,
        scale.at(0.0),
        None if limit is None else scale.at(limit),
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Tried:
    """A plan before it is a dot."""

    cost: float
    worth: float
    passed: bool
    efficient: bool
    chosen: bool


def scatter(
    name: str,
    words: str,
    tried: Sequence[Tried],
    levels: Sequence[tuple[str, str, float]],
    x: tuple[str, Label],
    y: tuple[str, Label],
) -> Scatter:
    """Work out where everything goes.

    Args:
        name: Of the figure.
        words: What it shows.
        tried: The plans, at least one.
        levels: Worths to be marked: label, CSS class, worth.
        x: What a cost is, and how one is written.
        y: The same of a worth.
    """
    across = _roomy([each.cost for each in tried], LEFT, RIGHT, x[1], 3)
    up = _roomy([*(t.worth for t in tried), *(v for _, _, v in levels)], BOTTOM, TOP, y[1], 4)
    line = sorted((across.at(t.cost), up.at(t.worth)) for t in tried if t.efficient)
    return Scatter(
        name,
        words,
        tuple(Dot(across.at(t.cost), up.at(t.worth), t.passed, t.chosen) for t in tried),
        " ".join(f"{'L' if k else 'M'} {a} {b}" for k, (a, b) in enumerate(line)),
        _levels([(label, kind, up.at(worth)) for label, kind, worth in levels]),
        across.ticks,
        up.ticks,
        x[0],
        short(y[0], 50),
    )


def _roomy(values: Sequence[float], start: float, end: float, label: Label, most: int) -> Axis:
    """An axis on which no point touches the frame."""
    low, high = min(values), max(values)
    pad = (high - low) / 12
    return axis([low - pad, high + pad], start, end, label, most)


def _levels(found: Sequence[tuple[str, str, float]]) -> tuple[Level, ...]:
    """The labels of the upper lines above them, that of the lowest below."""
    ordered = sorted(found, key=lambda each: each[2])
    return tuple(
        Level(short(label, 40), kind, y, y - 4 if k == 0 or k < len(ordered) - 1 else y + 12)
        for k, (label, kind, y) in enumerate(ordered)
    )
