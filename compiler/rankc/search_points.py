"""Which budget a search tries next, when it is done, and which plan it takes.

A plan that fails an accuracy gate is too small, one that fails only gates on size or time too
large. Between the largest budget known to be too small and the smallest known not to be, the next
one lies in the middle of their logarithms. That finds the smallest plan if accuracy rises with the
budget. It need not, quite: after the limit is found one budget below it is tried, too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal

from rankc.recipe import Search
from rankc.validate.schema import Point

# impossible: the passes cannot make the model so small
Verdict = Literal["passes", "small", "large", "impossible"]


@dataclasses.dataclass(frozen=True, slots=True)
class Trial:
    """A budget that was tried."""

    keep: float  # share of the original
    verdict: Verdict
    budget: float = 0.0  # the same in the unit
    plan: str = ""  # a hash of its choices
    loss: float = 0.0  # predicted
    values: Mapping[str, float] = dataclasses.field(default_factory=dict)  # as `Point.values`
    quality: Mapping[str, float] = dataclasses.field(default_factory=dict)  # higher is better
    speed: float | None = None  # compressed / original, mean over batch sizes
    failed: tuple[str, ...] = ()  # of each gate that failed a sentence; or why it is impossible
    repeated: bool = False  # another trial led to the same plan; nothing was measured again
    seconds: float = 0.0

    @property
    def measured(self) -> bool:
        """Whether time was spent on measuring it."""
        return self.verdict != "impossible" and not self.repeated


def next_keep(trials: Sequence[Trial], search: Search, start: float) -> float | None:
    """The share to try next; None: there is nothing left to find out.

    Args:
        trials: what was tried.
        search: its range and tolerance.
        start: what to try first.
    """
    if not trials:
        return _digits(start)
    tried = {trial.keep for trial in trials}
    lower, upper = limits(trials)
    if upper is None:
        return None if search.high in tried else search.high
    if lower is None:
        return None if search.low in tried or upper.keep <= search.low else search.low
    if upper.keep / lower.keep > 1 + search.tolerance:
        middle = _digits(math.sqrt(lower.keep * upper.keep))
        return None if middle in tried else middle
    return _below(trials, search, lower, upper)


def limits(trials: Sequence[Trial]) -> tuple[Trial | None, Trial | None]:
    """The largest that is too small, and the smallest above it that is not."""
    enough = [trial for trial in trials if trial.verdict in ("passes", "large")]
    upper = min(enough, key=lambda trial: trial.keep, default=None)
    least = math.inf if upper is None else upper.keep
    short = [trial for trial in trials if trial.keep < least]
    return max(short, key=lambda trial: trial.keep, default=None), upper


def _below(trials: Sequence[Trial], search: Search, lower: Trial, upper: Trial) -> float | None:
    """One more, a step below the limit: noise may have made the largest too small fail."""
    step = (1 + search.tolerance) ** 2
    there = _digits(lower.keep / step)
    if upper.verdict != "passes" or lower.verdict != "small" or there < search.low:
        return None
    near = any(lower.keep / step**1.5 <= trial.keep < lower.keep for trial in trials)
    return None if near else there


def _digits(share: float) -> float:
    return float(f"{share:.4g}")


def steps_left(trials: Sequence[Trial], search: Search) -> int:
    """About how many more have to be measured, at most."""
    left = search.steps - sum(trial.measured for trial in trials)
    lower, upper = limits(trials)
    low = search.low if lower is None else lower.keep
    high = search.high if upper is None else upper.keep
    halvings = math.log(max(high / low, 1.0)) / math.log1p(search.tolerance)
    needed = math.ceil(math.log2(halvings)) if halvings > 1 else 0
    return max(0, min(left, needed))


def chosen(trials: Sequence[Trial], search: Search) -> Trial | None:
    """The smallest or the fastest that passes; where none does, the one that fails least.

    None: no budget was possible.
    """
    passing = [trial for trial in trials if trial.verdict == "passes"]
    if search.objective == "fastest":
        best = min(passing, key=lambda t: (t.speed or math.inf, t.keep), default=None)
    else:
        best = min(passing, key=lambda t: t.keep, default=None)
    if best is not None:
        return best
    possible = [trial for trial in trials if trial.verdict != "impossible"]
    return min(possible, key=lambda t: (len(t.failed), -t.keep), default=None)


def points_of(trials: Sequence[Trial], unit: str, taken: Trial) -> list[Point]:
    """Every different plan that was measured, by rising budget, with those marked that none beats.

    Args:
        trials: what was tried.
        unit: of the budgets.
        taken: the trial that the bundle is made of.
    """
    plans: dict[str, Trial] = {}
    for trial in trials:
        if trial.verdict != "impossible" and (trial.plan not in plans or trial == taken):
            plans[trial.plan] = trial
    ordered = sorted(plans.values(), key=lambda trial: trial.keep)
    return [
        Point(
            budget=trial.budget,
            unit=unit,
            values=dict(trial.values),
            loss=trial.loss,
            passed=trial.verdict == "passes",
            failed=list(trial.failed),
            efficient=not any(_beats(other, trial) for other in ordered),
            chosen=trial.plan == taken.plan,
        )
        for trial in ordered
    ]


def _beats(one: Trial, other: Trial) -> bool:
    """Whether it is better in size or in a metric, and nowhere worse."""
    mine, theirs = _goods(one), _goods(other)
    no_worse = all(a >= b for a, b in zip(mine, theirs, strict=True))
    return no_worse and mine != theirs


def _goods(trial: Trial) -> tuple[float, ...]:
    """Of which more is better; without an accuracy gate the predicted loss speaks for accuracy."""
    quality = tuple(trial.quality[name] for name in sorted(trial.quality)) or (-trial.loss,)
    return (-trial.values["size_bytes"], *quality)
