"""The pivot form: which outputs are kept, and layers written with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from builders import mlp, mlp_rows, model_of, weight
from layer_builders import FLOAT, image_model, random, site_named, stack
from rankc.cleanup import clean
from rankc.graph import node_named
from rankc.layer_models import Feeds, feeds_of, isolate, rewritten, solved
from rankc.lowering.precision import to_fp16
from rankc.macs import count_macs
from rankc.passbase import Pass, Site, Skip
from rankc.passes.conv import Conv
from rankc.passes.lowrank import LowRank
from rankc.pivot import BLOCK, LARGEST, index_bytes, pivoted
from rankc.rank_grid import fill, grid
from rankrt.session import open_model

Array = NDArray[Any]
MATRIX = LowRank(forms=("pair", "pivot"), round_to=1, min_size=1)
IMAGE = Conv(forms=("channel", "pivot"), round_to=1, min_size=1)


def check(second: Array) -> None:
    """Every promise of `pivoted`."""
    rank, outputs = second.shape
    found = pivoted(second)
    both = np.concatenate([found.kept, found.others])
    assert sorted(both) == list(range(outputs))
    assert (np.diff(found.kept) > 0).all()
    assert (np.diff(found.others) > 0).all()
    assert found.mix.shape == (rank, outputs - rank)
    assert np.abs(found.mix).max(initial=0.0) <= LARGEST
    length = np.linalg.norm(second, axis=1, keepdims=True)
    missed = np.abs(second[:, found.kept] @ found.mix - second[:, found.others])
    assert (missed <= 1e-9 * length).all()
    order = found.order
    np.testing.assert_array_equal(both if order is None else both[order], np.arange(outputs))
    assert order is None or order.dtype == np.int64


@settings(deadline=None, max_examples=150)
@given(
    st.integers(1, BLOCK + 9),
    st.integers(0, 30),
    st.integers(0, BLOCK + 9),
    st.integers(0, 20),
    st.floats(0, 5),
    st.integers(0, 2**16),
)
def test_any_factor(
    rank: int, more: int, true_rank: int, repeats: int, decades: float, seed: int
) -> None:
    """Of full rank or not, with columns twice and rows of very different length."""
    rng, outputs = np.random.default_rng(seed), rank + more
    inner = min(true_rank, rank)
    second = rng.normal(size=(rank, inner)) @ rng.normal(size=(inner, outputs))
    second[:, rng.integers(0, outputs, repeats)] = second[:, rng.integers(0, outputs, repeats)]
    check(second * 10 ** rng.uniform(-decades, decades, (rank, 1)))


@pytest.mark.parametrize("factor", [np.zeros((3, 7)), np.ones((4, 9)), np.eye(5), np.eye(3, 8)])
def test_factors_that_say_little(factor: Array) -> None:
    check(factor)


def test_an_entry_too_large_is_exchanged() -> None:
    """Elimination alone leaves an entry of 2.08 here."""
    check(np.random.default_rng(27).normal(size=(40, 70)))


def test_columns_that_are_kept_in_order_need_no_index() -> None:
    second = np.hstack([np.eye(4), 0.3 * np.ones((4, 5))])
    assert pivoted(second).order is None
    assert pivoted(second[:, ::-1]).order is not None


def test_the_function_stays_the_same_whatever_spans_the_rows() -> None:
    rng = np.random.default_rng(2)
    second, turn = rng.normal(size=(6, 20)), rng.normal(size=(6, 6))
    a, b = pivoted(second), pivoted(turn @ second)
    first = rng.normal(size=(9, 6))
    for found, factor in ((a, second), (b, turn @ second)):
        whole = found.whole(first @ factor[:, found.kept], found.mix)
        np.testing.assert_allclose(whole, first @ factor, atol=1e-12)


def matmul(batch: int | str = "batch") -> ir.Model:
    """y = x W over three axes, (batch, 5, 24) to (batch, 5, 32), without a bias."""
    tape, x = ir.tape.Tape(), ir.val("x", FLOAT, [batch, 5, 24])
    y = ir.val("y", FLOAT, [batch, 5, 32])
    tape.op("MatMul", [x, weight(tape, "w", random(24, 32))], name="layer", output=y)
    model = model_of(tape, [x], [y])
    clean(model)
    return model


def wide(rank: int | None = None) -> ir.Model:
    """A Gemm with a bias from 192 to 256, at one batch size, of that rank."""
    tape, x, y = ir.tape.Tape(), ir.val("x", FLOAT, [16, 192]), ir.val("y", FLOAT, [16, 256])
    matrix = random(192, 256) if rank is None else random(192, rank) @ random(rank, 256, seed=1)
    inputs = [x, weight(tape, "w", matrix), weight(tape, "b", random(256))]
    tape.op("Gemm", inputs, name="layer", output=y)
    model = model_of(tape, [x], [y])
    clean(model)
    return model


CASES = [
    pytest.param(wide(), MATRIX, "layer", id="gemm"),
    pytest.param(matmul(2), MATRIX, "layer", id="matmul"),
    pytest.param(image_model(2, layers=1), IMAGE, "conv0", id="conv"),
]


def run(model: ir.Model, feeds: Feeds) -> Array:
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    (found,) = open_model(ir.to_proto(model).SerializeToString()).run(feeds).values()
    return found


def apart(a: Array, b: Array) -> float:
    return float(np.abs(a.astype(np.float64) - b).max() / np.abs(b).max())


@pytest.mark.parametrize(("model", "pass_", "name"), CASES)
def test_it_computes_what_the_pair_does(model: ir.Model, pass_: Pass, name: str) -> None:
    """In float32, at any rank; at full rank what the layer did."""
    site = site_named(model, pass_, name)
    alone = isolate(model, pass_, site, 1)
    assert not isinstance(alone, str)
    solution, feeds = solved(pass_, alone, site), feeds_of(alone)
    pair = pass_.cost(site, solution).forms[0]
    for rank in (1, site.full_rank // 3, site.full_rank - 1, site.full_rank):
        a, b = (rewritten(alone, pass_, site, rank, solution, f) for f in (pair, "pivot"))
        assert apart(run(b, feeds), run(a, feeds)) <= 1e-5
    assert apart(run(b, feeds), run(alone, feeds)) <= 1e-5


@pytest.mark.parametrize(("model", "pass_", "name"), CASES)
def test_shapes_and_arithmetic_are_known(model: ir.Model, pass_: Pass, name: str) -> None:
    site = site_named(model, pass_, name)
    alone = isolate(model, pass_, site, 1)
    assert not isinstance(alone, str)
    solution = solved(pass_, alone, site)
    curve = pass_.cost(site, solution)
    rank = site.full_rank // 2
    at = next(k for k, r in enumerate(curve.ranks) if curve.form(k) == "pivot" and r == rank)
    found = rewritten(alone, pass_, site, rank, solution, "pivot")
    assert all(v.shape is not None and v.shape.is_static() for n in found.graph for v in n.outputs)
    macs, why = count_macs(found)
    dense, _ = count_macs(alone.clone())
    assert macs is not None, why
    assert dense is not None
    assert macs * pass_.dense(alone, site).macs == dense * int(curve.macs[at])


@pytest.mark.parametrize(("model", "pass_", "name"), CASES)
def test_times_of_few_ranks_give_all(model: ir.Model, pass_: Pass, name: str) -> None:
    """The grid has ranks of the pivot form up to full rank: all of them save arithmetic."""
    site = site_named(model, pass_, name)
    alone = isolate(model, pass_, site, 1)
    assert not isinstance(alone, str)
    curve = pass_.cost(site, solved(pass_, alone, site))
    chosen = grid(curve, pass_.dense(alone, site).macs)
    times: dict[str, dict[int, float]] = {}
    for k in chosen:
        times.setdefault(curve.form(k), {})[int(curve.ranks[k])] = float(curve.macs[k])
    assert max(times["pivot"]) > max(times[curve.forms[0]])
    filled = fill(curve, times)
    assert filled is not None
    assert len(filled) == len(curve.ranks)


def test_all_outputs_kept_are_one_layer() -> None:
    model = mlp()  # `down` has 24 inputs and 8 outputs
    site = site_named(model, MATRIX, "down")
    MATRIX.rewrite(model, site, 8, solved(MATRIX, stacked(model, site), site), "pivot")
    assert [node.op_type for node in model.graph] == ["MatMul", "Relu", "Gemm", "Sigmoid"]


def stacked(model: ir.Model, site: Site) -> ir.Model:
    clean(model)
    alone = isolate(model, MATRIX, site, 4)
    assert not isinstance(alone, str)
    return alone


def test_the_pair_alone_has_no_names_of_forms() -> None:
    model = wide()
    one, two = LowRank(), LowRank(forms=("pair", "pivot"))
    site = site_named(model, one, "layer")
    alone = isolate(model, one, site, 1)
    assert not isinstance(alone, str)
    solution = solved(one, alone, site)
    pair, both = one.cost(site, solution), two.cost(site, solution)
    half = len(pair.ranks)
    assert not pair.forms
    assert both.forms == ("pair",) * half + ("pivot",) * half
    for column in ("ranks", "error", "loss", "parameters", "macs", "size_bytes"):
        np.testing.assert_array_equal(getattr(both, column)[:half], getattr(pair, column))
    ranks = both.ranks[half:]
    np.testing.assert_array_equal(pair.macs - both.macs[half:], ranks**2)
    assert both.size_bytes[half] == 4 * both.parameters[half] + index_bytes(8, 256)


def test_a_layer_that_no_pair_makes_smaller() -> None:
    """24 x 8 pays below rank 6 as a pair, and below 8 as pivots."""
    model = stack([24, 8])
    for forms, step, refused in (
        (("pair",), 7, "pays below rank 6.0, less than 7"),
        (("pair", "pivot"), 7, ""),
        (("pivot",), 8, "no rank below 8 that is a multiple of 8"),
    ):
        pass_ = LowRank(forms=forms, min_size=1, round_to=step, targets=("fc0",))  # type: ignore[arg-type]
        (found,) = pass_.match(model)
        assert refused in found.reason if isinstance(found, Skip) else not refused


def test_groups_have_no_pivot_form() -> None:
    tape, x = ir.tape.Tape(), ir.val("x", FLOAT, ["batch", 8, 6, 6])
    y = ir.val("y", FLOAT, None)
    inputs = [x, weight(tape, "w", random(8, 4, 3, 3))]
    tape.op("Conv", inputs, {"group": 2}, name="grouped", output=y)
    model = model_of(tape, [x], [y])
    clean(model)
    (found,) = Conv(forms=("pivot",), min_size=1).match(model)
    assert isinstance(found, Skip)
    assert "none of the forms" in found.reason


@pytest.mark.parametrize("image", [False, True])
def test_float16_keeps_the_index(image: bool) -> None:
    """Weights narrow, places do not, and the result is a valid model with a free batch axis."""
    model = image_model() if image else stack([24, 32])
    pass_, name = (IMAGE, "conv0") if image else (MATRIX, "fc0")
    site = site_named(model, pass_, name)
    alone = isolate(model, pass_, site, 2)
    assert not isinstance(alone, str)
    pass_.rewrite(model, site, 5, solved(pass_, alone, site), "pivot")
    clean(model)
    half = to_fp16(model)
    index = half.graph.initializers[f"{name}.order"]
    assert index.dtype == ir.DataType.INT64
    assert half.graph.initializers[f"{name}.kept"].dtype == ir.DataType.FLOAT16
    shape = node_named(half, f"{name}.order").outputs[0].shape
    assert shape is not None
    assert str(shape[0]) == "batch"
    feeds = feeds_of(isolated(model))
    assert apart(run(half, feeds), run(model, feeds)) <= 0.01


def isolated(model: ir.Model) -> ir.Model:
    """The same at three rows, for random rows of its shape."""
    fixed = model.clone()
    (given,) = fixed.graph.inputs
    assert given.shape is not None
    given.shape = ir.Shape([3, *list(given.shape)[1:]])
    return fixed


def test_rows_that_repeat_others_are_no_trouble() -> None:
    """A layer of rank 20, at ranks above it: what is kept beside is computed from the input."""
    model = wide(rank=20)
    site = site_named(model, MATRIX, "layer")
    alone = isolate(model, MATRIX, site, 1)
    assert not isinstance(alone, str)
    solution, feeds = solved(MATRIX, alone, site), feeds_of(alone)
    for rank in (20, 21, 60):
        found = rewritten(alone, MATRIX, site, rank, solution, "pivot")
        assert apart(run(found, feeds), run(alone, feeds)) <= 1e-5


def test_rows_of_real_data() -> None:
    """The model of the contract suite, both layers as pivots, against both as pairs."""
    model, x = mlp(), mlp_rows()
    clean(model)
    results = []
    for form in MATRIX.forms:
        changed = model.clone()
        for site in MATRIX.match(model):
            assert isinstance(site, Site)
            alone = isolate(model, MATRIX, site, 1)
            assert not isinstance(alone, str)
            MATRIX.rewrite(changed, site, 5, solved(MATRIX, alone, site), form)
        results.append(run(changed, {"x": x}))
    assert apart(*results) <= 1e-5
