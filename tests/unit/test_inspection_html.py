"""The page of `rankc inspect`: well formed, self-contained, everything where it belongs."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jinja2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankc.errors import MachineError, RecipeError
from rankc.report.inspect_html import check_place, figure, page
from rankc.report.page import write_page
from rankc.report.spectrum import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, x_of, y_of
from rankc.report.text import TIMES

EVIL = "<script>alert(1)</script>&\"'\x01"


def site(energies: list[float], name: str = "layer.1", form: str = "", **more: Any) -> Any:
    kept = np.cumsum(energies)
    ranks = [int(np.searchsorted(kept, share - 1e-12)) + 1 for share in (0.9, 0.99)]
    return {
        "pass_name": "lowrank",
        "name": name,
        "shape": [16, len(energies)],
        "operator": "Gemm",
        "weight_shape": [len(energies), 16],
        "full_rank": len(energies),
        "parameters": 16 * len(energies),
        "macs": 1000,
        "macs_share": 0.25,
        "spectrum": {
            "form": form,
            "energies": energies,
            "effective_rank": 2.345,
            "ranks": ranks,
        },
        "offers": [{"keep": "1/2", "rank": 2, "form": form, "error": 0.0312}],
        "paying": {form: 3},
    } | more


def inspection(*sites: Any, **more: Any) -> dict[str, Any]:
    return {
        "model": "model.onnx",
        "opset": 18,
        "ir_version": 10,
        "producer": "",
        "inputs": ["x FLOAT [batch,16]"],
        "outputs": ["y FLOAT [batch,8]"],
        "nodes": {"Gemm": 2},
        "parameters": 1234,
        "weight_bytes": 4936,
        "macs": 4000,
        "rows": 0,
        "data": "",
        "sites": list(sites),
        "skips": [{"pass_name": "lowrank", "name": "head", "reason": "too small"}],
    } | more


def tree(found: dict[str, Any]) -> ElementTree.Element:
    """The page as XML, which it is on purpose: a missing escape cannot be parsed."""
    return ElementTree.fromstring(page(found))


def words(element: ElementTree.Element) -> str:
    return " ".join("".join(element.itertext()).split())


EIGHT = [0.4, 0.3, 0.15, 0.1, 0.03, 0.015, 0.004, 0.001]


def test_the_page_tells_what_was_found() -> None:
    text = words(tree(inspection(site(EIGHT))))
    for told in ("model.onnx", "layer.1", "Gemm", f"16{TIMES}8", "25.0 %", "2.3", "of 8", "3.12 %"):
        assert told in text
    assert "rank 2" in text
    assert "nothing so small" in text  # at a third and a quarter
    assert "the weights alone" in text
    assert "too small" in text
    calibrated = words(tree(inspection(site(EIGHT), rows=1500, data="rows.npz")))
    assert "outputs over 1,500 rows of rows.npz" in calibrated


def test_a_page_without_sites_or_skips() -> None:
    text = words(tree(inspection(skips=[])))
    assert "No pass can act on this model." in text
    assert "Nothing was left alone." in text


def test_nothing_is_asked_of_a_network_and_nothing_runs() -> None:
    source = page(inspection(site(EIGHT)))
    root = ElementTree.fromstring(source)
    assert not [e for e in root.iter() if {"href", "src", "srcset", "action"} & set(e.attrib)]
    assert {e.tag for e in root.iter()}.isdisjoint({"script", "link", "img", "iframe", "object"})
    assert not re.search(r"https?:|url\(|@import", source)
    assert "default-src 'none'" in source


def test_names_of_a_hostile_model_stay_names() -> None:
    found = inspection(
        site(EIGHT, name=EVIL, form=EVIL), model=EVIL, inputs=[EVIL], nodes={EVIL: 1}
    )
    found["skips"][0]["name"] = found["skips"][0]["reason"] = EVIL
    root = tree(found)
    assert not list(root.iter("script"))
    assert EVIL.replace("\x01", "?") in "".join(root.itertext())


def test_every_picture_says_in_words_what_it_shows() -> None:
    root = tree(inspection(site(EIGHT), site(EIGHT[::-1], name="other", paying={})))
    pictures = list(root.iter("svg"))
    assert len(pictures) == 2
    ids = [e.attrib["id"] for e in root.iter() if "id" in e.attrib]
    assert len(ids) == len(set(ids))
    for picture, name in zip(pictures, ("layer.1", "other"), strict=True):
        assert picture.attrib["role"] == "img"
        title, told = picture.find("title"), picture.find("desc")
        assert title is not None and told is not None
        assert picture.attrib["aria-labelledby"].split() == [title.attrib["id"], told.attrib["id"]]
        assert name in words(title)
        assert "the effective rank is 2.3" in words(told)
    assert "up to rank 3." in words(pictures[0])
    assert "Smaller than the original at no rank." in words(pictures[1])


def test_tables_are_read_out_by_row_and_column() -> None:
    root = tree(inspection(site(EIGHT)))
    for table in root.iter("table"):
        heads = list(table.findall("./thead/tr/th"))
        assert {head.attrib["scope"] for head in heads} == {"col"}
        for line in table.findall("./tbody/tr"):
            assert len(line) == len(heads)
            assert (line[0].tag, line[0].attrib["scope"]) == ("th", "row")
    regions = [e for e in root.iter() if e.attrib.get("role") == "region"]
    assert all("tabindex" in e.attrib and "aria-labelledby" in e.attrib for e in regions)


def test_the_page_follows_the_reader() -> None:
    source = page(inspection(site(EIGHT)))
    assert '<html lang="en">' in source
    assert "width=device-width" in source
    for query in ("prefers-color-scheme: dark", "@media print", "max-width: 40rem"):
        assert query in source


falling = st.lists(st.floats(1e-9, 1.0), min_size=1, max_size=400).map(
    lambda found: (np.sort(np.array(found) / np.sum(found))[::-1]).tolist()
)


@given(energies=falling)
def test_the_curve_falls_within_its_frame(energies: list[float]) -> None:
    drawn = figure(site(energies))
    heights = [float(v) for v in re.findall(r"(?:V|M [\d.]+) ([\d.]+)", drawn.line)]
    places = [float(v) for v in re.findall(r"[MH] ([\d.]+)", drawn.line)]
    assert heights == sorted(heights)
    assert places == sorted(places)
    assert (places[0], places[-1]) == (LEFT, RIGHT)
    assert min(heights) >= TOP
    assert max(heights) <= BOTTOM
    assert len(heights) == min(len(energies), 256)
    if len(energies) <= 256:
        assert heights == [y_of(energy) for energy in energies]
    assert drawn.area.startswith(drawn.line)


@given(energies=falling)
def test_marks_and_labels_are_at_their_ranks_and_inside(energies: list[float]) -> None:
    full = len(energies)
    entry = site(energies)
    drawn = figure(entry)
    for mark, rank in zip(drawn.marks, entry["spectrum"]["ranks"], strict=True):
        assert mark.x == x_of(rank, full)
        assert LEFT < mark.x <= RIGHT
        assert mark.label.endswith(f": {rank}")
        reach = 6 * len(mark.label)  # about how wide the label is
        assert mark.x + reach <= WIDTH if mark.anchor == "start" else mark.x - reach >= 0
        assert 0 < mark.y < TOP
    assert all(LEFT <= tick.at <= RIGHT for tick in drawn.x_ticks)
    assert BOTTOM < HEIGHT
    assert drawn.dear == (x_of(3, full) if full > 3 else None)


def test_the_scale_is_logarithmic_and_the_same_for_all() -> None:
    assert y_of(1.0) == TOP
    assert y_of(1e-3) == (TOP + BOTTOM) / 2
    assert y_of(1e-6) == y_of(1e-9) == y_of(0.0) == BOTTOM
    ticks = figure(site(EIGHT)).y_ticks
    assert [tick.label for tick in ticks] == ["100 %", "1 %", "0.01 %", "0.0001 %"]
    assert [tick.at for tick in ticks] == [30.0, 70.0, 110.0, 150.0]


def test_the_same_inspection_gives_the_same_page(tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        write_page(page(inspection(site(EIGHT))), tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_a_page_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("old", "utf-8")
    broken = inspection(site(EIGHT))
    del broken["model"]
    with pytest.raises(jinja2.UndefinedError):
        write_page(page(broken), path)
    assert path.read_text("utf-8") == "old"
    write_page(page(inspection(site(EIGHT))), path)
    assert path.read_text("utf-8").startswith("<!DOCTYPE html>")
    assert os.listdir(tmp_path) == ["page.html"]


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="cannot be written"):
        write_page(page(inspection()), tmp_path / "none" / "page.html")
    with pytest.raises(RecipeError, match="there is no folder"):
        check_place(tmp_path / "none" / "page.html")
    with pytest.raises(RecipeError, match="is a folder"):
        check_place(tmp_path)
    check_place(tmp_path / "page.html")
