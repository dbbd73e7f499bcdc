"""Every number about the click models. Run `make bench`, or `python -m benchmarks.ctr.run`.

Trained models and finished rows are kept in build/bench-ctr; after Ctrl-C, or a change of one
variant, only what is missing is done.
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when numpy is imported: costs are CPU time
os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import dataclasses
import functools
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.ctr import checks, measure, table
from benchmarks.ctr.measure import Job, Row, sha256, sources, write_json
from benchmarks.ctr.references import GRID, ROOT, Training, Zoo
from benchmarks.ctr.variants import RECIPE, VARIANTS
from rankc.recipe_lock import version_of
from rankc.report.text import TIMES, signed

CACHE = ROOT / "build" / "bench-ctr"
PACKAGES = ("numpy", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "torch")
REPEATS, QUICK_REPEATS = 60, 10  # pairs of timings a batch size
QUICK = ("exact", "float-5x", "int8-12x", "svd-5x", "ort-int8-b1")
TIMED_SEED = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """The command line."""

    seeds: tuple[int, ...]
    archs: tuple[str, ...]
    quick: bool
    out: Path

    @property
    def repeats(self) -> int:
        return QUICK_REPEATS if self.quick else REPEATS


def options(argv: Sequence[str] | None = None) -> Options:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ctr.run", description=__doc__)
    parser.add_argument("--seeds", default="0,1,2", help="training seeds, comma-separated")
    parser.add_argument("--arch", default="deepfm,dcn", help="deepfm, dcn or both")
    parser.add_argument(
        "--quick", action="store_true", help="DeepFM, seed 0, five rows; results stay in build/"
    )
    parser.add_argument("--out", type=Path, help="where raw.json and table.md go")
    given = parser.parse_args(argv)
    archs = tuple(given.arch.split(","))
    if unknown := set(archs) - {"deepfm", "dcn"}:
        parser.error(f"--arch: unknown {', '.join(sorted(unknown))}; choose from deepfm, dcn")
    if not all(seed.isdigit() for seed in given.seeds.split(",")):
        parser.error("--seeds: whole numbers, comma-separated, e.g. 0,1,2")
    seeds = tuple(int(seed) for seed in given.seeds.split(","))
    if given.quick:
        return Options((0,), ("deepfm",), True, given.out or CACHE / "quick")
    return Options(seeds, archs, False, given.out or table.RESULTS)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write raw.json and table.md; returns the exit code."""
    chosen = options(argv)
    try:
        write(chosen)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def write(chosen: Options) -> None:
    """Everything that was asked for, one stage after the other."""
    zoo = Zoo(CACHE / "models")
    tried = [] if chosen.quick or "deepfm" not in chosen.archs else list(_tuning(zoo))
    jobs = list(_jobs(chosen, zoo, tried))
    rows = _measure(jobs)
    raw = {
        "format": 1,
        "environment": _environment(rows),
        "rankc_sources_sha256": sources(),
        "references": [
            _reference(zoo, arch, s, chosen) for arch in chosen.archs for s in chosen.seeds
        ],
        "retraining": tried,
        "rows": rows,
        "checks": _checks(chosen, zoo),
    }
    write_json(chosen.out / "raw.json", raw)
    print(f"{chosen.out / 'raw.json'}\n{table.write(chosen.out)}")


# --- models -----------------------------------------------------------------------------------


def _tuning(zoo: Zoo) -> Iterator[dict[str, Any]]:
    """What was tried for the model that is trained smaller, and which was chosen."""
    best = zoo.choose(GRID)
    for training in GRID:
        yield {
            "training": dataclasses.asdict(training),
            "validation": zoo.held_out(training),
            "chosen": training == best,
        }


def _reference(zoo: Zoo, arch: str, seed: int, chosen: Options) -> dict[str, Any]:
    training = Training(arch, seed)
    found = {
        "training": dataclasses.asdict(training),
        "sha256": sha256(zoo.model(training)),
        "size_bytes": zoo.model(training).stat().st_size,
    }
    return found if chosen.quick else found | {"validation": zoo.held_out(training)}


def _jobs(chosen: Options, zoo: Zoo, tried: Sequence[dict[str, Any]]) -> Iterator[Job]:
    """Variants within seeds within architectures; models that are missing are trained here."""
    best = next((Training(**one["training"]) for one in tried if one["chosen"]), None)
    for arch in chosen.archs:
        for seed in chosen.seeds:
            reference = zoo.model(Training(arch, seed))
            repeats = chosen.repeats if seed == TIMED_SEED else 0
            for variant in VARIANTS:
                if variant.arch != arch or (chosen.quick and variant.name not in QUICK):
                    continue
                model = reference
                if variant.retrained:
                    assert best is not None
                    model = zoo.model(dataclasses.replace(best, seed=seed))
                yield Job(variant, seed, reference, model, repeats if variant.timed else 0)


# --- rows -------------------------------------------------------------------------------------


def _measure(jobs: Sequence[Job]) -> list[Row]:
    """All rows, one line each with the time that is left, by the rows that were measured."""
    rows: list[Row] = []
    missing = [not measure.kept(job, CACHE).exists() for job in jobs]
    spent: dict[bool, list[float]] = {False: [], True: []}  # seconds of untimed and timed rows
    for k, job in enumerate(jobs):
        started = time.monotonic()
        row, measured = measure.run(job, CACHE)
        if measured:
            spent[bool(job.repeats)].append(time.monotonic() - started)
        rows.append(row | {"label": job.variant.label, "baseline": job.variant.baseline})
        rest = [later for later, new in zip(jobs[k + 1 :], missing[k + 1 :], strict=True) if new]
        how = f"{time.monotonic() - started:4.1f} s" if measured else "kept"
        print(f"[{k + 1}/{len(jobs)}] {_line(job, row)}  {how}{_eta(rest, spent)}", flush=True)
    return rows


def _line(job: Job, row: Row) -> str:
    auc = row["metrics"]["auc"]
    low, high = auc["interval"]
    timed = row["latency"]
    times = " / ".join(f"{timed[key]['ratio']:.2f}" for key in sorted(timed, key=int))
    return (
        f"{job.title:<35} {row['ratios']['size_bytes']:5.2f}{TIMES}  ΔAUC "
        f"{signed(auc['difference'])} [{signed(low)}, {signed(high)}]  {times}"
    )


def _eta(rest: Sequence[Job], spent: dict[bool, list[float]]) -> str:
    known = [one for both in spent.values() for one in both]
    if not rest or not known:
        return ""
    usual = sum(known) / len(known)
    left = 0.0
    for job in rest:
        same = spent[bool(job.repeats)]
        left += sum(same) / len(same) if same else usual
    return f", {left / 60:.1f} min left for rows"


# --- checks -----------------------------------------------------------------------------------


def _checks(chosen: Options, zoo: Zoo) -> dict[str, Any]:
    """Predicted errors and costs, on the first seed of each architecture; fresh compiles."""
    models = {arch: zoo.model(Training(arch, chosen.seeds[0])) for arch in chosen.archs}
    repeats = 5 if chosen.quick else checks.REPEATS
    found: dict[str, Any] = {"errors": {}, "calibration": {}}
    for arch, model in models.items():
        found["errors"][arch] = _kept(
            f"{arch}: predicted against measured errors",
            functools.partial(checks.site_errors, model),
            sha256(model),
        )
        found["calibration"][arch] = _kept(
            f"{arch}: cost of calibration",
            functools.partial(checks.calibration_cost, model, repeats),
            f"{sha256(model)} {repeats}",
        )
    found["compiles"] = _kept(
        "compiles in fresh processes", lambda: checks.fresh_compiles(CACHE / "fresh")
    )
    return found


def _kept(title: str, check: Callable[[], Any], more: str = "") -> Any:
    """The answer of a check, from an earlier run where nothing has changed since."""
    code = Path(checks.__file__).read_text(encoding="utf-8")
    data = " ".join(map(sha256, measure.data_files()))
    recipe = RECIPE.read_text(encoding="utf-8")
    key = hashlib.sha256("\n".join((title, more, sources(), code, data, recipe)).encode())
    path = CACHE / "checks" / f"{key.hexdigest()}.json"
    print(f"{title}{': kept' if path.exists() else ''}", flush=True)
    if not path.exists():
        write_json(path, check())
    return json.loads(path.read_text(encoding="utf-8"))


def _environment(rows: Sequence[Row]) -> dict[str, str]:
    """The machine, and the versions of what the numbers depend on."""
    known = {name: version_of(name) for name in PACKAGES}
    found: dict[str, str] = dict(rows[0]["environment"])
    return found | {name: version for name, version in known.items() if version}


if __name__ == "__main__":
    raise SystemExit(main())
