from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layer_builders import HEADER, lowrank, site_named, solutions_of, stack
from rankc.errors import DataError, MachineError
from rankc.latency_table import MAX_BYTES, LatencyTable, Ranked, load, times_for
from rankc.passbase import Curve
from rankc.rank_grid import MOST, fill, grid, read
from rankc.rewriting import Sites

KEY = "Gemm(1x32, 32x32, 32)"


def table() -> LatencyTable:
    found = LatencyTable(HEADER)
    for rank, ratio in ((16, 0.5), (8, 0.25)):
        found.record(KEY, 0.4, "lowrank", Ranked("", rank, ratio))
    found.record("MatMul(1x32, 32x32)", 1 / 3, "lowrank", Ranked("", 8, 0.5))
    return found


def curve(ranks: list[int], forms: tuple[str, ...] = (), cost: int = 10) -> Curve:
    whole = np.array(ranks, np.int64)
    nothing = np.zeros(len(ranks))
    return Curve(whole, nothing, nothing, whole, cost * whole, whole, forms=forms)


# --- the file -------------------------------------------------------------------------------


def test_a_table_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "new" / "t.json"
    table().save(path)
    assert load(path) == table()
    assert load(path, "cpu").layers[KEY].of("lowrank", "") == {8: 0.1, 16: 0.2}
    text = path.read_bytes()
    load(path).save(path)
    assert path.read_bytes() == text
    assert [p.name for p in path.parent.iterdir()] == ["t.json"]


def test_what_was_timed_first_stays_the_dense_time() -> None:
    found = table()
    found.record(KEY, 99.0, "conv", Ranked("channel", 4, 0.5))
    assert found.layers[KEY].dense_ms == 0.4
    assert found.layers[KEY].of("conv", "channel") == {4: 0.2}
    assert found.has(KEY, "conv", "channel", 4)
    assert not found.has(KEY, "conv", "channel", 8)
    assert not found.has(KEY, "conv", "input", 4)
    assert not found.has("other", "conv", "channel", 4)


def spoilt(edit: dict[str, Any]) -> str:
    fields = json.loads(table().to_json())
    layer = fields["layers"][KEY]
    for key, value in edit.items():
        target = {"header": fields["header"], "layer": layer, "ranks": layer["ranked_ms"]}
        place, _, name = key.rpartition(".")
        (target[place] if place else fields)[name] = value
    return json.dumps(fields)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "cut short"),
        (table().to_json()[:-40], "cut short"),
        ("\x00\x01", "cut short"),
        ("[" * 100_000, "cut short"),
        ("[1, 2]", "is no latency table; give"),
        ('{"format": 1}', "is no latency table; give"),
        (spoilt({"kind": "recipe"}), "is no latency table; give"),
        (spoilt({"format": 1}), "format 1; this rankc reads 2"),
        (spoilt({"format": True}), "format True"),
        (spoilt({"more": 1}), "damaged latency table: more"),
        (spoilt({"header.threads": 0}), "header.threads"),
        (spoilt({"header.batch": "1"}), "header.batch"),
        (spoilt({"layer.dense_ms": 0.0}), "dense_ms: Input should be greater than 0"),
        (spoilt({"layer.dense_ms": float("nan")}), "dense_ms: Input should be a finite"),
        (spoilt({"layer.dense_ms": float("inf")}), "dense_ms"),
        (spoilt({"layer.dense_ms": None}), "dense_ms"),
        (spoilt({"ranks.lowrank": {"": {"0": 1.0}}}), "greater than or equal to 1"),
        (spoilt({"ranks.lowrank": {"": {"x": 1.0}}}), "valid integer"),
        (spoilt({"ranks.lowrank": {"": {"8": -1.0}}}), "greater than 0"),
        (spoilt({"ranks.lowrank": [1]}), "lowrank"),
    ],
)
def test_a_damaged_table_is_refused_by_its_name(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(text, "utf-8")
    with pytest.raises(DataError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert says in str(caught.value)


def test_what_is_no_table_of_that_target_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    with pytest.raises(DataError, match="there is no such file"):
        load(path)
    with pytest.raises(DataError, match="is not a file"):
        load(tmp_path)
    table().save(path)
    with pytest.raises(DataError, match="on target 'cpu', not 'tensorrt'"):
        load(path, "tensorrt")
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(DataError, match="larger than any"):
        load(path)


def test_a_table_that_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(MachineError, match="cannot be written"):
        table().save(tmp_path / "file" / "t.json")
    (tmp_path / "t.json").mkdir()
    with pytest.raises(MachineError, match="cannot be written"):
        table().save(tmp_path / "t.json")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "t.json"]


# --- ranks ----------------------------------------------------------------------------------

STAIRS = {16: 1.0, 32: 2.0, 64: 4.0, 8: 0.9, 24: 3.0, 56: 7.0}


@pytest.mark.parametrize(
    ("rank", "milliseconds"),
    [
        (32, 2.0),
        (48, 3.0),  # between 32 and 64, not on the way to 56
        (40, 5.0),  # between 24 and 56
        (20, 3.0),  # what 24 costs, which is more than 32 does
        (33, 5.0),
        (1, 0.9),
        (60, 4.0),
        (96, 6.0),  # above all
    ],
)
def test_ranks_between_are_read_off_their_own_kind(rank: int, milliseconds: float) -> None:
    assert read(STAIRS, rank) == pytest.approx(milliseconds)


def test_ranks_that_are_no_multiples_cost_no_less_than_the_next_multiple() -> None:
    assert read({1: 1.0, 5: 3.0, 8: 2.5}, 3) == pytest.approx(2.5)
    assert read({1: 1.0, 5: 3.0, 8: 2.5}, 4) == pytest.approx(2.5)
    assert read({4: 1.0, 88: 6.0, 92: 3.0}, 82) == pytest.approx(6.0)  # far below on their line
    assert read({1: 1.0, 5: 3.0}, 3) == pytest.approx(2.0)  # there is no multiple


@given(
    timed=st.dictionaries(st.integers(1, 300), st.floats(0.001, 10.0), min_size=1),
    rank=st.integers(1, 600),
)
def test_a_time_is_among_those_measured_or_above_all(timed: dict[int, float], rank: int) -> None:
    found = read(timed, rank)
    if rank in timed:
        assert found == timed[rank]
    elif rank < max(timed):
        slack = 1e-9
        assert min(timed.values()) - slack <= found <= max(timed.values()) + slack
    else:
        assert found == pytest.approx(timed[max(timed)] * rank / max(timed))


def test_the_grid_sees_the_steps_and_stops_at_the_break_even() -> None:
    long = curve(list(range(8, 513, 8)))
    ranks = long.ranks[grid(long, dense_macs=2560)].tolist()
    assert len(ranks) == MOST
    assert max(ranks) == 248  # 256 costs what the dense layer does
    assert sum(r % 16 == 0 for r in ranks) == 4
    assert min(ranks) == 8


def test_the_grid_has_every_form_even_one_that_never_pays() -> None:
    forms = ("channel",) * 3 + ("decoupled",) * 2
    both = curve([4, 8, 12, 50, 60], forms)
    assert grid(both, dense_macs=125) == [0, 1, 2, 3]


@given(
    st.lists(st.integers(1, 400), min_size=1, unique=True).map(sorted),
    st.integers(1, 5000),
    st.integers(1, MOST),
)
def test_a_grid_is_small_and_fills_the_curve(ranks: list[int], macs: int, most: int) -> None:
    one = curve(ranks)
    chosen = grid(one, macs, most)
    assert len(chosen) == len(set(chosen))
    assert 1 <= len(chosen) <= max(most, 3)
    filled = fill(one, {"": {ranks[i]: 1.0 + i for i in chosen}})
    assert filled is not None
    assert filled.shape == (len(ranks),)
    assert (filled > 0).all()


# --- times of a site ------------------------------------------------------------------------


def test_times_of_a_site_come_from_its_layer() -> None:
    model, pass_ = stack([32, 32, 32]), lowrank()
    sites = Sites.of(model, [pass_])
    solutions = solutions_of(model, sites)
    for name in ("fc0", "fc1"):
        site = site_named(model, pass_, name)
        found = times_for(table(), model, pass_, site, pass_.cost(site, solutions[site]))
        assert found is not None
        assert found.measured
        assert found.dense == 0.4
        np.testing.assert_allclose(found.ranked, [0.1, 0.2, 0.3, 0.4])  # ranks 8, 16, 24, 32


def test_a_table_is_not_guessed_from(tmp_path: Path) -> None:
    model, pass_ = stack([32, 40]), lowrank()
    site = site_named(model, pass_, "fc0")
    ranks = curve([8, 16])
    assert times_for(table(), model, pass_, site, ranks) is None  # another width
    model = stack([32, 32])
    site = site_named(model, pass_, "fc0")
    assert times_for(table(), model, pass_, site, ranks) is not None
    assert times_for(table(), model, pass_, site, curve([8, 16], ("other", "other"))) is None
    some = times_for(table(), model, pass_, site, curve([8, 16], ("pair", "other")))
    assert some is not None
    assert some.ranked.tolist() == [0.1, np.inf]  # of the other form nothing was timed
