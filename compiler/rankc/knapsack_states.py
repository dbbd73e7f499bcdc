"""Exact search of a multiple-choice knapsack: dynamic programming in a narrow band of states.

Prices give every point a reduced cost, rho = loss + prices · costs - the least of its class, and
the problem a dual value D. A choice within the limits loses D + the sum of its rhos + prices · what
it leaves unspent. One that loses at most D + width has therefore no point with rho > width, and no
part whose rhos add up to more. Neither has it a part from which, at any other prices, the dual
value of the classes to come leads beyond. The band starts narrow and widens to what is known to be
reachable; the first band that holds a choice holds the best one of all. Of parts that end at the
same class, those that another undercuts in every cost and in loss are dropped (after Pisinger,
EJOR 83, 1995).
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from rankc.knapsack_points import Floats, Ints, Points, undominated

BANDS = tuple(2.0 ** (-k / 2) for k in range(18, -1, -1))  # of the distance to what is known
STATES = 20_000  # parts that are kept from one class to the next
WORK = 1_000_000  # parts that are looked at in one band, about
LEAST = 2_000  # of them at any class, however much went before
ROUNDING = 1e-12
TINY = 1e-200
# Other prices that parts are judged by, as multiples of the best ones; with more limits, fewer.
MULTIPLES = {
    1: (0.0, 0.5, 0.8, 0.9, 0.95, 1.05, 1.1, 1.25, 2.0, 5.0),
    2: (0.0, 0.5, 0.8, 0.9, 1.0, 1.1, 1.25, 2.0),
    3: (0.0, 0.8, 1.0, 1.25),
}
FEW = (0.0, 1.0, 1.5)


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """What a search came to."""

    picked: Ints | None  # the point of each class; None: nothing that loses less than the known
    bound: float  # no choice within the limits loses less
    complete: bool  # nothing was left out: what was not found does not exist


def search(points: Points, slack: Floats, prices: Floats, known: float) -> Found:
    """The choice of least loss within the limits, if there is one that loses less than `known`.

    Args:
        points: of all classes.
        slack: what may be spent above the cheapest point of every class, (limits,).
        prices: of one unit of each limit, not negative; good ones make it quick.
        known: loss of a choice that was found already; infinite if there is none.
    """
    rho = points.loss + points.costs @ prices
    low, _ = points.least(rho)
    rho -= low[points.owner]
    bound = dual = float(low.sum() - prices @ slack)
    blind = not np.isfinite(known)
    worst = float(np.maximum.reduceat(points.loss, points.starts[:-1]).sum()) if blind else known
    noise = ROUNDING * float(np.abs(low).sum() + prices @ slack + abs(worst))
    room = worst - dual + (2 * noise + TINY if blind else 0.0)  # blind, the worst is wanted, too
    if room <= noise:
        return Found(None, dual, True)
    for share in BANDS:
        picked, complete = _Band(points, slack, prices, rho, low, share * room + noise).sweep()
        if picked is None and not complete and share < 1:  # come across something farther out
            picked, _ = _Band(points, slack, prices, rho, low, room + noise).sweep()
        loss = np.inf if picked is None else float(points.loss[picked].sum())
        if not complete or picked is not None:
            proven = min(loss, known) if complete else bound
            return Found(picked if loss < known else None, proven, complete)
        bound = dual + share * room
    return Found(None, min(bound, known), True)


@dataclasses.dataclass(frozen=True, slots=True)
class _States:
    """Choices for the first few classes, in the order of their reduced costs."""

    costs: Floats  # (states, limits)
    loss: Floats  # (states,)
    rho: Floats  # (states,), rising
    parent: Ints  # which choice for the classes before it extends
    point: Ints  # by which point

    def at(self, places: Ints) -> _States:
        """Those at the places."""
        names = [field.name for field in dataclasses.fields(self)]
        return _States(*(getattr(self, name)[places] for name in names))


@dataclasses.dataclass(frozen=True, slots=True)
class _Ahead:
    """What the classes after one will add."""

    least: Floats  # cost at the least, (limits,)
    duals: Floats  # loss + prices · costs at the least, at each of the other prices


@dataclasses.dataclass(frozen=True, slots=True)
class _Band:
    """All choices whose reduced costs add up to `width` at most."""

    points: Points
    slack: Floats
    prices: Floats
    rho: Floats
    low: Floats  # of each class
    width: float

    @property
    def target(self) -> float:
        """The most that a choice in the band can lose."""
        return float(self.low.sum() - self.prices @ self.slack) + self.width

    def others(self) -> Floats:
        """Other prices, (some, limits)."""
        each = MULTIPLES.get(len(self.prices), FEW)
        return np.array(list(itertools.product(each, repeat=len(self.prices)))) * self.prices

    def sweep(self) -> tuple[Ints | None, bool]:
        """The choice of least loss, None if there is none, and whether nothing was left out."""
        kept = np.flatnonzero(self.rho <= self.width)
        band = dataclasses.replace(self, points=self.points.only(kept), rho=self.rho[kept])
        sizes = np.diff(band.points.starts)
        order = band._order(sizes)
        states, trail, complete, work = band._settled(sizes == 1), [], True, WORK
        for k, ahead in zip(order, band._ahead(order), strict=True):
            states, looked, whole = band._grow(states, k, ahead, max(LEAST, work // 2))
            complete, work = complete and whole, work - looked
            if not len(states.loss):
                return None, complete
            trail.append(states)
        inside = (states.costs[0] <= self.slack).all() and states.loss[0] <= self.target
        if not order and not inside:  # every class has one point left: nobody looked yet
            return None, complete
        picked = band.points.starts[:-1].copy()
        at = int(np.lexsort((states.costs[:, 0], states.loss))[0])
        for k, layer in zip(reversed(order), reversed(trail), strict=True):
            picked[k], at = layer.point[at], layer.parent[at]
        return kept[picked], complete

    def _order(self, sizes: Ints) -> list[int]:
        """The classes with a choice left, those that move the cost most first."""
        starts, worth = self.points.starts[:-1], self.points.costs @ self.prices
        move = np.maximum.reduceat(worth, starts) - np.minimum.reduceat(worth, starts)
        return [int(k) for k in np.argsort(-move, kind="stable") if sizes[k] > 1]

    def _settled(self, single: Ints) -> _States:
        """The one choice for the classes that have one point left."""
        at = self.points.starts[:-1][single]
        costs, loss = self.points.costs[at].sum(axis=0), self.points.loss[at].sum()
        none = np.zeros(1, np.int64)
        rho = loss + costs @ self.prices - self.low[single].sum()
        return _States(costs[None], np.array([loss]), np.array([rho]), none, none)

    def _ahead(self, order: list[int]) -> list[_Ahead]:
        """For each class in turn, what those after it will add."""
        starts = self.points.starts[:-1]
        least = np.minimum.reduceat(self.points.costs, starts)[order]
        worth = self.points.loss[:, None] + self.points.costs @ self.others().T
        duals = np.minimum.reduceat(worth, starts)[order]
        behind = [each[::-1].cumsum(axis=0)[::-1] - each for each in (least, duals)]
        return [_Ahead(*each) for each in zip(*behind, strict=True)]

    def _grow(self, states: _States, k: int, ahead: _Ahead, room: int) -> tuple[_States, int, bool]:
        """Extend every state by every point of class k that keeps it in the band and the limits."""
        own = np.arange(self.points.starts[k], self.points.starts[k + 1])
        ends = np.searchsorted(states.rho, self.width - self.rho[own], side="right")
        whole = int(ends.sum()) <= room
        if not whole:
            ends = np.minimum(ends, max(room // len(own), 1))
        looked = int(ends.sum())
        point = np.repeat(own, ends)
        parent = np.arange(looked) - np.repeat(np.cumsum(ends) - ends, ends)
        costs = states.costs[parent] + self.points.costs[point]
        loss = states.loss[parent] + self.points.loss[point]
        rho = states.rho[parent] + self.rho[point]
        fits = np.flatnonzero((costs + ahead.least <= self.slack).all(axis=1))
        found = _States(costs, loss, rho, parent, point).at(fits)
        if len(fits):
            found = found.at(undominated(found.costs, found.loss))
        bound = self._bound(found, ahead)
        promising = np.flatnonzero(bound <= self.target)
        if len(promising) > STATES:
            order = np.argsort(bound[promising], kind="stable")
            promising, whole = promising[order[:STATES]], False
        found = found.at(promising)
        return found.at(np.argsort(found.rho, kind="stable")), looked, whole

    def _bound(self, states: _States, ahead: _Ahead) -> Floats:
        """The least that any choice which extends a state loses, by the most telling prices."""
        left, best = self.slack - states.costs, np.full(len(states.loss), -np.inf)
        for prices, dual in zip(self.others(), ahead.duals, strict=True):
            np.maximum(best, dual - left @ prices, out=best)
        bound: Floats = best + states.loss
        return bound
