"""The planner: within every budget, at the optimum, and it says how near and why."""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankc.errors import RecipeError
from rankc.graph import Readers
from rankc.passbase import Curve, Dense, Site, Skip, Times
from rankc.planning import BudgetError, Candidate, Plan, make_plan, smallest_plan
from rankc.recipe import Planning, Unit


def candidate(
    seed: int, convex: bool = True, forced: int | None = None, timed: bool = False
) -> Candidate:
    """A site with 1 to 8 ranks, whose loss falls, convexly or just somehow."""
    rng = np.random.default_rng(seed)
    full = int(rng.integers(1, 9))
    gains = rng.exponential(size=full) * rng.uniform(0.1, 10)
    loss = np.concatenate([np.cumsum(np.sort(gains) if convex else gains)[::-1][1:], [0.0]])
    unit = int(rng.integers(3, 40))
    ranks = np.arange(1, full + 1)
    cost = ranks * unit
    site = Site("lowrank", f"site{seed}", (full, full))
    curve = Curve(ranks, loss / (loss[0] + 1), loss, cost, 7 * cost, 4 * cost)
    dense = int(full * unit * rng.uniform(0.4, 1.2)) + 1
    times = Times(0.001 * dense, 0.001 * cost * rng.uniform(0.5, 2, size=full), measured=True)
    fixed = Dense(dense, 7 * dense, 4 * dense)
    return Candidate(site, fixed, curve, forced, times=times if timed else None)


def with_forms(c: Candidate, per_rank: int, scale: float) -> Candidate:
    """The same site with another form that costs and loses something else."""
    curve, n = c.curve, len(c.curve.ranks)
    both: dict[str, Any] = {
        name: np.concatenate([getattr(curve, name), per_rank * curve.ranks])
        for name in ("parameters", "macs", "size_bytes")
    }
    other = Curve(
        np.tile(curve.ranks, 2),
        np.concatenate([curve.error, scale * curve.error]),
        np.concatenate([curve.loss, scale * curve.loss]),
        forms=("channel",) * n + ("vertical",) * n,
        **both,
    )
    return dataclasses.replace(c, curve=other)


def points(c: Candidate, unit: Unit = "parameters") -> list[tuple[float, float]]:
    dense, ranked = c.costs(unit)
    pairs = zip(ranked.tolist(), c.curve.loss.tolist(), strict=True)
    return [(dense, 0.0), *(p for p in pairs if p[0] < dense)]


def optimum(candidates: list[Candidate], budget: float) -> float:
    """Brute force."""
    return min(
        sum(p[1] for p in pick)
        for pick in itertools.product(*(points(c) for c in candidates))
        if sum(p[0] for p in pick) <= budget
    )


def limits(candidates: list[Candidate], unit: Unit = "parameters") -> tuple[int, int]:
    costs = [[p[0] for p in points(c, unit)] for c in candidates]
    return int(sum(map(min, costs))), int(sum(map(max, costs)))


def planned(plan: Plan) -> dict[str, float]:
    return {limit.unit: limit.planned for limit in plan.limits}


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.integers(0, 10_000), min_size=1, max_size=4, unique=True),
    st.floats(0, 1),
    st.booleans(),
    st.booleans(),
)
def test_plan_fits_and_is_the_optimum(
    seeds: list[int], share: float, convex: bool, forms: bool
) -> None:
    candidates = [candidate(seed, convex) for seed in seeds]
    if forms:
        candidates = [with_forms(c, 5 + k, 0.6) for k, c in enumerate(candidates)]
    low, high = limits(candidates)
    budget = int(low + share * (high - low))
    plan = make_plan(candidates, [], budgets={"parameters": budget})
    best = optimum(candidates, budget)
    assert planned(plan)["parameters"] <= budget
    assert plan.exact
    assert plan.loss == pytest.approx(best, abs=1e-9)
    assert plan.bound <= best + 1e-9
    assert plan.gap >= 0
    dense, ranked = zip(*(c.costs("parameters") for c in candidates), strict=True)
    spent = dict(zip((c.site.name for c in candidates), dense, strict=True))
    for choice in plan.choices:
        k = next(k for k, c in enumerate(candidates) if c.site.name == choice.site)
        spent[choice.site] = ranked[k][candidates[k].entry(choice.rank, choice.form)]
    assert sum(spent.values()) == planned(plan)["parameters"]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.booleans())
def test_a_larger_budget_never_predicts_a_larger_loss(seed: int, convex: bool) -> None:
    candidates = [candidate(seed + k, convex) for k in range(4)]
    low, high = limits(candidates)
    plans = [
        make_plan(candidates, [], budgets={"parameters": b})
        for b in np.linspace(low, high, 9).astype(int).tolist()
    ]
    assert all(a.loss >= b.loss - 1e-9 for a, b in itertools.pairwise(plans))
    assert all(a.bound >= b.bound - 1e-9 for a, b in itertools.pairwise(plans))


def test_a_full_budget_loses_nothing() -> None:
    candidates = [candidate(k) for k in range(5)]
    plan = make_plan(candidates, [], budgets={"parameters": limits(candidates)[1]})
    assert plan.loss == 0
    assert all(c.rank == c.full_rank for c in plan.choices)  # only where that is cheaper than dense
    named = {s.name for s in plan.skips} | {c.site for c in plan.choices}
    assert named == {c.site.name for c in candidates}


def test_the_same_budget_in_another_unit_is_the_same_plan() -> None:
    candidates = [candidate(k) for k in range(4)]
    budget = sum(limits(candidates)) // 2
    by_count = make_plan(candidates, [], budgets={"parameters": budget})
    for unit, scale in (("bytes", 4), ("macs", 7)):
        budgets: dict[Unit, float] = {unit: scale * budget}  # type: ignore[dict-item]
        other = make_plan(candidates, [], budgets=budgets)
        assert [c.rank for c in by_count.choices] == [c.rank for c in other.choices]


def test_several_budgets_all_hold() -> None:
    """What one budget allows, another may forbid."""
    candidates = [candidate(k, timed=True) for k in range(6)]
    low, high = limits(candidates)
    alone = make_plan(candidates, [], budgets={"bytes": 4 * (low + high) // 2})
    most = 0.7 * sum(c.costs("ms")[0] for c in candidates)
    both = make_plan(candidates, [], budgets={"bytes": 4 * (low + high) // 2, "ms": most})
    assert [limit.unit for limit in both.limits] == ["bytes", "ms"]
    for limit in both.limits:
        assert limit.budget is not None and limit.planned <= limit.budget
    assert both.loss > alone.loss
    assert both.exact


# --- milliseconds ---------------------------------------------------------------------------


def test_ranks_that_are_no_faster_are_no_choice() -> None:
    """A table of times need not be monotone: rank 2 is slow, rank 3 is fast."""
    ranks, loss = np.arange(1, 5), np.array([4.0, 2.0, 1.0, 0.0])
    curve = Curve(ranks, loss / 5, loss, 10 * ranks, 10 * ranks, 40 * ranks)
    times = Times(1.0, np.array([0.5, 1.2, 0.6, 1.4]), measured=True)
    site = Site("lowrank", "fc", (4, 4))
    c = Candidate(site, Dense(100, 100, 400), curve, times=times)
    ranks_of = {
        budget: [choice.rank for choice in make_plan([c], [], budgets={"bytes": budget}).choices]
        for budget in (50, 90, 130, 399)
    }
    assert ranks_of == {50: [1], 90: [1], 130: [3], 399: [3]}
    fast = make_plan([c], [], budgets={"ms": 0.6})
    assert [choice.rank for choice in fast.choices] == [3]
    assert planned(fast) == {"ms": 0.6}


@pytest.mark.parametrize(("measured", "how"), [(True, "measured"), (False, "by the roofline")])
def test_dense_is_faster_is_told(measured: bool, how: str) -> None:
    c = candidate(3)
    slow = Times(0.5, np.full(len(c.curve.ranks), 0.5), measured)
    plan = make_plan([dataclasses.replace(c, times=slow)], [], budgets={"bytes": 10**6})
    assert plan.choices == ()
    (skip,) = plan.skips
    reason = f"left dense: dense is faster than every smaller rank (0.5 ms {how})"
    assert skip == Skip("lowrank", "site3", reason)


def test_milliseconds_need_times() -> None:
    with pytest.raises(RecipeError, match=r"no times for site 'site1' .*`rankc profile`"):
        make_plan([candidate(1)], [], budgets={"ms": 3.0})


# --- refusals -------------------------------------------------------------------------------


def test_an_impossible_budget_says_what_is_possible() -> None:
    candidates = [candidate(k) for k in range(3)]
    low, _ = limits(candidates)
    with pytest.raises(BudgetError, match=f"takes {low + 7:,}; raise"):
        make_plan(candidates, [], budgets={"parameters": low + 6}, fixed={"parameters": 7})
    assert make_plan(candidates, [], budgets={"parameters": low + 7}, fixed={"parameters": 7})


def test_impossible_budgets_say_what_is_possible_in_each_unit() -> None:
    candidates = [candidate(k) for k in range(3)]
    low, _ = limits(candidates)
    words = rf"by themselves .* are {low:,} parameters, {7 * low:,} MACs;"
    with pytest.raises(BudgetError, match=words):
        make_plan(candidates, [], budgets={"parameters": low - 1, "macs": 10**6})


def test_budgets_that_exclude_each_other_say_so() -> None:
    """Small means slow here: each can be met, both cannot."""
    ranks, loss = np.arange(1, 4), np.array([2.0, 1.0, 0.0])
    curve = Curve(ranks, loss / 3, loss, 10 * ranks, 100 - 20 * ranks, 40 * ranks)
    c = Candidate(Site("lowrank", "fc", (3, 3)), Dense(100, 100, 400), curve)
    with pytest.raises(BudgetError) as refused:
        make_plan([c], [], budgets={"parameters": 10, "macs": 50}, fixed={"macs": 5})
    assert "10 parameters with 50 MACs cannot be met together" in str(refused.value)
    assert "of the model is 30 parameters or 85 MACs; raise a budget" in str(refused.value)


def test_the_smallest_plan_minds_every_budget() -> None:
    ranks, loss = np.arange(1, 4), np.array([2.0, 1.0, 0.0])
    curve = Curve(ranks, loss / 3, loss, 10 * ranks, 100 - 20 * ranks, 40 * ranks)
    c = Candidate(Site("lowrank", "fc", (3, 3)), Dense(100, 100, 400), curve)
    assert [x.rank for x in smallest_plan([c], [], budgets={"parameters": 9}).choices] == [1]
    assert [x.rank for x in smallest_plan([c], [], budgets={"macs": 9}).choices] == [3]
    assert planned(smallest_plan([c], [], budgets={})) == {"bytes": 40}


def test_without_a_budget_a_site_takes_the_rank_of_its_pass_if_that_pays() -> None:
    ranks, loss = np.arange(1, 5), np.array([3.0, 2.0, 1.0, 0.0])
    curve = Curve(ranks, loss / 4, loss, 10 * ranks, 30 * ranks, 40 * ranks, own=1)
    site, dense = Site("trp", "fc", (4, 4)), Dense(25, 75, 100)
    c = Candidate(site, dense, curve)
    plan = make_plan([c], [])
    (choice,) = plan.choices
    assert (choice.rank, choice.full_rank) == (2, 4)
    assert "dense would cost 20 bytes more and save 2" in choice.reason
    assert [x.rank for x in make_plan([c], [], budgets={"bytes": 40}).choices] == [1]
    dear = dataclasses.replace(c, curve=dataclasses.replace(curve, own=2))
    slow = dataclasses.replace(c, dense=Dense(25, 59, 100))
    for kept, rank in ((dear, 3), (slow, 2)):
        plan = make_plan([kept], [])
        reason = f"left dense: its own rank, {rank}, takes no fewer bytes, or more MACs"
        assert (plan.choices, [s.reason for s in plan.skips]) == ((), [reason])


# --- options --------------------------------------------------------------------------------


def test_forced_ranks_need_no_budget() -> None:
    forced = candidate(4, forced=1)
    plan = make_plan([forced], [Skip("lowrank", "head", "ignored")])
    assert [c.rank for c in plan.choices] == [1]
    assert [s.name for s in plan.skips] == ["head"]
    assert [(limit.unit, limit.budget) for limit in plan.limits] == [("bytes", None)]


def test_a_forced_rank_leaves_the_form_to_the_plan() -> None:
    c = with_forms(candidate(5, forced=2), per_rank=4, scale=0.5)
    cheap, dear = sorted(c.costs("macs")[1][c.curve.ranks == 2])
    plans = [make_plan([c], [], budgets={"macs": most}) for most in (int(dear), int(dear) - 1)]
    assert [p.choices[0].rank for p in plans] == [2, 2]
    assert planned(plans[1]) == {"macs": cheap}
    assert c.entry(2, "vertical") == len(c.curve.ranks) // 2 + 1


@pytest.mark.parametrize(
    ("planning", "ranks"),
    [
        (Planning(), {1, 2, 3, 4, 5, 6, 7, 8}),
        (Planning(min_rank=3), {3, 4, 5, 6, 7, 8}),
        (Planning(floor=0.5), {4, 5, 6, 7, 8}),
        (Planning(floor=0.3, cap=0.5), {3, 4}),
    ],
)
def test_floors_and_caps(planning: Planning, ranks: set[int]) -> None:
    curve_ranks, loss = np.arange(1, 9), np.arange(8.0, 0, -1)
    curve = Curve(curve_ranks, loss / 9, loss, curve_ranks, curve_ranks, curve_ranks)
    c = Candidate(Site("lowrank", "fc", (8, 8)), Dense(20, 20, 20), curve)
    found = set()
    for budget in range(min(ranks), 20):
        plan = make_plan([c], [], budgets={"bytes": budget}, planning=planning)
        found |= {choice.rank for choice in plan.choices}
    assert found == ranks
    with pytest.raises(BudgetError, match=f"takes {min(ranks)};"):
        make_plan([c], [], budgets={"bytes": min(ranks) - 1}, planning=planning)


@pytest.mark.parametrize("strategy", ["uniform", "greedy"])
def test_other_strategies_keep_the_budget_and_are_held_against_the_bound(strategy: str) -> None:
    candidates = [candidate(k) for k in range(8)]
    budget = sum(limits(candidates)) // 2
    other = Planning(strategy=strategy)  # type: ignore[arg-type]
    best = make_plan(candidates, [], budgets={"parameters": budget})
    plan = make_plan(candidates, [], budgets={"parameters": budget}, planning=other)
    assert planned(plan)["parameters"] <= budget
    assert plan.loss > best.loss
    assert plan.bound == pytest.approx(best.loss)
    assert (plan.strategy, plan.exact) == (strategy, False)
    assert plan.gap > 0


def test_folding_is_paid_for() -> None:
    """Ranks that keep columns of the reader alive are dearer than those that do not."""
    ranks, loss = np.arange(1, 5), np.array([3.0, 2.0, 1.0, 0.0])
    site = Site("embedding", "t", (10, 4))
    curve = Curve(ranks, np.zeros(4), loss, 10 * ranks, ranks, 40 * ranks, decoder=4 * ranks)
    read = Candidate(site, Dense(41, 0, 164), curve, read_by=Readers(columns=94, linear=True))
    dense, ranked = read.costs("bytes")
    assert dense == 164 + 4 * 4 * 94
    assert ranked.tolist() == [400, 800, 1200, 1600]  # r (10 + 94 - 4) scalars
    plan = make_plan([read], [], budgets={"bytes": 900})
    assert [c.rank for c in plan.choices] == [2]


# --- what it says ---------------------------------------------------------------------------


def test_every_site_has_a_reason() -> None:
    ranks = np.array([1, 2, 4, 1, 2, 4])
    cost = np.array([10, 20, 40, 15, 30, 60])
    loss = np.array([0.5, 0.25, 0.0, 0.4, 0.125, 0.0])
    forms = ("channel",) * 3 + ("vertical",) * 3
    curve = Curve(ranks, loss, loss, cost, 100 * cost, 4 * cost, forms=forms)
    c = Candidate(Site("conv", "a", (4, 4)), Dense(50, 5000, 200), curve)
    reasons: list[str] = []
    for macs in (2000, 3999, 5000):
        plan = make_plan([c], [], budgets={"macs": macs})
        reasons += [*(c.reason for c in plan.choices), *(s.reason for s in plan.skips)]
    assert reasons == [
        "rank 2 of 4 as channel: 2.5x fewer MACs for 0.25 of loss; rank 2 as vertical would cost "
        "1,000 MACs more and save 0.12",
        "rank 2 of 4 as vertical: 1.67x fewer MACs for 0.12 of loss; rank 4 as channel would cost "
        "1,000 MACs more and save 0.12",
        "rank 4 of 4 as channel: 1.25x fewer MACs for 0 of loss; nothing dearer loses less",
    ]
    pair = make_plan([c], [], budgets={"bytes": 120, "macs": 4000}).choices[0].reason
    assert "1.67x fewer bytes and 1.67x fewer MACs for 0.12 of loss" in pair
    lossy = dataclasses.replace(curve, loss=loss + 0.001)
    kept = make_plan([dataclasses.replace(c, curve=lossy)], [], budgets={"macs": 5000}).skips
    assert [s.reason for s in kept] == [
        "left dense: rank 4 as channel would save 1,000 MACs for 0.001 of loss"
    ]
    small = dataclasses.replace(c, dense=Dense(10, 1000, 40))
    kept = make_plan([small], [], budgets={"macs": 5000}).skips
    assert [s.reason for s in kept] == ["left dense: no rank takes fewer MACs"]
    planning = Planning(min_rank=5)
    kept = make_plan([c], [], budgets={"macs": 5000}, planning=planning).skips
    assert [s.reason for s in kept] == ["left dense: min_rank, floor and cap leave no rank"]


def test_what_is_spent_is_told_in_words() -> None:
    candidates = [candidate(k, timed=True) for k in range(3)]
    budgets: dict[Unit, float] = {"bytes": 10**6, "ms": 1.5}
    plan = make_plan(candidates, [], budgets=budgets, fixed={"bytes": 123_456})
    first, second = plan.limits
    assert plan.spent == (
        f"{first.planned:,} of a budget of 1,000,000 bytes, {second.planned} of a budget of 1.5 ms"
    )
    assert make_plan([candidate(4, forced=1)], []).spent.endswith(" bytes")


def test_plan_json_is_plain_and_stable() -> None:
    candidates = [candidate(k) for k in range(3)]
    budgets: dict[Unit, float] = {"parameters": limits(candidates)[0]}
    plan = make_plan(candidates, [], budgets=budgets)
    fields = json.loads(plan.to_json())
    assert fields["limits"] == [
        {
            "unit": "parameters",
            "budget": budgets["parameters"],
            "planned": planned(plan)["parameters"],
        }
    ]
    assert (fields["exact"], fields["strategy"], fields["gap"]) == (True, "optimal", 0.0)
    assert plan.to_json() == make_plan(candidates, [], budgets=budgets).to_json()


def test_many_sites_of_many_ranks_are_planned_together() -> None:
    """The points of a large model are built and planned without a loop over them."""
    rng, ranks = np.random.default_rng(0), np.arange(1, 4097)
    candidates = []
    for k in range(40):
        loss = np.exp(-ranks / 4096 * rng.uniform(1, 12)) * rng.uniform(0.1, 10)
        cost = ranks * int(rng.integers(200, 2000))
        dense = int(0.7 * cost[-1])
        curve = Curve(ranks, loss, loss, cost, cost, 4 * cost)
        site = Site("lowrank", f"fc{k}", (4096, 4096))
        candidates.append(Candidate(site, Dense(dense, dense, 4 * dense), curve))
    budget = sum(c.dense.macs for c in candidates) // 2
    plan = make_plan(candidates, [], budgets={"macs": budget})
    assert planned(plan)["macs"] <= budget
    assert plan.gap < 1e-3
