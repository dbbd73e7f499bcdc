"""The whole compiler, top to bottom: each line of `compile_recipe` is one stage, one module."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from threadpoolctl import threadpool_limits

from rankc.budgets import resolved_budgets, weight_of
from rankc.calibrate import Calibration, calibrate, require_enough
from rankc.cleanup import clean
from rankc.data import InRange, Source, open_source, refused_rows
from rankc.errors import Exit, ModelError
from rankc.graph import matches
from rankc.intake import Intake, ask_original, load, open_original, stamp
from rankc.lowering import EngineResult, lower
from rankc.lowering.result import tolerance
from rankc.packing import staging, write_golden, write_manifest
from rankc.passbase import ExactPass, Pass
from rankc.passes import split
from rankc.passes.gather_fusion import ID_RANGES
from rankc.planning import Amounts, Plan
from rankc.progress import Progress, SilentProgress
from rankc.recipe import Recipe, Unit
from rankc.recipe_load import build_passes, load_recipe, lock, resolved
from rankc.report import failures, write_reports
from rankc.rewriting import Sites, apply, finish, fit, solve
from rankc.sensitivity import measure
from rankc.sequential import Refitting, refit
from rankc.serialize import save
from rankc.validate import check_gates_possible, exit_code, validate
from rankc.validate.schema import Metrics
from rankrt.manifest import Engine, Golden
from rankrt.session import Array, open_model

GOLDEN_ROWS = 8
EXACT = 1e-3  # of the largest output: far above rounding, far below what a wrong rewrite does
ANY_ID = 2**63 - 1  # of a column that no stacked table reads: ONNX Runtime checks it by itself
GOLDEN_TOLERANCE = 1e-4  # of the largest golden output: what another CPU's rounding may change


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """What became of a recipe."""

    exit_code: Exit
    summary: str  # of what failed; empty when nothing did
    metrics: Metrics | None  # the content of metrics.json; None after a dry run
    plan: Plan
    out: Path
    seconds: float

    @property
    def passed(self) -> bool:
        return self.exit_code == Exit.OK


def compile_recipe(
    recipe: Recipe | str | Path,
    out: str | Path | None = None,
    *,
    progress: Progress | None = None,
    dry_run: bool = False,
    trust_code: bool = False,
) -> Result:
    """Compress the recipe's model, lower it, prove it, and write the bundle to `out`.

    Args:
        recipe: a recipe file, or what `load_recipe` made of one.
        out: the bundle's folder, `build/<recipe>` by default; replaced as a whole at the end, or
            not touched at all.
        progress: where stages are announced; silent by default.
        dry_run: stop after the plan and write nothing.
        trust_code: allow the recipe to name Python code.

    Raises:
        RankcError: anything that the user can mend; nothing was written.
    """
    started, tell = time.monotonic(), progress or SilentProgress()
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(Path(recipe))
    out = Path("build") / recipe.name if out is None else Path(out)
    if dry_run:
        plan = plan_recipe(recipe, progress=tell, trust_code=trust_code)
        return Result(Exit.OK, "", None, plan, out, time.monotonic() - started)
    with staging(out) as folder:
        job = _take_in(recipe, tell, trust_code)
        plan, model = _compress(job, tell)
        job = _in_range(job, model)
        compressed = _write_model(job, plan, model, folder)
        engines = _lower(job, compressed, folder, tell)
        metrics = _validate(job, compressed, engines, tell)
        _pack(job, plan, model, engines, metrics, folder)
    code, summary = _verdict(metrics, engines)
    return Result(code, summary, metrics, plan, out, time.monotonic() - started)


def plan_recipe(
    recipe: Recipe | str | Path, *, progress: Progress | None = None, trust_code: bool = False
) -> Plan:
    """What `compile_recipe` would do to which layer, and what it predicts; writes nothing."""
    tell = progress or SilentProgress()
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(Path(recipe))
    return _compress(_take_in(recipe, tell, trust_code), tell)[0]


@dataclasses.dataclass(frozen=True, slots=True)
class _Job:
    """A recipe with everything that it names opened and checked."""

    recipe: Recipe
    taken: Intake
    calibration: Source
    validation: Source | None
    exact: tuple[ExactPass, ...]
    passes: tuple[Pass, ...]


def _take_in(recipe: Recipe, tell: Progress, trust_code: bool) -> _Job:
    check_gates_possible(recipe)
    with tell.stage("intake") as stage:
        taken = load(recipe.folder / recipe.model)
        inputs = open_original(taken).inputs
        calibration, validation = (
            None
            if spec is None
            else open_source(spec, recipe.folder, inputs, trust_code=trust_code)
            for spec in (recipe.data.calibration, recipe.data.validation)
        )
        opset = taken.model.opset_imports.get("", 0)
        stage.note(f"opset {opset}, {taken.size_bytes / 1e6:.2f} MB, sha256 {taken.sha256[:8]}…")
    assert calibration is not None
    exact, closed = split(build_passes(recipe))
    return _Job(recipe, taken, calibration, validation, exact, closed)


def _compress(job: _Job, tell: Progress) -> tuple[Plan, ir.Model]:
    """Clean up, calibrate, plan and rewrite, with one BLAS thread.

    Each number of threads adds up in an order of its own, so the bytes of the result would depend
    on the machine; and on a busy one, threads that wait for each other are many times slower.
    """
    with threadpool_limits(limits=1, user_api="blas"):
        return _compress_alone(job, tell)


def _compress_alone(job: _Job, tell: Progress) -> tuple[Plan, ir.Model]:
    model = _clean(job, tell)
    sites = Sites.of(model, job.passes)
    known = _calibrate(job, model, sites, tell)
    with tell.stage("plan") as stage, tempfile.TemporaryDirectory(prefix="rankc-") as folder:
        budgets, planning = resolved_budgets(job.recipe, job.taken, job.passes), job.recipe.planning
        units: list[Unit] = [one.unit for one in budgets if one.unit != "ms"] or ["bytes"]

        def weigh(candidate: ir.Model) -> Amounts:
            return {unit: weight_of(candidate, unit, Path(folder)) for unit in units}

        plan, finished = fit(
            model, sites, known.stats, job.exact, weigh, budgets=budgets, planning=planning
        )
        stage.note(
            f"{len(plan.choices)} rewrites, {len(plan.skips)} left alone, {plan.spent}, "
            f"{100 * plan.gap:.1f} % from the bound"
        )
    if job.recipe.refit is not None and plan.choices:
        finished = finish(_refit(job, model, sites, known, plan, tell), job.exact)
    return plan, finished


def _refit(
    job: _Job, model: ir.Model, sites: Sites, known: Calibration, plan: Plan, tell: Progress
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


def _clean(job: _Job, tell: Progress) -> ir.Model:
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


def _difference(job: _Job, exact: ir.Model, want: Mapping[str, Array]) -> float:
    """How far the rewritten model's outputs are from the original's, on the first rows."""
    rows = next(iter(InRange(job.calibration, _id_ranges(exact)).batches()))
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


def _calibrate(job: _Job, model: ir.Model, sites: Sites, tell: Progress) -> Calibration:
    if not sites.owners:
        return Calibration(0, {}, {})
    with tell.stage("calibrate") as stage:
        probes = {site: pass_.probe(model, site) for site, pass_ in sites.owners.items()}
        known = calibrate(model, probes, job.calibration, stage, job.recipe.seed)
        require_enough(known, probes, job.calibration)
        if known.ungraded:
            stats = measure(
                model, sites.owners, known.stats, known.ungraded, job.calibration, stage
            )
            known = dataclasses.replace(known, stats=stats)
        stage.note(f"{known.rows:,} rows, one pass{_by_perturbation(known)}")
    return known


def _by_perturbation(known: Calibration) -> str:
    names = [site.name for site in known.ungraded]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"; without a gradient, perturbed: {', '.join(names[:3])}{more}" if names else ""


def _in_range(job: _Job, model: ir.Model) -> _Job:
    """The job with rows that are checked for ids which the bundle will refuse."""
    most = _id_ranges(model)
    return dataclasses.replace(
        job,
        calibration=InRange(job.calibration, most),
        validation=None if job.validation is None else InRange(job.validation, most),
    )


def _write_model(job: _Job, plan: Plan, model: ir.Model, folder: Path) -> Path:
    path = folder / "model.onnx"
    save(model, path)
    (folder / "plan.json").write_text(plan.to_json(), encoding="utf-8", newline="\n")
    return path


def _lower(job: _Job, compressed: Path, folder: Path, tell: Progress) -> dict[str, EngineResult]:
    engines: dict[str, EngineResult] = {}
    with tell.stage("lower") as stage:
        golden = _golden_inputs(job)
        for k, target in enumerate(job.recipe.lower):
            engines[target.name] = lower(compressed, target, folder, golden)
            stage.advance(k + 1, len(job.recipe.lower))
        stage.note(" · ".join(f"{name} {engine.reason}" for name, engine in engines.items()))
    return engines


def _golden_inputs(job: _Job) -> dict[str, Array]:
    """The first rows that the gates look at, or else of those for calibration."""
    batch = next(iter((job.validation or job.calibration).batches()))
    return {name: rows[:GOLDEN_ROWS] for name, rows in batch.feeds.items()}


def _validate(
    job: _Job, compressed: Path, engines: dict[str, EngineResult], tell: Progress
) -> Metrics:
    with tell.stage("validate") as stage:
        metrics = validate(job.taken.path, compressed, job.validation, job.recipe, stage)
    for name, engine in engines.items():
        metrics["backends"][name] = {
            "built": engine.built,
            "ran": engine.ran,
            "precision": engine.precision,
            "size_bytes": engine.size_bytes or 0,
            "note": engine.reason,
        }
    return metrics


def _pack(
    job: _Job,
    plan: Plan,
    model: ir.Model,
    engines: dict[str, EngineResult],
    metrics: Metrics,
    folder: Path,
) -> None:
    recipe, session = job.recipe, open_model(folder / "model.onnx")
    inputs = _golden_inputs(job)
    outputs = session.run(inputs)
    golden = write_golden(folder, inputs, outputs)
    largest = max(float(abs(rows).max(initial=0.0)) for rows in outputs.values())
    write_reports(metrics, json.loads(plan.to_json()), folder)
    (folder / "recipe.yaml").write_text(resolved(recipe), encoding="utf-8", newline="\n")
    digests = {"model": job.taken.sha256, "calibration": job.calibration.digest()}
    if job.validation is not None:
        digests["validation"] = job.validation.digest()
    locked = lock(recipe, digests)
    text = json.dumps(locked, indent=2, sort_keys=True) + "\n"
    (folder / "recipe.lock.json").write_text(text, encoding="utf-8", newline="\n")
    write_manifest(
        folder,
        name=recipe.name,
        inputs=session.inputs,
        outputs=session.outputs,
        id_ranges=_id_ranges(model),
        engines=_manifest_engines(job, engines, outputs, folder),
        golden=Golden(golden.name, GOLDEN_TOLERANCE * max(largest, 1e-3)),
        ranks={choice.site: choice.rank for choice in plan.choices},
        metrics={"passed": metrics["passed"], "metrics": metrics["metrics"]},
        versions={**locked["packages"], "python": locked["python"]},
    )


def _id_ranges(model: ir.Model) -> dict[str, tuple[int, ...]]:
    """What `gather_fusion` noted: the largest valid id of each column of an input."""
    noted = json.loads(model.metadata_props.get(ID_RANGES, "{}"))
    return {
        name: tuple(ANY_ID if one is None else one for one in most) for name, most in noted.items()
    }


def _manifest_engines(
    job: _Job, engines: dict[str, EngineResult], golden: Mapping[str, Array], folder: Path
) -> tuple[Engine, ...]:
    return tuple(
        Engine(
            backend=engine.backend,
            precision=engine.precision,
            file=None if engine.file is None else engine.file.relative_to(folder).as_posix(),
            compute_capability=target.compute_capability,
            version=engine.version or "",
            built=engine.built,
            ran=engine.ran,
            reason=engine.reason,
            tolerance=tolerance(engine.precision, golden),
        )
        for target in job.recipe.lower
        for engine in [engines[target.name]]
    )


def _verdict(metrics: Metrics, engines: dict[str, EngineResult]) -> tuple[Exit, str]:
    """The exit code, and what failed: gates before engines."""
    failed: Sequence[str] = failures(metrics)
    if failed:
        return exit_code(metrics), "; ".join(failed)
    refused = [f"{name}: {engine.reason}" for name, engine in engines.items() if engine.failed]
    return (Exit.BUILD, "; ".join(refused)) if refused else (Exit.OK, "")
