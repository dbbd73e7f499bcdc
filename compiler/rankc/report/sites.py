"""What passes would get at each site, in the words that the terminal and the page share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from rankc.report import text

Inspection = Mapping[str, Any]  # what `rankc inspect --json` prints
SiteView = Mapping[str, Any]  # one of its sites
KEEP = ("1/2", "1/3", "1/4")  # shares of a site's parameters
WIDE = 120  # characters
_WORDS = ("operator", "weight", "form")


def source_of(found: Inspection) -> str:
    """Where the spectra are from."""
    if found["rows"]:
        return f"outputs over {found['rows']:,} rows of {found['data']}"
    return (
        "the weights alone: inputs taken to be uncorrelated and equally large, rows of tables read "
        "equally often; with --calibrate DATA, errors are those on real inputs, as a rule less"
    )


def sites_table(found: Inspection, width: int = WIDE) -> Table:
    """A line a site; what fits into fewer than WIDE columns leaves out all but the numbers."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    cells = [_cells(site) for site in found["sites"]]
    shown = [name for name in cells[0] if width >= WIDE or name not in _WORDS] if cells else []
    for name in shown:
        folds = name == "site" or name in _WORDS
        table.add_column(
            name, justify="left" if folds else "right", no_wrap=not folds, overflow="fold"
        )
    for row in cells:
        table.add_row(*(Text(row[name]) for name in shown))
    return table


def _cells(site: SiteView) -> dict[str, str]:
    """By name of the column."""
    offers = {offer["keep"]: offer for offer in site["offers"]}
    few, most = site["spectrum"]["ranks"]
    return {
        "site": site["name"],
        "operator": site["operator"],
        "weight": shape_of(site),
        "MACs": share_of_macs(site),
        "rank": f"{site['spectrum']['effective_rank']:.1f}/{site['full_rank']}",
        "90 %": str(few),
        "99 %": str(most),
        **{k: percent(offers[k]["error"]) if k in offers else text.DASH for k in KEEP},
        "form": ", ".join(dict.fromkeys(offer["form"] for offer in site["offers"])),
        "pays to": paying_rank(site),
    }


def shape_of(site: SiteView) -> str:
    """Of the weight: inputs by outputs, rows by columns, or as a convolution stores it."""
    stored = site["weight_shape"]
    return text.TIMES.join(map(str, site["shape"] if len(stored) == 2 else stored))


def share_of_macs(site: SiteView) -> str:
    """In percent; a dash where there are none, or where they are not known."""
    if not site["macs"] or site["macs_share"] is None:
        return text.DASH
    return f"{100 * site['macs_share']:.1f} %"


def paying_rank(site: SiteView) -> str:
    """Up to which rank the form of the spectrum is smaller than the site, or the first that is."""
    paying: Mapping[str, int] = site["paying"]
    form = site["spectrum"]["form"]
    if form in paying:
        return str(paying[form])
    return next((f"{rank} ({name})" for name, rank in paying.items()), text.DASH)


def percent(share: float) -> str:
    """At most two digits behind the point: `12.3 %`, `0.04 %`, `< 0.01 %`."""
    value = 100 * share
    if 0 < value < 0.005:
        return "< 0.01 %"
    return f"{value:.2f} %" if value < 9.995 else f"{value:.1f} %"
