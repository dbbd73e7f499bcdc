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
from rankc.calibrate import calibrate
from rankc.graph import parameters
from rankc.passbase import Pass, Site, SiteStats
from rankc.passes import PASSES
from rankc.passes.embedding import Embedding
from rankc.progress import SilentProgress
from rankrt.session import open_model
from sources import Rows

Array = NDArray[Any]
Feeds = dict[str, Array]


def models() -> list[tuple[str, ir.Model, Feeds]]:
    return [
        ("mlp", mlp(), {"x": mlp_rows()}),
        ("lookup", lookup(), {"ids": lookup_rows()}),
        ("padded", lookup(padding=True), {"ids": lookup_rows()}),
    ]


def variants(kind: type[Any]) -> Iterator[Pass]:
    """The pass with small-model settings, and with every boolean and literal option turned."""
    small = {"min_size": 64, "round_to": 1} if kind.name == "lowrank" else {}
    first = kind(**small)
    yield first
    for field in dataclasses.fields(first):
        if isinstance(value := getattr(first, field.name), bool):
            yield kind(**small, **{field.name: not value})
    for method in ("whitened", "svd") if kind.name == "lowrank" else ("svd",):
        yield kind(**small, method=method)


def label(pass_: Pass) -> str:
    return str(pass_).replace("targets=('*',), ignore=(), ", "")


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


def some_ranks(site: Site, ranks: NDArray[np.int64]) -> list[int]:
    """A low, a middle and the full rank."""
    return sorted({int(ranks[0]), int(ranks[len(ranks) // 2]), int(ranks[-1])})


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
    want, stats, changed = run(model, feeds), statistics(pass_, model, feeds), model.clone()
    for site in sites_of(pass_, model):
        pass_.rewrite(changed, site, site.full_rank, pass_.solve(model, site, stats[site]))
    for a, b in zip(run(changed, feeds), want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)  # float32 rounding of probabilities


@EVERY_MODEL
@EVERY_PASS
def test_measured_error_is_the_predicted_error(pass_: Pass, model: ir.Model, feeds: Feeds) -> None:
    check_error(pass_, model, feeds)


def check_error(pass_: Pass, model: ir.Model, feeds: Feeds) -> None:
    stats = statistics(pass_, model, feeds)
    for site in sites_of(pass_, model):
        solution = pass_.solve(model, site, stats[site])
        curve = pass_.cost(site, solution)
        names = pass_.probe(model, site).outputs
        want = np.concatenate(run(model, feeds, names))
        variance = np.square(want - want.mean(axis=0), dtype=np.float64).sum()
        for rank in some_ranks(site, curve.ranks):
            changed = model.clone()
            pass_.rewrite(changed, site, rank, solution)
            got = np.concatenate(run(changed, feeds, names))
            lost = np.square(got - want, dtype=np.float64).sum() / variance
            predicted = curve.error[curve.ranks.searchsorted(rank)]
            assert lost == pytest.approx(predicted, rel=0.01, abs=1e-7), (site.name, rank)


@EVERY_MODEL
@EVERY_PASS
def test_predicted_counts_are_the_counts(pass_: Pass, model: ir.Model, feeds: Feeds) -> None:
    check_counts(pass_, model, feeds)


def check_counts(pass_: Pass, model: ir.Model, feeds: Feeds) -> None:
    stats = statistics(pass_, model, feeds)
    for site in sites_of(pass_, model):
        solution, dense = pass_.solve(model, site, stats[site]), pass_.dense(model, site)
        curve = pass_.cost(site, solution)
        for rank in some_ranks(site, curve.ranks):
            changed = model.clone()
            pass_.rewrite(changed, site, rank, solution)
            predicted = curve.parameters[curve.ranks.searchsorted(rank)] - dense.parameters
            assert parameters(changed) - parameters(model) == predicted, (site.name, rank)


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
            assert curve.ranks[-1] == site.full_rank
            assert (np.diff(curve.parameters) > 0).all()
            if getattr(pass_, "method", "pca") == "pca":  # the others do not minimise it
                assert (np.diff(curve.loss) <= 1e-3 * curve.loss[0] + 1e-12).all()


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
