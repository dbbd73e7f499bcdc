"""Measured KL curves: what the whole model would say, read off in between, files gone after."""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import Array, lookup, lookup_rows, mlp, mlp_rows, model_of, weight
from conv_builders import convnet, images
from ctr_builders import deepfm, feeds
from rankc.calibrate import calibrate
from rankc.cleanup import clean
from rankc.errors import DataError, ModelError
from rankc.kl_curves import measured, read_off
from rankc.passbase import Pass, Site
from rankc.passes.conv import Conv
from rankc.passes.embedding import Embedding
from rankc.passes.lowrank import LowRank
from rankc.perturbing import TRACE, saving, trials
from rankc.planning import Candidate, make_plan
from rankc.progress import SilentProgress
from rankc.rewriting import Draft, Sites, apply
from rankrt.session import open_model
from sources import Rows

LAYERS, CONVS, TABLES = LowRank(min_size=1, round_to=1), Conv(min_size=64, round_to=1), Embedding()


class Marks:
    """A stage that remembers how far it was told to be."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int | None]] = []

    def advance(self, done: int, total: int | None = None) -> None:
        self.seen.append((done, total))

    def note(self, text: str) -> None: ...


def draft_of(model: ir.Model, rows: Rows, *passes: Pass) -> Draft:
    clean(model)
    sites = Sites.of(model, passes)
    probes = {site: pass_.probe(model, site) for site, pass_ in sites.owners.items()}
    with SilentProgress().stage("calibrate") as stage:
        return Draft.of(model, sites, calibrate(model, probes, rows, stage).stats)


def curves(draft: Draft, rows: Rows, count: int = 256, points: int = 4) -> list[Candidate]:
    return measured(
        draft.model,
        draft.sites.owners,
        draft.solutions,
        draft.offers,
        rows,
        Marks(),
        rows=count,
        points=points,
    )


def run(model: ir.Model, given: Mapping[str, Array]) -> Array:
    (found,) = open_model(ir.to_proto(model).SerializeToString()).run(given).values()
    return found.astype(np.float64)


def rewritten(draft: Draft, site: Site, at: int) -> ir.Model:
    curve = next(o.curve for o in draft.offers if o.site == site)
    changed, solution = draft.model.clone(), draft.solutions[site]
    draft.sites.owners[site].rewrite(changed, site, int(curve.ranks[at]), solution, curve.form(at))
    return changed


def direct(before: Array, after: Array, sigmoid: bool) -> float:
    """KL divergence of the outputs of whole models, mean over the rows."""
    if sigmoid:
        p, q = before, after
        apart = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    else:
        p, q = (np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True) for z in (before, after))
        apart = p * np.log(p / q)
    return float(apart.sum()) / len(before)


NETS: dict[str, tuple[Callable[[], ir.Model], dict[str, Array], tuple[Pass, ...], bool]] = {
    "convolutions": (convnet, {"x": images(48)}, (CONVS, LAYERS), False),
    "layers": (mlp, {"x": mlp_rows(300)}, (LAYERS,), True),
    "tables": (lookup, {"ids": lookup_rows(300)}, (TABLES,), True),
    "both": (lookup, {"ids": lookup_rows(300)}, (LAYERS, TABLES), True),
    "deepfm": (deepfm, feeds(deepfm(), 200), (LAYERS, TABLES), True),
}


@pytest.mark.parametrize("name", NETS)
def test_what_is_measured_is_what_the_whole_model_does(name: str) -> None:
    build, given, passes, sigmoid = NETS[name]
    rows = Rows(given, 37)
    draft = draft_of(build(), rows, *passes)
    want, checked = run(draft.model, given), 0
    for offer, found in zip(draft.offers, curves(draft, rows, 10_000), strict=True):
        less, cost = saving(offer)
        if not less.any():
            assert found is offer
            continue
        # The cheapest entry is always measured.
        kept = np.flatnonzero(less)
        at = int(kept[np.lexsort((offer.curve.loss[kept], cost[kept]))[0]])
        got = run(rewritten(draft, offer.site, at), given)
        checked += 1
        assert found.curve.loss[at] == pytest.approx(direct(want, got, sigmoid), rel=5e-3, abs=1e-7)
        assert dataclasses.replace(found.curve, loss=offer.curve.loss) == offer.curve
        assert (found.curve.loss[offer.curve.error == 0] == 0).all()
        wrong = np.flatnonzero(offer.curve.error > TRACE)
        order = wrong[np.argsort(offer.curve.loss[wrong])]
        assert (np.diff(found.curve.loss[order]) >= 0).all()
    assert checked >= 2


def test_what_lies_behind_a_layer_is_the_whole_model() -> None:
    """Every answer of every trial, to the last digits."""
    given = {"x": images(48)}
    draft = draft_of(convnet(), Rows(given, 20), CONVS, LAYERS)
    want, seen = run(draft.model, given), []
    owners = draft.sites.owners
    with closing(trials(draft.model, owners, Rows(given, 20), 30)) as running:
        for trial in running:
            curve = next(o.curve for o in draft.offers if o.site == trial.site)
            got = run(rewritten(draft, trial.site, 0), given)
            form = curve.form(0)
            parts = trial.compared(int(curve.ranks[0]), draft.solutions[trial.site], form)
            pairs = [pair for part in parts for pair in part.values()]
            seen.append(trial.site)
            assert [len(a) for a, _ in pairs] == [20, 10]
            before, after = (np.concatenate(side) for side in zip(*pairs, strict=True))
            np.testing.assert_allclose(before, want[:30], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(after, got[:30], rtol=1e-4, atol=1e-5)
    assert set(seen) == set(owners)


@given(
    st.lists(st.floats(1e-9, 1.0), min_size=1, max_size=6, unique=True),
    st.lists(st.floats(1e-9, 5.0), min_size=6, max_size=6),
    st.lists(st.floats(0, 2.0, allow_subnormal=False), min_size=2, max_size=20),
)
def test_what_is_read_off_rises_with_what_was_predicted(
    at: list[float], loss: list[float], predicted: list[float]
) -> None:
    known, measured_there = np.array(at), np.array(loss[: len(at)])
    every = np.sort(np.array([*predicted, *at]))
    found = read_off(every, known, measured_there)
    assert (found >= 0).all() and (found[every == 0] == 0).all()
    assert (np.diff(found) >= -1e-9 * found[1:]).all()
    loss_there = measured_there[np.argsort(known)]
    want = [loss_there[k:].min() for k in range(len(at))]
    np.testing.assert_allclose(read_off(np.sort(known), known, measured_there), want)
    below, above = known.min() / 4, known.max() * 4
    outside = read_off(np.array([below, above]), known, measured_there)
    np.testing.assert_allclose(outside, [want[0] / 4, want[-1] * 4])


def test_a_plan_by_them_does_less_harm_than_any_other_of_equal_cost_alone() -> None:
    """One site: the plan takes the entry that loses least of those that fit."""
    given = {"x": mlp_rows(300)}
    draft = draft_of(mlp(), Rows(given), LAYERS)
    found = [o for o in curves(draft, Rows(given)) if o.site.name == "up"]
    most = found[0].dense.macs * 2 // 3
    plan = make_plan(found, [], budgets={"macs": most})
    (choice,) = plan.choices
    fits = found[0].curve.loss[found[0].curve.macs <= most]
    assert choice.loss == fits.min() > 0
    got = run(apply(draft.model, plan, draft.sites, draft.solutions), given)
    assert choice.loss == pytest.approx(direct(run(draft.model, given), got, True), rel=0.3)


def test_forced_ranks_are_left_alone_and_the_rest_is_told_one_by_one() -> None:
    given, marks = {"ids": lookup_rows(300)}, Marks()
    forced = Embedding(rank=3)
    draft = draft_of(lookup(), Rows(given), forced, LAYERS)
    found = measured(
        draft.model, draft.sites.owners, draft.solutions, draft.offers, Rows(given), marks
    )
    for before, after in zip(draft.offers, found, strict=True):
        assert (after is before) == (before.forced is not None)
    tried = sum(o.forced is None for o in draft.offers)
    assert marks.seen == [(k + 1, tried) for k in range(tried)]


def test_the_same_twice_and_nothing_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    given = {"x": images(48)}
    draft = draft_of(convnet(), Rows(given, 20), CONVS)
    before = ir.to_proto(draft.model).SerializeToString()
    first, second = (curves(draft, Rows(given, 20), points=2) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.curve.loss, b.curve.loss)
    assert ir.to_proto(draft.model).SerializeToString() == before
    assert not list(tmp_path.iterdir())


def test_more_points_change_nothing_where_they_are_the_same() -> None:
    given = {"x": mlp_rows(100)}
    draft = draft_of(mlp(), Rows(given), LAYERS)
    every, more = (curves(draft, Rows(given), points=n) for n in (100, 1000))
    for a, b in zip(every, more, strict=True):
        np.testing.assert_array_equal(a.curve.loss, b.curve.loss)


def test_one_point_is_enough_for_a_line() -> None:
    given = {"x": mlp_rows(100)}
    draft = draft_of(mlp(), Rows(given), LAYERS)
    (found,) = (o for o in curves(draft, Rows(given), points=1) if o.site.name == "up")
    (before,) = (o for o in draft.offers if o.site.name == "up")
    ratio = found.curve.loss[:-1] / before.curve.loss[:-1]
    np.testing.assert_allclose(ratio, ratio[0])


def two_sided(width: int, fixed: int | None = None) -> ir.Model:
    """x A goes to an output of that width, and through x B to a sorted place, an integer."""
    rng, tape = np.random.default_rng(3), ir.tape.Tape()
    x = ir.val("x", ir.DataType.FLOAT, [fixed or "batch", 16])
    y = ir.val("y", ir.DataType.FLOAT, [fixed or "batch", width])
    place = ir.val("place", ir.DataType.INT64, [fixed or "batch", 1])
    a, b = (
        weight(tape, name, rng.normal(size=(16, m)).astype(np.float32))
        for name, m in (("A", width), ("B", 12))
    )
    tape.op("MatMul", [x, a], name="felt", output=y)
    tape.op("ArgMax", [tape.op("MatMul", [x, b], name="silent")], {"axis": 1}, output=place)
    return model_of(tape, [x], [y, place] if width > 1 else [place])


def test_where_the_predicted_loss_says_nothing_the_error_does() -> None:
    given = {"x": mlp_rows(100)}
    draft = draft_of(mlp(), Rows(given), LAYERS)
    numb = [
        dataclasses.replace(o, curve=dataclasses.replace(o.curve, loss=0 * o.curve.loss))
        for o in draft.offers
    ]
    found = curves(dataclasses.replace(draft, offers=numb), Rows(given))
    assert all((np.diff(o.curve.loss[np.argsort(o.curve.error)]) >= 0).all() for o in found)
    assert all(o.curve.loss[0] > 0 for o in found)


def test_what_no_float_output_feels_is_left_as_it_is() -> None:
    rows = Rows({"x": mlp_rows(100)})
    draft = draft_of(two_sided(8), rows, LAYERS)
    found = {o.site.name: (o, m) for o, m in zip(draft.offers, curves(draft, rows), strict=True)}
    assert found["silent"][0] is found["silent"][1]
    assert found["felt"][0] is not found["felt"][1]


def test_a_model_of_integers_is_refused_by_name() -> None:
    rows = Rows({"x": mlp_rows(100)})
    draft = draft_of(two_sided(1), rows, LAYERS)
    with pytest.raises(ModelError, match="KL divergence is one of float outputs, and the model"):
        curves(draft, rows)


def test_a_fixed_batch_is_never_cut() -> None:
    rows = Rows({"x": mlp_rows(90)}, 30)
    draft = draft_of(two_sided(8, fixed=30), rows, LAYERS)
    whole, more = curves(draft, rows, count=60), curves(draft, rows, count=31)
    for a, b in itertools.pairwise([*zip(whole, more, strict=True)]):
        assert a[0].curve.loss.tolist() == a[1].curve.loss.tolist()
        assert b[0].curve.loss.tolist() == b[1].curve.loss.tolist()


def test_an_answer_that_is_not_finite_is_told_with_its_rows() -> None:
    x = mlp_rows(100)
    draft = draft_of(two_sided(8), Rows({"x": x}), LAYERS)
    x = x.copy()
    x[70] = 3e38
    with pytest.raises(DataError, match=r"in memory: rows 50 to 74: the model's answer 'y' is not"):
        curves(draft, Rows({"x": x}, 25))


def test_a_rewrite_that_breaks_the_answer_is_told_with_its_site() -> None:
    rows = Rows({"x": mlp_rows(100)})
    draft = draft_of(mlp(), rows, LAYERS)
    solutions = {
        site: dataclasses.replace(solution, bias=np.full(site.shape[1], np.inf))
        for site, solution in draft.solutions.items()
    }
    with pytest.raises(ModelError, match=r"site 'up' \(lowrank\): at rank 1 the model's answer"):
        curves(dataclasses.replace(draft, solutions=solutions), rows)
