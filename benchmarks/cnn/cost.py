"""What compiling EfficientNet-Lite0 costs, in runs of the model over its calibration images.

Run `python -m benchmarks.cnn.cost`, about a quarter of an hour. With `--compile` it is the fresh
process whose memory is looked at. Model and images are those of the recipe, see
models/efficientnet-lite0/README.md.
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when numpy is imported: costs are CPU time
os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_info

from benchmarks.cnn import table
from benchmarks.cnn.common import RESULTS, ROOT, environment, sources, write_json
from benchmarks.ctr.checks import Stopwatch, peak_memory
from rankc.data import Source, open_source
from rankc.pipeline import compile_recipe, plan_recipe
from rankc.recipe import Recipe
from rankc.recipe_load import load_recipe
from rankrt.session import open_model

RECIPE = ROOT / "recipes" / "efficientnet-lowrank.yaml"
REPEATS = 3
BEFORE = ("intake", "cleanup", "calibrate")  # stages before planning

# What a row is called, and what follows `--set`.
VARIANTS = (
    ("`efficientnet-lowrank`", ()),
    ("the same on 240 images", ("data.calibration.rows=240",)),
    ("the same, 64 patches an image", ("passes.conv.positions=64",)),
    ("the same, all layers but depthwise ones", ('passes.conv.ignore=["*depthwise*"]',)),
    ("the same, all layers", ("passes.conv.ignore=[]",)),
    ("the same, `refit: {}`", ("refit={}",)),
)


def measured(label: str, options: Sequence[str], repeats: int) -> dict[str, Any]:
    """CPU seconds of plain runs, of calibrations and of what follows, in turn; memory once."""
    recipe = load_recipe(RECIPE, ["gates=[]", *options])
    path = recipe.folder / recipe.model
    source = open_source(recipe.data.calibration, recipe.folder, open_model(path).inputs)
    plain, calibration, planning = [], [], []
    for _ in range(repeats):
        plain.append(_plain(path, source))
        calibrated, rest = _planned(recipe)
        calibration.append(calibrated)
        planning.append(rest)
    print(f"{label}: {calibration[-1] / plain[-1]:.2f}, {planning[-1] / plain[-1]:.2f}", flush=True)
    return {
        "label": label,
        "set": list(options),
        "images": source.rows,
        "plain_seconds": plain,
        "calibration_seconds": calibration,
        "planning_seconds": planning,
        "model_bytes": path.stat().st_size,
        "peak_memory_bytes": _memory(options),
    }


def _plain(path: Path, source: Source) -> float:
    started = time.process_time()
    session = open_model(path)
    for batch in source.batches():
        session.run(batch.feeds)
    return time.process_time() - started


def _planned(recipe: Recipe) -> tuple[float, float]:
    """Seconds of the calibration, and of planning, rewriting and refitting after it."""
    watch, started = Stopwatch(), time.process_time()
    plan_recipe(recipe, progress=watch)
    spent = time.process_time() - started
    before = sum(watch.stages[name]["cpu_seconds"] for name in BEFORE)
    return watch.stages["calibrate"]["cpu_seconds"], spent - before


def _memory(options: Sequence[str]) -> int:
    command = [sys.executable, "-m", "benchmarks.cnn.cost", "--compile", *options]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return int(json.loads(done.stdout))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write cost.json and table.md; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cnn.cost", description=__doc__)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--out", type=Path, default=RESULTS, help="where cost.json goes")
    parser.add_argument("--compile", nargs="*", metavar="KEY=VALUE", help=argparse.SUPPRESS)
    chosen = parser.parse_args(argv)
    if chosen.compile is not None:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            compile_recipe(load_recipe(RECIPE, ["gates=[]", *chosen.compile]), Path(folder) / "out")
        print(json.dumps(peak_memory()))
        return 0
    recipe = load_recipe(RECIPE)
    for name in (recipe.model, recipe.data.calibration.path):
        if not (recipe.folder / name).exists():
            print(f"{name} is not there: models/efficientnet-lite0/README.md", file=sys.stderr)
            return 2
    kernels = {str(one.get("architecture")) for one in threadpool_info()} - {"None"}
    raw = {
        "format": 1,
        "environment": environment() | {"blas": ", ".join(sorted(kernels))},
        "rankc_sources_sha256": sources(),
        "variants": [measured(label, options, chosen.repeats) for label, options in VARIANTS],
    }
    write_json(chosen.out / "cost.json", raw)
    print(f"{chosen.out / 'cost.json'}\n{table.write(chosen.out)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
