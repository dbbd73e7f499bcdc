"""The smallest plan that keeps every gate: plan, measure, halve the range, and again.

The model is calibrated and decomposed once. Each budget that is tried is planned, rewritten and
measured as a compile would do it, with all gates, those on latency included; `search_points` says
which comes next. What the gates are decided by takes part in the choice, so what is found is a
little better on those rows than on others; `search.holdout` keeps half of them out of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from rankc.budgets import original_of
from rankc.compression import Compressed, Prepared, choose, prepare
from rankc.data import EveryOther, Source
from rankc.errors import RecipeError
from rankc.graph import has_fixed_batch
from rankc.job import Job, in_range
from rankc.planning import BudgetError, Plan
from rankc.progress import Progress, SilentProgress, Stage
from rankc.recipe import Budget, Recipe, Search, Unit
from rankc.search_points import Trial, Verdict, chosen, next_keep, points_of, steps_left
from rankc.search_state import State
from rankc.serialize import save
from rankc.validate.quantities import known_to, observe
from rankc.validate.schema import Metrics, Point, SearchHow, Stopped

Measure = Callable[[Path, Source | None, Stage], Metrics]  # a model's file, on some rows


@dataclasses.dataclass(frozen=True, slots=True)
class Searched:
    """What a search came to."""

    job: Job  # its validation rows are those that decide
    found: Compressed
    points: list[Point]
    how: SearchHow


def search(job: Job, measure: Measure, state: State, tell: Progress) -> Searched:
    """Find the smallest or fastest plan that keeps the recipe's gates, and carry it out.

    Args:
        job: its recipe has `search`.
        measure: both models on validation rows, with the gates decided.
        state: what an earlier run found, which is not measured again; renewed after every plan.
        tell: where stages are announced.

    Returns:
        The plan that was chosen. Where none keeps the gates, the one that fails fewest.

    Raises:
        BudgetError: no budget in the range is possible.
        RecipeError: rows are to be held out, and the model takes a fixed number of them.
    """
    started, asked = time.monotonic(), job.recipe.search
    assert asked is not None
    seen, judged = _rows(job, asked)
    prepared = prepare(job, tell)
    run = _Run(prepared, asked, seen, measure, *state.read())
    with tell.stage("search") as stage:
        had = sum(trial.measured for trial in run.trials)
        stage.note(run.why or f"{run.unit}, {had or 'no'} plans measured by an earlier run")
    stopped = _go_on(run, state, tell, started)
    taken = chosen(run.trials, asked)
    if stopped == "found" and taken is not None and taken.verdict != "passes":
        stopped = "none"
    if taken is None:
        raise BudgetError(f"search: no share up to {asked.high:g}: {run.trials[-1].failed[0]}")
    found = choose(prepared, tell, run.budgets(taken.keep))
    how = SearchHow(
        unit=run.unit,
        objective=asked.objective,
        stopped=stopped,
        tolerance=asked.tolerance,
        holdout=asked.holdout,
    )
    points = points_of(run.trials, run.unit, taken)
    return Searched(dataclasses.replace(job, validation=judged), found, points, how)


def of_trials(recipe: Recipe) -> Recipe:
    """The recipe with no more timed than its gates and the objective need."""
    asked, sizes = recipe.search, recipe.latency.batch_sizes
    fastest = asked is not None and asked.objective == "fastest"
    if fastest or any(gate.metric == "peak_memory_bytes" for gate in recipe.gates):
        return recipe
    gated = tuple(size for size in sizes if size in {gate.batch for gate in recipe.gates})
    repeats = recipe.latency.repeats if gated else 1
    latency = dataclasses.replace(
        recipe.latency, batch_sizes=gated or (min(sizes),), repeats=repeats
    )
    return dataclasses.replace(recipe, latency=latency)


def search_key(recipe: Recipe, locked: Mapping[str, object]) -> str:
    """A hash of all that a trial depends on: a search may be gone on with for longer.

    Args:
        recipe: with `search`.
        locked: what recipe.lock.json would hold for the recipe without it.
    """
    assert recipe.search is not None
    what = [locked, recipe.search.unit, recipe.search.holdout]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _rows(job: Job, asked: Search) -> tuple[Source | None, Source | None]:
    """The rows to search on, and those that decide."""
    if not asked.holdout:
        return job.validation, job.validation
    assert job.validation is not None
    if has_fixed_batch(job.taken.model):
        raise RecipeError(
            "search.holdout: the model takes a fixed number of rows, so a batch cannot be halved; "
            "leave it out, or export the model with a free first axis"
        )
    return EveryOther(job.validation, 0), EveryOther(job.validation, 1)


def _go_on(run: _Run, state: State, tell: Progress, started: float) -> Stopped:
    """Try budgets until the limit is known or something is used up; says which."""
    asked = run.asked
    while True:
        keep = next_keep(run.trials, asked, run.start)
        if keep is None:
            return "found"
        measured = sum(trial.measured for trial in run.trials)
        if measured >= asked.steps:
            return "steps"
        late = asked.minutes is not None and time.monotonic() - started >= 60 * asked.minutes
        if late and measured:
            return "time"
        with tell.stage(f"search {measured + 1}/{asked.steps}") as stage:
            trial = run.attempt(keep, stage)
            run.trials.append(trial)
            state.write(run.trials)
            stage.note(_said(trial, run))


@dataclasses.dataclass(slots=True)
class _Run:
    """One search under way."""

    prepared: Prepared
    asked: Search
    rows: Source | None
    measure: Measure
    trials: list[Trial]
    why: str  # an earlier run's trials are not gone on with; empty: they are, or there are none

    @property
    def recipe(self) -> Recipe:
        return self.prepared.job.recipe

    @property
    def unit(self) -> Unit:
        """What is bisected."""
        if self.asked.unit is not None:
            return self.asked.unit
        return self.recipe.budget[0].unit if self.recipe.budget else "bytes"

    @property
    def start(self) -> float:
        """The share to try first: the recipe's budget, or else the middle."""
        low, high = self.asked.low, self.asked.high
        for budget in self.recipe.budget:
            keep = budget.keep_ratio if budget.unit == self.unit else None
            if budget.unit == self.unit != "ms" and budget.max is not None:
                keep = budget.max / original_of(self.prepared.job.taken, self.unit)
            if keep is not None:
                return min(max(keep, low), high)
        return math.sqrt(low * high)

    def budgets(self, keep: float) -> list[Budget]:
        """Those of the recipe, with this share of the unit."""
        others = [budget for budget in self.recipe.budget if budget.unit != self.unit]
        return [Budget(self.unit, keep_ratio=keep), *others]

    def attempt(self, keep: float, stage: Stage) -> Trial:
        """Plan, rewrite and measure with a share of the unit."""
        began = time.monotonic()
        try:
            found = choose(self.prepared, SilentProgress(), self.budgets(keep))
        except BudgetError as refusal:
            return Trial(keep, "impossible", failed=(str(refusal),))
        name = _hash(found.plan)
        (limit,) = [one for one in found.plan.limits if one.unit == self.unit]
        budget = float(limit.budget or limit.planned)
        same = [trial for trial in self.trials if trial.plan == name]
        if same:
            first = dataclasses.replace(same[0], keep=keep, budget=budget)
            return dataclasses.replace(first, repeated=True, seconds=0.0)
        with tempfile.TemporaryDirectory(prefix="rankc-") as folder:
            path = Path(folder) / "model.onnx"
            save(found.model, path)
            job = dataclasses.replace(self.prepared.job, validation=self.rows)
            metrics = self.measure(path, in_range(job, found.model).validation, stage)
        trial = trial_of(metrics, keep, budget, name, found.plan.loss)
        return dataclasses.replace(trial, seconds=time.monotonic() - began)


def trial_of(metrics: Metrics, keep: float, budget: float, plan: str, loss: float) -> Trial:
    """What was measured of a plan, as a search remembers it."""
    failing = [gate for gate in metrics["gates"] if not gate["passed"]]
    verdict: Verdict = "passes"
    if failing:
        verdict = "small" if any(gate["kind"] == "accuracy" for gate in failing) else "large"
    values = {"size_bytes": float(metrics["metrics"]["size_bytes"]["compressed"])}
    quality: dict[str, float] = {}
    for gate in metrics["gates"]:
        name = gate["metric"]
        pair = observe(metrics, name, gate["batch"], gate.get("percentile"))
        if pair is None:
            continue
        values[_label(name, gate["batch"], gate.get("percentile"))] = pair[1]
        if gate["kind"] == "accuracy":
            quality[name] = pair[1] if known_to(metrics)[name].higher_is_better else -pair[1]
    ratios = [row["ratio"] for row in metrics["latency"].values()]
    speed = math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else None
    sentences = tuple(gate["message"] for gate in failing)
    return Trial(keep, verdict, budget, plan, loss, values, quality, speed, sentences)


def _label(name: str, batch: int | None, percentile: int | None) -> str:
    """`latency_ms@32 p95`, say."""
    at = "" if batch is None else f"@{batch}"
    return f"{name}{at}" + ("" if percentile is None else f" p{percentile}")


def _hash(plan: Plan) -> str:
    what = [(c.pass_name, c.site, c.rank, c.form) for c in plan.choices]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def _said(trial: Trial, run: _Run) -> str:
    if trial.verdict == "impossible":
        return f"keep {trial.keep:.4g}: cannot be made so small"
    size = f"{trial.values['size_bytes'] / 1e6:.3g} MB"
    what = "passes" if trial.verdict == "passes" else f"fails: {trial.failed[0]}"
    times = [one.seconds for one in run.trials if one.measured]
    left = steps_left(run.trials, run.asked)
    eta = f"; at most {left * sum(times) / len(times):.0f} s left" if left and times else ""
    again = ", the plan of an earlier one" if trial.repeated else ""
    return f"keep {trial.keep:.4g}, {size}{again}: {what}{eta}"
