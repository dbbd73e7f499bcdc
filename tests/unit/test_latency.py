from __future__ import annotations

import gc
import os
import time
from itertools import groupby

import numpy as np
import pytest

from rankc.validate.latency import Run, batch_of, compare_latency, summarise
from rankc.validate.sampling import Samples, one_core, sample_pairs


class Clock:
    """A thread clock that moves by 1 us when read, and by what the calls say they took."""

    def __init__(self) -> None:
        self.now = 0

    def read(self) -> int:
        self.now += 1_000
        return self.now

    def work(self, nanoseconds: int) -> None:
        self.now += nanoseconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "thread_time_ns", clock.read)
    return clock


def test_pairs_are_interleaved_and_alternate_which_goes_first(clock: Clock) -> None:
    calls: list[str] = []

    def call(name: str) -> None:
        calls.append(name)
        clock.work(2_000_000)

    samples = sample_pairs(lambda: call("a"), lambda: call("b"), pairs=4, seconds=60.0)
    assert samples.calls == (2, 2)  # of 2 ms, to fill 3 ms
    turns = [(name, len(list(run))) for name, run in groupby(calls[-16:])]
    assert turns == [("a", 2), ("b", 4), ("a", 4), ("b", 4), ("a", 2)]


def test_short_calls_are_repeated_until_a_sample_is_long_enough(clock: Clock) -> None:
    samples = sample_pairs(
        lambda: clock.work(10_000), lambda: clock.work(30_000_000), pairs=2, seconds=60.0
    )
    assert samples.calls[0] * 10_000 >= 3_000_000 - 1_000
    assert samples.calls[1] == 1
    assert samples.original == pytest.approx(10_000, rel=0.001)
    assert samples.compressed == pytest.approx(30_000_000, rel=0.001)


def test_a_coarse_clock_gets_longer_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0]
    step = 15_600_000  # as on Windows
    monkeypatch.setattr(time, "thread_time_ns", lambda: now[0] // step * step)

    def call() -> None:
        now[0] += 1_000_000

    def tick() -> int:
        now[0] += step
        return step

    monkeypatch.setattr("rankc.validate.sampling._tick_ns", tick)
    samples = sample_pairs(call, call, pairs=3, seconds=60.0)
    assert samples.calls[0] >= 20 * step / 1_000_000 * 0.9
    assert samples.original == pytest.approx(1_000_000, rel=0.1)


def test_too_little_time_cuts_the_pairs_but_leaves_enough_for_an_interval(clock: Clock) -> None:
    def call() -> None:
        clock.work(10_000_000)

    assert len(sample_pairs(call, call, pairs=50, seconds=0.0).original) == 5
    assert len(sample_pairs(call, call, pairs=50, seconds=0.3).original) == 10
    assert len(sample_pairs(call, call, pairs=50, seconds=60.0).original) == 50
    assert len(sample_pairs(call, call, pairs=2, seconds=0.0).original) == 2


def test_time_left_over_by_one_batch_size_goes_to_the_next(clock: Clock) -> None:
    def run(feeds: object) -> None:
        assert isinstance(feeds, dict)
        clock.work(10_000_000 * len(feeds["x"]))

    batches = {size: {"x": np.zeros((size, 2))} for size in (4, 1)}
    rows = compare_latency(lambda: run, lambda: run, batches, pairs=64, seconds=8.0)
    assert rows["1"]["pairs"] == 64
    alone = compare_latency(lambda: run, lambda: run, {4: batches[4]}, pairs=64, seconds=4.0)
    assert alone["4"]["pairs"] < rows["4"]["pairs"] < 64


def test_slow_models_get_fewer_rounds_but_enough_for_an_interval(clock: Clock) -> None:
    opened: list[str] = []

    def open_(name: str) -> Run:
        opened.append(name)
        return lambda feeds: clock.work(2_000_000_000)

    batches = {1: {"x": np.zeros((1, 2))}}
    row = compare_latency(lambda: open_("a"), lambda: open_("b"), batches, pairs=60, seconds=1.0)[
        "1"
    ]
    assert (row.get("rounds"), row["pairs"]) == (4, 8)
    assert "".join(opened) == "abbaabba"  # afresh in each round, and in turn first
    assert row["interval"] == pytest.approx((1.0, 1.0))


@pytest.mark.parametrize(
    ("pairs", "rounds", "taken"), [(1, 4, 8), (12, 6, 12), (60, 8, 64), (200, 25, 200)]
)
def test_more_pairs_are_more_rounds(clock: Clock, pairs: int, rounds: int, taken: int) -> None:
    def run(feeds: object) -> None:
        clock.work(3_000_000)

    batches = {1: {"x": np.zeros((1, 2))}}
    row = compare_latency(lambda: run, lambda: run, batches, pairs=pairs, seconds=60.0)["1"]
    assert (row.get("rounds"), row["pairs"]) == (rounds, taken)


def test_sessions_that_differ_for_life_widen_the_interval(clock: Clock) -> None:
    """What a session's place in memory does is no property of the model."""
    rng = np.random.default_rng(0)

    def open_(factor: float = 1.0) -> Run:
        taken = int(3_000_000 * factor * np.exp(rng.normal(0.0, 0.01)))
        return lambda feeds: clock.work(taken)

    batches = {1: {"x": np.zeros((1, 2))}}
    same = compare_latency(open_, open_, batches, pairs=60, seconds=60.0)["1"]
    assert same["interval"][0] < 1.0 < same["interval"][1]
    assert same["interval"][1] - same["interval"][0] > 0.01
    slower = compare_latency(open_, lambda: open_(1.05), batches, pairs=60, seconds=60.0)["1"]
    assert 1.0 < slower["interval"][0] < 1.05 < slower["interval"][1]


def test_what_runs_second_gains_nothing(clock: Clock) -> None:
    last = [""]

    def call(name: str) -> None:
        clock.work(3_000_000 if last[0] == name else 3_100_000)  # the other's caches
        last[0] = name

    rounds = [
        sample_pairs(lambda: call("a"), lambda: call("b"), 8, 60.0, least=2) for _ in range(4)
    ]
    assert summarise(rounds)["ratio"] == pytest.approx(1.0, abs=1e-9)


def test_warm_up_goes_on_until_times_stop_falling(clock: Clock) -> None:
    taken = [int(3_000_000 * (1 + 0.5**k)) for k in range(12)]
    calls: list[int] = []

    def settling() -> None:
        calls.append(taken[min(len(calls), 11)])
        clock.work(calls[-1])

    samples = sample_pairs(settling, lambda: clock.work(3_000_000), 4, 60.0)
    assert samples.original == pytest.approx(3_000_000, rel=0.02)

    def falling() -> None:  # never steady
        clock.work(max(10_000_000 - 90_000 * len(calls), 1_000_000))
        calls.append(0)

    calls.clear()
    sample_pairs(falling, falling, 2, 60.0)
    assert len(calls) < 2 * 25 + 4


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_the_thread_is_kept_on_one_core_and_let_go_again() -> None:
    allowed = os.sched_getaffinity(0)
    with pytest.raises(ZeroDivisionError), one_core() as pinned:
        assert pinned
        assert os.sched_getaffinity(0) == {max(allowed)}
        raise ZeroDivisionError
    assert os.sched_getaffinity(0) == allowed


def test_a_system_without_affinity_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    with one_core() as pinned:
        assert not pinned


def test_collector_is_off_only_while_sampling(clock: Clock) -> None:
    seen: list[bool] = []

    def look() -> None:
        seen.append(gc.isenabled())
        clock.work(5_000_000)

    assert gc.isenabled()
    sample_pairs(look, look, pairs=1, seconds=1.0)
    assert seen[-1] is False
    assert gc.isenabled()

    def fail() -> None:
        look()
        if not seen[-1]:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        sample_pairs(fail, look, pairs=1, seconds=1.0)
    assert gc.isenabled()


def test_the_real_clock_counts_work() -> None:
    def work() -> int:
        return sum(range(1000))

    samples = sample_pairs(work, work, pairs=2, seconds=1.0)
    assert (samples.original > 0).all()
    assert (samples.compressed > 0).all()
    assert min(samples.calls) > 1


def test_summary_of_known_samples() -> None:
    original = np.array([1e6, 2e6, 4e6, 4e6])
    wall = np.stack([original, 3 * original], axis=1)
    rounds = [
        Samples(original, original * ratio, (3, 7), wall)
        for ratio in ([0.5, 0.5, 0.25, 0.5], [0.25, 0.25, 0.5, 0.25])
    ]
    row = summarise(rounds)
    assert row["original"]["p50_ms"] == 3.0
    assert row["original"]["p99_ms"] == pytest.approx(4.0)
    assert row["compressed"]["p50_ms"] == 1.0
    # Rounds of the medians (0.375, 0.5) and (0.375, 0.25), taken in logs: t(1) is 63.66 at 99 %.
    logs = np.array([np.log(0.5) + np.log([0.5, 0.25]).mean(), 0.0]) / 2
    logs[1] = (np.log([0.25, 0.5]).mean() + np.log(0.25)) / 2
    assert row["ratio"] == pytest.approx(np.exp(logs.mean()))
    half = 63.6567 * logs.std(ddof=1) / np.sqrt(2)
    assert row["interval"] == pytest.approx(
        tuple(np.exp([logs.mean() - half, logs.mean() + half])), rel=1e-3
    )
    assert (row["pairs"], row.get("rounds"), row["calls_per_sample"]) == (8, 2, (3, 7))
    assert row.get("wall_p50_ms") == (3.0, 9.0)


def test_batch_sizes_are_measured_from_small_to_large_with_their_own_rows(clock: Clock) -> None:
    seen: list[int] = []
    done: list[float] = []

    def run(feeds: object) -> None:
        assert isinstance(feeds, dict)
        seen.append(len(feeds["x"]))
        clock.work(5_000_000)

    batches = {size: {"x": np.zeros((size, 2))} for size in (8, 1)}
    rows = compare_latency(
        lambda: run, lambda: run, batches, pairs=5, seconds=0.1, tick=done.append
    )
    assert list(rows) == ["1", "8"]
    assert [size for size, _ in groupby(seen)] == [1, 8] * 4
    assert done[0] == 0.25
    assert done[-1] == 1.0


def test_rows_start_over_to_fill_a_batch() -> None:
    rows = {"x": np.arange(6).reshape(3, 2), "scale": np.ones(4)}
    batch = batch_of(rows, 7, {"x"})
    assert batch["x"][:, 0].tolist() == [0, 2, 4, 0, 2, 4, 0]
    assert batch["scale"] is rows["scale"]
    assert batch_of(rows, 2, {"x"})["x"].tolist() == [[0, 1], [2, 3]]
