"""The report in a real browser; left out where no Chromium is installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks.report.browser import Tab, browser, find_chromium

from rankc.report import report_html
from report_builders import EVIL, everything, gate, layer, layers, plan, proof, timed

CHROMIUM = find_chromium()
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt install chromium)"),
]

WIDTHS = (360, 390, 768, 1280)
# An element that sticks out of the page, unless something around it scrolls or is folded.
STICKING_OUT = """
[...document.querySelectorAll("main *")].filter(e =>
  !e.closest(".wide, pre, details:not([open])") &&
  e.getBoundingClientRect().right > document.documentElement.clientWidth + 1
).map(e => e.tagName + " " + e.className + " " + e.textContent.slice(0, 40))
"""
# Labels of one figure that lie on each other or leave it.
CLASHES = """
[...document.querySelectorAll("svg")].flatMap(svg => {
  const frame = svg.getBoundingClientRect();
  const found = [...svg.querySelectorAll("text")].map(t => [t, t.getBoundingClientRect()]);
  const out = found.filter(([t, b]) => b.left < frame.left - 1 || b.right > frame.right + 1)
    .map(([t, b]) => "outside: " + t.textContent);
  const over = found.flatMap(([t, a], k) => found.slice(k + 1).filter(([u, b]) =>
    a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3 && b.top < a.bottom - 3
  ).map(([u, b]) => t.textContent + " on " + u.textContent));
  return [...out, ...over];
})
"""
# The least contrast of a text with what is behind it, as WCAG 2.2 has it.
CONTRAST = """
(() => {
  const parts = c => c.match(/[\\d.]+/g).map(Number);
  const light = c => parts(c).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((s, v, k) => s + v * [0.2126, 0.7152, 0.0722][k], 0);
  const ground = e => {
    for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor;
      if (parts(c)[3] !== 0) return c;
    }
    return "rgb(255, 255, 255)";
  };
  const ratio = e => {
    const style = getComputedStyle(e);
    const pair = [light(e.ownerSVGElement ? style.fill : style.color), light(ground(e))].sort();
    const [low, high] = pair[0] < pair[1] ? pair : [pair[1], pair[0]];
    return (high + 0.05) / (low + 0.05);
  };
  const own = e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  const shown = [...document.querySelectorAll("main *")].filter(own)
    .filter(e => !e.closest("title, desc"));
  return Math.min(...shown.map(ratio));
})()
"""


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    assert CHROMIUM is not None
    with browser(CHROMIUM) as found:
        yield found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(report_html(**everything()), "utf-8")
    return path


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every name is as bad as it can be."""
    metrics = proof(
        recipe=EVIL[2],
        gates=[gate("fail", message=name, text=name) for name in EVIL],
        layers=[timed(name) for name in EVIL],
        unavailable={name: name for name in EVIL},
        environment={name: name for name in EVIL},
        layer_times=[
            {"layer": name, "original_ms": 1.0, "compressed_ms": 1.0, "nodes": (1, 1)}
            for name in EVIL
        ],
    )
    found = layers(*(layer(name, reason=name) for name in EVIL))
    skips = plan(*((name, "lowrank", name) for name in EVIL))
    path = tmp_path_factory.mktemp("hostile") / "report.html"
    path.write_text(report_html(metrics, skips, layers=found, recipe=EVIL[3]), "utf-8")
    return path


def test_nothing_is_asked_for_and_nothing_is_wrong(tab: Tab, page: Path) -> None:
    tab.media()
    tab.resize(1280)
    tab.open(page)
    assert tab.requests() == [page.resolve().as_uri()]
    assert tab.complaints() == []
    assert tab.evaluate("document.title") == "ctr: PASSED"
    assert tab.evaluate("document.compatMode") == "CSS1Compat"


def test_a_broken_page_would_be_noticed(tab: Tab, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.html"
    wrong.write_text("<title>x</title><img src='none.png'><script>throw 1</script>", "utf-8")
    tab.open(wrong)
    assert len(tab.requests()) == 2
    assert len(tab.complaints()) >= 2


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("which", ["page", "hostile"])
def test_it_is_no_wider_than_its_window(
    tab: Tab, which: str, width: int, request: pytest.FixtureRequest
) -> None:
    tab.media()
    tab.resize(width)
    tab.open(request.getfixturevalue(which))
    assert tab.evaluate("innerWidth") == width
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate(STICKING_OUT) == []
    assert tab.complaints() == []


@pytest.mark.parametrize("width", [360, 1280])
def test_labels_neither_clash_nor_are_cut_off(tab: Tab, page: Path, width: int) -> None:
    tab.media()
    tab.resize(width)
    tab.open(page)
    assert tab.evaluate(CLASHES) == []


def test_before_and_after_needs_no_scrolling_on_a_phone(tab: Tab, page: Path) -> None:
    tab.media()
    tab.resize(360)
    tab.open(page)
    wide = "document.querySelector('#change .wide')"
    assert tab.evaluate(f"{wide}.scrollWidth") <= tab.evaluate(f"{wide}.clientWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("which", ["page", "hostile"])
def test_text_stands_out(tab: Tab, which: str, scheme: str, request: pytest.FixtureRequest) -> None:
    tab.media("screen", scheme)
    tab.resize(1280)
    tab.open(request.getfixturevalue(which))
    assert tab.evaluate(CONTRAST) >= 4.5


def test_every_picture_has_a_name_and_a_description_for_those_who_hear(
    tab: Tab, page: Path
) -> None:
    tab.media()
    tab.open(page)
    nodes = tab.call("Accessibility.getFullAXTree")["nodes"]
    pictures = [n for n in nodes if n.get("role", {}).get("value") in ("image", "img")]
    assert len(pictures) == 7
    assert all(len(picture["name"]["value"]) > 20 for picture in pictures)


def test_folded_parts_are_on_paper(tab: Tab, page: Path) -> None:
    tab.media("print")
    tab.open(page)
    assert tab.evaluate("document.querySelector('pre').getBoundingClientRect().height") > 0
    assert tab.paper().startswith(b"%PDF")
