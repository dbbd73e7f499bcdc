"""One row: make a variant, validate it against the reference, keep the answer.

A row is kept under a key of all that decides it, so an interrupted or repeated run does only what
is new.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from benchmarks.ctr.references import ROOT
from benchmarks.ctr.variants import RECIPE, Variant, make, recipe_for
from rankc.data import open_source
from rankc.recipe import Latency, Recipe
from rankc.recipe_load import load_recipe
from rankc.recipe_lock import resolved
from rankc.validate import validate
from rankrt.session import open_model

BATCH_SIZES = (1, 32, 256, 4096)
Row = dict[str, Any]  # what raw.json holds of one variant of one model


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """A variant of one trained model."""

    variant: Variant
    seed: int
    reference: Path  # what it is compared with
    model: Path  # what it is made of: the reference, or the retrained model
    repeats: int  # pairs of timings a batch size; 0: not timed

    @property
    def title(self) -> str:
        return f"{self.variant.arch} seed {self.seed} {self.variant.name}"

    def key(self) -> str:
        """Changes with anything that the row depends on."""
        recipe = dataclasses.replace(recipe_for(self.model, self.variant.options), model="-")
        told = [
            *(sha256(path) for path in (self.reference, self.model, *data_files())),
            resolved(recipe),
            repr(self.variant),
            str(self.repeats),
            sources(),
            *(module.__version__ for module in (np, onnx, onnxruntime)),
        ]
        return hashlib.sha256("\n".join(told).encode()).hexdigest()


def kept(job: Job, cache: Path) -> Path:
    """Where the row of a job is kept once it is measured."""
    return cache / "rows" / f"{job.key()}.json"


def run(job: Job, cache: Path) -> tuple[Row, bool]:
    """The row of a job, and whether it had to be measured."""
    path = kept(job, cache)
    if path.exists():
        row: Row = json.loads(path.read_text(encoding="utf-8"))
        return row, False
    row = _measure(job, cache / "made" / f"{job.variant.arch}-{job.seed}-{job.variant.name}")
    write_json(path, row)
    return row, True


def _measure(job: Job, folder: Path) -> Row:
    started = time.monotonic()
    made = make(job.variant, job.model, folder)
    spent = time.monotonic() - started
    recipe = judging_recipe(job)
    assert recipe.data.validation is not None
    inputs = open_model(job.reference).inputs
    source = open_source(recipe.data.validation, recipe.folder, inputs)
    metrics = validate(job.reference, made, source, recipe)
    return {
        "arch": job.variant.arch,
        "seed": job.seed,
        "variant": job.variant.name,
        "tool": job.variant.tool,
        "scored_at": job.variant.scored_at,
        "set": list(job.variant.options),
        "reference_sha256": sha256(job.reference),
        "made_from_sha256": sha256(job.model),
        "sha256": sha256(made),
        "make_seconds": round(spent, 2),
        "ranks": _ranks(folder / "plan.json"),
        **{name: metrics[name] for name in ("rows", "metrics", "ratios", "latency", "environment")},
    }


def judging_recipe(job: Job) -> Recipe:
    """The shipped recipe's way of validating, without its gates."""
    options = [f"model={json.dumps(str(job.reference))}", "gates=[]"]
    options.append(f"data.validation.batch_size={job.variant.scored_at}")
    timed = Latency(BATCH_SIZES, job.repeats) if job.repeats else Latency(())
    return dataclasses.replace(load_recipe(RECIPE, options), latency=timed)


def _ranks(plan: Path) -> dict[str, int]:
    """The rank of every site that rankc rewrote."""
    if not plan.exists():
        return {}
    choices = json.loads(plan.read_text(encoding="utf-8"))["choices"]
    return {choice["site"]: choice["rank"] for choice in choices}


def data_files() -> tuple[Path, ...]:
    """Calibration and validation rows of the shipped recipe; all models share one split."""
    data = load_recipe(RECIPE).data
    assert data.validation is not None
    return tuple(
        (RECIPE.parent / spec.path).resolve() for spec in (data.calibration, data.validation)
    )


@functools.cache
def sha256(path: Path) -> str:
    """Hex digest of a file that does not change while this runs."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@functools.cache
def sources() -> str:
    """Hex digest of the source code that makes and judges the variants."""
    return _digest(
        [
            *(ROOT / "compiler" / "rankc").rglob("*.py"),
            *(ROOT / "runtime" / "rankrt").rglob("*.py"),
            Path(__file__).with_name("variants.py"),
            Path(__file__),
        ]
    )


def _digest(files: Iterable[Path]) -> str:
    found = hashlib.sha256()
    for file in sorted(files):
        found.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes())
    return found.hexdigest()


def write_json(path: Path, content: object) -> None:
    """Write a JSON file as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(unfinished, path)
