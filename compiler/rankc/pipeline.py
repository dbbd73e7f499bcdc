"""The whole compiler, top to bottom: each line of `compile_recipe` is one stage, one module."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from rankc.compression import Compressed, compress, only_plan
from rankc.data import Learning, Source, open_source
from rankc.earlier import Earlier, Resume
from rankc.errors import Exit, RecipeError
from rankc.fp16_split import add_split
from rankc.graph import has_fixed_batch
from rankc.intake import load, open_original
from rankc.job import Job, id_ranges, in_range
from rankc.layer_facts import layers_json
from rankc.lowering import EngineResult, lower
from rankc.lowering.result import tolerance
from rankc.packing import staging, write_golden, write_manifest
from rankc.passes import split
from rankc.planning import Plan
from rankc.progress import Progress, SilentProgress, Stage
from rankc.recipe import Recipe
from rankc.recipe_load import build_passes, load_recipe
from rankc.recipe_lock import lock, resolved
from rankc.report import failures, place_of, write_reports
from rankc.reverting import Timed
from rankc.search_state import State
from rankc.searching import of_trials, search, search_key
from rankc.serialize import save
from rankc.timing import open_times
from rankc.validate import (
    Baseline,
    check_gates_possible,
    exit_code,
    open_baseline,
    processor,
    subject_of,
    target_name,
    validate,
)
from rankc.validate.device_gates import device_gates
from rankc.validate.fitting import check_gates_fit, check_sizes_fit
from rankc.validate.own import Own, open_metrics
from rankc.validate.schema import Metrics
from rankrt.manifest import Engine, Golden
from rankrt.session import Array, open_model

GOLDEN_ROWS = 8
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
    resume: Resume = "auto",
) -> Result:
    """Compress the recipe's model, lower it, prove it, and write the bundle to `out`.

    Args:
        recipe: a recipe file, or what `load_recipe` made of one.
        out: the bundle's folder, `build/<recipe>` by default; replaced as a whole at the end, or
            not touched at all.
        progress: where stages are announced; silent by default.
        dry_run: stop after the plan and write nothing but checkpoints of a training.
        trust_code: allow the recipe to name Python code.
        resume: go on from what an earlier run left beside `out`; `required`: it is an error if
            there is nothing; `never`: delete it.

    Raises:
        RankcError: anything that the user can mend; nothing was written.
    """
    started, tell = time.monotonic(), progress or SilentProgress()
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(Path(recipe))
    out = Path("build") / recipe.name if out is None else Path(out)
    left = Earlier.beside(out, resume)
    if dry_run:
        plan = plan_recipe(recipe, progress=tell, trust_code=trust_code, earlier=left)
        return Result(Exit.OK, "", None, plan, out, time.monotonic() - started)
    own = open_metrics(recipe, trust_code=trust_code)
    with staging(out) as folder:
        left.settle(recipe)
        job = take_in(recipe, tell, trust_code, left)
        job, found, tried = _find(job, own, left, tell)
        metrics, code, summary = write_bundle(job, own, found, folder, tell, tried)
    left.forget()
    return Result(code, summary, metrics, found.plan, out, time.monotonic() - started)


def write_bundle(
    job: Job,
    own: Sequence[Own],
    found: Compressed,
    folder: Path,
    tell: Progress,
    added: Metrics | None = None,
) -> tuple[Metrics, Exit, str]:
    """Lower, prove and pack what was made of a model.

    Args:
        job: whose recipe gives `found`.
        own: metrics of the recipe's.
        found: the model.
        folder: to write into, empty.
        tell: where stages are announced.
        added: to metrics.json.

    Returns:
        What metrics.json holds, the exit code, and what failed.
    """
    job = in_range(job, found.model)
    path = _write_model(found, folder)
    engines = _lower(job, path, folder, tell)
    metrics = _validate(job, own, path, engines, found.timed, tell)
    metrics.update(added or cast(Metrics, {}))
    if found.lessons:
        metrics["training"] = list(found.lessons)
    _pack(job, found, engines, metrics, folder)
    return metrics, *_verdict(metrics, engines)


def plan_recipe(
    recipe: Recipe | str | Path,
    *,
    progress: Progress | None = None,
    trust_code: bool = False,
    earlier: Earlier | None = None,
) -> Plan:
    """What `compile_recipe` would do to which layer, and what it predicts.

    Writes nothing but checkpoints of the training before the plan, from which a compile goes on.
    """
    tell = progress or SilentProgress()
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(Path(recipe))
    earlier = earlier or Earlier.beside(Path("build") / recipe.name)
    earlier.settle(recipe)
    return only_plan(take_in(recipe, tell, trust_code, earlier), tell)


def take_in(
    recipe: Recipe, tell: Progress, trust_code: bool, earlier: Earlier | None = None
) -> Job:
    """Open and check everything that a recipe names.

    Args:
        recipe: what to compile.
        tell: where the stage is announced.
        trust_code: whether Python code that the recipe names may run.
        earlier: where checkpoints lie; beside build/<recipe> by default.
    """
    check_gates_possible(recipe)
    with tell.stage("intake") as stage:
        taken = load(recipe.folder / recipe.model)
        original = open_original(taken)
        inputs = original.inputs
        check_gates_fit(recipe, original.outputs)
        data = recipe.data
        if data.validation is not None:  # else nothing is timed
            check_sizes_fit(recipe.latency.batch_sizes, inputs)
        calibration, validation, rows, held_out = (
            None
            if spec is None
            else open_source(spec, recipe.folder, inputs, trust_code=trust_code)
            for spec in (data.calibration, data.validation, data.training, data.holdout)
        )
        times = open_times(recipe.timing, recipe.folder)
        opset = taken.model.opset_imports.get("", 0)
        stage.note(f"opset {opset}, {taken.size_bytes / 1e6:.2f} MB, sha256 {taken.sha256[:8]}…")
    assert calibration is not None
    job = Job(recipe, taken, calibration, validation, times, *split(build_passes(recipe)))
    if rows is not None and data.training is not None:
        earlier = earlier or Earlier.beside(Path("build") / recipe.name)
        required = earlier.resume == "required"
        how = data.training.batch_size, earlier.training, required
        job = dataclasses.replace(job, learning=Learning(rows, held_out, *how))
    if baseline := _baseline(job):
        baseline.check(recipe.gates, target_name("onnxruntime", processor()))
    if times is None and "ms" in _limited(recipe):
        raise RecipeError(
            "budget: ms needs times of the model's layers: measure them with `rankc profile` and "
            "name the table in timing.table, or a device in timing.device"
        )
    return job


def _baseline(job: Job, compressed: Path | None = None) -> Baseline | None:
    subject = partial(subject_of, job.recipe, job.taken.sha256, compressed, job.validation)
    return open_baseline(job.recipe, subject)


def _limited(recipe: Recipe) -> set[str]:
    """The units that are budgeted or searched."""
    units = {budget.unit for budget in recipe.budget}
    return units | ({recipe.search.unit} if recipe.search and recipe.search.unit else set())


def _find(
    job: Job, own: Sequence[Own], left: Earlier, tell: Progress
) -> tuple[Job, Compressed, Metrics]:
    """What becomes of the model: by the recipe's budget, or by a search for one.

    Returns:
        The job with the rows that decide the gates, what was made, and what the search adds to
        metrics.json.
    """
    recipe, added = job.recipe, cast(Metrics, {})
    if recipe.search is None:
        return job, compress(job, tell), added
    baseline = _baseline(job)
    without = locked(dataclasses.replace(recipe, search=None), job)
    key = search_key(recipe, {**without, "baseline": baseline and baseline.content})

    def measure(path: Path, rows: Source | None, stage: Stage) -> Metrics:
        held = _baseline(job, path)
        return validate(job.taken.path, path, rows, of_trials(recipe), stage, own, held)

    tried = search(job, measure, State(left.state, key, left.resume == "required"), tell)
    added.update({"front": tried.points, "search": tried.how})
    return tried.job, tried.found, added


def _write_model(found: Compressed, folder: Path) -> Path:
    path = folder / "model.onnx"
    save(found.model, path)
    (folder / "plan.json").write_text(found.plan.to_json(), encoding="utf-8", newline="\n")
    layers = layers_json(found.layers)
    (folder / "layers.json").write_text(layers, encoding="utf-8", newline="\n")
    return path


def _lower(job: Job, compressed: Path, folder: Path, tell: Progress) -> dict[str, EngineResult]:
    engines: dict[str, EngineResult] = {}
    with tell.stage("lower") as stage:
        golden = golden_inputs(job)
        for k, target in enumerate(job.recipe.lower):
            engines[target.name] = lower(compressed, target, folder, golden)
            stage.advance(k + 1, len(job.recipe.lower))
        stage.note(" · ".join(f"{name} {engine.reason}" for name, engine in engines.items()))
    return engines


def golden_inputs(job: Job) -> dict[str, Array]:
    """The first rows that the gates look at, or else of those for calibration."""
    batch = next(iter((job.validation or job.calibration).batches()))
    count = batch.rows if has_fixed_batch(job.taken.model) else GOLDEN_ROWS
    return {name: rows[:count] for name, rows in batch.feeds.items()}


def _validate(
    job: Job,
    own: Sequence[Own],
    compressed: Path,
    engines: dict[str, EngineResult],
    timed: Sequence[Timed],
    tell: Progress,
) -> Metrics:
    with tell.stage("validate") as stage:
        baseline = _baseline(job, compressed)
        metrics = validate(
            job.taken.path, compressed, job.validation, job.recipe, stage, own, baseline
        )
    models = job.taken.path, compressed
    add_split(metrics, models, job.validation, job.recipe, golden_inputs(job), tell)
    for name, engine in engines.items():
        metrics["backends"][name] = {
            "built": engine.built,
            "ran": engine.ran,
            "precision": engine.precision,
            "size_bytes": engine.size_bytes or 0,
            "note": engine.reason,
        }
    metrics["layers"] = [one.told() for one in timed if one.speed.timed]
    return metrics


def _pack(
    job: Job,
    found: Compressed,
    engines: dict[str, EngineResult],
    metrics: Metrics,
    folder: Path,
) -> None:
    recipe, session = job.recipe, open_model(folder / "model.onnx")
    inputs = golden_inputs(job)
    outputs = session.run(inputs)
    golden = write_golden(folder, inputs, outputs, open_original(job.taken).run(inputs))
    largest = max(float(abs(rows).max(initial=0.0)) for rows in outputs.values())
    made_from = _write_lock(job, folder)
    write_reports(
        metrics,
        json.loads(found.plan.to_json()),
        folder,
        layers=_read(folder / "layers.json"),
        lock=made_from,
        recipe=resolved(recipe),
        place=place_of(recipe),
    )
    write_manifest(
        folder,
        name=recipe.name,
        inputs=session.inputs,
        outputs=session.outputs,
        id_ranges=id_ranges(found.model),
        engines=_manifest_engines(job, engines, outputs, folder),
        golden=Golden(golden.name, GOLDEN_TOLERANCE * max(largest, 1e-3)),
        ranks={choice.site: choice.rank for choice in found.plan.choices},
        metrics={"passed": metrics["passed"], "metrics": metrics["metrics"]},
        versions={**made_from["packages"], "python": made_from["python"]},
        gates=device_gates(recipe.gates, metrics),
    )


def _write_lock(job: Job, folder: Path) -> dict[str, Any]:
    """Write what the bundle was made from: recipe.yaml, and recipe.lock.json, which it gives."""
    recipe = job.recipe
    (folder / "recipe.yaml").write_text(resolved(recipe), encoding="utf-8", newline="\n")
    made_from = locked(recipe, job)
    text = json.dumps(made_from, indent=2, sort_keys=True) + "\n"
    (folder / "recipe.lock.json").write_text(text, encoding="utf-8", newline="\n")
    return made_from


def locked(recipe: Recipe, job: Job) -> dict[str, Any]:
    """recipe.lock.json: what has to be equal for the same bytes to come out."""
    digests = {"model": job.taken.sha256, "calibration": job.calibration.digest()}
    if (named := recipe.timing.table) is not None:
        digests["timing"] = hashlib.sha256((recipe.folder / named).read_bytes()).hexdigest()
    if job.validation is not None:
        digests["validation"] = job.validation.digest()
    if job.learning is not None:
        digests["training"] = job.learning.rows.digest()
        if job.learning.held_out is not None:
            digests["holdout"] = job.learning.held_out.digest()
    for name, metric in recipe.metrics.items():
        code = recipe.folder / metric.code.rpartition(":")[0]
        digests[f"metrics.{name}"] = hashlib.sha256(code.read_bytes()).hexdigest()
    return lock(recipe, digests)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _manifest_engines(
    job: Job, engines: dict[str, EngineResult], golden: Mapping[str, Array], folder: Path
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
