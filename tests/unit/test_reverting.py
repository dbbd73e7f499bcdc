"""What lost time is put back, as far as the budget allows. Time is planted here: by operators."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
import pytest

from layer_builders import image_model, solutions_of, stack
from rankc.layer_models import concrete
from rankc.layer_timing import Call, Machine
from rankc.macs import count_macs
from rankc.passbase import Pass
from rankc.passes.conv import Conv
from rankc.passes.lowrank import LowRank
from rankc.planning import Plan
from rankc.progress import SilentProgress
from rankc.recipe import Budget
from rankc.reverting import Timed, revert
from rankc.rewriting import Draft, Sites, candidates, fit
from rankc.validate.sampling import Samples

Ratio = Callable[[ir.Model], float]


@dataclasses.dataclass(eq=False)
class Planted:
    """A bench on which a layer takes what the test says, by the model that is opened."""

    takes: Ratio
    machine: Machine = dataclasses.field(
        default_factory=lambda: Machine("planted", "none", "0", "none", 1)
    )

    def open(self, alone: ir.Model) -> Call:
        milliseconds = self.takes(alone)
        return lambda: milliseconds

    def pairs(self, first: Call, second: Call, seconds: float) -> Samples:
        times = [np.full(8, 1e6 * float(str(call()))) for call in (first, second)]
        return Samples(times[0], times[1], (1, 1))


def draft_of(model: ir.Model, *passes: Pass) -> Draft:
    sites = Sites.of(model, passes)
    solutions = solutions_of(concrete(model, 1), sites)
    return Draft(model, sites, solutions, candidates(model, sites, solutions))


def macs(model: ir.Model) -> int:
    counted, _ = count_macs(model.clone())
    assert counted is not None
    return counted


def reverted(
    draft: Draft, keep: float, takes: Ratio, efficiency: float = 0.0
) -> tuple[Plan, ir.Model, Sequence[Timed]]:
    budget = Budget("macs", max=int(keep * macs(draft.model)))

    def plan(draft: Draft) -> tuple[Plan, ir.Model]:
        return fit(draft, (), lambda m: {"macs": macs(m)}, budgets=[budget])

    with SilentProgress().stage("plan") as stage:
        return revert(draft, plan, [1], stage, efficiency=efficiency, bench=Planted(takes))


def slow_if(slow: Callable[[ir.Node], bool], by: float = 3.0) -> Ratio:
    """Layers of several operators take half the time of dense ones; some take more than dense."""

    def takes(alone: ir.Model) -> float:
        nodes = list(alone.graph)
        if len(nodes) == 1:
            return 2.0 if nodes[0].op_type != "Identity" else 1e-3
        return 2.0 * by if any(map(slow, nodes)) else 1.0

    return takes


def verdicts(timed: Sequence[Timed]) -> list[tuple[str, str, str]]:
    return [(one.speed.choice.site, one.speed.choice.form, one.verdict) for one in timed]


def test_nothing_is_changed_where_every_rewrite_pays() -> None:
    draft = draft_of(image_model(), Conv())
    plan, model, timed = reverted(draft, 0.6, slow_if(lambda node: False))
    assert macs(model) <= 0.6 * macs(draft.model)
    assert [one.speed.choice for one in timed] == list(plan.choices)
    assert {one.verdict for one in timed} == {"kept"}


def one_by_one(node: ir.Node) -> bool:
    """Of the forms here only `channel` ends in one."""
    weight = node.inputs[1]
    assert weight is not None and weight.shape is not None
    return weight.shape[2:] == (1, 1)


def test_another_form_takes_the_place_of_one_that_lost() -> None:
    draft = draft_of(image_model(), Conv(forms=("channel", "vertical", "horizontal")))
    before, _ = fit(
        draft, (), lambda m: {"macs": macs(m)}, budgets=[Budget("macs", max=macs(draft.model) // 2)]
    )
    assert "channel" in {choice.form for choice in before.choices}
    plan, model, timed = reverted(draft, 0.5, slow_if(one_by_one))
    assert {choice.form for choice in plan.choices} <= {"vertical", "horizontal"}
    assert macs(model) <= 0.5 * macs(draft.model)
    assert ("conv0", "channel", "put back") in verdicts(timed)
    kept = [one for one in timed if one.verdict == "kept"]
    assert [one.speed.choice for one in kept] == list(plan.choices)
    assert all(not one.speed.lost for one in kept)


def test_a_site_of_which_every_form_lost_stays_dense_and_says_so() -> None:
    draft = draft_of(stack([64, 96, 64]), LowRank(min_size=64))

    def first(node: ir.Node) -> bool:
        weight = node.inputs[1]
        assert weight is not None and weight.shape is not None
        return weight.shape[-1] == 96  # fc0 alone is that wide

    plan, model, timed = reverted(draft, 0.65, slow_if(first))
    assert "fc0" not in {choice.site for choice in plan.choices}
    assert macs(model) <= 0.65 * macs(draft.model)
    assert ("fc0", "", "put back") in verdicts(timed)
    (why,) = (skip.reason for skip in plan.skips if skip.name == "fc0")
    assert "timed on this machine" in why


def test_what_the_budget_needs_stays_and_is_told() -> None:
    draft = draft_of(stack([64, 96, 64]), LowRank(min_size=64))
    plan, model, timed = reverted(draft, 0.3, slow_if(lambda node: True))
    assert macs(model) <= 0.3 * macs(draft.model)
    assert {v for _, _, v in verdicts(timed)} >= {"too slow, but the budget needs it"}
    assert {one.speed.choice for one in timed if one.verdict != "put back"} == set(plan.choices)


def test_of_plans_that_all_lose_time_the_one_that_loses_least_is_kept() -> None:
    draft = draft_of(image_model(), Conv(forms=("channel", "decoupled")))

    def takes(alone: ir.Model) -> float:
        nodes = list(alone.graph)
        if len(nodes) == 1:
            return 2.0 if nodes[0].op_type != "Identity" else 1e-3
        deep = any(node.attributes.get_int("group", 1) > 1 for node in nodes)
        return 20.0 if deep else 2.6

    plan, _, timed = reverted(draft, 0.8, takes)
    assert {choice.form for choice in plan.choices} == {"channel"}
    kept = [one for one in timed if one.verdict != "put back"]
    assert all("budget" in one.verdict for one in kept)


def test_a_rank_of_the_recipe_is_kept_whatever_it_takes() -> None:
    draft = draft_of(stack([64, 64]), LowRank(min_size=64, rank=48))
    plan, _, timed = reverted(draft, 2.0, slow_if(lambda node: True))
    assert len(plan.choices) == 2
    assert {one.verdict for one in timed} == {"too slow, but as asked"}


def test_a_budget_that_nothing_meets_is_refused_as_ever() -> None:
    draft = draft_of(stack([64, 64]), LowRank(min_size=64))
    with pytest.raises(Exception, match="cannot be met"):
        reverted(draft, 0.01, slow_if(lambda node: True))


def test_a_gain_that_is_small_beside_the_saving_can_be_refused_too() -> None:
    draft = draft_of(image_model(), Conv(forms=("channel", "vertical")))

    def takes(alone: ir.Model) -> float:
        nodes = list(alone.graph)
        if len(nodes) == 1:
            return 2.0 if nodes[0].op_type != "Identity" else 1e-3
        return 1.6 if one_by_one(nodes[-1]) else 0.4

    plan, _, timed = reverted(draft, 0.6, takes)
    assert "channel" in {choice.form for choice in plan.choices}  # it is faster
    assert {one.verdict for one in timed} == {"kept"}
    plan, _, timed = reverted(draft, 0.6, takes, efficiency=0.8)
    assert {choice.form for choice in plan.choices} == {"vertical"}
    assert {form for _, form, verdict in verdicts(timed) if verdict == "put back"} == {"channel"}


def test_time_is_not_bought_at_any_price() -> None:
    """Where only plans that lose far more keep the budget, the slow rewrite stays."""
    draft = draft_of(image_model(), Conv(forms=("channel",)))
    budgets = [Budget("macs", max=macs(draft.model) // 2)]
    before, _ = fit(draft, (), lambda m: {"macs": macs(m)}, budgets=budgets)
    plan, _, timed = reverted(draft, 0.5, slow_if(one_by_one))
    assert plan.loss <= 2 * before.loss
    assert plan.bound <= before.bound
    assert plan.exact is (plan.loss <= before.loss)
    assert "too slow, but the budget needs it" in {one.verdict for one in timed}


def test_of_two_slow_layers_the_one_that_wastes_more_time_is_put_back() -> None:
    draft = draft_of(stack([64, 64, 64]), LowRank(min_size=64))

    def takes(alone: ir.Model) -> float:
        """MatMul layers are long, Gemm layers short; both are slower factored."""
        nodes = [node.op_type for node in alone.graph]
        long = nodes[0] == "MatMul" and "Gemm" not in nodes
        dense = 50.0 if long else 2.0 if nodes != ["Identity"] else 1e-3
        return dense * (1 if len(nodes) == 1 else 1.5 if long else 3.0)

    for keep in (0.95, 0.9):
        plan, _, timed = reverted(draft, keep, takes)
        assert "last" not in {choice.site for choice in plan.choices}
        assert all(one.speed.choice.site != "last" for one in timed if one.verdict != "put back")


@pytest.mark.parametrize("seed", range(12))
def test_what_is_put_back_is_not_in_the_plan(seed: int) -> None:
    draft = draft_of(stack([64, 96, 64]), LowRank(min_size=64, forms=("pair", "pivot")))
    rng, known = np.random.default_rng(seed), dict[str, float]()

    def takes(alone: ir.Model) -> float:
        shapes = [(node.op_type, [v.shape for v in node.inputs if v]) for node in alone.graph]
        if len(shapes) == 1:
            return 2.0 if shapes[0][0] != "Identity" else 1e-3
        return known.setdefault(str(shapes), float(rng.choice([1.0, 1.5, 2.6, 4.0])))

    plan, _, timed = reverted(draft, float(rng.choice([0.4, 0.6, 0.8])), takes)
    back = {(site, form) for site, form, verdict in verdicts(timed) if verdict == "put back"}
    assert not back & {(choice.site, choice.form) for choice in plan.choices}
    assert [o.speed.choice for o in timed if o.verdict != "put back"] == list(plan.choices)
