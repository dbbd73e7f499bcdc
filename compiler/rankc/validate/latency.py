"""How long the two models take, compared so that a busy machine cannot tilt the answer.

Wall-clock ratios lie on a loaded machine: a call longer than a few milliseconds is preempted, so
the slower model pays twice. Here both run with one thread, in the caller's thread, on that thread's
CPU time, in turn: original, compressed, compressed, original, ... What slows one slows its partner,
and each pair gives one ratio.
"""

from __future__ import annotations

import dataclasses
import gc
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankc.validate.bootstrap import median_interval
from rankc.validate.schema import LatencyRow, Percentiles

Feeds = Mapping[str, NDArray[Any]]
Run = Callable[[Feeds], object]  # Session.run

SCOPE = "session.run"
CLOCK = "thread CPU time, 1 thread"

LEVEL = 0.95  # of the ratio's interval

_SAMPLE_NS = 3_000_000  # shorter samples would measure the clock and the switch of models
_TICKS = 20  # and so would samples of fewer steps of it
_MIN_PAIRS = 5  # below it no interval is worth printing
_WARM_UP = 3  # calls


@dataclasses.dataclass(frozen=True, slots=True)
class Samples:
    """CPU time of one call, in ns, averaged over the calls of each sample; pair i is row i."""

    original: NDArray[np.float64]  # (pairs,)
    compressed: NDArray[np.float64]  # (pairs,)
    calls: tuple[int, int]  # of each model in one sample


def compare_latency(
    original: Run,
    compressed: Run,
    batches: Mapping[int, Feeds],
    *,
    pairs: int,
    seconds: float,
    seed: int = 0,
    tick: Callable[[float], None] = lambda share: None,
) -> dict[str, LatencyRow]:
    """Time both models at every batch size, the smallest first.

    Args:
        original: Runs the original model on one batch, in the calling thread.
        compressed: The same for the compressed one.
        batches: Feeds by batch size.
        pairs: Wanted interleaved pairs a batch size.
        seconds: CPU time for everything; time that a batch size leaves over goes to the next.
            Where a share is too short there are fewer pairs, but at least 5.
        seed: Of the interval's resampling.
        tick: Told the share that is done, in (0, 1], after each batch size.
    """
    rows: dict[str, LatencyRow] = {}
    left = seconds
    sizes = sorted(batches)
    for i, size in enumerate(sizes):
        started = time.thread_time_ns()
        feeds = batches[size]
        samples = sample_pairs(
            lambda f=feeds: original(f),  # type: ignore[misc]
            lambda f=feeds: compressed(f),  # type: ignore[misc]
            pairs,
            left / (len(sizes) - i),
        )
        left = max(left - (time.thread_time_ns() - started) / 1e9, 0.0)
        rows[str(size)] = summarise(samples, seed)
        tick((i + 1) / len(sizes))
    return rows


def sample_pairs(
    original: Callable[[], object],
    compressed: Callable[[], object],
    pairs: int,
    seconds: float,
) -> Samples:
    """Interleaved samples of two calls, whose order alternates from pair to pair."""
    calls = (_calls_per_sample(original), _calls_per_sample(compressed))
    times = np.empty((pairs, 2))
    deadline = time.thread_time_ns() + int(seconds * 1e9)
    done = 0
    with _no_collection():
        while done < pairs and (done < _MIN_PAIRS or time.thread_time_ns() < deadline):
            for which in (0, 1) if done % 2 == 0 else (1, 0):
                call = compressed if which else original
                times[done, which] = _sample(call, calls[which])
            done += 1
    return Samples(times[:done, 0], times[:done, 1], calls)


def summarise(samples: Samples, seed: int = 0) -> LatencyRow:
    """Percentiles of each model, and of the pairs' ratios the median with its 95 % interval."""
    ratios = samples.compressed / samples.original
    return LatencyRow(
        original=_percentiles(samples.original),
        compressed=_percentiles(samples.compressed),
        ratio=float(np.median(ratios)),
        interval=median_interval(ratios, seed=seed),
        pairs=len(ratios),
        calls_per_sample=samples.calls,
    )


def batch_of(rows: Feeds, size: int, batched: Collection[str]) -> dict[str, NDArray[Any]]:
    """`size` rows, in order and started over as often as needed.

    Args:
        rows: Feeds with at least one row.
        size: Rows wanted.
        batched: Inputs whose first axis is the batch; the others are passed on as they are.
    """

    def filled(array: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(array[np.arange(size) % len(array)])

    return {name: filled(a) if name in batched else a for name, a in rows.items()}


def _percentiles(nanoseconds: NDArray[np.float64]) -> Percentiles:
    p50, p90, p95, p99 = map(float, np.percentile(nanoseconds, [50, 90, 95, 99]) / 1e6)
    return Percentiles(p50_ms=p50, p90_ms=p90, p95_ms=p95, p99_ms=p99)


def _calls_per_sample(call: Callable[[], object]) -> int:
    """Warm up, then double the calls until a sample is long enough for the clock."""
    for _ in range(_WARM_UP):
        call()
    wanted = max(_SAMPLE_NS, _TICKS * _tick_ns())
    calls = 1
    while (each := _sample(call, calls)) * calls < wanted:
        # A call below the clock's step reads as 0: double blindly then.
        calls = max(2 * calls, math.ceil(wanted / each) if each else 0)
    return calls


def _sample(call: Callable[[], object], calls: int) -> float:
    """CPU nanoseconds of one call in this thread, averaged over `calls` of them."""
    started = time.thread_time_ns()
    for _ in range(calls):
        call()
    return (time.thread_time_ns() - started) / calls


def _tick_ns() -> int:
    """The step of the clock; Windows announces 100 ns and moves by 15.6 ms."""
    first = time.thread_time_ns()
    now = first
    while now == first:
        now = time.thread_time_ns()
    return now - first


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python's garbage collector out of the samples, as `timeit` does."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
