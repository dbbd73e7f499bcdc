"""EfficientNet-Lite0 at 10, 20 and 30 % fewer MACs: rankc, its baselines, and its parts.

Run `python -m benchmarks.cnn.efficientnet`, about half an hour; `--quick` takes three minutes. What
is finished is kept in build/bench-cnn; after Ctrl-C only what is missing is done. The model is made
by `make models-efficientnet`; images come from `--images DIR`, which has the sub-folders
`calibration` and `validation`: models/efficientnet-lite0/README.md says how to get some.
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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models.efficientnet import photos

from benchmarks.cnn import table
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
from benchmarks.ctr.checks import Stopwatch
from rankc.data import open_source
from rankc.errors import RecipeError
from rankc.pipeline import compile_recipe
from rankc.recipe import Latency, Recipe
from rankc.recipe_load import load_recipe
from rankc.recipe_lock import resolved
from rankc.validate import validate
from rankrt.session import open_model

RECIPE = ROOT / "recipes" / "efficientnet-lowrank.yaml"
MODEL = ROOT / "models" / "efficientnet-lite0"
PARTS = ("calibration", "validation")
FEWER = (0.1, 0.2, 0.3)  # multiply-accumulates, of the whole model
BATCH_SIZES = (1, 8)
REPEATS, QUICK_REPEATS = 40, 10  # pairs of timings a batch size

# Nothing of these changes the compressed model: gates, engines and proofs are not needed here.
BARE = ("gates=[]", "lower=[{backend: onnxruntime}]", "data.validation=null")
# What others do: no statistics, no refit, and whatever is slower stays.
NAIVE = ("refit=null", "timing={revert: false}")
# AIMET scores each layer on its own. Of the spatial form no plan is small enough, however scored.
GREEDY = {
    "channel": "planning={strategy: greedy, sensitivity: kl}",
    "vertical": "planning={strategy: greedy}",
}
# Depthwise kernels stay out: they never were worth it, and their patches cost most of the time.
ALL = 'passes.conv.ignore=["*depthwise*"]'

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Variant:
    """One row of the table at each size."""

    name: str
    label: str
    options: tuple[str, ...] = ()  # what follows `--set`
    baseline: bool = False
    quick: bool = False  # measured with --quick, too


def weight_svd(form: str) -> tuple[str, ...]:
    """The truncated SVD of the weights alone, in one form, at whatever rank."""
    method = f"method: svd, centred: false, forms: [{form}], round_to: 1, positions: 16"
    return (f"passes=[conv: {{{method}}}]", *NAIVE)


def baselines() -> tuple[Variant, ...]:
    """Weight SVD in two forms, its ranks chosen in two ways."""
    names = {"channel": "channel-wise", "vertical": "spatial"}
    return tuple(
        Variant(
            f"svd-{form}-{strategy}",
            f"weight SVD, {names[form]}, {said}",
            (*weight_svd(form), planning[form]),
            baseline=True,
            quick=strategy == "uniform",
        )
        for strategy, said, planning in (
            ("uniform", "uniform", dict.fromkeys(names, "planning={strategy: uniform}")),
            ("greedy", "greedy ratios (AIMET's)", GREEDY),
        )
        for form in names
    )


VARIANTS = (
    *baselines(),
    Variant("ours", "**rankc (`efficientnet-lowrank`)**", quick=True),
    Variant("pivot", "rankc, `forms: [channel, pivot]`", ("passes.conv.forms=[channel, pivot]",)),
    Variant(
        "pivot-slow",
        "rankc, the same, and what is slower stays",
        ("passes.conv.forms=[channel, pivot]", "timing={revert: false}"),
    ),
    Variant("refit", "rankc, `refit: {}`", ("refit={}",), quick=True),
    Variant("weighted", "rankc, `weighted: true`", ("passes.conv.weighted=true",)),
    Variant("end", "rankc, the end of the net not left alone", (ALL,)),
    Variant("kl", "rankc, the same, `sensitivity: kl`", (ALL, "planning={sensitivity: kl}")),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """A variant at one size."""

    variant: Variant
    fewer: float
    images: Path
    repeats: int  # pairs of timings a batch size

    @property
    def title(self) -> str:
        """As it is called while it runs, and in the cache."""
        return f"{self.variant.name} {100 * self.fewer:.0f} %"

    @property
    def recipe(self) -> Recipe:
        """The shipped recipe with this variant's options."""
        keep = f"budget.keep_ratio={1 - self.fewer!r}"
        return load_recipe(RECIPE, [*BARE, _path("calibration", self), keep, *self.variant.options])

    @property
    def judge(self) -> Recipe:
        """How it is compared with the original."""
        loaded = load_recipe(RECIPE, ["gates=[]", _path("validation", self)])
        return dataclasses.replace(loaded, latency=Latency(BATCH_SIZES, self.repeats))


def _path(part: str, job: Job) -> str:
    return f"data.{part}.path={json.dumps(str(job.images / part))}"


def jobs(images: Path, quick: bool) -> list[Job]:
    """All rows, size by size."""
    repeats = QUICK_REPEATS if quick else REPEATS
    sizes = FEWER[:1] if quick else FEWER
    found = [Job(variant, fewer, images, repeats) for fewer in sizes for variant in VARIANTS]
    return [job for job in found if job.variant.quick or not quick]


# --- one row ----------------------------------------------------------------------------------


def measured(job: Job) -> Row:
    """Make the variant, and compare it with the original on all images; or the refusal."""
    folder = CACHE / "made" / f"efficientnet-{job.variant.name}-{100 * job.fewer:.0f}"
    shutil.rmtree(folder, ignore_errors=True)
    watch = Stopwatch()
    told = {"variant": job.variant.name, "fewer": job.fewer, "set": list(job.variant.options)}
    try:
        compile_recipe(job.recipe, folder, progress=watch)
    except RecipeError as refusal:  # e.g. of a form that few layers have
        return told | {"refused": str(refusal)}
    judge, original = job.judge, MODEL / "model.onnx"
    assert judge.data.validation is not None
    source = open_source(judge.data.validation, judge.folder, open_model(original).inputs)
    metrics = validate(original, folder / "model.onnx", source, judge)
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    kept = ("rows", "metrics", "ratios", "latency")
    return {
        **told,
        "sha256": sha256(folder / "model.onnx"),
        "stages": watch.stages,
        "layers": [{key: c[key] for key in ("site", "form", "rank")} for c in plan["choices"]],
        **{name: metrics[name] for name in kept},  # type: ignore[literal-required]
    }


def line(row: Row) -> str:
    """What is told of a row while it runs."""
    if "refused" in row:
        return str(row["refused"])
    cosine, same = (row["metrics"][name]["compressed"] for name in ("cosine", "top1_agreement"))
    return f"cosine {cosine:.3f}, {100 * same:.1f} % agree, {latency_text(row['latency'])}"


# --- the command line -------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write efficientnet.json and table.md; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cnn.efficientnet", description=__doc__
    )
    parser.add_argument("--images", type=Path, default=MODEL, help="has calibration/, validation/")
    parser.add_argument("--about", help="what the images are, for the table")
    parser.add_argument("--quick", action="store_true", help="few rows; results stay in build/")
    parser.add_argument("--out", type=Path, help="where efficientnet.json and table.md go")
    chosen = parser.parse_args(argv)
    missing = [MODEL / "model.onnx", *(chosen.images / part for part in PARTS)]
    if missing := [path for path in missing if not path.exists()]:
        print(
            f"{missing[0]} is not there: {MODEL / 'README.md'} says how to make the model, and "
            "where photos can be had; --images names a folder of yours",
            file=sys.stderr,
        )
        return 2
    out = chosen.out or (CACHE / "quick" if chosen.quick else RESULTS)
    try:
        write(out, chosen.images.resolve(), chosen.about, chosen.quick)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def write(out: Path, images: Path, about: str | None, quick: bool) -> None:
    """Every row."""
    asked = jobs(images, quick)
    model = sha256(MODEL / "model.onnx")
    known = described(images, about)
    kept, machine = Kept(len(asked), sources(Path(__file__))), environment()
    common = [model, *machine.values(), *(known[part]["sha256"] for part in PARTS)]
    rows = []
    for job in asked:
        told = [*common, resolved(job.recipe), str(job.repeats)]
        row = kept(job.title, told, lambda job=job: measured(job), line)  # type: ignore[misc]
        rows.append(row | {"label": job.variant.label, "baseline": job.variant.baseline})
    raw = {
        "format": 1,
        "environment": machine,
        "rankc_sources_sha256": sources(),
        "reference_sha256": model,
        "images": known,
        "rows": rows,
    }
    write_json(out / "efficientnet.json", raw)
    print(f"{out / 'efficientnet.json'}\n{table.write(out)}")


def described(images: Path, about: str | None) -> dict[str, Any]:
    """What the images are, how many, and their digests."""
    loaded = load_recipe(RECIPE)
    assert loaded.data.validation is not None
    inputs = open_model(MODEL / "model.onnx").inputs
    found: dict[str, Any] = {}
    for part, spec in zip(PARTS, (loaded.data.calibration, loaded.data.validation), strict=True):
        folder = images / part
        source = open_source(dataclasses.replace(spec, path=str(folder)), folder, inputs)
        names = {path.name for path in folder.iterdir()}
        found[part] = {
            "images": source.rows,
            "sha256": source.digest(),
            "photos": names == photos.names(part),
        }
    if all(found[part].pop("photos") for part in PARTS):
        about = about or photos.ABOUT
    return found | {"about": about or "images of the user's"}


if __name__ == "__main__":
    raise SystemExit(main())
