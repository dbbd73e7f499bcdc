"""Plan, rewrite, weigh, and plan again until the finished model fits the budget.

A plan predicts the size of what it leads to; the exact passes then fold, group and share, so the
file is a few kilobytes off. What the file weighs more than predicted goes into the next plan as a
fixed cost. Two or three rounds settle it; the plan is pure arithmetic and a rewrite takes well
under a second.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from rankc.errors import RecipeError
from rankc.passbase import CalibrationStats, ExactPass, Pass, Site, Skip
from rankc.planning import Candidate, Plan, Unit, make_plan

ROUNDS = 8
TRUSTED = 2  # overruns that are put down to what a plan could not know; then it is held shorter
SETTLED = 0.002  # of the budget may be left unused

Solutions = Mapping[Site, Any]  # what the owning pass made of each site
Weigh = Callable[[ir.Model], int]  # bytes of the file, or parameters


@dataclasses.dataclass(frozen=True, slots=True)
class Sites:
    """Where the closed-form passes can act, which pass owns each site, and where they refused."""

    owners: Mapping[Site, Pass]
    skips: tuple[Skip, ...]

    @classmethod
    def of(cls, model: ir.Model, passes: Sequence[Pass]) -> Sites:
        """Ask every pass; a name is taken by the first pass that wants it.

        Raises:
            RecipeError: the targets of a pass match nothing at all.
        """
        owners: dict[Site, Pass] = {}
        skips: list[Skip] = []
        for pass_ in passes:
            found = list(pass_.match(model))
            if not found:
                raise RecipeError(
                    f"passes.{pass_.name}: targets {list(pass_.targets)} with ignore "
                    f"{list(pass_.ignore)} match nothing in the model; `rankc inspect` lists names"
                )
            taken = {site.name for site in owners}
            owners |= {s: pass_ for s in found if isinstance(s, Site) and s.name not in taken}
            skips += [s for s in found if isinstance(s, Skip)]
        return cls(owners, tuple(skips))


def solve(model: ir.Model, sites: Sites, stats: CalibrationStats) -> Solutions:
    """Decompose every site, once for all ranks."""
    return {site: p.solve(model, site, stats[site]) for site, p in sites.owners.items()}


def candidates(model: ir.Model, sites: Sites, solutions: Solutions) -> list[Candidate]:
    """What every site could become."""
    return [
        Candidate(
            site,
            pass_.dense(model, site),
            pass_.cost(site, solutions[site]),
            pass_.rank,
            pass_.read_by(model, site),
        )
        for site, pass_ in sites.owners.items()
    ]


def _reread(
    offers: Sequence[Candidate], model: ir.Model, plan: Plan, sites: Sites, solutions: Solutions
) -> list[Candidate]:
    """The same offers, but what is folded is folded into the layers as this plan leaves them."""
    folding = {o.site.name for o in offers if o.read_by is not None}
    layers = tuple(c for c in plan.choices if c.site not in folding)
    rewritten = apply(model, dataclasses.replace(plan, choices=layers), sites, solutions)
    return [
        dataclasses.replace(o, read_by=sites.owners[o.site].read_by(rewritten, o.site))
        for o in offers
    ]


def finish(model: ir.Model, exact: Iterable[ExactPass]) -> ir.Model:
    """A copy with everything folded that the exact passes can fold."""
    finished = model.clone()
    for pass_ in exact:
        pass_.finish(finished)
    return finished


def apply(model: ir.Model, plan: Plan, sites: Sites, solutions: Solutions) -> ir.Model:
    """A copy with every choice of the plan carried out."""
    rewritten = model.clone()
    ranks = {(c.pass_name, c.site): c.rank for c in plan.choices}
    for site, pass_ in sites.owners.items():
        if rank := ranks.get((site.pass_name, site.name)):
            pass_.rewrite(rewritten, site, rank, solutions[site])
    return rewritten


def fit(
    model: ir.Model,
    sites: Sites,
    stats: CalibrationStats,
    exact: Sequence[ExactPass],
    weigh: Weigh,
    *,
    budget: int | None,
    unit: Unit,
) -> tuple[Plan, ir.Model]:
    """The plan of least predicted loss whose finished model weighs no more than the budget.

    Raises:
        RecipeError: no plan fits.
    """
    solutions = solve(model, sites, stats)
    offers = candidates(model, sites, solutions)
    fixed = weigh(finish(model, exact)) - sum(o.costs(unit)[0] for o in offers)
    best: tuple[Plan, ir.Model] | None = None
    overruns, smallest = 0, math.inf
    for _ in range(ROUNDS):
        plan, possible = _plan(offers, sites.skips, budget, unit, fixed)
        finished = finish(apply(model, plan, sites, solutions), exact)
        weight = weigh(finished)
        fits = budget is None or weight <= budget
        if fits and (best is None or plan.loss < best[0].loss):
            best = dataclasses.replace(plan, planned=weight), finished
        if budget is None or (fits and weight >= budget * (1 - SETTLED)):
            break
        if not possible and weight >= smallest:
            break
        smallest = min(smallest, weight)
        offers = _reread(offers, model, plan, sites, solutions)
        fixed = weight - sum(_cost_of(o, plan, unit) for o in offers)
        overruns += not fits
        if not fits and overruns > TRUSTED:
            fixed += (weight - budget) * (overruns - TRUSTED)
    if best is None:
        raise RecipeError(
            f"budget: {budget:,} {unit} cannot be met: the smallest these passes can make of the "
            f"model takes {smallest:,.0f}; raise the budget or widen their targets"
        )
    return best


def _plan(
    offers: Sequence[Candidate], skips: Sequence[Skip], budget: int | None, unit: Unit, fixed: int
) -> tuple[Plan, bool]:
    """The plan for the budget, or else the cheapest one, and whether it is expected to fit."""
    try:
        return make_plan(offers, skips, budget=budget, unit=unit, fixed=fixed), True
    except RecipeError:  # what the finished model really takes is still to be seen
        cheapest = make_plan(offers, skips, budget=None, unit=unit, fixed=fixed)
        return dataclasses.replace(cheapest, budget=budget), False


def _cost_of(offer: Candidate, plan: Plan, unit: Unit) -> int:
    """What the plan's choice for a site costs, by this offer."""
    dense, ranked = offer.costs(unit)
    ranks = [c.rank for c in plan.choices if c.site == offer.site.name]
    return int(ranked[offer.curve.ranks.searchsorted(ranks[0])]) if ranks else dense
