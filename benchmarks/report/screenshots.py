"""Pictures of real reports, for docs/report.md: `python -m benchmarks.report.screenshots`.

Compiles two recipes and takes pictures of the two pages as a wide screen and a phone show them.
Takes half a minute and a Chromium (Debian: `apt install chromium`).
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report.browser import Tab, browser, find_chromium
from rankc.pipeline import compile_recipe

ROOT = Path(__file__).parents[2]
MOST = 400_000  # bytes of a picture


@dataclasses.dataclass(frozen=True, slots=True)
class Shot:
    """A picture of the top of a report, or of what begins at an element."""

    file: str
    recipe: str
    width: int  # CSS pixels, as all here
    height: int
    start: str = ""  # CSS selector; empty: the top
    scheme: str = "light"


SHOTS = (
    Shot("report-wide.png", "ctr-lowrank", 1280, 1750),
    Shot("report-phone.png", "ctr-lowrank", 390, 1500),
    Shot("report-layers.png", "digits-lowrank", 1280, 1150, "#layers", "dark"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Take all pictures; 6 if there is no browser."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images", help="folder")
    out = parser.parse_args(arguments).out
    chromium = find_chromium()
    if chromium is None:
        print("no Chromium found; on Debian: apt install chromium", file=sys.stderr)
        return 6
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="rankc-") as folder, browser(chromium) as tab:
        for name in dict.fromkeys(shot.recipe for shot in SHOTS):
            compile_recipe(ROOT / "recipes" / f"{name}.yaml", Path(folder) / name)
        for shot in SHOTS:
            take(tab, shot, Path(folder) / shot.recipe / "report.html", out / shot.file)
    return 0


def take(tab: Tab, shot: Shot, page: Path, path: Path) -> None:
    """Write one picture.

    Raises:
        RuntimeError: the page is not there, complains, or the picture is too large.
    """
    tab.media(scheme=shot.scheme)
    tab.resize(shot.width)
    tab.open(page)
    if complaints := tab.complaints():
        raise RuntimeError(f"{page}: {complaints[0]}")
    place = f"document.querySelector('{shot.start}').getBoundingClientRect().top + scrollY"
    top = int(tab.evaluate(place)) if shot.start else 0
    tab.picture(path, shot.width, shot.height, top)
    size = path.stat().st_size
    if size > MOST:
        raise RuntimeError(f"{path}: {size:,} bytes, more than {MOST:,}")
    print(f"{path.name}: {shot.width} wide, {size:,} bytes")


if __name__ == "__main__":
    sys.exit(main())
