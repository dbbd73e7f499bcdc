"""Which budget comes next, and which plan is taken: against a planted limit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankc.recipe import Search
from rankc.search_points import Trial, Verdict, chosen, next_keep, points_of, steps_left

Judge = Callable[[float], Verdict]


def searched(judge: Judge, search: Search, start: float = 0.2) -> list[Trial]:
    trials: list[Trial] = []
    while (keep := next_keep(trials, search, start)) is not None:
        assert len(trials) < 40
        failed = () if judge(keep) == "passes" else ("a gate failed",)
        values = {"size_bytes": 1e6 * keep}
        trials.append(
            Trial(keep, judge(keep), keep, f"{keep}", 1 - keep, values, {"auc": keep}, 1.0, failed)
        )
    return trials


@given(
    limit=st.floats(0.02, 0.99), start=st.floats(0.02, 1.0), tolerance=st.sampled_from([0.01, 0.1])
)
def test_a_limit_is_found_to_the_tolerance(limit: float, start: float, tolerance: float) -> None:
    search = Search(tolerance=tolerance)
    trials = searched(lambda keep: "passes" if keep >= limit else "small", search, start)
    best = chosen(trials, search)
    assert best is not None
    assert limit <= best.keep <= limit * (1 + tolerance) * 1.001
    assert len({trial.keep for trial in trials}) == len(trials)
    assert len(trials) <= 5 + math.ceil(math.log2(math.log(50) / math.log1p(tolerance)))


@given(small=st.floats(0.03, 0.5), width=st.floats(1.3, 1.9))
def test_size_gates_bound_it_from_above(small: float, width: float) -> None:
    """Accuracy fails below, size above: what lies between is found, wherever the search begins."""

    def judge(keep: float) -> Verdict:
        return "small" if keep < small else "passes" if keep <= small * width else "large"

    best = chosen(searched(judge, Search(), 0.9), Search())
    assert best is not None
    assert best.verdict == "passes"
    assert best.keep <= small * 1.06


def test_what_passes_at_the_smallest_is_done_after_two() -> None:
    trials = searched(lambda keep: "passes", Search(low=0.1))
    assert [trial.keep for trial in trials] == [0.2, 0.1]


def test_where_none_passes_the_largest_of_those_that_fail_least_is_taken() -> None:
    trials = searched(lambda keep: "small", Search())
    assert [trial.keep for trial in trials] == [0.2, 1.0]
    best = chosen(trials, Search())
    assert best is not None
    assert best.keep == 1.0
    assert chosen([Trial(1.0, "impossible", failed=("too small",))], Search()) is None


def test_a_hole_below_the_limit_is_looked_into() -> None:
    """One budget that failed by chance does not hide a smaller one that passes."""

    def judge(keep: float) -> Verdict:
        return "passes" if keep >= 0.1 and not 0.19 < keep < 0.1999 else "small"

    search = Search(tolerance=0.05, low=0.1, high=1.0)
    trials = [
        dataclasses.replace(trial, keep=keep)
        for keep, verdict in ((0.2, "passes"), (0.1905, "small"), (0.1, "small"))
        for trial in [Trial(keep, "passes" if verdict == "passes" else "small")]
    ]
    below = next_keep(trials, search, 0.2)
    assert below == pytest.approx(0.1905 / 1.05**2, rel=1e-3)
    failed = [*trials, Trial(below or 0, "small")]
    assert next_keep(failed, search, 0.2) is None
    passed = next_keep([*trials, Trial(below or 0, "passes")], search, 0.2)
    assert passed is not None
    assert passed < (below or 0)
    assert judge(below or 0) == "passes"


def test_the_fastest_need_not_be_the_smallest() -> None:
    trials = [Trial(0.1, "passes", speed=0.6), Trial(0.2, "passes", speed=0.5), Trial(1, "large")]
    for objective, keep in (("smallest", 0.1), ("fastest", 0.2)):
        best = chosen(trials, Search(objective=objective))  # type: ignore[arg-type]
        assert best is not None
        assert best.keep == keep


def test_a_point_is_efficient_if_none_beats_it() -> None:
    def trial(keep: float, size: float, auc: float) -> Trial:
        return Trial(keep, "passes", 10 * keep, f"{keep}", 0, {"size_bytes": size}, {"auc": auc})

    trials = [trial(0.3, 30, 0.8), trial(0.1, 10, 0.7), trial(0.2, 20, 0.69), trial(0.4, 30, 0.8)]
    again = dataclasses.replace(trials[0], keep=0.31, repeated=True)
    points = points_of([*trials, again, Trial(0.01, "impossible")], "bytes", trials[1])
    assert [point["budget"] for point in points] == [1.0, 2.0, 3.0, 4.0]
    assert [point["efficient"] for point in points] == [True, False, True, True]
    assert [point["chosen"] for point in points] == [True, False, False, False]


def test_how_many_are_left_falls_with_the_range() -> None:
    search = Search(tolerance=0.05, steps=10)
    trials = [Trial(0.2, "passes"), Trial(0.1, "small")]
    assert steps_left(trials, search) == math.ceil(math.log2(math.log(2) / math.log(1.05)))
    assert steps_left(trials, Search(steps=2)) == 0
    assert steps_left([Trial(0.2, "passes"), Trial(0.195, "small")], search) == 0
