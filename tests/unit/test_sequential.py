"""Refitting layer by layer: what the compressed model puts out comes closer to the original's."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from conv_builders import convnet, images
from rankc.calibrate import calibrate
from rankc.cleanup import clean
from rankc.graph import parameters
from rankc.passbase import Site, SiteStats
from rankc.passes.conv import Conv
from rankc.planning import Choice, make_plan
from rankc.progress import SilentProgress
from rankc.recipe import Refit
from rankc.rewriting import Sites, candidates, solve
from rankc.segments import Cuts, Flow, open_part, run
from rankc.sequential import Refitting, refit
from rankrt.session import open_model
from sources import Rows

PASS = Conv(min_size=64, round_to=1, positions=1000)
IMAGES = images(96)


def prepared() -> tuple[ir.Model, Sites, dict[Site, SiteStats]]:
    model = convnet()
    clean(model)
    sites = Sites.of(model, [PASS])
    probes = {site: PASS.probe(model, site) for site in sites.owners}
    with SilentProgress().stage("calibrate") as stage:
        return model, sites, dict(calibrate(model, probes, Rows({"x": IMAGES}, 32), stage).stats)


def chosen(model: ir.Model, sites: Sites, stats: dict[Site, SiteStats]) -> tuple[Choice, ...]:
    offers = candidates(model, sites, solve(model, sites, stats))
    most = sum(offer.dense.macs for offer in offers) // 2
    return make_plan(offers, [], budgets={"macs": most}).choices


def plain(model: ir.Model, sites: Sites, stats: dict[Site, SiteStats]) -> ir.Model:
    """The same plan carried out without refitting."""
    changed, solutions = model.clone(), solve(model, sites, stats)
    by_name = {site.name: site for site in sites.owners}
    for c in chosen(model, sites, stats):
        PASS.rewrite(changed, by_name[c.site], c.rank, solutions[by_name[c.site]], c.form)
    return changed


def answers(model: ir.Model) -> NDArray[Any]:
    return open_model(ir.to_proto(model).SerializeToString()).run({"x": IMAGES})["logits"]


def refitted(weights: bool, variance: bool = False) -> float:
    """Mean squared distance of the logits from the original's."""
    model, sites, stats = prepared()
    by_name = {site.name: site for site in sites.owners}
    choices = {c.site: (by_name[c.site], c) for c in chosen(model, sites, stats)}
    assert choices
    job = Refitting(
        model, model.clone(), choices, sites.owners, stats, Rows({"x": IMAGES}, 32),
        Refit(96, 1000, weights, variance), 0, frozenset(),
    )  # fmt: skip
    with SilentProgress().stage("refit") as stage:
        result, layers = refit(job, stage)
    assert layers >= len(choices)
    assert parameters(result) == parameters(plain(model, sites, stats))  # as the plan weighed it
    return float(np.square(answers(result) - answers(model)).mean())


def test_refitted_layers_correct_the_ones_before() -> None:
    assert refitted(weights=True) < 0.8 * refitted(weights=False)


def test_matching_the_variance_keeps_a_model_that_runs() -> None:
    assert np.isfinite(refitted(weights=False, variance=True))


def test_nothing_to_correct_changes_next_to_nothing() -> None:
    """Without a rewrite the best weights are the weights."""
    model, sites, stats = prepared()
    job = Refitting(
        model, model.clone(), {}, sites.owners, stats, Rows({"x": IMAGES}, 32),
        Refit(96, 1000), 0, frozenset(),
    )  # fmt: skip
    with SilentProgress().stage("refit") as stage:
        result, layers = refit(job, stage)
    assert layers > 1
    np.testing.assert_allclose(answers(result), answers(model), atol=1e-3)


def test_pieces_put_together_are_the_model() -> None:
    model, sites, _ = prepared()
    cuts = Cuts.of(model, [site.name for site in sites.owners])
    with Flow() as flow:
        first = open_part(cuts.before())
        feeds = {"x": IMAGES}
        found = feeds if first is None else feeds | run(first, feeds)
        flow.start(iter([{name: found[name] for name in cuts.live[0]}]))
        for k in range(len(cuts.names) - 1):
            flow.advance(open_part(cuts.part(k, k + 1)), cuts.live[k + 1])
        last = open_part(cuts.part(len(cuts.names) - 1))
        assert last is not None
        (values,) = flow
        np.testing.assert_allclose(
            run(last, values)["logits"], answers(model), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("seed", [0, 1])
def test_same_seed_same_bytes(seed: int) -> None:
    found = []
    for _ in range(2):
        model, sites, stats = prepared()
        job = Refitting(
            model, model.clone(), {}, sites.owners, stats, Rows({"x": IMAGES}, 32),
            Refit(96, positions=7), seed, frozenset(),
        )  # fmt: skip
        with SilentProgress().stage("refit") as stage:
            result, _ = refit(job, stage)
        found.append(ir.to_proto(result).SerializeToString(deterministic=True))
    assert found[0] == found[1]
