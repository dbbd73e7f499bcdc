"""What rankc says of itself, measured: predicted errors, costs, memory, repeatability.

Run as `python -m benchmarks.ctr.checks OUT` it is the fresh process that compiles the shipped
recipe into OUT and prints what that took, as JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from benchmarks.ctr.references import ROOT
from benchmarks.ctr.variants import RECIPE, WITHOUT_RECOVERY, recipe_for
from rankc.calibrate import calibrate
from rankc.cleanup import clean
from rankc.data import Batch, Source, open_source
from rankc.graph import value_named
from rankc.intake import load
from rankc.passbase import Probe, Site
from rankc.passes import split
from rankc.pipeline import compile_recipe, plan_recipe
from rankc.progress import SilentProgress, Stage
from rankc.recipe import Recipe
from rankc.recipe_load import build_passes, load_recipe
from rankc.rewriting import Sites, solve
from rankc.serialize import save
from rankrt.session import Session, open_model

Answer = dict[str, Any]
REPEATS = 7  # of the calibration and of the plain run, in turn
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")


class Prepared:
    """A model just before calibration, with all that calibration takes."""

    def __init__(self, model: Path) -> None:
        self.path = model
        self.recipe: Recipe = recipe_for(model, ())
        self.model = load(model).model.clone()
        exact, self.passes = split(build_passes(self.recipe))
        clean(self.model)
        for pass_ in exact:
            pass_.prepare(self.model)
        self.sites = Sites.of(self.model, self.passes)
        self.source: Source = open_source(
            self.recipe.data.calibration, self.recipe.folder, open_model(model).inputs
        )

    def probes(self) -> dict[Site, Probe]:
        """What calibration watches."""
        return {site: p.probe(self.model, site) for site, p in self.sites.owners.items()}

    def calibrate(self) -> Any:
        """The statistics of every site."""
        with SilentProgress().stage("calibrate") as stage:
            return calibrate(self.model, self.probes(), self.source, stage, self.recipe.seed)


# --- predicted against measured errors --------------------------------------------------------


def site_errors(model: Path) -> list[Answer]:
    """Predicted and measured share of lost variance of every site, on all calibration rows.

    A site stands at the rank of the shipped recipe's plan; at the middle rank of its curve where
    the plan leaves it dense (`planned` is False then).
    """
    prepared = Prepared(model)
    plan = plan_recipe(prepared.recipe)
    planned = {(c.pass_name, c.site): c for c in plan.choices}
    solutions = solve(prepared.model, prepared.sites, prepared.calibrate().stats)
    batches = list(prepared.source.batches())
    found = []
    for site, pass_ in prepared.sites.owners.items():
        solution = solutions[site]
        choice = planned.get((site.pass_name, site.name))
        curve = pass_.cost(site, solution)
        middle = len(curve.ranks) // 2
        rank = choice.rank if choice else int(curve.ranks[middle])
        predicted = choice.error if choice else float(curve.error[middle])
        changed = prepared.model.clone()
        pass_.rewrite(changed, site, rank, solution)
        names = prepared.sites.owners[site].probe(prepared.model, site).outputs
        measured = lost_share(prepared.model, changed, names, batches)
        found.append(
            {
                "pass": site.pass_name,
                "site": site.name,
                "rank": rank,
                "full_rank": site.full_rank,
                "planned": choice is not None,
                "predicted": predicted,
                "measured": measured,
                "deviation": deviation(predicted, measured),
            }
        )
    return found


def deviation(predicted: float, measured: float) -> float:
    """How far the measured error is from the predicted one, relative to that."""
    if predicted == measured:
        return 0.0
    return abs(measured - predicted) / max(abs(predicted), np.finfo(float).tiny)


def lost_share(
    before: ir.Model, after: ir.Model, names: Sequence[str], batches: Sequence[Batch]
) -> float:
    """E|y - y'|^2 / E|y - E y|^2 of the values called `names`, y in `before`, y' in `after`."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        sessions = [
            _up_to(model, names, Path(folder) / f"{k}.onnx")
            for k, model in enumerate((before, after))
        ]
        lost, count, total, squares = 0.0, 0, 0.0, 0.0
        shift: Any = None
        for batch in batches:
            want, got = (_values(session, names, batch) for session in sessions)
            shift = want.mean(axis=0) if shift is None else shift
            centred = want - shift
            lost += float(np.square(got - want).sum())
            total, count = total + centred.sum(axis=0), count + len(want)
            squares += float(np.square(centred).sum())
    variance = squares - float(np.square(total).sum()) / count
    return lost / variance


def _up_to(model: ir.Model, names: Sequence[str], path: Path) -> Session:
    """The model with nothing but these outputs."""
    short = model.clone()
    short.graph.outputs.clear()
    short.graph.outputs.extend(value_named(short, name) for name in names)
    RemoveUnusedNodesPass()(short)
    save(short, path)
    return open_model(path)


def _values(session: Session, names: Sequence[str], batch: Batch) -> Any:
    """Rows of all the values, float64, (rows, width)."""
    feeds = {spec.name: batch.feeds[spec.name] for spec in session.inputs}
    found = session.run(feeds)
    rows = [found[n].reshape(-1, found[n].shape[-1]).astype(np.float64) for n in names]
    return np.concatenate(rows)


# --- what calibration costs -------------------------------------------------------------------


def calibration_cost(model: Path, repeats: int = REPEATS) -> Answer:
    """CPU seconds of a calibration and of plain inference over the same rows, one thread each.

    Both read the rows from disk and open their own ONNX Runtime sessions; they take turns.
    """
    prepared, times = Prepared(model), np.empty((repeats, 2))
    probes = prepared.probes()
    for k in range(repeats):
        for which in (0, 1) if k % 2 == 0 else (1, 0):
            started = time.process_time()
            if which:
                with SilentProgress().stage("calibrate") as stage:
                    calibrate(prepared.model, probes, prepared.source, stage, prepared.recipe.seed)
            else:
                _infer(prepared)
            times[k, which] = time.process_time() - started
    ratios = times[:, 1] / times[:, 0]
    return {
        "rows": prepared.source.rows,
        "plain_seconds": times[:, 0].tolist(),
        "calibration_seconds": times[:, 1].tolist(),
        "ratio": float(np.median(ratios)),
        "ratios": ratios.tolist(),
    }


def _infer(prepared: Prepared) -> None:
    session = open_model(prepared.path)
    for batch in prepared.source.batches():
        session.run(batch.feeds)


# --- whole compiles in fresh processes --------------------------------------------------------


class Stopwatch:
    """Times the stages of a compile: implements `rankc.progress.Progress`."""

    def __init__(self) -> None:
        self.stages: dict[str, dict[str, float]] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Wall and CPU seconds of the stage go into `stages`."""
        wall, cpu = time.monotonic(), time.process_time()
        with SilentProgress().stage(name) as stage:
            yield stage
        self.stages[name] = {
            "wall_seconds": time.monotonic() - wall,
            "cpu_seconds": time.process_time() - cpu,
        }


def fresh_compiles(folder: Path) -> list[Answer]:
    """What compiles of the shipped recipe take, each in a process of its own.

    Two as a user's would run, with as many threads for linear algebra as NumPy likes, and one with
    a single thread. `blas_threads` tells which.
    """
    answers = []
    for k, threads in enumerate((None, None, 1)):
        environment = {name: value for name, value in os.environ.items() if name not in THREADS}
        if threads is not None:
            environment |= dict.fromkeys(THREADS, str(threads))
        command = [sys.executable, "-m", "benchmarks.ctr.checks", str(folder / str(k))]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        answer: Answer = json.loads(done.stdout)
        answers.append(answer | {"blas_threads": threads})
    return answers


def compile_here(out: Path) -> Answer:
    """Compile the shipped recipe in this process."""
    watch, recipe = Stopwatch(), load_recipe(RECIPE, WITHOUT_RECOVERY)
    result = compile_recipe(recipe, out, progress=watch)
    return {
        "summary": result.summary,
        "passed": result.passed,
        "seconds": result.seconds,
        "stages": watch.stages,
        "model_bytes": (recipe.folder / recipe.model).stat().st_size,
        "peak_memory_bytes": peak_memory(),
        "children_peak_memory_bytes": _children_peak(),
        "sha256": {
            name: hashlib.sha256((out / name).read_bytes()).hexdigest()
            for name in ("model.onnx", "plan.json")
        },
    }


def peak_memory() -> int:
    """The most resident bytes that this process had.

    Linux's ru_maxrss would also tell what the parent had when it started this process.
    """
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 if found else _rusage("RUSAGE_SELF")


def _children_peak() -> int:
    """The most that any finished child had: the builders of engines, the probes of memory."""
    return _rusage("RUSAGE_CHILDREN")


def _rusage(who: str) -> int:
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(getattr(resource, who)).ru_maxrss) * unit


def worst(errors: Sequence[Mapping[str, Any]]) -> float:
    """The largest deviation of a measured error from its prediction."""
    return max(float(error["deviation"]) for error in errors)


if __name__ == "__main__":
    print(json.dumps(compile_here(Path(sys.argv[1]))))
