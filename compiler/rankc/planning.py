"""Choose a rank for every site so that the budgets hold and the predicted damage is least.

Each site offers points (costs, loss): left dense, or rewritten at some rank of some form. Which to
take is a multiple-choice knapsack (`knapsack.py`); other ways to choose are there to be held
against it (`strategies.py`). A plan states how far from the best it can be, and in one line why
each site becomes what it becomes. Numbers only: no ONNX here.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from rankc import reasons, strategies
from rankc.errors import RecipeError
from rankc.knapsack import Answer, solve
from rankc.knapsack_points import Floats, Offer
from rankc.offers import DENSE, Candidate, Offered, parts
from rankc.passbase import Skip
from rankc.recipe import Planning, Sensitivity, Unit

__all__ = [
    "Amounts",
    "BudgetError",
    "Candidate",
    "Choice",
    "Limit",
    "Plan",
    "make_plan",
    "smallest_plan",
]

Amounts = Mapping[Unit, float]


class BudgetError(RecipeError):
    """No plan keeps the budgets."""


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """One rewrite, decided. All figures are predictions, read off the curve at `rank`."""

    pass_name: str
    site: str
    shape: tuple[int, int]
    rank: int
    form: str  # what it is emitted as; empty: the pass has one form only
    full_rank: int  # of that form
    error: float  # share of the variance of the site's output that is lost
    loss: float  # expected squared change of the logit; by `planning.sensitivity`, nats of KL
    parameters: int
    macs: int
    size_bytes: int
    dense_parameters: int
    dense_macs: int
    dense_size_bytes: int
    reason: str  # in one line, for people


@dataclasses.dataclass(frozen=True, slots=True)
class Limit:
    """What the whole model may take of one unit, and takes."""

    unit: Unit
    budget: float | None  # None: no budget is set
    planned: float  # what the model is predicted to take, or takes where it was weighed


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """Pure data: print it, diff it, then apply it."""

    choices: tuple[Choice, ...]
    skips: tuple[Skip, ...]
    limits: tuple[Limit, ...]  # one a budget; without a budget one, in bytes
    loss: float  # sum over the choices
    bound: float  # no plan within the budgets loses less, by the same predictions
    exact: bool = False  # and none loses less than this one
    strategy: Literal["optimal", "greedy", "uniform"] = "optimal"
    sensitivity: Sensitivity = "gradient"  # what losses are: see `Planning.sensitivity`
    times: str = ""  # where times of layers are from that the plan goes by; empty: it knows none

    @property
    def gap(self) -> float:
        """How far from optimal the plan can be at most: 0.01 is one per cent."""
        return 0.0 if self.loss <= 0 else (self.loss - self.bound) / self.loss

    @property
    def spent(self) -> str:
        """What it takes of which budget, in words."""
        parts = []
        for limit in self.limits:
            planned, unit = reasons.amount(limit.unit, limit.planned), reasons.WORDS[limit.unit]
            of = ""
            if limit.budget is not None:
                of = f" of a budget of {reasons.amount(limit.unit, limit.budget)}"
            parts.append(f"{planned}{of} {unit}")
        return ", ".join(parts)

    def to_json(self) -> str:
        """plan.json: sorted keys, the same bytes for the same plan."""
        fields: dict[str, Any] = dataclasses.asdict(self) | {"format": 2, "gap": self.gap}
        return json.dumps(fields, indent=2, sort_keys=True) + "\n"


def make_plan(
    candidates: Sequence[Candidate],
    skips: Sequence[Skip],
    *,
    budgets: Amounts | None = None,
    fixed: Amounts | None = None,
    planning: Planning | None = None,
) -> Plan:
    """The plan of least predicted loss whose costs, the fixed ones included, keep every budget.

    Args:
        candidates: the sites.
        skips: what is left alone already.
        budgets: the most that the model may take of each unit. Without any, every site takes the
            rank that its pass alone would, if that pays, and where there is none, the smallest.
        fixed: what the model takes of each unit besides the sites.
        planning: how to choose; by default as a recipe does that says nothing.

    Raises:
        BudgetError: nothing keeps the budgets; says what the smallest would take.
        RecipeError: milliseconds are limited, and a candidate has no times.
    """
    if not budgets:
        return smallest_plan(candidates, skips, budgets={}, fixed=fixed, planning=planning)
    planning, fixed = planning or Planning(), fixed or {}
    offered = [Offered.of(candidate, tuple(budgets), planning) for candidate in candidates]
    limits = np.array([_limit(unit, most, fixed) for unit, most in budgets.items()])
    answer = _choose(offered, limits, planning)
    if answer is None:
        raise BudgetError(_refusal(offered, limits, budgets, fixed))
    return _assemble(offered, answer, skips, budgets, fixed, planning)


def smallest_plan(
    candidates: Sequence[Candidate],
    skips: Sequence[Skip],
    *,
    budgets: Amounts,
    fixed: Amounts | None = None,
    planning: Planning | None = None,
) -> Plan:
    """Every site as small as it gets, whatever is lost; arguments as of `make_plan`.

    Smallest by the sum of the shares of the budgets that it takes; without budgets in bytes, and
    where a curve names its pass's own rank, of that and dense.
    """
    planning, fixed = planning or Planning(), fixed or {}
    counted: dict[Unit, float | None] = {**budgets} or {"bytes": None}
    if not budgets:
        candidates = [dataclasses.replace(candidate, alone=True) for candidate in candidates]
    offered = [Offered.of(candidate, tuple(counted), planning) for candidate in candidates]
    room = [1 if m is None else _limit(unit, m, fixed) for unit, m in counted.items()]
    takes = [(one.offer.costs / np.maximum(room, 1.0)).sum(axis=1) for one in offered]
    pairs = zip(offered, takes, strict=True)
    picked = [int(np.lexsort((one.offer.loss, size))[0]) for one, size in pairs]
    loss = _lost(offered, picked)
    answer = Answer(tuple(picked), loss, loss, True)
    return _assemble(offered, answer, skips, counted, fixed, planning)


def _lost(offered: Sequence[Offered], picked: Sequence[int]) -> float:
    return float(sum(one.offer.loss[point] for one, point in zip(offered, picked, strict=True)))


def _limit(unit: Unit, budget: float, fixed: Amounts) -> float:
    """What is left for the sites, in whole parts."""
    left = (budget - fixed.get(unit, 0)) * parts(unit)
    return float(np.floor(left + (1e-6 if unit == "ms" else 0.0)))  # 0.29 ms is 290,000 ns


def _choose(offered: Sequence[Offered], limits: Floats, planning: Planning) -> Answer | None:
    offers = [one.offer for one in offered]
    best = solve(offers, limits)
    if planning.strategy == "optimal" or best is None:
        return best
    rule = strategies.greedy if planning.strategy == "greedy" else strategies.uniform
    picked = rule(offers, np.array([one.dense for one in offered]), limits)
    if picked is None:
        return None
    loss = _lost(offered, picked)
    return Answer(picked, loss, min(best.bound, loss), loss <= best.bound)


def _refusal(offered: Sequence[Offered], limits: Floats, budgets: Amounts, fixed: Amounts) -> str:
    """The smallest that can be, for each unit: by itself, or else with the other budgets kept."""
    units = tuple(budgets)
    head = f"budget: {' with '.join(map(reasons.measured, units, budgets.values()))} cannot be met"
    least = sum((one.offer.costs.min(axis=0) for one in offered), np.zeros(len(units)))
    alone = [_whole(unit, n, fixed) for unit, n in zip(units, least.tolist(), strict=True)]
    if len(units) == 1:
        takes = reasons.amount(units[0], alone[0])
        small = f"the smallest these passes can make of the model takes {takes}"
        return f"{head}: {small}; raise the budget or widen their targets"
    if (least > limits).any():
        each = ", ".join(map(reasons.measured, units, alone))
        how = f"by themselves the smallest these passes can make of the model are {each}"
    else:
        head, how = f"{head} together", _conflict(offered, units, limits, fixed)
    return f"{head}: {how}; raise a budget or widen the passes' targets"


def _conflict(
    offered: Sequence[Offered], units: Sequence[Unit], limits: Floats, fixed: Amounts
) -> str:
    """The smallest in each unit while the others keep their budgets."""
    found = []
    for j, unit in enumerate(units):
        others = np.arange(len(units)) != j
        offers = [Offer(o.offer.costs[:, others], o.offer.costs[:, j]) for o in offered]
        answer = solve(offers, limits[others])
        if answer is not None:
            found.append(reasons.measured(unit, _whole(unit, answer.loss, fixed)))
    least = " or ".join(found) or "not known"
    return (
        f"with the other budgets kept, the smallest these passes can make of the model is {least}"
    )


def _whole(unit: Unit, sites: float, fixed: Amounts) -> float:
    """What the whole model takes, of what its sites take in parts."""
    total = sites / parts(unit) + fixed.get(unit, 0)
    return round(total, 6) if unit == "ms" else round(total)


def _assemble(
    offered: Sequence[Offered],
    answer: Answer,
    skips: Sequence[Skip],
    budgets: Mapping[Unit, float | None],
    fixed: Amounts,
    planning: Planning,
) -> Plan:
    choices, kept, units = [], list(skips), tuple(budgets)
    for one, point in zip(offered, answer.picked, strict=True):
        site = one.candidate.site
        if one.entries[point] == DENSE:
            kept.append(Skip(site.pass_name, site.name, one.why_dense(point, units[0])))
        else:
            choices.append(_choice(one, point, units))
    picked = zip(offered, answer.picked, strict=True)
    spent = sum((one.offer.costs[point] for one, point in picked), np.zeros(len(units)))
    limits = [
        Limit(unit, most, _whole(unit, takes, fixed))
        for (unit, most), takes in zip(budgets.items(), spent.tolist(), strict=True)
    ]
    return Plan(
        tuple(choices),
        tuple(kept),
        tuple(limits),
        answer.loss,
        answer.bound,
        answer.exact,
        planning.strategy,
        planning.sensitivity,
    )


def _choice(one: Offered, point: int, units: Sequence[Unit]) -> Choice:
    site, dense, curve = one.candidate.site, one.candidate.dense, one.candidate.curve
    at = int(one.entries[point])
    shares = one.offer.costs[point] / np.maximum(one.dense, 1.0)
    up = one.next_up(point)
    form, full = curve.form(at), one.full_rank(at)
    name = f"rank {curve.ranks[at]} of {full}{form and f' as {form}'}"
    return Choice(
        site.pass_name,
        site.name,
        site.shape,
        int(curve.ranks[at]),
        form,
        full,
        float(curve.error[at]),
        float(curve.loss[at]),
        int(curve.parameters[at]),
        int(curve.macs[at]),
        int(curve.size_bytes[at]),
        dense.parameters,
        dense.macs,
        dense.size_bytes,
        reasons.rewritten(
            name,
            list(zip(units, shares.tolist(), strict=True)),
            float(curve.loss[at]),
            None if up is None else one.step(point, up, units[0]),
        ),
    )
