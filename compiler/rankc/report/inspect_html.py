"""What `rankc inspect` found as one page that needs nothing else.

The spectra are drawn as SVG, all with one scale, so that sites can be compared at a glance. Every
figure says in words what it shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankc.errors import RecipeError
from rankc.report import text
from rankc.report.page import printable, render
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
from rankc.report.spectrum import Figure, mark, spectrum, x_of


def page(found: Inspection) -> str:
    """The whole page."""
    found = printable(found)
    sites = found["sites"]
    return render(
        "inspect.html.jinja",
        found=found,
        facts=_facts(found),
        rows=[_row(site) for site in sites],
        figures=[figure(site) for site in sites],
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
    """A site's spectrum with the ranks that have 90 and 99 % of the energy."""
    found, full = site["spectrum"], len(site["spectrum"]["energies"])
    few, most = found["ranks"]
    paying = site["paying"].get(found["form"])
    return spectrum(
        site["name"],
        _words(site, full),
        found["energies"],
        full,
        (
            mark(f"90 %: {few}", "few", few, full, row=0),
            mark(f"99 %: {most}", "most", most, full),
        ),
        dear=None if paying is None or paying >= full else x_of(paying, full),
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
