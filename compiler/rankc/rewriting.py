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

LEARNING = 5  # rounds in which the prices follow what the last plan weighed
BISECTIONS = 10
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
            skips += [
                Skip(s.pass_name, s.name, "an earlier pass has a site of this name")
                if isinstance(s, Site)
                else s
                for s in found
                if isinstance(s, Skip) or s.name in taken
            ]
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
    chosen = {(c.pass_name, c.site): c for c in plan.choices}
    for site, pass_ in sites.owners.items():
        if choice := chosen.get((site.pass_name, site.name)):
            pass_.rewrite(rewritten, site, choice.rank, solutions[site], choice.form)
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

    Every round learns from what the last one weighed. Where that does not settle, what the plan may
    spend is bisected, prices unchanged.

    Raises:
        RecipeError: no plan fits.
    """
    solutions = solve(model, sites, stats)
    offers = candidates(model, sites, solutions)
    fixed = weigh(finish(model, exact)) - sum(o.costs(unit)[0] for o in offers)
    search = _Search(model, sites, solutions, exact, weigh, budget, unit)
    for _ in range(LEARNING):
        plan, weight, _ = search.attempt(offers, fixed)
        if search.settled(weight):
            return search.result()
        offers = _reread(offers, model, plan, sites, solutions)
        fixed = weight - sum(_cost_of(o, plan, unit) for o in offers)
    search.bisect(offers, fixed)
    return search.result()


@dataclasses.dataclass(slots=True)
class _Search:
    """Plans that were carried out and weighed, and the best of those that fit."""

    model: ir.Model
    sites: Sites
    solutions: Solutions
    exact: Sequence[ExactPass]
    weigh: Weigh
    budget: int | None
    unit: Unit
    best: tuple[Plan, ir.Model] | None = None
    smallest: float = math.inf  # that any attempt weighed
    bound: float = math.inf  # the lowest of the plans that were held shorter by different amounts

    def attempt(self, offers: Sequence[Candidate], fixed: int) -> tuple[Plan, int, bool]:
        """Plan, rewrite, weigh: the plan, its weight, and whether it was expected to fit."""
        budget, unit, possible = self.budget, self.unit, True
        try:
            plan = make_plan(offers, self.sites.skips, budget=budget, unit=unit, fixed=fixed)
        except RecipeError:  # what the cheapest one really takes is still to be seen
            cheapest = make_plan(offers, self.sites.skips, budget=None, unit=unit, fixed=fixed)
            plan, possible = dataclasses.replace(cheapest, budget=budget), False
        finished = finish(apply(self.model, plan, self.sites, self.solutions), self.exact)
        weight = self.weigh(finished)
        self.smallest = min(self.smallest, weight)
        if self.fits(weight) and (self.best is None or plan.loss < self.best[0].loss):
            self.best = dataclasses.replace(plan, planned=weight), finished
        return plan, weight, possible

    def fits(self, weight: int) -> bool:
        return self.budget is None or weight <= self.budget

    def settled(self, weight: int) -> bool:
        """Whether a plan fits and leaves next to nothing of the budget."""
        return self.fits(weight) and weight >= (self.budget or 0) * (1 - SETTLED)

    def bisect(self, offers: Sequence[Candidate], fixed: int) -> None:
        """Hold the plan shorter, by as little as makes it fit."""
        assert self.budget is not None
        low, high, short = 0, 0, 0  # high 0: nothing is known to be short enough
        for _ in range(BISECTIONS):
            plan, weight, possible = self.attempt(offers, fixed + short)
            self.bound = min(self.bound, plan.bound)
            fits = self.fits(weight)
            if self.settled(weight) or (not short and (fits or not possible)):
                return
            low, high = (low, short) if fits or not possible else (short, high)
            short = (low + high) // 2 if high else 2 * short + weight - self.budget

    def result(self) -> tuple[Plan, ir.Model]:
        """The best that fits; raises as `fit`."""
        if self.best is None:
            raise RecipeError(
                f"budget: {self.budget:,} {self.unit} cannot be met: the smallest these passes can "
                f"make of the model takes {self.smallest:,.0f}; raise the budget or widen their "
                "targets"
            )
        plan, finished = self.best
        return dataclasses.replace(plan, bound=min(self.bound, plan.bound)), finished


def _cost_of(offer: Candidate, plan: Plan, unit: Unit) -> int:
    """What the plan's choice for a site costs, by this offer."""
    dense, ranked = offer.costs(unit)
    ranks = [c.rank for c in plan.choices if c.site == offer.site.name]
    return int(ranked[offer.curve.ranks.searchsorted(ranks[0])]) if ranks else dense
