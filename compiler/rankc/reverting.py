"""Rewrites that lost time are put back: time the plan, forbid what was slower, plan again.

A rewrite has lost if it is no faster than dense, or gains less than the share of its saved
multiply-accumulates that is asked for. Only the form that lost is forbidden at first; a site of
which two forms have lost stays dense. Where no plan without them keeps the budget, the plan stays
that loses least time by it, and whoever reads the report is told.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import onnx_ir as ir

from rankc.layer_timing import Bench
from rankc.pays import LayerSpeed, Memo, time_choices
from rankc.planning import BudgetError, Plan
from rankc.progress import Stage
from rankc.rewriting import Draft
from rankc.validate.schema import Verdict

Fitted = tuple[Plan, ir.Model]
Fit = Callable[[Draft], Fitted]
FORMS = 2  # that may lose at a site before nothing more is tried there


@dataclasses.dataclass(frozen=True, slots=True)
class Timed:
    """A rewrite that was timed, and what became of it."""

    speed: LayerSpeed
    verdict: Verdict


@dataclasses.dataclass(slots=True)
class _Search:
    """The plan as it stands, with what is known of its layers."""

    draft: Draft
    fit: Fit
    fitted: Fitted
    lost: dict[str, list[str]] = dataclasses.field(default_factory=dict)  # forms, by site
    needed: set[str] = dataclasses.field(default_factory=set)  # slow sites that have to stay
    back: list[Timed] = dataclasses.field(default_factory=list)

    def put_back(self, speeds: Sequence[LayerSpeed]) -> None:
        """All of them together; where that is no plan, as many as can be, the slowest first."""
        if self._without(speeds):
            return
        for speed in sorted(speeds, key=lambda one: -(one.ratio or 0.0)):
            if not self._without([speed]):
                self.needed.add(speed.choice.site)

    def _without(self, speeds: Sequence[LayerSpeed]) -> bool:
        lost = {site: list(forms) for site, forms in self.lost.items()}
        for speed in speeds:
            lost.setdefault(speed.choice.site, []).append(speed.choice.form)
        draft = forbidding(self.draft, lost)
        try:
            self.fitted = self.fit(draft)
        except BudgetError:
            return False
        self.lost, self.draft = lost, draft
        self.back += [Timed(speed, "put back") for speed in speeds]
        return True


def forbidding(draft: Draft, lost: dict[str, list[str]]) -> Draft:
    """The draft without the forms that lost at a site; without any where several did."""
    offers = [
        dataclasses.replace(offer, slow=tuple(forms))
        if 0 < len(forms) < FORMS
        else dataclasses.replace(offer, slow=tuple(dict.fromkeys(offer.curve.forms or ("",))))
        if forms
        else offer
        for offer in draft.offers
        for forms in [lost.get(offer.site.name, [])]
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
) -> tuple[Plan, ir.Model, list[Timed]]:
    """The plan that `fit` makes of the draft without rewrites that are slower than dense.

    Args:
        draft: what there is to choose from.
        fit: makes a plan of a draft; raises `BudgetError` where none keeps the budgets.
        batch_sizes: rows a call; a rewrite has lost that is slower at all of them.
        stage: told how far it is.
        efficiency: share of its saved multiply-accumulates that a rewrite has to save in time.
        bench: where to time; by default ONNX Runtime with one thread, here.

    Returns:
        The plan, the finished model, and what was timed, in the order of the plan; what was put
        back comes last.

    Raises:
        RecipeError: as `fit`, of the draft as it came.
        MachineError: there is no ONNX Runtime, or it refuses a layer.
    """
    memo: Memo = {}
    search = _Search(draft, fit, fit(draft))
    as_asked = {offer.site.name for offer in draft.offers if offer.forced is not None}
    seen: list[tuple[Fitted, list[LayerSpeed]]] = []
    while True:
        speeds = time_choices(
            draft.model, draft.sites, draft.solutions, search.fitted[0], batch_sizes,
            memo=memo, stage=stage, bench=bench,
        )  # fmt: skip
        seen.append((search.fitted, speeds))
        stays = as_asked | search.needed
        losers = [o for o in speeds if _excess(o, efficiency) and o.choice.site not in stays]
        if not losers:
            break
        search.put_back(losers)
    (plan, finished), speeds = min(
        reversed(seen), key=lambda one: sum(_excess(speed, efficiency) for speed in one[1])
    )
    kept = [Timed(one, _verdict(one, efficiency, as_asked)) for one in speeds]
    chosen = [one.speed.choice for one in kept]
    return plan, finished, [*kept, *(b for b in search.back if b.speed.choice not in chosen)]


def _excess(speed: LayerSpeed, efficiency: float) -> float:
    """By how much of the dense layer's time a rewrite is slower than it should be; 0: it is not."""
    if speed.ratio is None:
        return 0.0
    share = speed.choice.macs / max(speed.choice.dense_macs, 1)
    allowed = min(1.0, share / efficiency) if efficiency else 1.0
    return max(speed.ratio - allowed, 0.0) if allowed < 1 or speed.lost else 0.0


def _verdict(speed: LayerSpeed, efficiency: float, as_asked: set[str]) -> Verdict:
    if not _excess(speed, efficiency):
        return "kept"
    asked = speed.choice.site in as_asked
    return "too slow, but as asked" if asked else "too slow, but the budget needs it"
