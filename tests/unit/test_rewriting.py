"""Plan, rewrite, weigh, plan again: the finished model is what has to fit."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from builders import lookup, lookup_rows
from rankc.calibrate import calibrate
from rankc.errors import RecipeError
from rankc.graph import initializer_bytes
from rankc.passbase import CalibrationStats, ExactPass
from rankc.passes.embedding import Embedding
from rankc.passes.gather_fusion import GatherFusion
from rankc.passes.lowrank import LowRank
from rankc.planning import Amounts, Plan
from rankc.progress import SilentProgress
from rankc.recipe import Budget
from rankc.rewriting import Sites, Weigh, fit
from sources import Rows

PASSES = (Embedding(), LowRank(min_size=64, round_to=1))
WHOLE = initializer_bytes(lookup())


def prepared(*passes: Embedding | LowRank) -> tuple[ir.Model, Sites, CalibrationStats]:
    model = lookup()
    sites = Sites.of(model, passes)
    probes = {site: p.probe(model, site) for site, p in sites.owners.items()}
    with SilentProgress().stage("calibrate") as stage:
        known = calibrate(model, probes, Rows({"ids": lookup_rows()}), stage)
    return model, sites, known.stats


def in_bytes(model: ir.Model) -> Amounts:
    return {"bytes": initializer_bytes(model)}


def fitted(budget: int, weigh: Weigh = in_bytes) -> tuple[Plan, ir.Model]:
    exact: tuple[ExactPass, ...] = (GatherFusion(),)
    return fit(*prepared(*PASSES), exact, weigh, budgets=[Budget("bytes", max=budget)])


def planned(plan: Plan) -> float:
    (limit,) = plan.limits
    return limit.planned


@pytest.mark.parametrize("share", [0.3, 0.45, 0.6, 0.8])
def test_the_finished_model_fits_the_budget(share: float) -> None:
    budget = int(share * WHOLE)
    plan, model = fitted(budget)
    assert planned(plan) == initializer_bytes(model) <= budget
    assert plan.choices


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
    plan, model = fit(*prepared(*passes), (), in_bytes)
    assert {(c.pass_name, c.rank) for c in plan.choices} == {("embedding", 2), ("lowrank", 3)}
    assert planned(plan) == initializer_bytes(model)


def test_a_site_belongs_to_the_first_pass_that_wants_it() -> None:
    model = lookup()
    first, second = LowRank(min_size=64, round_to=1), LowRank(min_size=64, targets=("fc1",))
    assert set(Sites.of(model, (first, second)).owners.values()) == {first}


def test_targets_that_match_nothing_are_an_error() -> None:
    with pytest.raises(RecipeError, match=r"lowrank: targets \['nothing'\]"):
        Sites.of(lookup(), (LowRank(targets=("nothing",)),))
