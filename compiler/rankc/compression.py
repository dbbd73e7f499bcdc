"""Clean up, calibrate, plan, rewrite, time: from the model that came in to the compressed one."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from threadpoolctl import threadpool_limits

from rankc.budgets import resolved_budgets, weight_of
from rankc.calibrate import Calibration, calibrate, require_enough
from rankc.cleanup import clean
from rankc.data import InRange, refused_rows
from rankc.errors import ModelError
from rankc.graph import matches
from rankc.intake import ask_original, stamp
from rankc.job import Job, id_ranges
from rankc.kl_curves import measured
from rankc.layer_facts import Layer, layers_of
from rankc.learning import learn, recover
from rankc.pays import Memo
from rankc.planning import Amounts, Plan
from rankc.progress import Progress
from rankc.recipe import Budget, Unit
from rankc.reverting import Timed, revert
from rankc.rewriting import Draft, Sites, apply, finish, fit, solve
from rankc.sensitivity import measure
from rankc.sequential import Refitting, refit
from rankc.serialize import save
from rankc.timing import described, elsewhere, with_times
from rankc.validate.schema import Lesson
from rankrt.session import Array, open_model

EXACT = 1e-3  # of the largest output: far above rounding, far below what a wrong rewrite does


@dataclasses.dataclass(frozen=True, slots=True)
class Compressed:
    """What became of the model."""

    plan: Plan
    model: ir.Model
    timed: Sequence[Timed]  # rewrites that were timed; empty where the recipe wants none
    layers: Sequence[Layer]  # of every site what it could have become, and what it became
    lessons: Sequence[Lesson] = ()  # what came of training; empty where the recipe trains nothing


@dataclasses.dataclass(frozen=True, slots=True)
class Prepared:
    """A model calibrated and decomposed: all that does not depend on a budget."""

    job: Job
    model: ir.Model  # after clean-up
    sites: Sites
    known: Calibration
    draft: Draft
    timed: Memo  # rewrites that were timed: equal ones are not timed again
    lessons: Sequence[Lesson] = ()


def compress(job: Job, tell: Progress) -> Compressed:
    """Clean up, calibrate, plan and rewrite."""
    return choose(prepare(job, tell), tell)


def only_plan(job: Job, tell: Progress) -> Plan:
    """What `compress` would carry out, without what comes after: refitting and recovery."""
    prepared = prepare(job, tell)
    with threadpool_limits(limits=1, user_api="blas"):
        return _plan(job, prepared, tell)[0]


def prepare(job: Job, tell: Progress) -> Prepared:
    """Clean up, calibrate and decompose, with one BLAS thread.

    Each number of threads adds up in an order of its own, so the bytes of the result would depend
    on the machine; and on a busy one, threads that wait for each other are many times slower.
    """
    with threadpool_limits(limits=1, user_api="blas"):
        learnt = learn(job, _clean(job, tell), tell)
        sites, known = _calibrated(job, learnt.model, tell)
        draft = _draft(job, learnt.model, sites, known)
        if job.recipe.planning.sensitivity == "kl":
            draft = _measured(job, draft, tell)
    return Prepared(job, learnt.model, sites, known, draft, {}, learnt.told)


def choose(
    prepared: Prepared, tell: Progress, budgets: Sequence[Budget] | None = None
) -> Compressed:
    """Plan and rewrite, refit where the recipe says so; the same, with one BLAS thread.

    Args:
        prepared: of a job.
        tell: where stages are announced.
        budgets: instead of the recipe's.

    Raises:
        BudgetError: no plan keeps the budgets.
    """
    job = prepared.job
    if budgets is not None:
        recipe = dataclasses.replace(job.recipe, budget=tuple(budgets))
        job = dataclasses.replace(job, recipe=recipe)
    with threadpool_limits(limits=1, user_api="blas"):
        plan, finished, timed = _plan(job, prepared, tell)
        if job.recipe.refit is not None and plan.choices:
            known = prepared.model, prepared.sites, prepared.known
            finished = finish(refitted(job, *known, plan, tell), job.exact)
        learnt = recover(job, finished, plan, tell, one_of_many=budgets is not None)
        lessons = (*prepared.lessons, *learnt.told)
        return Compressed(plan, learnt.model, timed, layers_of(prepared.draft, plan), lessons)


def study(job: Job, tell: Progress) -> tuple[ir.Model, Sites, Calibration]:
    """The model cleaned up, where passes can act on it, and what calibration found there."""
    model = learn(job, _clean(job, tell), tell).model
    return model, *_calibrated(job, model, tell)


def _calibrated(job: Job, model: ir.Model, tell: Progress) -> tuple[Sites, Calibration]:
    sites = Sites.of(model, job.passes)
    return sites, _calibrate(job, model, sites, tell)


def _draft(job: Job, model: ir.Model, sites: Sites, known: Calibration) -> Draft:
    """Every site decomposed, with its times if the recipe names any."""
    draft, timing = Draft.of(model, sites, known.stats), job.recipe.timing
    offers = with_times(job.times, timing, model, sites.owners, draft.solutions, draft.offers)
    return dataclasses.replace(draft, offers=offers)


def _plan(job: Job, prepared: Prepared, tell: Progress) -> tuple[Plan, ir.Model, Sequence[Timed]]:
    recipe, timing = job.recipe, job.recipe.timing
    budgets = resolved_budgets(recipe, job.taken, prepared.draft.offers)
    units: list[Unit] = [one.unit for one in budgets if one.unit != "ms"] or ["bytes"]
    timed: Sequence[Timed] = ()
    with tell.stage("plan") as stage, tempfile.TemporaryDirectory(prefix="rankc-") as folder:

        def weigh(candidate: ir.Model) -> Amounts:
            return {unit: weight_of(candidate, unit, Path(folder)) for unit in units}

        def fitted(draft: Draft) -> tuple[Plan, ir.Model]:
            return fit(draft, job.exact, weigh, budgets=budgets, planning=recipe.planning)

        if timing.revert and not elsewhere(job.times):
            plan, finished, timed = revert(
                prepared.draft, fitted, recipe.latency.batch_sizes, stage,
                efficiency=timing.efficiency, memo=prepared.timed,
            )  # fmt: skip
        else:
            plan, finished = fitted(prepared.draft)
        stage.note(_planned(plan, timed))
    return dataclasses.replace(plan, times=described(job.times, timing)), finished, timed


def _planned(plan: Plan, timed: Sequence[Timed]) -> str:
    back = sum(one.verdict == "put back" for one in timed)
    slow = f", {back} put back that lost time" if back else ""
    return (
        f"{len(plan.choices)} rewrites, {len(plan.skips)} left alone{slow}, {plan.spent}, "
        f"{100 * plan.gap:.1f} % from the bound"
    )


def refitted(
    job: Job, model: ir.Model, sites: Sites, known: Calibration, plan: Plan, tell: Progress
) -> ir.Model:
    """The plan carried out with every layer fitted to what the compressed ones before it do."""
    assert job.recipe.refit is not None
    layers = {s.name: s for s, p in sites.owners.items() if p.probe(model, s).inputs is not None}
    rest = Sites({s: p for s, p in sites.owners.items() if s.name not in layers}, ())
    names = [str(node.name) for node in model.graph]
    ignored = {n for n in names for p in job.passes if any(matches(n, i) for i in p.ignore)}
    refitting = Refitting(
        model,
        apply(model, plan, rest, solve(model, rest, known.stats)),
        {c.site: (layers[c.site], c) for c in plan.choices if c.site in layers},
        sites.owners,
        known.stats,
        job.calibration,
        job.recipe.refit,
        job.recipe.seed,
        frozenset(ignored),
    )
    with tell.stage("refit") as stage:
        result, count = refit(refitting, stage)
        stage.note(f"{count} layers, one after another, on {job.recipe.refit.rows:,} rows")
    return result


def _clean(job: Job, tell: Progress) -> ir.Model:
    with tell.stage("cleanup") as stage:
        rows = next(iter(job.calibration.batches()))
        with refused_rows(job.calibration, 0, rows.rows):
            want = ask_original(job.taken, rows.feeds)  # what does not run is not worth rewriting
        model = job.taken.model.clone()
        before = len(model.graph)
        clean(model)
        stamp(model, {"recipe": job.recipe.name, "source_sha256": job.taken.sha256})
        for pass_ in job.exact:
            pass_.prepare(model)
        exact = finish(model, job.exact)
        change = _difference(job, exact, want)
        stage.note(f"{before} → {len(exact.graph)} nodes (exact: max |Δ| {change:.1g})")
    return model


def _difference(job: Job, exact: ir.Model, want: Mapping[str, Array]) -> float:
    """How far the rewritten model's outputs are from the original's, on the first rows."""
    rows = next(iter(InRange(job.calibration, id_ranges(exact)).batches()))
    with tempfile.TemporaryDirectory(prefix="rankc-") as folder:
        path = Path(folder) / "model.onnx"
        save(exact, path)
        got = open_model(path).run(rows.feeds)
    gaps = [abs(got[name].astype(float) - a).max(initial=0.0) for name, a in want.items()]
    scale = max(1.0, *(abs(a).max(initial=0.0) for a in want.values()))
    worst = float(np.max(gaps))  # NaN, if there is one
    if not worst <= EXACT * scale:
        raise ModelError(
            f"{job.taken.path}: a rewrite that is exact in theory changes the outputs by "
            f"{worst:.1g}; look for weights too large for float32, or leave out the exact passes"
        )
    return worst


def _calibrate(job: Job, model: ir.Model, sites: Sites, tell: Progress) -> Calibration:
    if not sites.owners:
        return Calibration(0, {}, {})
    planning, source = job.recipe.planning, job.calibration
    graded, fisher = planning.sensitivity != "perturbation", planning.sensitivity == "fisher"
    with tell.stage("calibrate") as stage:
        probes = {site: pass_.probe(model, site) for site, pass_ in sites.owners.items()}
        watched = {s: dataclasses.replace(p, graded=p.graded and graded) for s, p in probes.items()}
        known = calibrate(model, watched, source, stage, job.recipe.seed, fisher=fisher)
        require_enough(known, probes, source)
        if known.ungraded:
            stats = measure(
                model, sites.owners, known.stats, known.ungraded, source, stage,
                rows=planning.rows, fisher=fisher,
            )  # fmt: skip
            known = dataclasses.replace(known, stats=stats)
        stage.note(f"{known.rows:,} rows, one pass{_by_perturbation(known)}")
    return known


def _by_perturbation(known: Calibration) -> str:
    names = [site.name for site in known.ungraded]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"; without a gradient, perturbed: {', '.join(names[:3])}{more}" if names else ""


def _measured(job: Job, draft: Draft, tell: Progress) -> Draft:
    """The draft with the losses that rewrites of each site alone were measured to have."""
    with tell.stage("kl curves") as stage:
        offers = measured(
            draft.model, draft.sites.owners, draft.solutions, draft.offers, job.calibration, stage,
            rows=job.recipe.planning.rows,
        )  # fmt: skip
        stage.note(f"{len(offers)} sites, each rewritten alone")
    return dataclasses.replace(draft, offers=offers)
