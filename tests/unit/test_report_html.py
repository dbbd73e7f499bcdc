from __future__ import annotations

import itertools
import re
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankc.report import report_html
from rankc.report.layer_rows import directions
from rankc.report.page import printable
from rankc.report.report_html import FIGURES, LINES
from rankc.report.spectrum import x_of
from rankc.report.text import TIMES
from report_builders import (
    EVIL,
    everything,
    gate,
    layer,
    layers,
    pair,
    plan,
    point,
    proof,
    timed,
)


def tree(metrics: Any, *parts: Any, **more: Any) -> ElementTree.Element:
    """The page as XML, which it is on purpose: a missing escape cannot be parsed."""
    return ElementTree.fromstring(report_html(metrics, *parts, **more))


def words(element: ElementTree.Element | None) -> str:
    assert element is not None
    return " ".join("".join(element.itertext()).split())


def bare(text: str) -> str:
    """Letters and digits alone."""
    return re.sub(r"\W", "", text)


def section(root: ElementTree.Element, name: str) -> ElementTree.Element | None:
    return root.find(f".//section[@id='{name}']")


# --- what it tells ----------------------------------------------------------------------------


def test_the_verdict_comes_first() -> None:
    root = tree(proof())
    main = root.find("./body/main")
    assert main is not None
    assert words(main[0]) == "ctr PASSED"
    assert words(main[1]) == "The only gate held."
    assert words(root.find("./head/title")) == "ctr: PASSED"


def test_failures_and_what_could_not_be_decided_are_told_in_sentences() -> None:
    undecided = gate("undecided", metric="logloss")
    warned = gate("undecided", passed=True, rows_needed=None)
    root = tree(proof(gates=[gate(), undecided, gate("fail"), warned]))
    text = words(root.find("./body/main"))
    assert text.startswith("ctr FAILED Of 4 gates, 1 failed, 1 could not be decided, 1 could")
    lines = [words(li) for li in root.findall(".//ul[@class='gates']/li")]
    assert [line.split()[0] for line in lines] == ["FAIL", "undecided", "warning", "pass"]
    assert "about 120,000 validation rows would decide it, there are 32,735" in lines[1]
    assert "no number of validation rows would decide it" in lines[2]
    assert all("line 31 of the recipe" in line for line in lines)
    assert words(section(root, "change")).count("undecided") == 0  # a failure outweighs it


def test_a_message_that_says_what_would_decide_says_it_once() -> None:
    told = "undecided: auc fell by 0.0009; about 120,000 rows would decide; or `undecided: warn`"
    timed_gate = gate("undecided", batch=1, rows_needed=None, metric="latency_ratio")
    root = tree(proof(gates=[gate("undecided", message=told), timed_gate]))
    first, second = (words(li) for li in root.findall(".//ul[@class='gates']/li"))
    assert first.count("would decide") == 1 and first.count("undecided") == 2
    assert "would decide" not in second
    rows = section(root, "change")
    assert rows is not None
    auc = next(row for row in rows.findall(".//tbody/tr") if words(row[0]) == "auc")
    assert words(auc).endswith("undecided") and "FAIL" not in words(auc)


def test_a_gate_names_percentile_and_batch() -> None:
    late = gate(percentile=95, metric="latency_ms", batch=8)
    line = words(tree(proof(gates=[late])).find(".//ul[@class='gates']/li"))
    assert line.startswith("pass latency_ms p95 at batch 8 drop ≤ 0.001")


def test_a_recipe_without_gates_and_without_anything_else() -> None:
    root = tree(proof(gates=[], layers=[]), None)
    text = words(root.find("./body/main"))
    assert "The recipe sets no gates" in text
    assert "Nothing was left alone." in text
    assert section(root, "layers") is None
    assert section(root, "search") is None
    assert section(root, "causes") is None


def test_everything_that_is_known_is_told() -> None:
    root = tree(**everything())
    for name, told in {
        "change": "auc 0.81596 0.81593 0.00003 (0.00021 to +0.00018) drop ≤ 0.001 pass",
        "training": "Training before the plan 2 epochs, 80 steps, 12 s; ended by: all steps made.",
        "search": "The search tried 3 plans. Chosen: a budget of 1,300,000 bytes",
        "layers": "mlp.0lowrank 2 of 6 5.00 % 0.40 0.38 0.42; b1 0.40 112 B of 192 B rank 2 of 6",
        "times": "mlp.0 2.00 ms 1 node 500 µs 2 nodes",
        "causes": "floor 0.00010 (0.00030 to +0.00010)",
        "skips": "emb_wind embedding rank 16 is cheapest",
        "backends": "onnxruntime-fp32 fp32 built and run 1.27 MB ran",
        "how": "32,735 validation rows; output compared: p.",
        "environment": f"model {'cd' * 32}",
    }.items():
        assert bare(told) in bare(words(section(root, name))), name
    environment = words(section(root, "environment"))
    assert "numpy2.4.6" in environment and "seed7" in environment
    assert "name: ctr" in environment


def test_layers_come_from_the_plan_where_there_are_no_spectra() -> None:
    choice = {
        "pass_name": "lowrank",
        "site": "mlp|1",
        "rank": 48,
        "full_rank": 400,
        "error": 0.00214,
        "loss": 1e-4,
        "size_bytes": 154_000,
        "dense_size_bytes": 640_000,
        "reason": "cheap",
    }
    root = tree(proof(layers=[timed("mlp|2", 1.4, "put back")]), plan(choices=[choice]))
    text = words(section(root, "layers"))
    assert "48 of 400 0.21 %" in text
    assert "154.00 kB of 640.00 kB cheap" in text
    assert f"1.40{TIMES}put back" in text and "tried at rank 2" in text
    assert root.find(".//section[@id='layers']//svg") is None


def test_layers_with_the_greatest_loss_come_first_and_dense_ones_last() -> None:
    found = layers(layer("a", loss=1e-5), layer("b", rank=None), layer("c", loss=1e-3))
    rows = section(tree(proof(), plan(), layers=found), "layers")
    assert rows is not None
    names = [words(row[0]).removesuffix("lowrank") for row in rows.findall(".//tbody/tr")]
    assert names == ["c", "a", "b", "mlp.0"]


# --- figures ----------------------------------------------------------------------------------


def test_every_picture_says_in_words_what_it_shows() -> None:
    root = tree(**everything())
    pictures = list(root.iter("svg"))
    assert len(pictures) == 7  # a gate, the front, two trainings, two spectra, a split
    for picture in pictures:
        assert picture.attrib["role"] == "img"
        title, told = picture.find("title"), picture.find("desc")
        assert title is not None and told is not None
        assert picture.attrib["aria-labelledby"].split() == [title.attrib["id"], told.attrib["id"]]
        assert words(title) and re.search(r"\d", words(told))
    texts = [words(picture.find("desc")) for picture in pictures]
    assert "interval from -0.0001 to 0.0002; the gate: drop ≤ 0.001" in texts[0]
    assert "2 pass every gate. The chosen one has 0.8155." in texts[1]
    assert "the weights of epoch 1 were taken." in texts[2]
    assert "Rank 2 of 6 was chosen: 5.00 % of the output's variance is lost." in texts[4]
    assert "Left dense." in texts[5]
    assert bare(texts[6]).startswith(bare("floor 0.00010 (0.00030 to +0.00010); compression"))


def test_a_rank_of_another_form_stands_where_as_much_is_kept() -> None:
    found = layers(layer(form="tucker-8", energies_form="channel", rank=3, full_rank=9, error=0.06))
    figure = tree(proof(), plan(), layers=found).find(".//section[@id='layers']//svg")
    assert figure is not None
    assert "Rank 3 of 9 as tucker-8 was chosen" in words(figure)
    assert "as if 2 of these directions were kept" in words(figure)
    line = figure.find("./line[@class='few']")
    assert line is not None and float(line.attrib["x1"]) == x_of(2, 6)


@given(
    energies=st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=50).map(
        lambda e: sorted((v / sum(e) for v in e), reverse=True)
    ),
    share=st.floats(0.01, 0.999),
)
def test_directions_are_the_fewest_with_a_share(energies: list[float], share: float) -> None:
    found = directions(energies, len(energies), share)
    assert sum(energies[:found]) >= share - 1e-9
    assert sum(energies[: found - 1]) <= share + 1e-9


def test_directions_drawn_together_share_evenly() -> None:
    assert directions([0.06, 0.04], 20, 0.3) == 5
    assert directions([0.06, 0.04], 20, 0.8) == 15
    assert directions([0.0, 0.0], 20, 0.5) == 20


def test_ids_are_unique_and_links_lead_somewhere() -> None:
    root = tree(**everything())
    ids = [e.attrib["id"] for e in root.iter() if "id" in e.attrib]
    assert len(ids) == len(set(ids))
    assert {e.attrib["href"].removeprefix("#") for e in root.iter("a")} <= set(ids)
    named = [name for e in root.iter() for name in e.attrib.get("aria-labelledby", "").split()]
    assert set(named) <= set(ids)


def test_headings_are_in_order_and_tables_are_read_out_by_row_and_column() -> None:
    root = tree(**everything())
    levels = [int(e.tag[1]) for e in root.iter() if re.fullmatch("h[1-6]", e.tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(below - above <= 1 for above, below in itertools.pairwise(levels))
    for table in root.iter("table"):
        heads = table.findall("./thead/tr/th")
        assert {head.attrib["scope"] for head in heads} == {"col"}
        for line in table.findall("./tbody/tr"):
            assert len(line) == len(heads)
            assert (line[0].tag, line[0].attrib["scope"]) == ("th", "row")
    regions = [e for e in root.iter() if e.attrib.get("role") == "region"]
    assert regions and all("tabindex" in e.attrib and "aria-label" in e.attrib for e in regions)


def test_bars_are_as_long_as_their_shares() -> None:
    found = layers(layer("a", error=0.2), layer("b", error=0.05, loss=1e-6))
    root = tree(proof(layers=[timed("a", 1.6), timed("b", 0.8)]), plan(), layers=found)
    widths = [e.attrib["style"] for e in root.iter("span") if "style" in e.attrib]
    assert widths == ["width:100.0%", "width:100.0%", "width:25.0%", "width:50.0%"]


@pytest.mark.parametrize("number", [1, 2, 7])
def test_equal_plans_can_be_drawn(number: int) -> None:
    root = tree(proof(front=[point(1_000_000, 0.8, True)] * number))
    found = section(root, "search")
    assert found is not None and len(found.findall(".//circle")) == number


def test_a_front_without_accuracies_shows_the_predicted_loss() -> None:
    size = gate(metric="size_ratio", kind="performance", goal="threshold", interval=None)
    front = [
        point(2.5, 0.8, True) | {"unit": "ms", "values": {}, "loss": loss} for loss in (1e-3, 2e-3)
    ]
    text = words(section(tree(proof(gates=[size], front=front)), "search"))
    assert "predicted loss (lower is better)" in text
    assert "budget in ms" in text


def test_metrics_of_the_recipe_are_drawn_in_their_own_direction() -> None:
    mine = gate(metric="mine", text="rise ≤ 0.5", value=0.5)
    front = [point(1_000_000, 0.8, True) | {"values": {"mine": 2.0, "size_bytes": 9e5}}]
    metrics = proof(gates=[mine], front=front, own={"mine": "lower"}, metrics={"mine": pair(2, 2)})
    text = words(section(tree(metrics), "search"))
    assert "mine (lower is better)" in text
    assert "gate: rise ≤ 0.5" in text


def test_every_gate_that_a_plan_failed_is_listed() -> None:
    front = [
        point(9e5, 0.7, False, chosen=True) | {"failed": ["auc fell by 0.1", "size_ratio is 9"]},
        point(2e6, 0.8, False),
    ]
    text = words(section(tree(proof(front=front)), "search"))
    assert "FAIL: auc fell by 0.1; size_ratio is 9" in text
    assert "None keeps every gate; the closest was taken, a budget of 900,000 bytes" in text


def test_places_are_inside_their_figures() -> None:
    root = tree(**everything())
    for picture in root.iter("svg"):
        width, height = map(float, picture.attrib["viewBox"].split()[2:])
        for e in picture.iter():
            across = [float(e.attrib[k]) for k in ("x", "x1", "x2", "cx") if k in e.attrib]
            down = [float(e.attrib[k]) for k in ("y", "y1", "y2", "cy") if k in e.attrib]
            assert all(0 <= x <= width for x in across)
            assert all(0 <= y <= height for y in down)
            if e.tag == "text":
                _fits(e, across[0], width)


def _fits(label: ElementTree.Element, x: float, width: float) -> None:
    reach = 5.8 * len(words(label))  # about how wide the label is
    side = label.attrib.get("text-anchor", "start")
    before = {"start": 0.0, "middle": reach / 2, "end": reach}[side]
    assert x - before >= -1 and x - before + reach <= width + 1, words(label)


# --- a page that nothing can hurt -------------------------------------------------------------


def test_nothing_is_asked_of_a_network_and_nothing_runs() -> None:
    source = report_html(**everything())
    root = ElementTree.fromstring(source)
    for attribute in ("src", "srcset", "action", "href"):
        found = [e.attrib[attribute] for e in root.iter() if attribute in e.attrib]
        assert all(value.startswith("#") for value in found)
    assert not [name for e in root.iter() for name in e.attrib if name.startswith("on")]
    assert {e.tag for e in root.iter()}.isdisjoint({"script", "link", "img", "iframe", "object"})
    assert not re.search(r"https?:|url\(|@import", source)
    assert "default-src 'none'" in source


@pytest.mark.parametrize("name", EVIL, ids=range(len(EVIL)))
def test_names_of_a_hostile_model_stay_names(name: str) -> None:
    metrics = proof(
        recipe=name,
        gates=[gate(message=name, text=name)],
        layers=[timed(name)],
        unavailable={name: name},
        environment={name: name},
        layer_times=[{"layer": name, "original_ms": 1.0, "compressed_ms": 1.0, "nodes": (1, 1)}],
        backends={
            name: {"built": False, "ran": False, "precision": "", "size_bytes": 0, "note": name}
        },
    )
    source = report_html(
        metrics,
        plan((name, name, name)),
        layers=layers(layer(name, form=name, reason=name)),
        recipe=f"name: {name}",
    )
    root = ElementTree.fromstring(source)
    assert not list(root.iter("script"))
    assert "".join(root.itertext()).count(printable(name)) >= 10
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", source)


def test_names_are_kept_apart_from_the_direction_of_the_page() -> None:
    root = tree(proof(recipe=EVIL[1]), plan((EVIL[1], "lowrank", "why")))
    assert [words(e) for e in root.iter("bdi")].count(printable(EVIL[1])) == 2


def test_the_same_content_gives_the_same_page() -> None:
    assert report_html(**everything()) == report_html(**everything())


def test_hundreds_of_layers_stay_readable() -> None:
    weights = [0.95**k for k in range(256)]  # as many steps as a curve can have
    falling = [weight / sum(weights) / 4 for weight in weights]
    many = [
        layer(f"encoder.layers.{k}.attention.self.value", loss=k * 1e-5, energies=falling,
              energies_of=1024, full_rank=1024)
        for k in range(200)
    ]  # fmt: skip
    metrics = proof(layers=[timed(one["site"]) for one in many])
    skips = [(f"decoder.{k}", "lowrank", "too small") for k in range(200)]
    source = report_html(metrics, plan(*skips), layers=layers(*many))
    assert len(source.encode()) < 1_000_000
    root = ElementTree.fromstring(source)
    folded = {e for fold in root.iter("details") for e in fold.iter()}
    assert len([e for e in root.iter("svg") if e not in folded]) == FIGURES + 1
    assert len([e for e in root.iter("tr") if e not in folded]) < 2 * LINES + 20
    assert len(list(root.iter("svg"))) == 201
    assert "Spectra of 188 more layers" in words(root)


def test_a_few_more_are_not_folded() -> None:
    found = layers(*(layer(str(k)) for k in range(FIGURES + 2)))
    page = section(tree(proof(), plan(), layers=found), "layers")
    assert page is not None and page.find(".//details") is None


def test_metrics_without_labels_can_be_split_and_drawn() -> None:
    ends = {f"{name}_interval": None for name in ("floor", "compression", "lowering", "total")}
    split: Any = {"floor": 1e-6, "compression": 2e-3, "lowering": 0.0, "total": 2e-3} | ends
    metrics = proof(
        metrics={"mean_abs_err": pair(0, 0.002), "accuracy_top1": pair(0.9, 0.89)},
        split={"cpu-fp16": {"mean_abs_err": split, "accuracy_top1": split}},
    )
    text = words(section(tree(metrics), "causes"))
    assert "compression +0.002" in text
    assert "accuracy_top1 on cpu-fp16, in points" in text
    assert "compression +0.20 points" in text
