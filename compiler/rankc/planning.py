"""Choose a rank for every site so that the budget holds and the predicted damage is least.

Each site offers points (cost, loss): left dense, or rewritten at some rank. Only the lower convex
hull of a site can be best for some price of a byte; walking the segments of all hulls in the order
of loss saved per unit of cost is optimal at every budget that the walk stops at exactly (Lagrange;
Everett 1963). What is left of the budget is filled greedily with any point that fits. The dual
value at the last price bounds what any plan could reach, so a plan states how far from it it is.
Numbers only: no ONNX here.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rankc.errors import RecipeError
from rankc.graph import Readers
from rankc.passbase import Curve, Dense, Site, Skip

Unit = Literal["bytes", "parameters"]


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """A site with everything it could become."""

    site: Site
    dense: Dense
    curve: Curve
    forced: int | None = None  # leaves no choice but that rank
    read_by: Readers | None = None  # what a decoder at the site would be folded into

    def costs(self, unit: Unit) -> tuple[int, NDArray[np.int64]]:
        """Of the site left dense, and at every rank, in the finished model.

        Every unit of rank keeps its columns in the layers that read the site alive.
        """
        name = "size_bytes" if unit == "bytes" else "parameters"
        dense, ranked = int(getattr(self.dense, name)), getattr(self.curve, name)
        if self.read_by is None or self.curve.decoder is None:
            return dense, ranked
        scalar, columns = (4 if unit == "bytes" else 1), self.read_by.columns
        folded = self.curve.ranks * columns - self.curve.decoder * self.read_by.linear
        return dense + scalar * columns * self.site.shape[1], ranked + scalar * folded


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """One rewrite, decided. All figures are predictions, read off the curve at `rank`."""

    pass_name: str
    site: str
    shape: tuple[int, int]
    rank: int
    form: str  # what it is emitted as; empty: the pass has one form only
    full_rank: int
    error: float  # share of the variance of the site's output that is lost
    loss: float  # expected squared change of the logit
    parameters: int
    macs: int
    size_bytes: int
    dense_parameters: int
    dense_macs: int
    dense_size_bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """Pure data: print it, diff it, then apply it."""

    choices: tuple[Choice, ...]
    skips: tuple[Skip, ...]
    unit: Unit
    budget: int | None  # for the whole model, in `unit`
    planned: int  # what the whole model is predicted to cost
    loss: float  # sum over the choices
    bound: float  # no plan within the budget loses less, by the same predictions

    @property
    def gap(self) -> float:
        """How far from optimal the plan can be at most: 0.01 is one per cent."""
        return 0.0 if self.loss <= 0 else (self.loss - self.bound) / self.loss

    def to_json(self) -> str:
        """plan.json: sorted keys, the same bytes for the same plan."""
        fields: dict[str, Any] = dataclasses.asdict(self) | {"format": 1, "gap": self.gap}
        return json.dumps(fields, indent=2, sort_keys=True) + "\n"


@dataclasses.dataclass(frozen=True, slots=True)
class _Point:
    cost: int
    loss: float
    index: int | None  # into the curve; None: dense


def make_plan(
    candidates: Sequence[Candidate],
    skips: Sequence[Skip],
    *,
    budget: int | None,
    unit: Unit = "bytes",
    fixed: int = 0,
) -> Plan:
    """The plan of least predicted loss whose cost, `fixed` included, is within `budget`.

    Without a budget every candidate has to be forced to a rank.

    Raises:
        RecipeError: no plan fits the budget; says what the smallest would take.
    """
    offers = [_points(candidate, unit) for candidate in candidates]
    picked = [min(offer, key=lambda p: (p.cost, p.loss)) for offer in offers]
    spent = fixed + sum(point.cost for point in picked)
    bound = sum(point.loss for point in picked)
    if budget is not None:
        if spent > budget:
            raise RecipeError(
                f"budget: {budget:,} {unit} cannot be met: the smallest these passes can make of "
                f"the model takes {spent:,}; raise the budget or widen their targets"
            )
        picked, bound = _walk(offers, picked, budget - spent)
    return _assemble(candidates, picked, skips, unit, budget, fixed, bound)


def _points(candidate: Candidate, unit: Unit) -> list[_Point]:
    """What a site may become, cheapest first: dense, and every rank that costs less than dense."""
    curve, (unchanged, cost) = candidate.curve, candidate.costs(unit)
    dense = _Point(unchanged, 0.0, None)
    if candidate.forced is not None:
        at = min(int(curve.ranks.searchsorted(candidate.forced)), len(curve.ranks) - 1)
        return [_Point(int(cost[at]), float(curve.loss[at]), at)]
    ranked = [_Point(int(c), float(curve.loss[i]), i) for i, c in enumerate(cost)]
    return sorted([p for p in ranked if p.cost < dense.cost] + [dense], key=lambda p: p.cost)


def _hull(points: Sequence[_Point]) -> list[_Point]:
    """The lower convex hull, from the cheapest point on: loss falls ever slower."""
    hull: list[_Point] = []
    for point in points:
        if hull and point.loss >= hull[-1].loss:
            continue
        while hull and point.cost == hull[-1].cost:
            hull.pop()
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _slope(a: _Point, b: _Point) -> float:
    return (a.loss - b.loss) / (b.cost - a.cost)


def _walk(
    offers: Sequence[Sequence[_Point]], start: Sequence[_Point], slack: int
) -> tuple[list[_Point], float]:
    """Buy hull segments by loss saved per cost, then fill up; also the dual bound on the loss."""
    picked, bound = list(start), sum(p.loss for p in start)
    for saved_per_cost, k, point in _segments(offers):
        price = point.cost - picked[k].cost
        if price > slack:
            bound -= saved_per_cost * slack  # the bound may buy a fraction of a segment
            break
        bound -= picked[k].loss - point.loss
        picked[k], slack = point, slack - price
    return _fill(offers, picked, slack), max(bound, 0.0)


def _segments(offers: Sequence[Sequence[_Point]]) -> list[tuple[float, int, _Point]]:
    """(loss saved per cost, which site, where it leads) of every hull segment, best first."""
    found = [
        (_slope(a, b), k, b)
        for k, offer in enumerate(offers)
        for hull in [_hull(offer)]
        for a, b in itertools.pairwise(hull)
    ]
    return sorted(found, key=lambda s: (-s[0], s[1], s[2].cost))


def _fill(offers: Sequence[Sequence[_Point]], picked: list[_Point], slack: int) -> list[_Point]:
    """Spend what is left on the step that saves most, any point of any site, while one fits."""
    while True:
        steps = [
            (picked[k].loss - point.loss, -point.cost, -k, point)
            for k, offer in enumerate(offers)
            for point in offer
            if point.cost - picked[k].cost <= slack and point.loss < picked[k].loss
        ]
        if not steps:
            return picked
        _, _, last, point = max(steps, key=lambda step: step[:3])  # of equals the first site's
        slack -= point.cost - picked[-last].cost
        picked[-last] = point


def _assemble(
    candidates: Sequence[Candidate],
    picked: Sequence[_Point],
    skips: Sequence[Skip],
    unit: Unit,
    budget: int | None,
    fixed: int,
    bound: float,
) -> Plan:
    choices, kept = [], []
    for candidate, point in zip(candidates, picked, strict=True):
        site, curve, dense, at = candidate.site, candidate.curve, candidate.dense, point.index
        if at is None:
            kept.append(Skip(site.pass_name, site.name, "left dense: no rank pays at this budget"))
            continue
        choices.append(
            Choice(
                site.pass_name,
                site.name,
                site.shape,
                int(curve.ranks[at]),
                curve.form(at),
                site.full_rank,
                float(curve.error[at]),
                float(curve.loss[at]),
                int(curve.parameters[at]),
                int(curve.macs[at]),
                int(curve.size_bytes[at]),
                dense.parameters,
                dense.macs,
                dense.size_bytes,
            )
        )
    planned = fixed + sum(point.cost for point in picked)
    loss = sum(point.loss for point in picked)
    return Plan(tuple(choices), (*skips, *kept), unit, budget, planned, loss, min(bound, loss))
