"""What `rankc inspect` found as one page that needs nothing else: no script, no font, no request.

The spectra are drawn as SVG, all with one scale, so that sites can be compared at a glance. Every
figure says in words what it shows. The template lays out, numbers and places are worked out here.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from rankc.errors import MachineError, RecipeError
from rankc.report import text
from rankc.report.sites import (
    KEEP,
    Inspection,
    SiteView,
    paying_rank,
    percent,
    shape_of,
    share_of_macs,
    source_of,
)

WIDTH, HEIGHT = 320, 176  # of a figure
LEFT, RIGHT, TOP, BOTTOM = 58, 314, 30, 150  # of what is drawn on
DECADES = 6  # an energy of less than a millionth is at the bottom
_STEPS = 256  # a curve of more directions is drawn as the means of neighbours
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclasses.dataclass(frozen=True, slots=True)
class Mark:
    """A rank that is enough for a share of the energy."""

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


def page(found: Inspection) -> str:
    """The whole page."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rankc", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["breakable"] = _breakable
    found = _printable(found)
    sites = found["sites"]
    return environment.get_template("inspect.html.jinja").render(
        found=found,
        facts=_facts(found),
        rows=[_row(site) for site in sites],
        figures=[figure(site) for site in sites],
        size=(WIDTH, HEIGHT),
        plot={"left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM},
    )


def check_place(path: Path) -> None:
    """Before long work: whether a page can be written to `path`.

    Raises:
        RecipeError: there is no such folder, or a folder of that name.
    """
    if path.is_dir():
        raise RecipeError(f"--html {path}: is a folder; name a file in it")
    if not path.parent.is_dir():
        raise RecipeError(
            f"--html {path}: there is no folder {path.parent}; make it, or name another"
        )


def write_page(found: Inspection, path: Path) -> None:
    """Write the page to `path`, whole or not at all.

    Raises:
        MachineError: it cannot be written.
    """
    content = page(found)
    try:
        with tempfile.TemporaryDirectory(prefix=".rankc-", dir=path.parent) as folder:
            whole = Path(folder) / "page.html"
            whole.write_text(content, encoding="utf-8", newline="\n")
            os.replace(whole, path)
    except OSError as error:
        raise MachineError(
            f"{path}: cannot be written: {error.strerror or error}\n"
            "  name a file in a folder that is there and that you may write to"
        ) from error


def _breakable(name: str) -> Markup:
    """A long name with places where a line may end."""
    return Markup("<wbr/>").join(re.split(r"(?<=[./_])", name))


def _printable(value: Any) -> Any:
    """A copy without the characters that no document can hold; names come from the model."""
    if isinstance(value, str):
        return _NOT_XML.sub("?", value)
    if isinstance(value, Mapping):
        return {_printable(key): _printable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_printable(inner) for inner in value]
    return value


def _facts(found: Inspection) -> list[tuple[str, str]]:
    total = sum(found["nodes"].values())
    kinds = ", ".join(f"{kind} {count}" for kind, count in found["nodes"].items())
    return [
        ("made by", found["producer"] or "?"),
        ("format", f"opset {found['opset']}, IR version {found['ir_version']}"),
        ("parameters", f"{found['parameters']:,} in {text.size(found['weight_bytes'])}"),
        ("MACs a row", "not known" if found["macs"] is None else text.amount(found["macs"])),
        ("nodes", f"{total}: {kinds}"),
        ("inputs", "; ".join(found["inputs"])),
        ("outputs", "; ".join(found["outputs"])),
        ("spectra of", source_of(found)),
    ]


def _row(site: SiteView) -> dict[str, Any]:
    """A line of the table."""
    offers = {offer["keep"]: offer for offer in site["offers"]}
    return {
        "name": site["name"],
        "pass_name": site["pass_name"],
        "operator": site["operator"],
        "shape": shape_of(site),
        "parameters": text.amount(site["parameters"]),
        "macs": share_of_macs(site),
        "effective": f"{site['spectrum']['effective_rank']:.1f}",
        "full_rank": site["full_rank"],
        "ranks": site["spectrum"]["ranks"],
        "offers": [_offer(offers.get(keep)) for keep in KEEP],
        "paying": paying_rank(site),
    }


def _offer(offer: Mapping[str, Any] | None) -> tuple[str, str]:
    """The error, and how it is had."""
    if offer is None:
        return text.DASH, "nothing so small"
    rank = f"rank {offer['rank']}"
    return percent(offer["error"]), f"{offer['form']}, {rank}" if offer["form"] else rank


def figure(site: SiteView) -> Figure:
    """Work out where everything of a site's spectrum goes."""
    spectrum, full = site["spectrum"], len(site["spectrum"]["energies"])
    starts, means = _steps(spectrum["energies"])
    line = _path(starts, means, full)
    few, most = spectrum["ranks"]
    paying = site["paying"].get(spectrum["form"])
    return Figure(
        name=site["name"],
        words=_words(site, full),
        line=line,
        area=f"{line} V {BOTTOM} H {LEFT} Z",
        marks=(_mark("90 %", "few", few, full), _mark("99 %", "most", most, full)),
        x_ticks=tuple(Tick(str(rank), x_of(rank - 0.5, full)) for rank in sorted({1, full})),
        y_ticks=tuple(
            Tick(f"{100 * 10.0**-k:.6g} %", y_of(10.0**-k)) for k in range(0, DECADES + 1, 2)
        ),
        dear=None if paying is None or paying >= full else x_of(paying, full),
    )


def x_of(directions: float, full: int) -> float:
    """Where that many of `full` directions end."""
    return round(LEFT + (RIGHT - LEFT) * directions / full, 2)


def y_of(energy: float) -> float:
    """Where a share of the energy is: a logarithmic scale from 1 down."""
    depth = DECADES if energy <= 0 else min(-math.log10(energy), DECADES)
    return round(TOP + (BOTTOM - TOP) * max(depth, 0.0) / DECADES, 2)


def _steps(energies: Sequence[float]) -> tuple[list[int], list[float]]:
    """Where each step of the curve begins, and how high it is."""
    full = len(energies)
    count = min(full, _STEPS)
    starts = [k * full // count for k in range(count)]
    ends = [*starts[1:], full]
    means = [sum(energies[a:b]) / (b - a) for a, b in zip(starts, ends, strict=True)]
    return starts, means


def _path(starts: Sequence[int], heights: Sequence[float], full: int) -> str:
    def drawn() -> Iterator[str]:
        yield f"M {x_of(0, full)} {y_of(heights[0])}"
        for start, height in zip(starts[1:], heights[1:], strict=True):
            yield f"H {x_of(start, full)} V {y_of(height)}"
        yield f"H {x_of(full, full)}"

    return " ".join(drawn())


def _mark(share: str, kind: str, rank: int, full: int) -> Mark:
    x = x_of(rank, full)
    return Mark(
        label=f"{share}: {rank}",
        kind=kind,
        x=x,
        y=TOP - 18 if kind == "few" else TOP - 5,
        anchor="start" if x < (LEFT + RIGHT) / 2 else "end",
    )


def _words(site: SiteView, full: int) -> str:
    spectrum = site["spectrum"]
    first, last = spectrum["energies"][0], spectrum["energies"][-1]
    few, most = spectrum["ranks"]
    form = f" in the form {spectrum['form']}" if spectrum["form"] else ""
    upto = f"up to rank {paying_rank(site)}" if site["paying"] else "at no rank"
    return (
        f"Share of the energy of each of {full} directions{form}, falling from {percent(first)} to "
        f"{percent(last)}. 90 % of it is in {few}, 99 % in {most}; the effective rank is "
        f"{spectrum['effective_rank']:.1f}. Smaller than the original {upto}."
    )
