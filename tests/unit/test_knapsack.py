"""The multiple-choice knapsack against brute force, and what has to hold at any size."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from benchmarks.planner.instances import instance, optimum, span
from hypothesis import given, settings
from hypothesis import strategies as st

from rankc.knapsack import SMALL, solve
from rankc.knapsack_points import Floats, Offer, Points, lower_hull, undominated
from rankc.knapsack_states import search
from rankc.strategies import greedy, uniform

CLOSE = 1e-12


def spent(offers: Sequence[Offer], picked: Sequence[int]) -> Floats:
    chosen = [o.costs[k] for o, k in zip(offers, picked, strict=True)]
    return np.asarray(np.sum(chosen, axis=0), np.float64)


def lost(offers: Sequence[Offer], picked: Sequence[int]) -> float:
    return float(sum(o.loss[k] for o, k in zip(offers, picked, strict=True)))


@pytest.mark.parametrize("first", range(0, 1000, 250))
def test_one_limit_against_brute_force(first: int) -> None:
    """The optimum on every one of a thousand instances, and said so."""
    for seed in range(first, first + 250):
        offers, limits = instance(seed, 1)
        best, found = optimum(offers, limits), solve(offers, limits)
        assert best is not None and found is not None
        assert found.exact, seed
        assert found.loss == pytest.approx(best, rel=CLOSE, abs=CLOSE), seed
        assert found.bound <= best + CLOSE, seed
        assert (spent(offers, found.picked) <= limits).all(), seed
        assert lost(offers, found.picked) == pytest.approx(found.loss, rel=CLOSE, abs=CLOSE)


@pytest.mark.parametrize("limits", [2, 3])
def test_several_limits_against_brute_force(limits: int) -> None:
    """Found where there is one, refused where there is none."""
    possible = 0
    for seed in range(150):
        offers, most = instance(seed, limits)
        best, found = optimum(offers, most), solve(offers, most)
        assert (best is None) == (found is None), seed
        if best is None or found is None:
            continue
        possible += 1
        assert found.exact, seed
        assert found.loss == pytest.approx(best, rel=CLOSE, abs=CLOSE), seed
        assert found.bound <= best + CLOSE, seed
        assert (spent(offers, found.picked) <= most).all(), seed
    assert 75 <= possible < 150


def smooth(seed: int, sites: int, ranks: int) -> list[Offer]:
    """Sites whose loss falls smoothly, as spectra do, so that nearly every rank is a corner."""
    rng = np.random.default_rng(seed)
    offers = []
    for _ in range(sites):
        full = int(rng.integers(ranks // 2, ranks))
        loss = np.exp(-np.arange(full) / full * rng.uniform(1, 12)) * 10 ** rng.uniform(-3, 1)
        cost = np.arange(1.0, full + 1) * int(rng.integers(200, 2000))
        dense = float(np.floor(cost[-1] * rng.uniform(0.5, 1.2)))
        keep = cost < dense
        offers.append(Offer(np.append(dense, cost[keep])[:, None], np.append(0.0, loss[keep])))
    return offers


def losses(offers: Sequence[Offer], shares: Floats) -> list[tuple[float, float, bool]]:
    low, high = span(offers)
    found = [solve(offers, np.floor(low + share * (high - low))) for share in shares]
    return [(one.loss, one.bound, one.exact) for one in found if one is not None]


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000))
def test_more_never_loses_more(seed: int) -> None:
    offers, _ = instance(seed, 1)
    found = losses(offers, np.linspace(0, 1, 15))
    assert len(found) == 15
    assert all(a[0] >= b[0] - CLOSE for a, b in itertools.pairwise(found))


def test_more_never_loses_more_where_the_optimum_is_not_searched_for() -> None:
    offers = smooth(0, 60, 4096)
    assert len(Points.of(offers).loss) > SMALL
    found = losses(offers, np.concatenate([np.linspace(0, 1, 10), np.linspace(0.5, 0.5003, 25)]))
    for part in (found[:10], found[10:]):
        assert all(a[0] >= b[0] * (1 - CLOSE) for a, b in itertools.pairwise(part))
    assert not any(exact for _, _, exact in found[1:9] + found[10:])
    assert all(bound <= loss <= bound * 1.01 for loss, bound, _ in found if loss)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 3))
def test_what_is_dropped_is_undercut_and_what_stays_is_not(seed: int, limits: int) -> None:
    rng = np.random.default_rng(seed)
    costs = rng.integers(0, 12, size=(30, limits)).astype(float)
    loss = rng.integers(0, 12, size=30).astype(float)
    kept = undominated(costs, loss)
    axes = np.column_stack([costs, loss])
    for k in range(30):
        rivals = axes[kept[kept != k]]
        beaten = bool((rivals <= axes[k]).all(axis=1).any())
        assert beaten or k in kept
        assert limits > 1 or not (beaten and k in kept)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.sampled_from(["convex", "concave", "kinked", "noisy"]))
def test_the_hull_is_that_of_the_textbook(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 200))
    cost = np.cumsum(rng.integers(1, 9, size=n)).astype(float)
    steps = rng.exponential(size=n) + 1e-3
    if kind in ("convex", "concave"):
        steps = np.sort(steps)[:: -1 if kind == "convex" else 1] * np.diff(cost, prepend=0.0)
    if kind == "kinked":
        half = n // 2
        steps = np.concatenate([np.sort(steps[:half])[::-1], np.sort(steps[half:])[::-1]])
    loss = np.cumsum(steps[::-1])[::-1]
    stack: list[int] = []  # Andrew's monotone chain
    for k in range(n):
        while len(stack) > 1 and _saved(cost, loss, *stack[-2:]) <= _saved(
            cost, loss, stack[-1], k
        ):
            stack.pop()
        stack.append(k)
    assert lower_hull(cost, loss).tolist() == stack


def _saved(cost: Floats, loss: Floats, a: int, b: int) -> float:
    return float((loss[a] - loss[b]) / (cost[b] - cost[a]))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 2), st.floats(0, 3))
def test_the_search_needs_no_good_prices(seed: int, limits: int, wrong: float) -> None:
    """Any prices lead to the optimum; a bound is one at any prices."""
    offers, most = instance(seed, limits)
    points = Points.of(offers)
    slack = most - span(offers)[0]
    prices = wrong * np.ptp(points.loss) / np.maximum(points.costs.max(axis=0), 1.0)
    best, found = optimum(offers, most), search(points, slack, prices, np.inf)
    assert found.complete
    assert (found.picked is None) == (best is None)
    if best is not None and found.picked is not None:
        assert points.loss[found.picked].sum() == pytest.approx(best, rel=1e-9, abs=1e-9)
        assert found.bound <= best + 1e-9


@pytest.mark.parametrize("rule", [uniform, greedy])
@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), limits=st.integers(1, 2))
def test_no_strategy_beats_the_optimum(rule: object, seed: int, limits: int) -> None:
    offers, most = instance(seed, limits)
    dense = np.array([o.costs[0] for o in offers])
    picked = uniform(offers, dense, most) if rule is uniform else greedy(offers, dense, most)
    best = optimum(offers, most)
    if picked is not None:
        assert best is not None
        assert (spent(offers, picked) <= most).all()
        assert lost(offers, picked) >= best - CLOSE


def test_uniform_keeps_the_same_share_everywhere() -> None:
    ranks = np.arange(1.0, 11)
    offers = [
        Offer(np.append(10.0, ranks)[:, None] * unit, np.append(0.0, 11 - ranks)) for unit in (1, 7)
    ]
    dense = np.array([[10.0], [70.0]])
    assert uniform(offers, dense, np.array([41.0])) == (5, 5)  # 5 of 10, and 35 of 70
    assert uniform(offers, dense, np.array([7.0])) is None
    assert uniform(offers, dense, np.array([80.0])) == (0, 0)


def test_greedy_gives_all_sites_the_same_loss() -> None:
    ranks = np.arange(1.0, 11)
    steep = Offer(np.append(10.0, ranks)[:, None], np.append(0.0, 10 - ranks))
    flat = Offer(np.append(10.0, ranks)[:, None], np.append(0.0, (10 - ranks) / 9))
    picked = greedy([steep, flat], np.array([[10.0], [10.0]]), np.array([10.0]))
    assert picked is not None
    assert (steep.costs[picked[0], 0], flat.costs[picked[1], 0]) == (9.0, 1.0)  # at most 1 of loss


def test_nothing_to_choose() -> None:
    assert solve([], np.array([0.0])) is not None
    assert solve([], np.array([-1.0])) is None
    free = solve([Offer(np.array([[3.0], [2.0]]), np.zeros(2))], np.array([9.0]))
    assert free is not None
    assert free.picked == (1,)  # of equal losses the cheapest
