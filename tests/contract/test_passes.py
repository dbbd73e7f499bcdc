"""What every pass promises. A new pass is tested here by being in PASSES."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from broken_pass import BrokenPass
from builders import lookup, lookup_rows, mlp, mlp_rows
from conv_builders import convnet, images
from rankc.calibrate import calibrate
from rankc.cleanup import clean
from rankc.graph import initializer_bytes, parameters
from rankc.macs import count_macs
from rankc.passbase import Curve, Dense, Pass, Probe, Site, SiteStats
from rankc.passes import PASSES
from rankc.passes.embedding import Embedding
from rankc.pivot import index_bytes
from rankc.progress import SilentProgress
from rankrt.session import open_model
from sources import Rows

Array = NDArray[Any]
Feeds = dict[str, Array]


def cleaned(model: ir.Model) -> ir.Model:
    """As passes see it: with the shapes of what convolutions read."""
    clean(model)
    return model


def models() -> list[tuple[str, ir.Model, Feeds]]:
    return [
        ("mlp", mlp(), {"x": mlp_rows()}),
        ("lookup", lookup(), {"ids": lookup_rows()}),
        ("padded", lookup(padding=True), {"ids": lookup_rows()}),
        ("convnet", cleaned(convnet()), {"x": images()}),
    ]


SMALL: dict[str, dict[str, int]] = {
    "lowrank": {"min_size": 64, "round_to": 1},
    "conv": {"min_size": 64, "round_to": 1, "positions": 1000},  # all there are
    "maestro": {"min_size": 64, "round_to": 1, "positions": 1000},
    "trp": {"min_size": 64, "positions": 1000},
}

LITERALS: dict[str, dict[str, tuple[str, ...]]] = {
    "lowrank": {"method": ("whitened", "svd")},
    "conv": {"method": ("svd",)},
    "embedding": {"method": ("svd",)},
    "maestro": {"scheme": ("channel",)},
    "trp": {"scheme": ("channel", "decoupled")},
}

FORMS = {"lowrank": [("pair", "pivot"), ("pivot",)], "conv": [("channel", "pivot"), ("pivot",)]}


def variants(kind: type[Any]) -> Iterator[Pass]:
    """The pass with small-model settings, and with every boolean and literal option turned."""
    small = SMALL.get(kind.name, {})
    first = kind(**small)
    yield first
    for field in dataclasses.fields(first):
        if isinstance(value := getattr(first, field.name), bool):
            yield kind(**small, **{field.name: not value})
    for name, values in LITERALS.get(kind.name, {}).items():
        for value in values:
            yield kind(**small, **{name: value})
    for forms in FORMS.get(kind.name, ()):
        for centred in (True, False):
            yield kind(**small, forms=forms, centred=centred)


def label(pass_: Pass) -> str:
    text = str(pass_).replace("targets=('*',), ignore=(), ", "")
    usual = getattr(type(pass_)(), "forms", "")
    return text.replace(f"forms={usual}, ", "")


EXACT = 1e-10  # share of the variance: far below float32, far above float64 rounding

ALL = [v for kind in PASSES for v in variants(kind)]
EVERY_PASS = pytest.mark.parametrize("pass_", ALL, ids=label)
# int8 rounds at every rank; what that costs is predicted like any other error.
UNROUNDED = pytest.mark.parametrize(
    "pass_", [v for v in ALL if v != Embedding(int8=True)], ids=label
)
EVERY_MODEL = pytest.mark.parametrize(
    ("model", "feeds"), [pytest.param(m, f, id=name) for name, m, f in models()]
)


def sites_of(pass_: Pass, model: ir.Model) -> list[Site]:
    return [site for site in pass_.match(model) if isinstance(site, Site)]


def statistics(pass_: Pass, model: ir.Model, feeds: Feeds) -> Mapping[Site, SiteStats]:
    probes = {site: pass_.probe(model, site) for site in sites_of(pass_, model)}
    with SilentProgress().stage("calibrate") as stage:
        return calibrate(model, probes, Rows(feeds, 128), stage).stats


def run(model: ir.Model, feeds: Feeds, names: tuple[str, ...] = ()) -> list[Array]:
    """The outputs, or the values called `names`."""
    probed = model.clone()
    for value in [v for node in probed.graph for v in node.outputs if v.name in names]:
        if not value.is_graph_output():
            probed.graph.outputs.append(value)
    found = open_model(ir.to_proto(probed).SerializeToString()).run(feeds)
    return [found[n] for n in names] if names else list(found.values())


def every(curve: Curve) -> range:
    return range(len(curve.ranks))


def some_entries(curve: Curve) -> list[int]:
    """Of every form a low, a middle and the last rank."""
    forms = np.array([curve.form(at) for at in range(len(curve.ranks))])
    of = [np.flatnonzero(forms == name) for name in dict.fromkeys(forms.tolist())]
    return [int(e) for entries in of for e in {*entries[[0, len(entries) // 2, -1]].tolist()}]


@EVERY_MODEL
@EVERY_PASS
def test_match_and_cost_change_nothing(pass_: Pass, model: ir.Model, feeds: Feeds) -> None:
    before = ir.to_proto(model).SerializeToString()
    stats = statistics(pass_, model, feeds)
    for site in sites_of(pass_, model):
        pass_.cost(site, pass_.solve(model, site, stats[site]))
        pass_.dense(model, site)
    assert ir.to_proto(model).SerializeToString() == before


@EVERY_MODEL
@UNROUNDED
def test_full_rank_is_the_identity(pass_: Pass, model: ir.Model, feeds: Feeds) -> None:
    check_full_rank(pass_, model, feeds)


def check_full_rank(pass_: Pass, model: ir.Model, feeds: Feeds) -> None:
    """Whatever promises no error at all is the identity, in every form."""
    want, stats = run(model, feeds), statistics(pass_, model, feeds)
    for site in sites_of(pass_, model):
        solution = pass_.solve(model, site, stats[site])
        curve = pass_.cost(site, solution)
        exact = [e for e in some_entries(curve) if curve.error[e] < EXACT]
        families = [{curve.form(e).partition("-")[0] for e in es} for es in (exact, every(curve))]
        assert families[0] == families[1], (site.name, "a form without an exact rank")
        for at in exact:
            changed = model.clone()
            pass_.rewrite(changed, site, int(curve.ranks[at]), solution, curve.form(at))
            for a, b in zip(run(changed, feeds), want, strict=True):
                np.testing.assert_allclose(a, b, atol=1e-5)  # float32 rounding


@EVERY_MODEL
@EVERY_PASS
def test_measured_error_is_the_predicted_error(pass_: Pass, model: ir.Model, feeds: Feeds) -> None:
    check_error(pass_, model, feeds)


def check_error(pass_: Pass, model: ir.Model, feeds: Feeds) -> None:
    stats = statistics(pass_, model, feeds)
    for site in sites_of(pass_, model):
        solution = pass_.solve(model, site, stats[site])
        curve = pass_.cost(site, solution)
        probe = pass_.probe(model, site)
        want = outputs(model, feeds, probe)
        variance = np.square(want - want.mean(axis=0), dtype=np.float64).sum()
        for at in some_entries(curve):
            changed, rank, form = model.clone(), int(curve.ranks[at]), curve.form(at)
            pass_.rewrite(changed, site, rank, solution, form)
            got = outputs(changed, feeds, probe)
            lost = np.square(got - want, dtype=np.float64).sum() / variance
            close = pytest.approx(curve.error[at], rel=0.01, abs=1e-7)
            assert lost == close, (site.name, rank, form)


def outputs(model: ir.Model, feeds: Feeds, probe: Probe) -> Array:
    """What a site puts out, one row a place: channels are the last axis, or that of images."""
    found = np.concatenate(run(model, feeds, probe.outputs))
    return np.moveaxis(found, 1, -1).reshape(-1, found.shape[1]) if probe.window else found


@EVERY_MODEL
@EVERY_PASS
def test_predicted_counts_are_the_counts(pass_: Pass, model: ir.Model, feeds: Feeds) -> None:
    check_counts(pass_, model, feeds)


def check_counts(pass_: Pass, model: ir.Model, feeds: Feeds) -> None:
    stats = statistics(pass_, model, feeds)
    for site in sites_of(pass_, model):
        solution, dense = pass_.solve(model, site, stats[site]), pass_.dense(model, site)
        curve = pass_.cost(site, solution)
        for at in some_entries(curve):
            changed, rank, form = model.clone(), int(curve.ranks[at]), curve.form(at)
            pass_.rewrite(changed, site, rank, solution, form)
            predicted = curve.parameters[at] - dense.parameters
            assert parameters(changed) - parameters(model) == predicted, (site.name, rank, form)
            if pass_.probe(model, site).inputs is not None:  # a layer: what folds is none
                check_bytes_and_macs(model, changed, (curve, dense, at), site)


def check_bytes_and_macs(
    model: ir.Model, changed: ir.Model, said: tuple[Curve, Dense, int], site: Site
) -> None:
    """Of a layer. Pivots that are in order as they are save the bytes of the index."""
    curve, dense, at = said
    rank, form = int(curve.ranks[at]), curve.form(at)
    place, predicted = (site.name, rank, form), curve.size_bytes[at] - dense.size_bytes
    if form == "pivot" and f"{site.name}.order" not in changed.graph.initializers:
        predicted -= index_bytes(rank, site.shape[1])
    assert initializer_bytes(changed) - initializer_bytes(model) == predicted, place
    (before, _), (after, why) = count_macs(model.clone()), count_macs(changed.clone())
    assert before is not None
    assert after is not None, why
    assert after - before == curve.macs[at] - dense.macs, place


def at_rank_two(pass_: Pass, model: ir.Model, feeds: Feeds) -> ir.Model:
    stats, changed = statistics(pass_, model, feeds), model.clone()
    for site in sites_of(pass_, model):
        solution = pass_.solve(model, site, stats[site])
        pass_.rewrite(changed, site, min(2, site.full_rank), solution)
    return changed


@EVERY_MODEL
@EVERY_PASS
def test_the_result_is_valid(pass_: Pass, model: ir.Model, feeds: Feeds) -> None:
    changed = at_rank_two(pass_, model, feeds)
    onnx.checker.check_model(ir.to_proto(changed), full_check=True)
    names = [n.name for n in changed.graph]
    assert len(set(names)) == len(names)


@EVERY_MODEL
@EVERY_PASS
def test_same_input_same_bytes(pass_: Pass, model: ir.Model, feeds: Feeds) -> None:
    results = []
    for _ in range(2):
        changed = at_rank_two(pass_, model, feeds)
        results.append(ir.to_proto(changed).SerializeToString(deterministic=True))
    assert results[0] == results[1]


@EVERY_PASS
def test_every_pass_finds_something(pass_: Pass) -> None:
    assert any(sites_of(pass_, model) for _, model, _ in models())


@EVERY_PASS
def test_losses_fall_with_the_rank(pass_: Pass) -> None:
    for _, model, feeds in models():
        stats = statistics(pass_, model, feeds)
        for site in sites_of(pass_, model):
            solution = pass_.solve(model, site, stats[site])
            curve = pass_.cost(site, solution)
            names = np.array([curve.form(at) for at in range(len(curve.ranks))])
            for mine in (names == name for name in dict.fromkeys(names.tolist())):
                assert (np.diff(curve.parameters[mine]) > 0).all()
                loss = curve.loss[mine]
                if getattr(pass_, "method", "learned") == "pca":  # the others do not minimise it
                    assert (np.diff(loss) <= 1e-3 * loss[0] + 1e-12).all()


def test_padding_rows_stay_exactly_zero() -> None:
    model, feeds = lookup(padding=True), {"ids": lookup_rows()}
    for pass_ in (p for kind in PASSES if kind.name == "embedding" for p in variants(kind)):
        stats, changed = statistics(pass_, model, feeds), model.clone()
        site = next(s for s in sites_of(pass_, model) if s.name == "user")
        pass_.rewrite(changed, site, 3, pass_.solve(model, site, stats[site]))
        name = pass_.probe(model, site).outputs[0]
        (rows,) = run(changed, {"ids": np.zeros((4, 3), np.int64)}, (name,))
        assert not rows.any()


@pytest.mark.parametrize("check", [check_full_rank, check_error, check_counts])
def test_the_suite_catches_a_broken_pass(check: Any) -> None:
    """A pass that breaks every promise fails every check: the checks can fail."""
    with pytest.raises(AssertionError):
        check(BrokenPass(), mlp(), {"x": mlp_rows()})
