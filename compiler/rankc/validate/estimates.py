"""What is known of a metric beside its two values: intervals and the chance of no difference.

Areas under the curve and shares of rows have closed forms (`delong`, `proportions`); every other
metric that is a function of how often each row counts has the paired bootstrap.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from statistics import NormalDist

from rankc.validate.bootstrap import LEVEL, Interval, Statistic, intervals

Z = NormalDist().inv_cdf((1 + LEVEL) / 2)  # 1.96: half of a 95 % interval in standard errors
BOOTSTRAP = "paired bootstrap"


@dataclasses.dataclass(frozen=True, slots=True)
class Estimate:
    """Of one metric; every interval is at the level of `bootstrap.LEVEL`."""

    method: str  # how the interval was made
    interval: Interval | None  # of compressed - original
    value_interval: Interval | None = None  # of the compressed model's own value
    p_value: float | None = None  # of no difference, two-sided


def bootstrapped(
    pairs: Mapping[str, tuple[float, float]],
    differences: Mapping[str, Statistic],
    values: Mapping[str, Statistic],
    rows: int,
    *,
    resamples: int = 1000,
    seed: int = 0,
    tick: Callable[[int], None] = lambda done: None,
) -> dict[str, Estimate]:
    """Percentile intervals of all metrics on the same draws.

    Args:
        pairs: Original and compressed on all rows.
        differences: What compressed - original is on a draw, by metric.
        values: What the compressed model's own value is on a draw. A metric that is missing here
            is a distance: the original's value is a constant, so its two intervals are one.
        rows: How many rows are drawn, of as many.
        resamples: Number of draws.
        seed: Same seed, same draws.
        tick: Told after each draw how many are done.
    """
    both = {("difference", name): statistic for name, statistic in differences.items()}
    both |= {("value", name): statistic for name, statistic in values.items()}
    found = intervals(both, rows, resamples=resamples, seed=seed, tick=tick)
    return {
        name: Estimate(
            BOOTSTRAP,
            change := found["difference", name],
            found["value", name] if name in values else _moved(change, pairs[name][0]),
        )
        for name in differences
    }


def _moved(interval: Interval | None, by: float) -> Interval | None:
    return None if interval is None else (interval[0] + by, interval[1] + by)
