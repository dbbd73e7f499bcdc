"""Layers in the form `pivot` in the stages behind: fused, refitted, their times estimated."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from builders import lookup, lookup_rows
from conv_builders import convnet, images
from layer_builders import site_named, solutions_of, stack
from rankc.calibrate import calibrate
from rankc.cleanup import clean
from rankc.graph import parameters
from rankc.passbase import Pass, Site, SiteStats
from rankc.passes.conv import Conv
from rankc.passes.embedding import Embedding
from rankc.passes.gather_fusion import GatherFusion
from rankc.passes.lowrank import LowRank
from rankc.planning import make_plan
from rankc.progress import SilentProgress
from rankc.recipe import Refit
from rankc.rewriting import Sites, apply, candidates, finish, solve
from rankc.roofline import device_named, roofline_times
from rankc.sequential import Refitting, refit
from rankrt.session import open_model
from sources import Rows

Array = NDArray[Any]
LAYER = LowRank(forms=("pair", "pivot"), round_to=1, min_size=64)
IMAGE = Conv(forms=("pivot",), min_size=64, round_to=1, positions=1000)
IMAGES = images(96)


def run(model: ir.Model, feeds: dict[str, Array]) -> Array:
    (found,) = open_model(ir.to_proto(model).SerializeToString()).run(feeds).values()
    return found


def calibrated(model: ir.Model, owners: dict[Site, Pass], rows: Rows) -> dict[Site, SiteStats]:
    with SilentProgress().stage("calibrate") as stage:
        probes = {site: pass_.probe(model, site) for site, pass_ in owners.items()}
        return dict(calibrate(model, probes, rows, stage).stats)


@pytest.mark.parametrize("codes", [4, 8])
def test_fusing_lookups_with_what_reads_them_is_exact(codes: int) -> None:
    model, feeds, exact = lookup(), {"ids": lookup_rows()}, GatherFusion()
    clean(model)
    exact.prepare(model)
    sites = Sites.of(model, [LAYER, Embedding()])
    stats = calibrated(model, dict(sites.owners), Rows(feeds, 128))
    for site, pass_ in sites.owners.items():
        solution = pass_.solve(model, site, stats[site])
        layer = pass_.name == "lowrank"
        pass_.rewrite(model, site, 12 if layer else codes, solution, "pivot" if layer else "")
    fused = finish(model, [exact])
    assert len(fused.graph) < len(model.graph)
    np.testing.assert_allclose(run(fused, feeds), run(model, feeds), atol=1e-5)


def refitted(weights: bool) -> float:
    """Mean squared distance of the logits from the original's, at half the arithmetic."""
    model = convnet()
    clean(model)
    sites = Sites.of(model, [IMAGE])
    stats = calibrated(model, dict(sites.owners), Rows({"x": IMAGES}, 32))
    solutions = solve(model, sites, stats)
    offers = candidates(model, sites, solutions)
    plan = make_plan(offers, [], budgets={"macs": sum(o.dense.macs for o in offers) // 2})
    assert {choice.form for choice in plan.choices} == {"pivot"}
    by_name = {site.name: site for site in sites.owners}
    job = Refitting(
        model, model.clone(), {c.site: (by_name[c.site], c) for c in plan.choices}, sites.owners,
        stats, Rows({"x": IMAGES}, 32), Refit(96, 1000, weights, variance=True), 0, frozenset(),
    )  # fmt: skip
    with SilentProgress().stage("refit") as stage:
        result, _ = refit(job, stage)
    assert parameters(result) == parameters(apply(model, plan, sites, solutions))
    gap = run(result, {"x": IMAGES}) - run(model, {"x": IMAGES})
    return float(np.square(gap).mean())


def test_refitted_layers_correct_the_ones_before() -> None:
    assert refitted(weights=True) < 0.8 * refitted(weights=False)


def test_estimated_times_weigh_arithmetic_against_operators() -> None:
    """A wide layer gains where a pair would lose; a narrow one has nothing but more launches."""
    device, model = device_named("x86-avx2-core"), stack([512, 512, 16])
    ratios = {}
    for name, rank in (("fc0", 320), ("fc1", 12)):
        site = site_named(model, LAYER, name)
        solution = solutions_of(model, Sites({site: LAYER}, ()))[site]
        curve = LAYER.cost(site, solution)
        times = roofline_times(device, model, LAYER, site, curve, solution, batch=32)
        assert times is not None
        for form in ("pair", "pivot"):
            at = next(k for k, r in enumerate(curve.ranks) if r == rank and curve.form(k) == form)
            ratios[name, form] = float(times.ranked[at]) / times.dense
    assert ratios["fc0", "pivot"] < 1 < ratios["fc0", "pair"]
    assert ratios["fc1", "pivot"] > 1
