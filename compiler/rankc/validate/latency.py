"""How long the two models take: paired samples, over sessions that are opened again and again.

Two sessions of one model in one process differ, by about 1 % and for as long as they live: their
weights and buffers lie elsewhere in memory. No number of pairs sees that, and an interval over
pairs alone leaves out 1.00 more often than not where a model is compared with itself. So samples
are taken in rounds, both models opened afresh in each, and what a round says counts once:

    l_k = (median over pairs with the original first + median over the others) / 2
    ratio = exp(mean l),  interval = exp(mean l -+ t(K - 1) s / sqrt(K))

of the logs of compressed / original, with s the standard deviation of l over K rounds (Student's t
over batch means). The two orders are averaged because whichever runs second finds other caches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankc.validate.sampling import CLOCK, Samples, sample_pairs
from rankc.validate.schema import LatencyRow, Percentiles

__all__ = ["CLOCK", "LEVEL", "SCOPE", "batch_of", "compare_latency", "summarise"]

Feeds = Mapping[str, NDArray[Any]]
Run = Callable[[Feeds], object]  # Session.run
Open = Callable[[], Run]

SCOPE = "session.run"
LEVEL = 0.99  # of the ratio's interval: a gate may look at several batch sizes, and often
ROUNDS, MIN_ROUNDS = 8, 4
PAIRS_A_ROUND = 8  # at most: it takes more rounds to narrow an interval


def compare_latency(
    original: Open,
    compressed: Open,
    batches: Mapping[int, Feeds],
    *,
    pairs: int,
    seconds: float,
    tick: Callable[[float], None] = lambda share: None,
) -> dict[str, LatencyRow]:
    """Time both models at every batch size, the smallest first in each round.

    Args:
        original: Opens the original model afresh; what it returns runs one batch, in the calling
            thread.
        compressed: The same for the compressed one.
        batches: Feeds by batch size.
        pairs: Wanted interleaved pairs a batch size, over all rounds.
        seconds: CPU time for everything; time that a batch size leaves over goes to the next.
            Where a share is too short there are fewer pairs and rounds, but at least 4 of 2.
        tick: Told the share that is done, in (0, 1], after each round.
    """
    rounds = max(MIN_ROUNDS, min(pairs // 2, ROUNDS), math.ceil(pairs / PAIRS_A_ROUND))
    per_round = 2 * math.ceil(pairs / (2 * rounds))
    found: dict[int, list[Samples]] = {size: [] for size in sorted(batches)}
    start = time.thread_time_ns()

    def left() -> float:
        return seconds - (time.thread_time_ns() - start) / 1e9

    for k in range(rounds):
        if not batches or (k >= MIN_ROUNDS and left() <= 0):
            break
        until = left() * (rounds - k - 1) / (rounds - k)  # to be left after this round
        runs = _opened(original, compressed, k)
        for i, (size, samples) in enumerate(found.items()):
            share = max(left() - until, 0.0) / (len(found) - i)
            samples.append(_round(runs, batches[size], per_round, share, samples))
        tick((k + 1) / rounds)
    tick(1.0)
    return {str(size): summarise(samples) for size, samples in found.items()}


def _opened(original: Open, compressed: Open, k: int) -> tuple[Run, Run]:
    """Open both, in turn first: which comes first has other memory."""
    if k % 2:
        second = compressed()
        return original(), second
    return original(), compressed()


def _round(
    runs: tuple[Run, Run], feeds: Feeds, pairs: int, seconds: float, before: Sequence[Samples]
) -> Samples:
    """Samples of sessions just opened; calls a sample are those of the first round."""
    first, second = runs
    return sample_pairs(
        lambda: first(feeds),
        lambda: second(feeds),
        pairs,
        seconds,
        least=2,
        calls=before[0].calls if before else None,
    )


def summarise(rounds: Sequence[Samples]) -> LatencyRow:
    """Percentiles of each model over all samples, and the ratio with its 99 % interval.

    Args:
        rounds: At least two, each of at least two pairs.
    """
    from scipy import special  # here: it takes longer to import than rankc to start

    logs = np.array([_log_ratio(samples) for samples in rounds])
    mean, degrees = float(logs.mean()), len(logs) - 1
    quantile = float(special.stdtrit(degrees, (1 + LEVEL) / 2))
    half = quantile * float(logs.std(ddof=1)) / math.sqrt(len(logs))
    row = LatencyRow(
        original=_percentiles(np.concatenate([samples.original for samples in rounds])),
        compressed=_percentiles(np.concatenate([samples.compressed for samples in rounds])),
        ratio=math.exp(mean),
        interval=(math.exp(mean - half), math.exp(mean + half)),
        pairs=sum(len(samples.original) for samples in rounds),
        rounds=len(rounds),
        calls_per_sample=rounds[0].calls,
    )
    walls = [samples.wall for samples in rounds if samples.wall is not None]
    if walls:
        before, after = map(float, np.median(np.concatenate(walls), axis=0) / 1e6)
        row["wall_p50_ms"] = (before, after)
    return row


def _log_ratio(samples: Samples) -> float:
    logs = np.log(samples.compressed / samples.original)
    return float(np.median(logs[::2]) + np.median(logs[1::2])) / 2


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
