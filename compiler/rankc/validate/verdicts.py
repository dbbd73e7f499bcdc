"""Pass, fail or undecided: a limit against a number that other rows would have moved.

The 95 % interval of the number decides. If all of it keeps to the limit, so does the model; if
none of it does, the model does not; else these rows cannot tell. A model that is just at the limit
passes in one of forty draws of rows, and fails in one; a model that lost nothing fails in fewer.
"""

from __future__ import annotations

import dataclasses
import math

from rankc.validate.bootstrap import Interval
from rankc.validate.schema import GateVerdict

_DIGITS = 2  # of a number of rows
_NEVER = 1e-4  # of half the interval: nearer to the limit than this, no number of rows helps


@dataclasses.dataclass(frozen=True, slots=True)
class Ruling:
    """What is known of one gate."""

    verdict: GateVerdict
    interval: Interval | None  # of what was compared with the limit; None: it is exact
    needed: int | None  # samples that would decide at the value seen; None: it is exact, or none


def rule(
    observed: float,
    limit: float,
    interval: Interval | None,
    *,
    at_least: bool,
    samples: int | None = None,
) -> Ruling:
    """Decide one gate.

    Args:
        observed: What was measured.
        limit: The gate's value.
        interval: Of `observed`. None: it has no sampling error, and decides by itself.
        at_least: The gate asks for `limit` or more; else for no more.
        samples: How many rows, or pairs of times, the interval is made of. None: not of samples.
    """
    if interval is None:
        kept = observed >= limit if at_least else observed <= limit
        return Ruling("pass" if kept else "fail", None, None)
    worst, best = interval if at_least else (-interval[1], -interval[0])
    bound = limit if at_least else -limit
    verdict: GateVerdict = "pass" if worst >= bound else "fail" if best < bound else "undecided"
    needed = None if samples is None else samples_needed(observed, limit, interval, samples)
    if needed is not None and samples is not None and verdict != "undecided":
        needed = min(needed, samples)  # rounding up must not ask for more than did decide
    return Ruling(verdict, interval, needed)


def samples_needed(observed: float, limit: float, interval: Interval, samples: int) -> int | None:
    """How many samples would bring the end of the interval to the limit, if `observed` stays.

    An interval narrows with the root of their number: n (half / distance)^2, where half is the
    width on the side of the limit. None: at this value no number of them would.
    """
    distance = abs(observed - limit)
    half = interval[1] - observed if limit > observed else observed - interval[0]
    if half <= 0:
        return None if distance == 0 else 1
    if distance <= _NEVER * half:
        return None
    return _rounded_up(samples * (half / distance) ** 2)


def _rounded_up(count: float) -> int:
    """To two digits: 312,345 is 320,000."""
    unit: int = 10 ** max(0, math.floor(math.log10(max(count, 1))) + 1 - _DIGITS)
    return math.ceil(count / unit - 1e-9) * unit
