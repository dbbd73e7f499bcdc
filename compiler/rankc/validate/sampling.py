"""Samples of two calls in turn, on the CPU time of one thread.

Wall-clock ratios lie on a loaded machine: a call longer than a few milliseconds is preempted, so
the slower model pays twice. Here both run with one thread, in the caller's thread, on that thread's
CPU time, in turn: original, compressed, compressed, original, ... What slows one slows its partner.
"""

from __future__ import annotations

import dataclasses
import gc
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

CLOCK = "thread CPU time, 1 thread"

_SAMPLE_NS = 3_000_000  # shorter samples would measure the clock and the switch of models
_TICKS = 20  # and so would samples of fewer steps of it
_FALLING = 0.98  # a sample below this share of the fastest before it: still warming up
_STEADY = 3  # samples in a row that do not fall
_SLOW_NS = 50_000_000  # of calls so long one such sample must do
_WARM_UP = 20  # samples at most

Call = Callable[[], object]


@dataclasses.dataclass(frozen=True, slots=True)
class Samples:
    """Time of one call, in ns, averaged over the calls of each sample; pair i is entry i."""

    original: NDArray[np.float64]  # (pairs,)
    compressed: NDArray[np.float64]  # (pairs,)
    calls: tuple[int, int]  # of each model in one sample
    wall: NDArray[np.float64] | None = None  # wall-clock time of the same calls, (pairs, 2)


def sample_pairs(
    original: Call,
    compressed: Call,
    pairs: int,
    seconds: float,
    *,
    least: int = 5,
    calls: tuple[int, int] | None = None,
) -> Samples:
    """Interleaved samples of two calls, whose order alternates from pair to pair.

    Args:
        original: The first of a pair.
        compressed: The second.
        pairs: How many are wanted.
        seconds: CPU time, warming up included.
        least: Pairs that are taken however long they last.
        calls: Of each in one sample; by default so many that a sample is long enough.
    """
    deadline = time.thread_time_ns() + int(seconds * 1e9)
    calls = calls or (_calls_per_sample(original), _calls_per_sample(compressed))
    for call, count in zip((original, compressed), calls, strict=True):
        _warm_up(call, count)
    times, done = np.empty((pairs, 2, 2)), 0
    with _no_collection():
        while done < pairs and (done < least or time.thread_time_ns() < deadline):
            for which in (0, 1) if done % 2 == 0 else (1, 0):
                times[done, which] = _sample((original, compressed)[which], calls[which])
            done += 1
    return Samples(times[:done, 0, 0], times[:done, 1, 0], calls, times[:done, :, 1])


@contextmanager
def one_core() -> Iterator[bool]:
    """Keep the calling thread on one core, the last that it may use; yields whether it is.

    A thread that moves finds cold caches. The system may not offer it (macOS, Windows).
    """
    if not hasattr(os, "sched_setaffinity"):
        yield False
        return
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {max(allowed)})
    except OSError:  # a sandbox that forbids it
        yield False
        return
    try:
        yield True
    finally:
        os.sched_setaffinity(0, allowed)


def _calls_per_sample(call: Call) -> int:
    """Double the calls until a sample is long enough for the clock, then as many as that takes."""
    wanted = max(_SAMPLE_NS, _TICKS * _tick_ns())
    calls = 1
    while (each := _sample(call, calls)[0]) * calls < wanted:
        # A call below the clock's step reads as 0: double blindly then.
        calls = max(2 * calls, math.ceil(wanted / each) if each else 0)
    return math.ceil(wanted / each)


def _warm_up(call: Call, calls: int) -> None:
    """Sample until times stop falling: caches, branch predictors and clocks have settled."""
    best, steady = math.inf, 0
    for _ in range(_WARM_UP):
        taken = _sample(call, calls)[0]
        steady = 0 if taken < _FALLING * best else steady + 1
        best = min(best, taken)
        if steady >= (1 if taken * calls > _SLOW_NS else _STEADY):
            return


def _sample(call: Call, calls: int) -> tuple[float, float]:
    """Nanoseconds of one call, averaged over `calls`: CPU time of this thread, and wall clock."""
    wall, cpu = time.perf_counter_ns(), time.thread_time_ns()
    for _ in range(calls):
        call()
    spent = time.thread_time_ns() - cpu
    return spent / calls, (time.perf_counter_ns() - wall) / calls


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
