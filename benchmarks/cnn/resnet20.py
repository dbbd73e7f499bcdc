"""ResNet-20 at 2 to 3 times fewer MACs: rankc, its baselines, and what else one could do.

Run `python -m benchmarks.cnn.resnet20`, about half an hour; `--quick` takes three minutes. What is
finished is kept in build/bench-cnn; after Ctrl-C only what is missing is done. The model is the
user's to make: models/cifar-resnet20/README.md.
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when numpy is imported: costs are CPU time
os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

from benchmarks.cnn import predictions, quantization, table
from benchmarks.cnn.common import (
    CACHE,
    RESULTS,
    ROOT,
    Kept,
    environment,
    latency_text,
    sha256,
    sources,
    write_json,
)
from benchmarks.cnn.resnet20_targets import PAYS
from benchmarks.ctr.checks import Stopwatch
from rankc.data import open_source
from rankc.errors import RecipeError
from rankc.pipeline import compile_recipe
from rankc.profiling import profile
from rankc.recipe import Latency, Recipe
from rankc.recipe_load import load_recipe
from rankc.recipe_lock import resolved
from rankc.report.text import TIMES, signed
from rankc.validate import validate
from rankrt.session import open_model

RECIPE = ROOT / "recipes" / "cifar-lowrank.yaml"
MODEL = ROOT / "models" / "cifar-resnet20"
RATIOS = (2.0, 2.8, 3.0)  # times fewer multiply-accumulates, of the whole model
# Besides the baselines; at the first ratio everything is measured.
FURTHER = {2.8: ("ours", "seed-1", "seed-2", "no-refit", "steps-8", "both"), 3.0: ("ours",)}
BATCH_SIZES = (1, 32)
REPEATS, QUICK_REPEATS = 60, 10  # pairs of timings a batch size

# Nothing of these changes the compressed model: gates, engines and proofs are not needed here.
BARE = ("gates=[]", "lower=[{backend: onnxruntime}]", "data.validation=null")
# What others do: no statistics, no refit, and whatever is slower stays.
NAIVE = ("refit=null", "timing={revert: false}")
GREEDY = "planning={strategy: greedy, sensitivity: kl}"  # AIMET scores each layer on its own
TIMES_FILE, TIMES_BATCH = CACHE / "latency-cpu-b32.json", 32
BOTH: Final = ("macs", "ms")
BY_TIME = (f"timing={{table: {os.path.relpath(TIMES_FILE, RECIPE.parent)}}}",)

Row = dict[str, Any]
Tool = Literal["rankc", "ort-int8", "none"]


@dataclasses.dataclass(frozen=True, slots=True)
class Variant:
    """One row of the table, at one or more ratios."""

    name: str
    label: str
    options: tuple[str, ...] = ()  # what follows `--set`
    tool: Tool = "rankc"
    baseline: bool = False
    quick: bool = False  # measured with --quick, too
    quantized: bool = False  # by ORT, after rankc
    limits: tuple[Literal["macs", "ms"], ...] = ("macs",)  # units of its budgets


def weight_svd(form: str) -> tuple[str, ...]:
    """The truncated SVD of the weights alone, in one form, at whatever rank.

    In steps of 4 a share that is the same for all layers would miss the target by a quarter.
    """
    method = f"method: svd, centred: false, forms: [{form}], round_to: 1"
    return (f"passes=[conv: {{{method}}}]", *NAIVE)


def baselines() -> tuple[Variant, ...]:
    """Weight SVD in two forms, its ranks chosen in two ways."""
    names = {"channel": "channel-wise", "vertical": "spatial"}
    return tuple(
        Variant(
            f"svd-{form}-{strategy}",
            f"weight SVD, {names[form]}, {said}",
            (*weight_svd(form), planning),
            baseline=True,
            quick=strategy == "uniform",
        )
        for strategy, said, planning in (
            ("uniform", "uniform", "planning={strategy: uniform}"),
            ("greedy", "greedy ratios (AIMET's)", GREEDY),
        )
        for form in ("channel", "vertical")
    )


VARIANTS = (
    *baselines(),
    Variant("ours", "**rankc (`cifar-lowrank`)**", quick=True),
    Variant("seed-1", "rankc, `seed: 1`", ("seed=1",)),
    Variant("seed-2", "rankc, `seed: 2`", ("seed=2",)),
    Variant("no-refit", "rankc, `refit` left out", ("refit=null",), quick=True),
    Variant("no-rounds", "rankc, `rounds: 0`", ("passes.conv.rounds=0",)),
    Variant("no-revert", "rankc, `revert: false`", ("timing={revert: false}",)),
    Variant("efficiency", "rankc, `efficiency: 0.8`", ("timing={efficiency: 0.8}",)),
    Variant("kl", "rankc, `sensitivity: kl`", ("planning={sensitivity: kl}",)),
    Variant("fisher", "rankc, `sensitivity: fisher`", ("planning={sensitivity: fisher}",)),
    Variant("steps-8", "rankc, `round_to: 8`", ("passes.conv.round_to=8",)),
    Variant("steps-16", "rankc, `round_to: 16`", ("passes.conv.round_to=16",)),
    Variant("both", "rankc, and 80 % of it in ms, by `rankc profile`", BY_TIME, limits=BOTH),
    Variant("ms", "rankc, as much less *time* instead", BY_TIME, limits=("ms",)),
    Variant("ours-int8", "rankc, then ORT static INT8", quantized=True),
)
WHOLE = (
    Variant("dense", "the original against itself", tool="none", baseline=True),
    Variant("ort-int8", "ORT static INT8", tool="ort-int8", baseline=True, quick=True),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """A variant at one ratio; 1: of the whole model as it is."""

    variant: Variant
    ratio: float
    repeats: int  # pairs of timings a batch size

    @property
    def title(self) -> str:
        """As it is called while it runs, and in the cache."""
        return f"{self.variant.name} {self.ratio:g}{TIMES}"

    @property
    def recipe(self) -> Recipe:
        """The shipped recipe with this variant's options."""
        keep = () if self.ratio == 1 else (self._budgets(),)
        return load_recipe(RECIPE, [*BARE, *keep, *self.variant.options])

    def _budgets(self) -> str:
        shares = dict.fromkeys(self.variant.limits, 1 / self.ratio)
        if self.variant.limits == BOTH:
            shares["ms"] /= PAYS
        told = [f"{{unit: {unit}, keep_ratio: {share!r}}}" for unit, share in shares.items()]
        return f"budget=[{', '.join(told)}]"

    def told(self) -> list[str]:
        """What its row depends on, besides the data, the code and the machine."""
        table = [sha256(TIMES_FILE)] if "ms" in self.variant.limits else []
        return [resolved(self.recipe), str(self.repeats), str(self.variant.quantized), *table]


def jobs(quick: bool) -> list[Job]:
    """All rows, ratio by ratio."""
    repeats = QUICK_REPEATS if quick else REPEATS
    found = [Job(variant, 1.0, repeats) for variant in WHOLE]
    ratios = RATIOS[:1] if quick else RATIOS
    found += [
        Job(variant, ratio, repeats)
        for ratio in ratios
        for variant in VARIANTS
        if ratio == RATIOS[0] or variant.baseline or variant.name in FURTHER[ratio]
    ]
    return [job for job in found if job.variant.quick or not quick]


# --- one row ----------------------------------------------------------------------------------


def measured(job: Job) -> Row:
    """Make the variant, and compare it with the original on all test images; or the refusal."""
    folder = CACHE / "made" / f"{job.variant.name}-{job.ratio:g}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    wall, cpu = time.monotonic(), time.process_time()
    told = {
        "variant": job.variant.name,
        "ratio": job.ratio,
        "set": list(job.variant.options),
    }
    try:
        made, watch = make(job, folder)
    except RecipeError as refusal:  # steps that are too coarse for the budget
        return told | {"refused": str(refusal)}
    spent = {"wall": time.monotonic() - wall, "cpu": time.process_time() - cpu}
    judge = dataclasses.replace(
        load_recipe(RECIPE, ["gates=[]"]), latency=Latency(BATCH_SIZES, job.repeats)
    )
    assert judge.data.validation is not None
    original = MODEL / "model.onnx"
    source = open_source(judge.data.validation, judge.folder, open_model(original).inputs)
    metrics = validate(original, made, source, judge)
    kept = ("rows", "metrics", "ratios", "latency")
    return {
        **told,
        "sha256": sha256(made),
        "seconds": spent,
        "stages": watch.stages,
        "layers": layers(folder),
        **{name: metrics[name] for name in kept},  # type: ignore[literal-required]
    }


def make(job: Job, folder: Path) -> tuple[Path, Stopwatch]:
    """The variant's ONNX file, and how long the stages of its compile took."""
    made, watch = MODEL / "model.onnx", Stopwatch()
    if job.variant.tool == "rankc":
        compile_recipe(job.recipe, folder / "bundle", progress=watch)
        made = folder / "bundle" / "model.onnx"
    if job.variant.tool == "ort-int8" or job.variant.quantized:
        source = open_source(job.recipe.data.calibration, RECIPE.parent, open_model(made).inputs)
        made = quantization.static_int8(made, source, folder / "quantized.onnx")
    return made, watch


def layers(folder: Path) -> list[Row]:
    """What the plan made of each layer, and how fast that is, where it was timed."""
    bundle = folder / "bundle"
    if not bundle.exists():
        return []
    plan, metrics = (
        json.loads((bundle / name).read_text(encoding="utf-8"))
        for name in ("plan.json", "metrics.json")
    )
    timed = {one["site"]: one for one in metrics["layers"] if one["verdict"] != "put back"}
    rows = [
        {
            **{key: choice[key] for key in ("site", "form", "rank", "error", "macs", "dense_macs")},
            "latency": timed.get(choice["site"], {}).get("latency", {}),
            "verdict": timed.get(choice["site"], {}).get("verdict", ""),
        }
        for choice in plan["choices"]
    ]
    back = [
        {key: one[key] for key in ("site", "form", "rank", "latency", "verdict")}
        for one in metrics["layers"]
        if one["verdict"] == "put back"
    ]
    return rows + back


def line(row: Row) -> str:
    """What is told of a row while it runs."""
    if "refused" in row:
        return str(row["refused"])
    accuracy = row["metrics"]["accuracy_top1"]
    points, ends = (
        [signed(100 * value, 2) for value in values]
        for values in ((accuracy["difference"],), accuracy["interval"])
    )
    fewer = f"{row['ratios']['macs']:.2f}{TIMES} fewer MACs"
    return f"{fewer}, {points[0]} [{', '.join(ends)}] points, {latency_text(row['latency'])}"


# --- the command line -------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write resnet20.json and table.md; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cnn.resnet20", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="five rows; results stay in build/")
    parser.add_argument("--out", type=Path, help="where resnet20.json and table.md go")
    chosen = parser.parse_args(argv)
    if not (MODEL / "model.onnx").exists():
        print(
            "models/cifar-resnet20/model.onnx is not there: it is made from images and weights of "
            'your own, make models-cifar ARGS="--data DIR --weights FILE"',
            file=sys.stderr,
        )
        return 2
    try:
        write(chosen.out or (CACHE / "quick" if chosen.quick else RESULTS), chosen.quick)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def write(out: Path, quick: bool) -> None:
    """Every row, then the predictions."""
    asked = jobs(quick)
    if any("ms" in job.variant.limits for job in asked):
        print(f"times of the layers, kept in {TIMES_FILE}", flush=True)
        profile(MODEL / "model.onnx", "cpu", TIMES_FILE, batch=TIMES_BATCH, passes=("conv",))
    data = [
        sha256(MODEL / f"{name}") for name in ("model.onnx", "calibration.npz", "validation.npz")
    ]
    own = [Path(module.__file__ or "") for module in (predictions, quantization)]
    kept = Kept(len(asked) + 1, sources(Path(__file__), *own))
    machine = environment()
    common = [*data, *machine.values()]
    rows = []
    for job in asked:
        told = [*common, *job.told()]
        row = kept(job.title, told, lambda job=job: measured(job), line)  # type: ignore[misc]
        pure = job.variant.tool == "rankc" and not job.variant.quantized
        shown = {"label": job.variant.label, "baseline": job.variant.baseline, "floats": pure}
        rows.append(row | shown)
    images = predictions.QUICK if quick else predictions.WHOLE
    found = kept(
        "predicted against measured errors",
        [*common, repr(images)],
        lambda: predictions.measure(RECIPE, images),
        lambda answer: f"worst deviation {predictions.worst(answer['exact']):.1e}",
    )
    raw = {
        "format": 1,
        "environment": machine,
        "rankc_sources_sha256": sources(),
        "reference_sha256": data[0],
        "rows": rows,
        "predictions": found,
    }
    write_json(out / "resnet20.json", raw)
    print(f"{out / 'resnet20.json'}\n{table.write(out)}")


if __name__ == "__main__":
    raise SystemExit(main())
