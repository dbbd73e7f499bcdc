"""A spectrum as a figure: how much of the energy each direction has, all on one scale.

Numbers and places are worked out here, `figure.html.jinja` draws them.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

WIDTH, HEIGHT = 320, 176  # of a figure
LEFT, RIGHT, TOP, BOTTOM = 58, 314, 30, 150  # of what is drawn on
PLOT = {
    "width": WIDTH,
    "height": HEIGHT,
    "left": LEFT,
    "right": RIGHT,
    "top": TOP,
    "bottom": BOTTOM,
}
DECADES = 6  # an energy of less than a millionth is at the bottom
STEPS = 256  # a curve of more directions is drawn as the means of neighbours


@dataclasses.dataclass(frozen=True, slots=True)
class Mark:
    """A rank worth a line."""

    label: str
    kind: str  # CSS class
    x: float
    y: float  # of the label
    anchor: str  # on which side of the line the label is


@dataclasses.dataclass(frozen=True, slots=True)
class Tick:
    """A line of the scale with its label."""

    label: str
    at: float


@dataclasses.dataclass(frozen=True, slots=True)
class Figure:
    """The spectrum of one site, ready to be drawn."""

    name: str
    words: str  # what it shows
    line: str  # SVG path
    area: str
    marks: tuple[Mark, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    dear: float | None  # from here on a rank costs as much as the site itself


def spectrum(
    name: str,
    words: str,
    energies: Sequence[float],
    full: int,
    marks: tuple[Mark, ...],
    *,
    dear: float | None = None,
    coarse: float = 0.0,
) -> Figure:
    """Work out where everything goes.

    Args:
        name: Of the site.
        words: What the figure shows, for those who do not see it.
        energies: Shares of `full` directions, falling; or, if fewer, means of neighbours.
        full: The number of directions.
        marks: Ranks to be shown, from `mark`.
        dear: From which x on the ground is grey.
        coarse: Lower steps than this, in pixels, are left out: shorter where there are hundreds.
    """
    starts, means = _steps(energies, full)
    line = _path(starts, [y_of(mean) for mean in means], full, coarse)
    return Figure(
        name=name,
        words=words,
        line=line,
        area=f"{line} V {BOTTOM} H {LEFT} Z",
        marks=marks,
        x_ticks=tuple(Tick(str(rank), x_of(rank - 0.5, full)) for rank in sorted({1, full})),
        y_ticks=tuple(
            Tick(f"{100 * 10.0**-k:.6g} %", y_of(10.0**-k)) for k in range(0, DECADES + 1, 2)
        ),
        dear=dear,
    )


def mark(label: str, kind: str, rank: int, full: int, *, row: int = 1) -> Mark:
    """A line at a rank; labels of row 0 stand above those of row 1."""
    x = x_of(rank, full)
    side = "start" if x < (LEFT + RIGHT) / 2 else "end"
    return Mark(label, kind, x, TOP - 18 + 13 * row, side)


def x_of(directions: float, full: int) -> float:
    """Where that many of `full` directions end."""
    return round(LEFT + (RIGHT - LEFT) * directions / full, 2)


def y_of(energy: float) -> float:
    """Where a share of the energy is: a logarithmic scale from 1 down."""
    depth = DECADES if energy <= 0 else min(-math.log10(energy), DECADES)
    return round(TOP + (BOTTOM - TOP) * max(depth, 0.0) / DECADES, 2)


def _steps(energies: Sequence[float], full: int) -> tuple[list[int], list[float]]:
    """At which direction each step of the curve begins, and its share."""
    given = len(energies)
    count = min(given, STEPS)
    cuts = [k * given // count for k in range(count + 1)]
    means = [sum(energies[a:b]) / (b - a) for a, b in itertools.pairwise(cuts)]
    return [cut * full // given for cut in cuts[:-1]], means


def _path(starts: Sequence[int], heights: Sequence[float], full: int, coarse: float) -> str:
    def drawn() -> Iterator[str]:
        last = heights[0]
        yield f"M {x_of(0, full)} {last}"
        for start, height in zip(starts[1:], heights[1:], strict=True):
            if abs(height - last) >= coarse:
                yield f"H {x_of(start, full)} V {height}"
                last = height
        yield f"H {x_of(full, full)}"

    return " ".join(drawn())
