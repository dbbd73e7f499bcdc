from __future__ import annotations

import gc
import time
from itertools import groupby

import numpy as np
import pytest

from rankc.validate.latency import (
    Samples,
    batch_of,
    compare_latency,
    sample_pairs,
    summarise,
)


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

    monkeypatch.setattr("rankc.validate.latency._tick_ns", tick)
    samples = sample_pairs(call, call, pairs=3, seconds=60.0)
    assert samples.calls[0] >= 20 * step / 1_000_000 * 0.9
    assert samples.original == pytest.approx(1_000_000, rel=0.1)


def test_too_little_time_cuts_the_pairs_but_leaves_enough_for_an_interval(clock: Clock) -> None:
    def call() -> None:
        clock.work(10_000_000)

    assert len(sample_pairs(call, call, pairs=50, seconds=0.0).original) == 5
    assert len(sample_pairs(call, call, pairs=50, seconds=0.2).original) == 10
    assert len(sample_pairs(call, call, pairs=50, seconds=60.0).original) == 50
    assert len(sample_pairs(call, call, pairs=2, seconds=0.0).original) == 2


def test_time_left_over_by_one_batch_size_goes_to_the_next(clock: Clock) -> None:
    def run(feeds: object) -> None:
        assert isinstance(feeds, dict)
        clock.work(10_000_000 * len(feeds["x"]))

    batches = {size: {"x": np.zeros((size, 2))} for size in (4, 1)}
    rows = compare_latency(run, run, batches, pairs=20, seconds=2.0)
    assert rows["1"]["pairs"] == 20  # 0.4 s of its 1 s, and 0.08 s to warm up
    assert 18 <= rows["4"]["pairs"] < 20  # the 1.5 s left take 18.9 pairs of 0.08 s


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
    original = np.array([1e6, 2e6, 4e6])
    row = summarise(Samples(original, original * [0.5, 0.25, 0.75], (3, 7)))
    assert row["original"]["p50_ms"] == 2.0
    assert row["compressed"]["p50_ms"] == 0.5
    assert row["ratio"] == 0.5  # of the pairs: not 0.5 / 2
    assert row["original"]["p95_ms"] == pytest.approx(3.8)
    assert 0.25 <= row["interval"][0] <= 0.5 <= row["interval"][1] <= 0.75
    assert (row["pairs"], row["calls_per_sample"]) == (3, (3, 7))


def test_batch_sizes_are_measured_from_small_to_large_with_their_own_rows(clock: Clock) -> None:
    seen: list[int] = []
    done: list[float] = []

    def run(feeds: object) -> None:
        assert isinstance(feeds, dict)
        seen.append(len(feeds["x"]))
        clock.work(5_000_000)

    batches = {size: {"x": np.zeros((size, 2))} for size in (8, 1)}
    rows = compare_latency(run, run, batches, pairs=5, seconds=0.1, tick=done.append)
    assert list(rows) == ["1", "8"]
    assert [size for size, _ in groupby(seen)] == [1, 8]
    assert done == [0.5, 1.0]


def test_rows_start_over_to_fill_a_batch() -> None:
    rows = {"x": np.arange(6).reshape(3, 2), "scale": np.ones(4)}
    batch = batch_of(rows, 7, {"x"})
    assert batch["x"][:, 0].tolist() == [0, 2, 4, 0, 2, 4, 0]
    assert batch["scale"] is rows["scale"]
    assert batch_of(rows, 2, {"x"})["x"].tolist() == [[0, 1], [2, 3]]
