"""Points of a multiple-choice knapsack: laid flat, without what cannot be best, and their hulls."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

RIVALS = 32  # with several limits a point is held against so many of the strongest others


@dataclasses.dataclass(frozen=True, slots=True)
class Offer:
    """A class: one of its points has to be taken."""

    costs: Floats  # (points, limits)
    loss: Floats  # (points,)


@dataclasses.dataclass(frozen=True, slots=True)
class Points:
    """The points of all classes, one class after another, costs above the cheapest of the class."""

    costs: Floats  # (points, limits); 0 is the cheapest of the class in that unit
    loss: Floats  # (points,)
    starts: Ints  # (classes + 1,): class k is starts[k]:starts[k + 1]
    owner: Ints  # (points,): the class of each
    source: Ints  # (points,): its place in the offer that it came from

    @classmethod
    def of(cls, offers: Sequence[Offer]) -> Points:
        """Everything that could be part of an optimal choice."""
        kept = [undominated(offer.costs, offer.loss) for offer in offers]
        sizes = np.array([len(one) for one in kept], np.int64)
        costs = [o.costs[k] - o.costs.min(axis=0) for o, k in zip(offers, kept, strict=True)]
        return cls(
            np.concatenate(costs),
            np.concatenate([o.loss[k] for o, k in zip(offers, kept, strict=True)]),
            np.concatenate([[0], np.cumsum(sizes)]),
            np.repeat(np.arange(len(offers)), sizes),
            np.concatenate(kept),
        )

    def least(self, values: Floats) -> tuple[Floats, Ints]:
        """The least value of each class, and which point (the first of equals) has it."""
        low = np.minimum.reduceat(values, self.starts[:-1])
        hits = np.flatnonzero(values == low[self.owner])
        return low, hits[np.searchsorted(self.owner[hits], np.arange(len(low)))]

    def only(self, kept: Ints) -> Points:
        """These points alone, given in rising order; every class needs one."""
        owner = self.owner[kept]
        starts = np.searchsorted(owner, np.arange(len(self.starts)))
        return Points(self.costs[kept], self.loss[kept], starts, owner, self.source[kept])


def undominated(costs: Floats, loss: Floats) -> Ints:
    """Places of the points that no other undercuts, cheapest first.

    With one limit those are all such points, costs rising and loss falling strictly. With several,
    a few that are undercut may be left in.
    """
    order = np.argsort(costs[:, 0], kind="stable")  # ranks of each form rise: quick to merge
    steps = np.diff(costs[order], axis=0)
    if costs.shape[1] == 1 or ((steps > 0).all(axis=1) | (steps == 0).all(axis=1)).all():
        return _staircase(order, costs[order, 0], loss[order])  # dearer in one is dearer in all
    return _skyline(costs, loss)


def _staircase(order: Ints, cost: Floats, loss: Floats) -> Ints:
    lowest = np.minimum.accumulate(loss)
    steps = np.flatnonzero(np.append(True, loss[1:] < lowest[:-1]))
    last_of_equals = np.append(np.diff(cost[steps]) > 0, True)
    kept: Ints = order[steps[last_of_equals]]
    return kept


def _skyline(costs: Floats, loss: Floats) -> Ints:
    axes = np.column_stack([costs, loss])
    span = np.ptp(axes, axis=0)
    share = ((axes - axes.min(axis=0)) / np.where(span > 0, span, 1.0)).sum(axis=1)
    order = np.lexsort((*axes.T[::-1], share))
    axes = axes[order]
    alive = np.arange(len(order))
    for k in range(RIVALS):
        if k >= len(alive):
            break
        rival = axes[alive[k]]
        beaten = (axes[alive[k + 1 :]] >= rival).all(axis=1)
        alive = np.concatenate([alive[: k + 1], alive[k + 1 :][~beaten]])
    found = order[alive]
    return found[np.lexsort((loss[found], costs[found, 0]))]


def lower_hull(cost: Floats, loss: Floats) -> Ints:
    """Places of the corners of the lower convex hull, cheapest first.

    Costs rise and losses fall strictly. A point above the segment between any point before it and
    any after it is no corner, so all that are found so can go at once. Neighbours decide when it is
    done; farther ones are asked so that where a long stretch goes, it goes in a few rounds.
    """
    hull, rounds = np.arange(len(cost)), 0
    while len(hull) > 2:
        x, y, n = cost[hull], loss[hull], len(hull)
        slopes = -np.diff(y) / np.diff(x)
        above = slopes[:-1] <= slopes[1:]
        if not above.any():
            break
        at, reach = np.arange(1, n - 1), 1 << rounds % 12 if rounds else n
        left, right = np.maximum(at - reach, 0), np.minimum(at + reach, n - 1)
        above |= _above(x, y, at - 1, at, right) | _above(x, y, left, at, at + 1)
        hull, rounds = hull[np.concatenate([[True], ~above, [True]])], rounds + 1
    return hull


def _above(x: Floats, y: Floats, left: Ints, at: Ints, right: Ints) -> NDArray[np.bool_]:
    """Whether the slope does not flatten at a point: what it saves per cost, before and after."""
    before = (y[left] - y[at]) / (x[at] - x[left])
    after: NDArray[np.bool_] = before <= (y[at] - y[right]) / (x[right] - x[at])
    return after
