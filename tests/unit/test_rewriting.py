"""Plan, rewrite, weigh, plan again: the finished model is what has to fit."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest

from builders import lookup, lookup_rows
from rankc.calibrate import calibrate
from rankc.errors import RecipeError
from rankc.graph import initializer_bytes, parameters
from rankc.macs import count_macs
from rankc.passbase import ExactPass, Times
from rankc.passes.embedding import Embedding
from rankc.passes.gather_fusion import GatherFusion
from rankc.passes.lowrank import LowRank
from rankc.planning import Amounts, Candidate, Plan
from rankc.progress import SilentProgress
from rankc.recipe import Budget, Planning
from rankc.rewriting import Draft, Sites, Weigh, fit
from sources import Rows

PASSES = (Embedding(), LowRank(min_size=64, round_to=1))
WHOLE = initializer_bytes(lookup())


def prepared(*passes: Embedding | LowRank) -> Draft:
    model = lookup()
    sites = Sites.of(model, passes)
    probes = {site: p.probe(model, site) for site, p in sites.owners.items()}
    with SilentProgress().stage("calibrate") as stage:
        known = calibrate(model, probes, Rows({"ids": lookup_rows()}), stage)
    return Draft.of(model, sites, known.stats)


def in_bytes(model: ir.Model) -> Amounts:
    return {"bytes": initializer_bytes(model)}


def fitted(budget: int, weigh: Weigh = in_bytes) -> tuple[Plan, ir.Model]:
    exact: tuple[ExactPass, ...] = (GatherFusion(),)
    return fit(prepared(*PASSES), exact, weigh, budgets=[Budget("bytes", max=budget)])


def planned(plan: Plan) -> float:
    (limit,) = plan.limits
    return limit.planned


@pytest.mark.parametrize("share", [0.3, 0.45, 0.6, 0.8])
def test_the_finished_model_fits_the_budget(share: float) -> None:
    budget = int(share * WHOLE)
    plan, model = fitted(budget)
    assert planned(plan) == initializer_bytes(model) <= budget
    assert plan.choices
    assert plan.bound <= plan.loss
    assert plan.exact is (plan.bound == plan.loss)


def in_all_units(model: ir.Model) -> Amounts:
    macs, why = count_macs(model.clone())
    assert macs is not None, why
    return {"bytes": initializer_bytes(model), "parameters": parameters(model), "macs": macs}


@pytest.mark.parametrize("shares", [(0.6, 0.7, 0.9), (0.9, 0.6, 0.6), (0.5, 0.5, 0.5)])
def test_the_finished_model_fits_every_budget(shares: tuple[float, float, float]) -> None:
    whole = in_all_units(lookup())
    budgets = [
        Budget(unit, max=int(share * size))
        for (unit, size), share in zip(whole.items(), shares, strict=True)
    ]
    plan, model = fit(prepared(*PASSES), (GatherFusion(),), in_all_units, budgets=budgets)
    weight = in_all_units(model)
    assert {limit.unit: limit.planned for limit in plan.limits} == weight
    assert all(budget.max is not None and weight[budget.unit] <= budget.max for budget in budgets)
    assert plan.loss >= fitted(int(shares[0] * whole["bytes"]))[0].loss * (1 - 1e-9)


def test_what_cannot_be_met_beside_another_budget_is_refused() -> None:
    budgets = [Budget(max=WHOLE // 2), Budget("macs", max=1)]
    with pytest.raises(RecipeError, match=r"with 1 MACs cannot be met: by themselves .* MACs"):
        fit(prepared(*PASSES), (GatherFusion(),), in_all_units, budgets=budgets)


def by_rank(candidate: Candidate) -> Times:
    """A clock: a millisecond a rank, ten for dense."""
    return Times(10.0, candidate.curve.ranks.astype(np.float64), measured=True)


@pytest.mark.parametrize("budget", [Budget("ms", max=7.5), Budget("ms", keep_ratio=0.2)])
def test_milliseconds_are_what_the_plan_predicts(budget: Budget) -> None:
    draft = prepared(*PASSES)
    offers = [dataclasses.replace(offer, times=by_rank(offer)) for offer in draft.offers]
    draft = dataclasses.replace(draft, offers=offers)
    plan, _ = fit(draft, (), in_bytes, budgets=[budget])
    dense = 10.0 * (len(offers) - len(plan.choices))
    took = sum(choice.rank for choice in plan.choices) + dense
    allowed = 2.0 * len(offers) if budget.max is None else budget.max
    assert [(limit.unit, limit.planned) for limit in plan.limits] == [("ms", took)]
    assert took <= allowed < took + 1


def test_milliseconds_need_a_clock() -> None:
    with pytest.raises(RecipeError, match="rankc profile"):
        fit(prepared(*PASSES), (), in_bytes, budgets=[Budget("ms", max=7.5)])


def test_another_strategy_is_followed() -> None:
    budgets, planning = [Budget(max=int(0.6 * WHOLE))], Planning(strategy="uniform")
    plan, model = fit(prepared(*PASSES), (), in_bytes, budgets=budgets, planning=planning)
    best, _ = fit(prepared(*PASSES), (), in_bytes, budgets=budgets)
    assert (plan.strategy, best.strategy) == ("uniform", "optimal")
    assert initializer_bytes(model) <= 0.6 * WHOLE
    assert plan.loss > best.loss


def test_what_the_file_weighs_beyond_the_plan_is_learnt() -> None:
    """A weight that the planner cannot foresee makes it plan again, not overrun."""

    def heavy(model: ir.Model) -> int:
        return initializer_bytes(model) + 300 * sum(n.op_type == "Gemm" for n in model.graph)

    budget = int(0.7 * WHOLE)
    plan, model = fitted(budget, lambda model: {"bytes": heavy(model)})
    assert planned(plan) == heavy(model) <= budget
    assert plan.loss >= fitted(budget)[0].loss


def test_more_budget_loses_less() -> None:
    losses = [fitted(int(share * WHOLE))[0].loss for share in (0.3, 0.5, 0.9)]
    assert losses[0] > losses[1] > losses[2]


def test_an_impossible_budget_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"cannot be met: the smallest.* takes [1-9]"):
        fitted(100)


def test_forced_ranks_need_no_budget() -> None:
    passes = (Embedding(rank=2), LowRank(rank=3, min_size=64, round_to=1))
    plan, model = fit(prepared(*passes), (), in_bytes)
    assert {(c.pass_name, c.rank) for c in plan.choices} == {("embedding", 2), ("lowrank", 3)}
    assert planned(plan) == initializer_bytes(model)


def test_a_site_belongs_to_the_first_pass_that_wants_it() -> None:
    model = lookup()
    first, second = LowRank(min_size=64, round_to=1), LowRank(min_size=64, targets=("fc1",))
    assert set(Sites.of(model, (first, second)).owners.values()) == {first}


def test_targets_that_match_nothing_are_an_error() -> None:
    with pytest.raises(RecipeError, match=r"lowrank: targets \['nothing'\]"):
        Sites.of(lookup(), (LowRank(targets=("nothing",)),))
