"""The multiple-choice knapsack: one point of every class, least loss, all limits kept.

One limit. Only corners of a class's lower convex hull can be best at some price; buying the
segments of all hulls in the order of loss saved per cost is optimal at every limit that it stops at
exactly (Everett, Operations Research 1963), and the dual value at the last price bounds all else.
Several limits: the prices that make the dual value largest, and a repair.
Up to `SMALL` points, the optimum is then searched for (`knapsack_states.py`).

Above, the better of two ways to spend what the longest prefix of segments leaves is the answer: one
step to any point, or further segments, a class being done with as soon as one of its own does not
fit. At the price of the next segment, what all classes hold is least; so less than that segment
costs buys less than it saves, in whatever way. Hence more never buys less, neither from one prefix
to the next, nor within one (by induction over the classes that are done with).

Costs are whole numbers, held as floats, so that their sums are exact.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rankc.knapsack_dual import best_prices, repair
from rankc.knapsack_points import Floats, Ints, Offer, Points, lower_hull
from rankc.knapsack_states import search

SMALL = 100_000  # points that no other undercuts; above, the optimum is not searched for
CLOSE = 4_096  # segments that are put in order one by one
FURTHER = 200_000  # segments that are looked at after the longest prefix
STEPS = 1_000_000  # comparisons that filling up may take

Picked = tuple[Ints, float, bool]  # a point of each class, the bound, whether it is the optimum


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """A choice for every class."""

    picked: tuple[int, ...]  # of each offer, its point
    loss: float
    bound: float  # no choice within the limits loses less
    exact: bool  # and none loses less than this one


def solve(offers: Sequence[Offer], limits: Floats) -> Answer | None:
    """The choice of least loss whose costs are within the limits.

    Args:
        offers: the classes; costs are whole numbers.
        limits: the most that the choice may cost, (limits,).

    Returns:
        None if no choice within the limits was found. With one limit there is none then; with
        several, and more points or harder ones than can be searched, there might be.
    """
    if not offers:
        return Answer((), 0.0, 0.0, True) if (limits >= 0).all() else None
    slack = limits - np.sum([offer.costs.min(axis=0) for offer in offers], axis=0)
    if (slack < 0).any():
        return None
    tight = slack < np.sum([np.ptp(offer.costs, axis=0) for offer in offers], axis=0)
    if not tight.any():
        return _free(offers)
    points = Points.of([Offer(offer.costs[:, tight], offer.loss) for offer in offers])
    found = _one(points, slack[tight]) if tight.sum() == 1 else _several(points, slack[tight])
    if found is None:
        return None
    picked, bound, exact = found
    loss = float(points.loss[picked].sum())
    return Answer(tuple(points.source[picked].tolist()), loss, min(bound, loss), exact)


def _free(offers: Sequence[Offer]) -> Answer:
    """No limit is felt: of each class the least loss, and of equals the cheapest."""
    picked = [int(np.lexsort((*o.costs.T[::-1], o.loss))[0]) for o in offers]
    loss = float(sum(o.loss[k] for o, k in zip(offers, picked, strict=True)))
    return Answer(tuple(picked), loss, loss, True)


def _one(points: Points, slack: Floats) -> Picked | None:
    segments = _Segments.of(points)
    picked, left, bought = segments.prefix(float(slack[0]))
    price = float(segments.saved[~bought].max(initial=0.0))
    low, _ = points.least(points.loss + price * points.costs[:, 0])
    bound = float(low.sum() - price * slack[0])
    ways = [_fill(points, picked, np.array([left]), 1), segments.skipping(bought, left)]
    if len(points.loss) > SMALL:
        return _better(points, ways), bound, False
    ways.append(_fill(points, picked, np.array([left])))
    return _refine(points, slack, np.array([price]), _better(points, ways), bound)


def _several(points: Points, slack: Floats) -> Picked | None:
    prices, start, bound = best_prices(points, slack, _alone(points, slack))
    picked = repair(points, slack, prices, start)
    if picked is not None:
        picked = _fill(points, picked, slack - points.costs[picked].sum(axis=0))
    if len(points.loss) > SMALL:
        return None if picked is None else (picked, bound, False)
    return _refine(points, slack, prices, picked, bound)


def _better(points: Points, ways: Sequence[Ints]) -> Ints:
    return min(ways, key=lambda picked: float(points.loss[picked].sum()))


def _alone(points: Points, slack: Floats) -> Floats:
    """The price of each limit if the others were not there."""
    prices = []
    for j, limit in enumerate(slack.tolist()):
        offers = [
            Offer(points.costs[first:last, j : j + 1], points.loss[first:last])
            for first, last in itertools.pairwise(points.starts.tolist())
        ]
        segments = _Segments.of(Points.of(offers))
        _, _, bought = segments.prefix(limit)
        prices.append(float(segments.saved[~bought].max(initial=0.0)))
    return np.array(prices)


def _refine(
    points: Points, slack: Floats, prices: Floats, known: Ints | None, bound: float
) -> Picked | None:
    """The optimum, or the better of what is known and what the search came across."""
    loss = np.inf if known is None else float(points.loss[known].sum())
    found = search(points, slack, prices, loss)
    picked = known if found.picked is None else found.picked
    return None if picked is None else (picked, max(bound, found.bound), found.complete)


def _fill(points: Points, picked: Ints, left: Floats, steps: int | None = None) -> Ints:
    """Take the step that saves most, to any point of any class, while one fits."""
    picked = picked.copy()
    for _ in range(STEPS // len(points.loss) + 1 if steps is None else steps):
        saved = points.loss[picked][points.owner] - points.loss
        extra = points.costs - points.costs[picked][points.owner]
        gains = np.where((extra <= left).all(axis=1), saved, 0.0)
        best = int(np.argmax(gains))
        if gains[best] <= 0:
            break
        picked[points.owner[best]], left = best, left - extra[best]
    return picked


@dataclasses.dataclass(frozen=True, slots=True)
class _Segments:
    """The segments of the lower hulls of all classes, for one limit; class after class."""

    corners: Ints  # the points on the hulls
    first: Ints  # (classes,): where the corners of each class begin
    owner: Ints  # (segments,): the class of each
    price: Floats  # (segments,)
    saved: Floats  # (segments,): per cost; falls within a class

    @classmethod
    def of(cls, points: Points) -> _Segments:
        cost, loss = points.costs[:, 0], points.loss
        hulls = [
            first + lower_hull(cost[first:last], loss[first:last])
            for first, last in itertools.pairwise(points.starts.tolist())
        ]
        corners = np.concatenate(hulls)
        cost, loss, owner = cost[corners], loss[corners], points.owner[corners]
        inside = owner[1:] == owner[:-1]
        price = np.diff(cost)[inside]
        first = np.searchsorted(owner, np.arange(len(hulls)))
        return cls(corners, first, owner[1:][inside], price, -np.diff(loss)[inside] / price)

    def picked(self, bought: NDArray[np.bool_]) -> Ints:
        """The point that each class is at."""
        counts = np.bincount(self.owner[bought], minlength=len(self.first))
        reached: Ints = self.corners[self.first + counts]
        return reached

    def prefix(self, slack: float) -> tuple[Ints, float, NDArray[np.bool_]]:
        """Buy what saves most per cost first, until a segment does not fit.

        Returns:
            The points, what is left of the slack, and which segments were bought.
        """
        bought, open_ = np.zeros(len(self.saved), bool), np.arange(len(self.saved))
        while len(open_) > CLOSE:
            sample = np.sort(self.saved[open_[:: len(open_) // 255]])
            better = self.saved[open_] >= sample[len(sample) // 2]
            if (spent := self.price[open_[better]].sum()) <= slack:
                bought[open_[better]], slack, open_ = True, slack - spent, open_[~better]
            elif better.all():
                break
            else:
                open_ = open_[better]
        order = open_[np.argsort(-self.saved[open_], kind="stable")]
        spent = np.cumsum(self.price[order])
        fits = int(np.searchsorted(spent, slack, side="right"))
        bought[order[:fits]] = True
        return self.picked(bought), slack - float(spent[fits - 1] if fits else 0.0), bought

    def skipping(self, bought: NDArray[np.bool_], left: float) -> Ints:
        """Go on from a prefix; a class is done with once one of its segments does not fit."""
        bought, open_ = bought.copy(), np.flatnonzero(~bought)
        if len(open_) > FURTHER:
            saved = self.saved[open_]
            open_ = open_[saved >= np.partition(saved, len(saved) - FURTHER)[-FURTHER]]
        order = open_[np.argsort(-self.saved[open_], kind="stable")]
        prices, owners = self.price[order], self.owner[order].tolist()
        cheapest = np.minimum.accumulate(prices[::-1])[::-1].tolist()  # of those to come
        done: set[int] = set()
        for place, (owner, price) in enumerate(zip(owners, prices.tolist(), strict=True)):
            if cheapest[place] > left:
                break
            if owner not in done and price <= left:
                bought[order[place]], left = True, left - price
            else:
                done.add(owner)
        return self.picked(bought)
