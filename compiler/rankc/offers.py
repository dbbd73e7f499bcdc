"""What a site could become: a candidate, and the points of it that a plan may choose among."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rankc import reasons
from rankc.errors import RecipeError
from rankc.graph import Readers
from rankc.knapsack_points import Floats, Ints, Offer
from rankc.passbase import Curve, Dense, Site, Times
from rankc.recipe import Planning, Unit

DENSE = -1  # in place of an entry of the curve
MOST_SLOW = 2  # forms that may lose time at a site before it is left dense
PARTS: dict[Unit, float] = {"ms": 1e6}  # times are planned in whole nanoseconds: sums are exact


def parts(unit: Unit) -> float:
    """How many parts that are planned with a unit has."""
    return PARTS.get(unit, 1.0)


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """A site with everything it could become."""

    site: Site
    dense: Dense
    curve: Curve
    forced: int | None = None  # leaves no choice but that rank
    read_by: Readers | None = None  # what a decoder at the site would be folded into
    times: Times | None = None  # on the target; ranks that are not faster than dense are no choice
    alone: bool = False  # no budget decides: the pass's own rank, or dense
    # forms that were timed and gained too little: no choice; nothing is, once they are `MOST_SLOW`
    slow: tuple[str, ...] = ()

    def costs(self, unit: Unit) -> tuple[float, Floats]:
        """Of the site left dense, and at every entry of the curve, in the finished model.

        Every unit of rank keeps its columns in the layers that read the site alive.

        Raises:
            RecipeError: milliseconds are asked for, and nobody measured them.
        """
        if unit == "ms":
            return self._milliseconds()
        name = "size_bytes" if unit == "bytes" else unit
        dense, ranked = float(getattr(self.dense, name)), getattr(self.curve, name) * 1.0
        if unit == "macs" or self.read_by is None or self.curve.decoder is None:
            return dense, ranked
        scalar, columns = (4 if unit == "bytes" else 1), self.read_by.columns
        folded = self.curve.ranks * columns - self.curve.decoder * self.read_by.linear
        return dense + scalar * columns * self.site.shape[1], ranked + scalar * folded

    def _milliseconds(self) -> tuple[float, Floats]:
        if self.times is None:
            raise RecipeError(
                f"budget: ms: there are no times for site '{self.site.name}' "
                f"({self.site.pass_name}); measure the model's layers with `rankc profile`, or add "
                "the site to the pass's `ignore`"
            )
        return self.times.dense, self.times.ranked

    def entry(self, rank: int, form: str = "") -> int:
        """Where on the curve a choice stands."""
        at = np.flatnonzero(self.curve.ranks == rank)
        return next(int(k) for k in at if self.curve.form(int(k)) == form)


@dataclasses.dataclass(frozen=True, slots=True)
class Offered:
    """The points of a candidate, in whole parts of the limited units."""

    candidate: Candidate
    dense: Floats  # (units,): what it costs left alone
    offer: Offer
    entries: Ints  # of each point, its place on the curve, or DENSE
    only_dense: str  # why there is no other point; empty: there is one

    @classmethod
    def of(cls, candidate: Candidate, units: Sequence[Unit], planning: Planning) -> Offered:
        """Dense, and every rank that is cheaper in some unit, faster, and allowed."""
        curve, times = candidate.curve, candidate.times
        both = [(parts(unit), *candidate.costs(unit)) for unit in units]
        dense = np.array([np.rint(scale * one) for scale, one, _ in both])
        ranked = np.column_stack([np.rint(scale * each) for scale, _, each in both])
        if candidate.forced is not None:
            at = _forced(curve, candidate.forced)
            return cls(candidate, dense, Offer(ranked[at], curve.loss[at]), at, "")
        left = _allowed(curve, planning)
        why = "" if left.any() else reasons.no_rank()
        left &= (ranked < dense).any(axis=1)
        why = why or ("" if left.any() else reasons.none_cheaper(units))
        if candidate.alone and curve.own is not None:
            left &= (np.arange(len(left)) == curve.own) & (curve.macs <= candidate.dense.macs)
            why = why or ("" if left.any() else reasons.own_pays_not(int(curve.ranks[curve.own])))
        if times is not None and times.dense > 0:
            left &= times.ranked < times.dense
            why = why or ("" if left.any() else reasons.none_faster(times.dense, times.measured))
        if candidate.slow:
            tried = len(candidate.slow) < MOST_SLOW
            left &= [tried and curve.form(k) not in candidate.slow for k in range(len(left))]
            why = why or ("" if left.any() else reasons.slower_here(candidate.slow))
        at = np.flatnonzero(left)
        offer = Offer(np.vstack([dense, ranked[at]]), np.append(0.0, curve.loss[at]))
        return cls(candidate, dense, offer, np.append(DENSE, at), why)

    def full_rank(self, at: int) -> int:
        """The largest rank of the form that an entry has."""
        return int(_full_ranks(self.candidate.curve)[at])

    def name(self, point: int) -> str:
        """What it would become, in words."""
        at, curve = int(self.entries[point]), self.candidate.curve
        form = "" if at == DENSE else curve.form(at)
        return "dense" if at == DENSE else f"rank {curve.ranks[at]}{form and f' as {form}'}"

    def step(self, here: int, there: int, unit: Unit) -> reasons.Step:
        """From one point to another, in the first unit."""
        costs, loss = self.offer.costs[:, 0], self.offer.loss
        cost = float(abs(costs[there] - costs[here])) / parts(unit)
        return reasons.Step(self.name(there), unit, cost, float(abs(loss[there] - loss[here])))

    def next_up(self, here: int) -> int | None:
        """The cheapest point that costs more, in the first unit, and loses less."""
        costs, loss = self.offer.costs[:, 0], self.offer.loss
        up = np.flatnonzero((costs > costs[here]) & (loss < loss[here]))
        return int(up[np.lexsort((loss[up], costs[up]))[0]]) if len(up) else None

    def why_dense(self, dense: int, unit: Unit) -> str:
        """Why it stays as it is: the rewrite that saves most of the first unit for its loss."""
        if self.only_dense:
            return self.only_dense
        saved = self.dense[0] - self.offer.costs[1:, 0]
        best = 1 + int(np.argmax(saved / np.maximum(self.offer.loss[1:], 1e-200)))
        return reasons.left_dense(self.step(dense, best, unit))


def _forced(curve: Curve, rank: int) -> Ints:
    """Of each form the entry at that rank, or the next above, or else its last."""
    fulls = _full_ranks(curve)
    found = np.flatnonzero(curve.ranks >= np.minimum(rank, fulls))
    _, first = np.unique(_form_of(curve)[found], return_index=True)
    return found[np.sort(first)]


def _form_of(curve: Curve) -> Ints:
    """A number for the form of each entry."""
    if not curve.forms:
        return np.zeros(len(curve.ranks), np.int64)
    return np.unique(curve.forms, return_inverse=True)[1].astype(np.int64)


def _full_ranks(curve: Curve) -> Ints:
    """Of each entry the largest rank of its form."""
    form = _form_of(curve)
    fulls = np.zeros(form.max(initial=0) + 1, np.int64)
    np.maximum.at(fulls, form, curve.ranks)
    return fulls[form]


def _allowed(curve: Curve, planning: Planning) -> NDArray[np.bool_]:
    if (planning.min_rank, planning.floor, planning.cap) == (1, 0.0, 1.0):
        return np.ones(len(curve.ranks), bool)
    share = curve.ranks / _full_ranks(curve)
    inside = (share >= planning.floor) & (share <= planning.cap)
    allowed: NDArray[np.bool_] = inside & (curve.ranks >= planning.min_rank)
    return allowed
