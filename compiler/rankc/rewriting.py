"""Plan, rewrite, weigh, and plan again until the finished model fits the budgets.

A plan predicts the size of what it leads to; the exact passes then fold, group and share, so the
file is a few kilobytes off. What the file weighs more than predicted goes into the next plan as a
fixed cost. Two or three rounds settle it; the plan is pure arithmetic and a rewrite takes well
under a second. Milliseconds are not weighed: what the plan predicts counts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from rankc import reasons
from rankc.errors import RecipeError
from rankc.passbase import CalibrationStats, ExactPass, Pass, Site, Skip
from rankc.planning import Amounts, BudgetError, Candidate, Limit, Plan, make_plan, smallest_plan
from rankc.recipe import Budget, Planning, Unit

LEARNING = 5  # rounds in which the prices follow what the last plan weighed
BISECTIONS = 10
SETTLED = 0.002  # of a budget may be left unused

Solutions = Mapping[Site, Any]  # what the owning pass made of each site
Weigh = Callable[[ir.Model], Amounts]  # a finished model, in every unit that has a budget but ms


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


@dataclasses.dataclass(frozen=True, slots=True)
class Draft:
    """A model before its rewrites, and everything that its sites could become."""

    model: ir.Model  # after clean-up
    sites: Sites
    solutions: Solutions
    offers: Sequence[Candidate]  # one a site

    @classmethod
    def of(cls, model: ir.Model, sites: Sites, stats: CalibrationStats) -> Draft:
        """Decompose every site, by what calibration found."""
        solutions = solve(model, sites, stats)
        return cls(model, sites, solutions, candidates(model, sites, solutions))


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


def reread(draft: Draft, plan: Plan) -> list[Candidate]:
    """The same offers, but what is folded is folded into the layers as this plan leaves them."""
    folding = {o.site.name for o in draft.offers if o.read_by is not None}
    layers = tuple(c for c in plan.choices if c.site not in folding)
    less, owners = dataclasses.replace(plan, choices=layers), draft.sites.owners
    rewritten = apply(draft.model, less, draft.sites, draft.solutions)
    return [
        dataclasses.replace(o, read_by=owners[o.site].read_by(rewritten, o.site))
        for o in draft.offers
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
    draft: Draft,
    exact: Sequence[ExactPass],
    weigh: Weigh,
    *,
    budgets: Sequence[Budget] = (),
    planning: Planning | None = None,
) -> tuple[Plan, ir.Model]:
    """The plan of least predicted loss whose finished model weighs no more than the budgets.

    Every round learns from what the last one weighed. Where that does not settle, what the plan may
    spend is bisected, prices unchanged.

    Args:
        draft: what there is to choose from.
        exact: passes that finish a rewritten model.
        weigh: a finished model, in every unit that has a budget; without one for milliseconds,
            those are taken to be what the plan predicts for the sites.
        budgets: at most one a unit; `keep_ratio` is of all sites left dense, and for ms only.
        planning: how to choose.

    Raises:
        BudgetError: no plan fits.
        RecipeError: a budget is in ms and times are missing.
    """
    offers = draft.offers
    limits: dict[Unit, float] = {budget.unit: _most(budget, offers) for budget in budgets}
    whole = weigh(finish(draft.model, exact))
    fixed: dict[Unit, float] = dict.fromkeys(limits, 0)  # stays so for what is not weighed
    fixed |= {u: whole[u] - sum(o.costs(u)[0] for o in offers) for u in limits if u in whole}
    search = _Search(draft, exact, weigh, limits, planning or Planning())
    for _ in range(LEARNING):
        plan, weight, _ = search.attempt(offers, fixed)
        if search.settled(plan, weight):
            return search.result()
        offers = reread(draft, plan)
        learnt: dict[Unit, float] = {
            u: weight[u] - sum(_cost_of(o, plan, u) for o in offers) for u in limits
        }
        fixed |= {unit: more for unit, more in learnt.items() if unit in whole}
    search.bisect(offers, fixed)
    return search.result()


def _most(budget: Budget, offers: Sequence[Candidate]) -> float:
    """What a budget allows."""
    if budget.max is not None:
        return budget.max
    assert budget.keep_ratio is not None
    return budget.keep_ratio * sum(round(offer.costs(budget.unit)[0], 6) for offer in offers)


@dataclasses.dataclass(slots=True)
class _Search:
    """Plans that were carried out and weighed, and the best of those that fit."""

    draft: Draft
    exact: Sequence[ExactPass]
    weigh: Weigh
    budgets: Amounts
    planning: Planning
    best: tuple[Plan, ir.Model] | None = None
    smallest: dict[Unit, float] = dataclasses.field(default_factory=dict)  # that anything weighed
    refusal: BudgetError | None = None  # why no plan was possible, the last time
    bound: float = math.inf  # the lowest of the plans that were held shorter by different amounts

    def attempt(
        self, offers: Sequence[Candidate], fixed: Amounts
    ) -> tuple[Plan, dict[Unit, float], bool]:
        """Plan, rewrite, weigh: the plan, its weight, and whether it was expected to fit."""
        plan, possible = self._plan(offers, fixed)
        draft = self.draft
        finished = finish(apply(draft.model, plan, draft.sites, draft.solutions), self.exact)
        weight: dict[Unit, float] = {limit.unit: limit.planned for limit in plan.limits}
        weight |= self.weigh(finished)
        for unit, amount in weight.items():
            self.smallest[unit] = min(self.smallest.get(unit, math.inf), amount)
        if self.fits(weight) and (self.best is None or plan.loss < self.best[0].loss):
            self.best = _weighed(plan, weight), finished
        return plan, weight, possible

    def _plan(self, offers: Sequence[Candidate], fixed: Amounts) -> tuple[Plan, bool]:
        """The best plan, or else the smallest: what that one really takes is still to be seen."""
        skips, how = self.draft.sites.skips, self.planning
        try:
            plan = make_plan(offers, skips, budgets=self.budgets, fixed=fixed, planning=how)
        except BudgetError as refusal:
            self.refusal = refusal
            return smallest_plan(
                offers, skips, budgets=self.budgets, fixed=fixed, planning=how
            ), False
        return plan, True

    def fits(self, weight: Amounts) -> bool:
        return all(weight[unit] <= most * (1 + 1e-12) for unit, most in self.budgets.items())

    def settled(self, plan: Plan, weight: Amounts) -> bool:
        """Whether a plan fits and has nothing to gain, or next to nothing of a budget left."""
        used = [weight[unit] >= most * (1 - SETTLED) for unit, most in self.budgets.items()]
        return self.fits(weight) and (not used or any(used) or plan.loss <= 0)

    def bisect(self, offers: Sequence[Candidate], fixed: Amounts) -> None:
        """Hold the plan shorter, by as little as makes it fit."""
        low: dict[Unit, float] = dict.fromkeys(self.budgets, 0)
        high: dict[Unit, float] | None = None  # nothing is known to be short enough
        short: dict[Unit, float] = low
        for _ in range(BISECTIONS):
            held: dict[Unit, float] = {unit: fixed[unit] + short[unit] for unit in self.budgets}
            plan, weight, possible = self.attempt(offers, held)
            self.bound = min(self.bound, plan.bound)
            fits = self.fits(weight)
            if self.settled(plan, weight) or (not any(short.values()) and (fits or not possible)):
                return
            low, high = (low, short) if fits or not possible else (short, high)
            if high is None:
                short = {u: _longer(short[u], weight[u] - self.budgets[u]) for u in self.budgets}
            else:
                short = {u: _middle(u, low[u], high[u]) for u in self.budgets}

    def result(self) -> tuple[Plan, ir.Model]:
        """The best that fits; raises as `fit`."""
        if self.best is None:
            raise self._too_small()
        plan, finished = self.best
        bound = min(self.bound, plan.bound)
        exact = plan.exact and plan.loss <= bound
        return dataclasses.replace(plan, bound=bound, exact=exact), finished

    def _too_small(self) -> RecipeError:
        if len(self.budgets) > 1 and self.refusal is not None:
            return self.refusal
        wanted = " with ".join(reasons.measured(unit, most) for unit, most in self.budgets.items())
        least = " and ".join(reasons.amount(unit, self.smallest[unit]) for unit in self.budgets)
        return BudgetError(
            f"budget: {wanted} cannot be met: the smallest these passes can make of the model "
            f"takes {least}; raise the budget or widen their targets"
        )


def _longer(short: float, over: float) -> float:
    return 2 * short + over if over > 0 else short


def _middle(unit: Unit, low: float, high: float) -> float:
    return (low + high) / 2 if unit == "ms" else (low + high) // 2


def _weighed(plan: Plan, weight: Amounts) -> Plan:
    """The plan with what it came to instead of what was predicted."""
    limits = [Limit(one.unit, one.budget, weight[one.unit]) for one in plan.limits]
    return dataclasses.replace(plan, limits=tuple(limits))


def _cost_of(offer: Candidate, plan: Plan, unit: Unit) -> float:
    """What the plan's choice for a site costs, by this offer."""
    dense, ranked = offer.costs(unit)
    chosen = [c for c in plan.choices if c.site == offer.site.name]
    return float(ranked[offer.entry(chosen[0].rank, chosen[0].form)]) if chosen else dense
