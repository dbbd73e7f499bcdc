"""Which of many things does the harm, found by trying halves of them.

v(S) is the harm while the things S are in force. What a part A of those in force, N, is to blame
for is the mean of what it does when it comes first and when it comes last,
    blame(A) = (v(A) - v({}) + v(N) - v(N without A)) / 2,
Shapley's value of A against the rest (Shapley, 1953). The part to blame for most is split, again
and again, until a single thing weighs as much as every part that is left: one culprit of n takes
about 4 log2 n evaluations; harm that is spread evenly takes about 4 n, and is seen to be spread.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections.abc import Callable, Iterator, Sequence

Harm = Callable[[frozenset[str]], float]

LEAST = 0.15  # share of the harm that is left below which nothing is called a culprit
_DIGITS = 9  # of a harm that count: what is equal but for rounding is equal


@dataclasses.dataclass(frozen=True, slots=True)
class Culprit:
    """One of the things, and what it does. Harms have the unit of v."""

    name: str
    alone: float  # v({it}) - v({}): in force by itself
    before: float  # v of those in force, it among them; culprits found before are not
    after: float  # v of the same without it

    @property
    def wins(self) -> float:
        """What leaving it out wins back."""
        return self.before - self.after


def culprits(
    harm: Harm,
    groups: Sequence[Sequence[str]],
    enough: Callable[[float], bool],
    most: int = 5,
) -> Iterator[Culprit]:
    """Those that do the harm, the worst first; each is left out while the next is looked for.

    Args:
        harm: v; asked for the same set again and again, so it should remember.
        groups: the things, in an order in which what comes earlier is named first of equals; no
            thing is in two. The groups are told apart before any is split.
        enough: whether a harm is small enough to stop.
        most: how many to name.
    """
    left = [tuple(group) for group in groups if group]
    base = harm(frozenset())
    for _ in range(most):
        everything = frozenset().union(*left)
        before = harm(everything)
        if not everything or enough(before) or before <= base:
            return
        name = _heaviest(harm, left)
        found = Culprit(name, harm(frozenset({name})) - base, before, harm(everything - {name}))
        if max(found.alone, found.wins) < LEAST * (before - base):
            return
        yield found
        left = [tuple(one for one in group if one != name) for group in left]
        left = [group for group in left if group]


def _heaviest(harm: Harm, groups: Sequence[tuple[str, ...]]) -> str:
    """The single thing that is to blame for most."""
    everything = frozenset().union(*groups)
    order = {name: k for k, name in enumerate(name for group in groups for name in group)}
    heap: list[tuple[float, int, tuple[str, ...]]] = []

    def push(part: tuple[str, ...]) -> None:
        heapq.heappush(heap, (-_blame(harm, frozenset(part), everything), order[part[0]], part))

    for group in groups:
        push(group)
    while True:
        part = heapq.heappop(heap)[2]
        middle = len(part) // 2
        if not middle:
            return part[0]
        push(part[:middle])
        push(part[middle:])


def _blame(harm: Harm, part: frozenset[str], everything: frozenset[str]) -> float:
    if part == everything:
        return math.inf  # nothing to choose from: not worth two evaluations
    first, last = harm(part) - harm(frozenset()), harm(everything) - harm(everything - part)
    return float(f"{(first + last) / 2:.{_DIGITS}g}")
