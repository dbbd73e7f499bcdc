"""The compressed model against the original: everything that metrics.json says."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

from rankc.data import Array, Source
from rankc.progress import Stage
from rankc.recipe import Recipe
from rankc.validate.baseline import Baseline
from rankc.validate.estimates import Estimate, bootstrapped
from rankc.validate.fitting import check_sizes_fit
from rankc.validate.footprint import footprint
from rankc.validate.gates import finish, require_measured
from rankc.validate.latency import CLOCK, LEVEL, SCOPE, batch_of, compare_latency
from rankc.validate.layer_profile import layer_times
from rankc.validate.own import Own
from rankc.validate.quantities import known_to
from rankc.validate.sampling import one_core
from rankc.validate.schema import FORMAT, LatencyHow, Measured, Metrics, Ratios
from rankc.validate.scoring import Scored, batched_inputs, score
from rankc.validate.startup import start_in_turn
from rankrt.session import open_model

LATENCY_SECONDS = 12.0  # of CPU time, for all batch sizes together
_RESAMPLES = 1000
_STARTS = 3  # processes a model; 1 where few repeats are asked for
_SCORED, _BOOTSTRAP, _TIMED = 10, 15, 90  # where the progress bar stands after each, in percent


def validate(
    original: Path,
    compressed: Path,
    source: Source | None,
    recipe: Recipe,
    stage: Stage | None = None,
    own: Sequence[Own] = (),
    baseline: Baseline | None = None,
) -> Metrics:
    """Measure both models with one thread each and decide the recipe's gates.

    Args:
        original: ONNX file of the model as it came.
        compressed: ONNX file of the result; same inputs and outputs.
        source: Validation rows, with labels if the recipe names their column. None: only what
            needs no rows is measured (size_bytes, params, macs, nodes).
        recipe: Its name, gates, batch sizes and seed are used.
        stage: Where progress is shown.
        own: The recipe's own metrics, as `open_metrics` gives them.
        baseline: What gates against the baseline are held against.

    Returns:
        The content of metrics.json; `backends` is empty for the caller to fill in.

    Raises:
        DataError: The rows or labels do not fit; see `score`.
        ModelError: An output is missing, not finite, or of another shape.
        RecipeError: A gate is on something that was not measured, or a batch size is impossible.
    """
    metrics = _start(recipe)
    if recipe.metrics:
        metrics["own"] = {name: one.better for name, one in recipe.metrics.items()}
    _add_footprints(metrics, original, compressed)
    if source is None:
        needy = (name for name, quantity in known_to(metrics).items() if quantity.needs)
        metrics["unavailable"].update(dict.fromkeys(needy, "there is no validation data"))
        return finish(metrics, recipe.gates, baseline, recipe.lines)
    before, after = open_model(original, threads=1), open_model(compressed, threads=1)
    metrics["environment"][before.backend] = before.version
    metrics["latency_how"]["backend"] = f"{before.backend} {before.version}"
    sizes = recipe.latency.batch_sizes
    check_sizes_fit(sizes, before.inputs)
    scored = score(
        before,
        after,
        source,
        columns=columns_of(recipe),
        own=own,
        head_rows=max(sizes, default=1),
        tick=lambda rows: _advance(stage, 0, _SCORED, rows / (source.rows or math.inf)),
    )
    _add_accuracy(metrics, scored, recipe.seed, stage)
    require_measured(recipe.gates, metrics)
    batches = {size: batch_of(scored.head, size, batched_inputs(before.inputs)) for size in sizes}
    del before, after  # memory: they are opened again to be timed
    _add_latency(metrics, original, compressed, batches, recipe, stage)
    _add_startup(metrics, original, compressed, batches, recipe.latency.repeats)
    if stage:
        stage.note(f"{scored.rows:,} rows")
    return finish(metrics, recipe.gates, baseline, recipe.lines)


def _advance(stage: Stage | None, start: int, end: int, share: float) -> None:
    """Move the bar to where `share` of the part from `start` to `end` per cent is done."""
    if stage:
        stage.advance(start + int(min(share, 1.0) * (end - start)), 100)


def _start(recipe: Recipe) -> Metrics:
    return Metrics(
        format=FORMAT,
        recipe=recipe.name,
        passed=False,  # until the gates have been decided
        gates=[],
        rows=0,
        output=None,
        metrics={},
        unavailable={},
        ratios={},
        latency={},
        latency_how=LatencyHow(
            scope=SCOPE, clock=CLOCK, device=processor(), backend="", pinned=False, level=LEVEL
        ),
        layers=[],
        memory_batch=None,
        backends={},
        environment=_environment(),
    )


def _environment() -> dict[str, str]:
    """What the numbers depend on; nothing that names the user or the machine."""
    return {
        "cpu": processor(),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "rankc": version("rankc"),
        "system": f"{platform.system()} {platform.machine()}",
    }


def processor() -> str:
    """The processor's own name; Python knows only its family on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def columns_of(recipe: Recipe) -> tuple[str, str]:
    """Names of the label and of the group column."""
    spec = recipe.data.validation
    return ("label", "group") if spec is None else (spec.label or "label", spec.group or "group")


def _add_footprints(metrics: Metrics, original: Path, compressed: Path) -> None:
    before, after = footprint(original), footprint(compressed)
    ratios: Ratios = {}
    if before.macs is None or after.macs is None:
        which = "original" if before.macs is None else "compressed"
        metrics["unavailable"]["macs"] = f"{which} model, {before.unknown or after.unknown}"
    else:
        metrics["metrics"]["macs"] = _measured(before.macs, after.macs)
        if after.macs:
            ratios["macs"] = before.macs / after.macs
    if after.params:
        ratios["params"] = before.params / after.params
    ratios["size_bytes"] = before.size_bytes / after.size_bytes
    metrics["ratios"] = ratios
    for name in ("size_bytes", "params", "nodes"):
        metrics["metrics"][name] = _measured(getattr(before, name), getattr(after, name))


def _measured(original: float, compressed: float, estimate: Estimate | None = None) -> Measured:
    measured = Measured(
        original=original,
        compressed=compressed,
        difference=compressed - original,
        interval=None if estimate is None else estimate.interval,
    )
    if estimate is None or estimate.interval is None:
        return measured
    measured["method"] = estimate.method
    if estimate.value_interval is not None:
        measured["value_interval"] = estimate.value_interval
    if estimate.p_value is not None:
        measured["p_value"] = estimate.p_value
    return measured


def _add_accuracy(metrics: Metrics, scored: Scored, seed: int, stage: Stage | None) -> None:
    metrics["rows"] = scored.rows
    metrics["output"] = scored.output
    found = scored.judgement
    for name in metrics.get("own", {}):
        if name not in found.pairs:
            metrics["unavailable"][name] = "its code was not allowed to run (--trust-recipe-code)"
    metrics["unavailable"].update(found.unavailable)
    if found.notes:
        metrics["notes"] = found.notes

    def tick(done: int) -> None:
        _advance(stage, _SCORED, _BOOTSTRAP, done / _RESAMPLES)

    estimates = {name: estimate() for name, estimate in found.estimates.items()}
    estimates |= bootstrapped(
        found.pairs,
        found.differences,
        found.values,
        scored.rows,
        resamples=_RESAMPLES,
        seed=seed,
        tick=tick,
    )
    for name, (original, compressed) in found.pairs.items():
        metrics["metrics"][name] = _measured(original, compressed, estimates.get(name))


def _add_latency(
    metrics: Metrics,
    original: Path,
    compressed: Path,
    batches: Mapping[int, Mapping[str, Array]],
    recipe: Recipe,
    stage: Stage | None,
) -> None:
    with one_core() as pinned:
        metrics["latency"] = compare_latency(
            lambda: open_model(original, threads=1).run,
            lambda: open_model(compressed, threads=1).run,
            batches,
            pairs=recipe.latency.repeats,
            seconds=LATENCY_SECONDS,
            tick=lambda share: _advance(stage, _BOOTSTRAP, _TIMED, share),
        )
        if batches:
            feeds = batches[max(batches)]
            metrics["layer_times"] = layer_times(original, compressed, feeds)
    metrics["latency_how"]["pinned"] = pinned


def _add_startup(
    metrics: Metrics,
    original: Path,
    compressed: Path,
    batches: Mapping[int, Mapping[str, Array]],
    repeats: int,
) -> None:
    if not batches:
        needy = ("peak_memory_bytes", "load_ms", "cold_start_ms")
        metrics["unavailable"].update(dict.fromkeys(needy, "latency.batch_sizes is empty"))
        return
    size = max(batches)
    starts = _STARTS if repeats >= _STARTS * 5 else 1
    before, after = start_in_turn((original, compressed), batches[size], starts)
    metrics["startup"] = {"original": before.times, "compressed": after.times}
    metrics["memory_batch"] = size
    if before.peak_memory_bytes is None or after.peak_memory_bytes is None:
        metrics["unavailable"]["peak_memory_bytes"] = "this system does not tell a process's peak"
        return
    metrics["metrics"]["peak_memory_bytes"] = _measured(
        before.peak_memory_bytes, after.peak_memory_bytes
    )
