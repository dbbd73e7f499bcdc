"""The planner: within budget, near the optimum, and it says how near."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankc.errors import RecipeError
from rankc.graph import Readers
from rankc.passbase import Curve, Dense, Site, Skip
from rankc.planning import Candidate, Plan, make_plan


def candidate(seed: int, convex: bool = True, forced: int | None = None) -> Candidate:
    """A site with 1 to 8 ranks, whose loss falls, convexly or just somehow."""
    rng = np.random.default_rng(seed)
    full = int(rng.integers(1, 9))
    gains = rng.exponential(size=full) * rng.uniform(0.1, 10)
    loss = np.concatenate([np.cumsum(np.sort(gains) if convex else gains)[::-1][1:], [0.0]])
    unit = int(rng.integers(3, 40))
    ranks = np.arange(1, full + 1)
    cost = ranks * unit
    site = Site("lowrank", f"site{seed}", (full, full))
    curve = Curve(ranks, loss / (loss[0] + 1), loss, cost, cost, 4 * cost)
    dense = int(full * unit * rng.uniform(0.4, 1.2)) + 1
    return Candidate(site, Dense(dense, dense, 4 * dense), curve, forced)


def points(c: Candidate) -> list[tuple[int, float]]:
    dense = (c.dense.parameters, 0.0)
    ranked = zip(c.curve.parameters.tolist(), c.curve.loss.tolist(), strict=True)
    return [dense, *(p for p in ranked if p[0] < dense[0])]


def optimum(candidates: list[Candidate], budget: int) -> float:
    """Brute force."""
    return min(
        sum(p[1] for p in pick)
        for pick in itertools.product(*(points(c) for c in candidates))
        if sum(p[0] for p in pick) <= budget
    )


def limits(candidates: list[Candidate]) -> tuple[int, int]:
    costs = [[p[0] for p in points(c)] for c in candidates]
    return sum(map(min, costs)), sum(map(max, costs))


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.integers(0, 10_000), min_size=1, max_size=4, unique=True),
    st.floats(0, 1),
    st.booleans(),
)
def test_plan_fits_and_brackets_the_optimum(seeds: list[int], share: float, convex: bool) -> None:
    candidates = [candidate(seed, convex) for seed in seeds]
    low, high = limits(candidates)
    budget = int(low + share * (high - low))
    plan = make_plan(candidates, [], budget=budget, unit="parameters")
    best = optimum(candidates, budget)
    assert plan.planned <= budget
    assert plan.bound <= best + 1e-9
    assert plan.loss >= best - 1e-9
    assert plan.loss <= best + max((c.curve.loss[0] for c in candidates), default=0) + 1e-9
    assert plan.gap >= 0


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000))
def test_a_larger_budget_never_predicts_a_larger_bound(seed: int) -> None:
    candidates = [candidate(seed + k) for k in range(4)]
    low, high = limits(candidates)
    bounds = [
        make_plan(candidates, [], budget=b, unit="parameters").bound
        for b in np.linspace(low, high, 9).astype(int)
    ]
    assert all(a >= b - 1e-9 for a, b in itertools.pairwise(bounds))


def test_a_full_budget_loses_nothing() -> None:
    candidates = [candidate(k) for k in range(5)]
    plan = make_plan(candidates, [], budget=limits(candidates)[1], unit="parameters")
    assert plan.loss == 0
    assert all(c.rank == c.full_rank for c in plan.choices)  # only where that is cheaper than dense
    named = {s.name for s in plan.skips} | {c.site for c in plan.choices}
    assert named == {c.site.name for c in candidates}


def test_the_same_budget_in_bytes_is_four_times_that_in_parameters() -> None:
    candidates = [candidate(k) for k in range(4)]
    budget = sum(limits(candidates)) // 2
    by_count = make_plan(candidates, [], budget=budget, unit="parameters")
    by_bytes = make_plan(candidates, [], budget=4 * budget, unit="bytes")
    assert [c.rank for c in by_count.choices] == [c.rank for c in by_bytes.choices]


def test_an_impossible_budget_says_what_is_possible() -> None:
    candidates = [candidate(k) for k in range(3)]
    low, _ = limits(candidates)
    with pytest.raises(RecipeError, match=f"takes {low + 7:,}"):
        make_plan(candidates, [], budget=low + 6, unit="parameters", fixed=7)


def test_forced_ranks_need_no_budget() -> None:
    forced = candidate(4, forced=1)
    plan = make_plan([forced], [Skip("lowrank", "head", "ignored")], budget=None)
    assert [c.rank for c in plan.choices] == [1]
    assert [s.name for s in plan.skips] == ["head"]


def test_folding_is_paid_for() -> None:
    """Ranks that keep columns of the reader alive are dearer than those that do not."""
    ranks, loss = np.arange(1, 5), np.array([3.0, 2.0, 1.0, 0.0])
    site = Site("embedding", "t", (10, 4))
    curve = Curve(ranks, np.zeros(4), loss, 10 * ranks, ranks, 40 * ranks, decoder=4 * ranks)
    read = Candidate(site, Dense(41, 0, 164), curve, read_by=Readers(columns=94, linear=True))
    dense, ranked = read.costs("bytes")
    assert dense == 164 + 4 * 4 * 94
    assert ranked.tolist() == [400, 800, 1200, 1600]  # r (10 + 94 - 4) scalars
    plan = make_plan([read], [], budget=900, unit="bytes")
    assert [c.rank for c in plan.choices] == [2]


def test_plan_json_is_plain_and_stable() -> None:
    candidates = [candidate(k) for k in range(3)]
    plan: Plan = make_plan(candidates, [], budget=limits(candidates)[0], unit="parameters")
    fields = json.loads(plan.to_json())
    assert fields["planned"] == plan.planned
    assert (
        plan.to_json() == make_plan(candidates, [], budget=plan.budget, unit="parameters").to_json()
    )
