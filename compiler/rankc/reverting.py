"""Rewrites that lost time are put back: time the plan, forbid what was slower, plan again.

A rewrite has lost if it is no faster than dense, or gains less than the share that is asked for of
the speed-up that its multiply-accumulates promise. Only the form that lost is forbidden at first; a
site of which two forms have lost stays dense. Time is not bought at any price: where no plan
without the losers keeps the budgets, or only one that is predicted to lose more than twice what the
first plan loses, the plan stays that wastes least time, and whoever reads the report is told.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from rankc.layer_timing import Bench
from rankc.pays import LayerSpeed, Memo, time_choices
from rankc.planning import BudgetError, Plan
from rankc.progress import Stage
from rankc.rewriting import Draft
from rankc.validate.schema import TimedLayer, Verdict

Fitted = tuple[Plan, ir.Model]
Fit = Callable[[Draft], Fitted]
WORTH = 2.0  # by which factor the predicted loss may grow for the sake of time


@dataclasses.dataclass(frozen=True, slots=True)
class Timed:
    """A rewrite that was timed, and what became of it."""

    speed: LayerSpeed
    verdict: Verdict

    def told(self) -> TimedLayer:
        """As metrics.json lists it."""
        choice = self.speed.choice
        return {
            "site": choice.site,
            "pass_name": choice.pass_name,
            "rank": choice.rank,
            "form": choice.form,
            "verdict": self.verdict,
            "latency": {
                str(size): {"ratio": found.ratio, "interval": found.interval}
                for size, found in self.speed.timed.items()
            },
        }


@dataclasses.dataclass(slots=True)
class _Search:
    """The plan as it stands, with what is known of its layers."""

    draft: Draft
    fit: Fit
    fitted: Fitted
    most: float  # loss that a plan may have
    lost: dict[str, list[str]] = dataclasses.field(default_factory=dict)  # forms, by site
    needed: set[str] = dataclasses.field(default_factory=set)  # slow sites that have to stay
    back: list[Timed] = dataclasses.field(default_factory=list)

    def put_back(self, speeds: Sequence[LayerSpeed]) -> None:
        """All of them together; where that is no plan, as many as can be, in their order."""
        if self._without(speeds):
            return
        for speed in speeds:
            if not self._without([speed]):
                self.needed.add(speed.choice.site)

    def _without(self, speeds: Sequence[LayerSpeed]) -> bool:
        lost = {site: list(forms) for site, forms in self.lost.items()}
        for speed in speeds:
            lost.setdefault(speed.choice.site, []).append(speed.choice.form)
        draft = forbidding(self.draft, lost)
        try:
            fitted = self.fit(draft)
        except BudgetError:
            return False
        if fitted[0].loss > self.most:
            return False
        self.lost, self.draft, self.fitted = lost, draft, fitted
        self.back += [Timed(speed, "put back") for speed in speeds]
        return True


def forbidding(draft: Draft, lost: Mapping[str, Sequence[str]]) -> Draft:
    """The draft without the forms that lost, by site; see `Candidate.slow`."""
    offers = [
        dataclasses.replace(offer, slow=tuple(lost.get(offer.site.name, ())))
        for offer in draft.offers
    ]
    return dataclasses.replace(draft, offers=offers)


def revert(
    draft: Draft,
    fit: Fit,
    batch_sizes: Sequence[int],
    stage: Stage,
    *,
    efficiency: float = 0.0,
    bench: Bench | None = None,
    memo: Memo | None = None,
) -> tuple[Plan, ir.Model, list[Timed]]:
    """The plan that `fit` makes of the draft without rewrites that are slower than dense.

    Args:
        draft: what there is to choose from.
        fit: makes a plan of a draft; raises `BudgetError` where none keeps the budgets.
        batch_sizes: rows a call; a rewrite has lost that is slower at all of them.
        stage: told how far it is.
        efficiency: share of the speed-up that its multiply-accumulates promise, which a rewrite
            has to reach.
        bench: where to time; by default ONNX Runtime with one thread, here.
        memo: of earlier calls for the same model and machine; what is in it is not timed again.

    Returns:
        The plan, the finished model, and what was timed, in the order of the plan; what was put
        back comes last. The plan's bound is that of a plan without regard to time.

    Raises:
        RecipeError: as `fit`, of the draft as it came.
        MachineError: there is no ONNX Runtime, or it refuses a layer.
    """
    memo = {} if memo is None else memo
    first = fit(draft)
    search = _Search(draft, fit, first, WORTH * first[0].loss)
    as_asked = {offer.site.name for offer in draft.offers if offer.forced is not None}
    seen: list[_Round] = []
    while True:
        speeds = time_choices(
            draft.model, draft.sites, draft.solutions, search.fitted[0], batch_sizes,
            memo=memo, stage=stage, bench=bench,
        )  # fmt: skip
        waste = [_waste(one, efficiency) for one in speeds]
        seen.append(_Round(search.fitted, speeds, len(search.back), sum(waste)))
        stays = as_asked | search.needed
        pairs = sorted(zip(waste, speeds, strict=True), key=lambda pair: -pair[0])
        losers = [one for lost, one in pairs if lost and one.choice.site not in stays]
        if not losers:
            break
        search.put_back(losers)
    best = min(reversed(seen), key=lambda one: one.waste)
    kept = [Timed(one, _verdict(one, efficiency, as_asked)) for one in best.speeds]
    plan, finished = best.fitted
    bound = min(plan.bound, first[0].bound)
    plan = dataclasses.replace(plan, bound=bound, exact=plan.exact and plan.loss <= bound)
    return plan, finished, [*kept, *search.back[: best.back]]


@dataclasses.dataclass(frozen=True, slots=True)
class _Round:
    """A plan that was timed."""

    fitted: Fitted
    speeds: Sequence[LayerSpeed]
    back: int  # rewrites that had been put back by then
    waste: float  # milliseconds


def _waste(speed: LayerSpeed, efficiency: float) -> float:
    """Milliseconds that a rewrite takes longer than it should; 0: it does not."""
    if speed.best is None:
        return 0.0
    share = speed.choice.macs / max(speed.choice.dense_macs, 1)
    allowed = min(1.0, share / efficiency) if efficiency else 1.0
    if not speed.lost and not speed.best.interval[0] > allowed:
        return 0.0
    return max(speed.best.ratio - allowed, 1e-9) * speed.best.dense_ms


def _verdict(speed: LayerSpeed, efficiency: float, as_asked: set[str]) -> Verdict:
    if not _waste(speed, efficiency):
        return "kept"
    asked = speed.choice.site in as_asked
    return "too slow, but as asked" if asked else "too slow, but the budget needs it"
