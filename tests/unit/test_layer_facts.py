"""layers.json: what a step more or less costs is what the curve and a rewrite say."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from layer_builders import image_model, lowrank, solutions_of, stack
from rankc.graph import parameters
from rankc.layer_facts import MOST_ENERGIES, drawn_together, layers_json, layers_of
from rankc.layer_models import concrete
from rankc.macs import count_macs
from rankc.passbase import Pass
from rankc.passes.conv import Conv
from rankc.planning import Plan
from rankc.recipe import Budget
from rankc.rewriting import Draft, Sites, apply, candidates, fit


def drafted(*passes: Pass, images: bool = False) -> Draft:
    model = image_model() if images else stack([48, 64, 48])
    sites = Sites.of(model, passes)
    solutions = solutions_of(concrete(model, 1), sites)
    return Draft(model, sites, solutions, candidates(model, sites, solutions))


def planned(draft: Draft, keep: float) -> Plan:
    most = Budget("parameters", max=int(keep * parameters(draft.model)))
    return fit(draft, (), lambda m: {"parameters": parameters(m)}, budgets=[most])[0]


@pytest.mark.parametrize("keep", [0.4, 0.6, 1.0])
@pytest.mark.parametrize("images", [False, True])
def test_every_site_is_there_as_the_plan_has_it(keep: float, images: bool) -> None:
    draft = drafted(Conv(min_size=64) if images else lowrank(), images=images)
    plan = planned(draft, keep)
    layers = layers_of(draft, plan)
    assert [one["site"] for one in layers] == [offer.site.name for offer in draft.offers]
    ranks = {choice.site: choice.rank for choice in plan.choices}
    reasons = {c.site: c.reason for c in plan.choices} | {s.name: s.reason for s in plan.skips}
    shape_of = {site.name: site.shape for site in draft.sites.owners}
    for one in layers:
        assert one["rank"] == ranks.get(one["site"])
        assert one["reason"] == reasons[one["site"]]
        assert one["energy"] == pytest.approx(1 - one["error"])
        assert len(one["energies"]) == one["energies_of"] == min(shape_of[one["site"]])
        assert sum(one["energies"]) == pytest.approx(1, abs=1e-4)
        assert one["energies"] == sorted(one["energies"], reverse=True)
        if one["rank"] is None:
            assert one["costs"] == one["dense_costs"]
            assert one["loss"] == one["error"] == 0


@pytest.mark.parametrize("images", [False, True])
def test_a_step_is_what_the_model_would_gain_and_lose(images: bool) -> None:
    """The neighbours carried out, and counted."""
    draft = drafted(Conv(min_size=64) if images else lowrank(), images=images)
    plan = planned(draft, 0.6)
    now = weighed(draft, plan)
    for one in layers_of(draft, plan):
        smaller, larger = one["smaller"], one["larger"]
        if one["rank"] is None:
            continue
        if smaller is not None:
            saves = now - weighed(draft, stepped(plan, one["site"], smaller["rank"]))
            assert saves.tolist() == [smaller["saves"]["parameters"], smaller["saves"]["macs"]]
            assert smaller["rank"] < one["rank"]
            assert smaller["loss"] >= -1e-12
        if larger is not None:
            takes = weighed(draft, stepped(plan, one["site"], larger["rank"])) - now
            assert takes.tolist() == [larger["takes"]["parameters"], larger["takes"]["macs"]]
            assert larger["rank"] > one["rank"]
            assert larger["loss"] <= 1e-12


def stepped(plan: Plan, site: str, rank: int) -> Plan:
    """The plan with another rank at one site."""
    choices = tuple(
        dataclasses.replace(c, rank=rank) if c.site == site else c for c in plan.choices
    )
    return dataclasses.replace(plan, choices=choices)


def weighed(draft: Draft, plan: Plan) -> NDArray[np.int64]:
    """Parameters and MACs of what the plan leads to."""
    model = concrete(apply(draft.model, plan, draft.sites, draft.solutions), 1)
    return np.array([parameters(model), count_macs(model)[0]])


def test_a_dense_site_tells_what_would_cost_least() -> None:
    draft = drafted(lowrank())
    (first, *_) = layers_of(draft, planned(draft, 1.0))
    assert first["rank"] is None
    curve = draft.offers[0].curve
    fewer = curve.size_bytes < draft.offers[0].dense.size_bytes
    assert first["smaller"] is not None
    assert first["smaller"]["loss"] == pytest.approx(curve.loss[fewer].min())
    assert first["smaller"]["saves"]["size_bytes"] > 0
    assert first["larger"] is None


def test_the_bytes_are_the_same_and_plain_json() -> None:
    draft = drafted(lowrank())
    plan = planned(draft, 0.6)
    text = layers_json(layers_of(draft, plan))
    assert text == layers_json(layers_of(drafted(lowrank()), plan))
    assert json.loads(text)["format"] == 1


@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=1000))
def test_many_directions_are_drawn_together(found: list[float]) -> None:
    energies = np.sort(np.array(found) / np.sum(found))[::-1]
    drawn = drawn_together(energies.tolist())
    assert len(drawn) == min(len(energies), MOST_ENERGIES)
    assert drawn == sorted(drawn, reverse=True)
    np.testing.assert_allclose(np.mean(drawn), energies.mean(), rtol=0.5)
