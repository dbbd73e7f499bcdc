"""What recovery wins back of a click model. `python -m benchmarks.train.ctr`.

`ctr-lowrank` at several sizes, in float and with int8 tables, and the uncompressed model as the
control: before recovery, after it, and what the guard would have decided, by all rows held out. It
sees the objective on the validation split; AUC and log-loss are of the test split, which nothing
but this table looks at. All is learned by distillation from the original on training rows:

  mixed      columns mixed between rows, so that pairs of values come up which no table has seen;
             eight epochs
  patient    the same for 32 epochs, at half the learning rate, weights averaged
  plain      the rows as they are
  labels     half of the loss from labels, rows as they are
  singular   mixed, and singular values alone are trained

An hour on one core; a run that was cut off goes on where it was.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models import artifacts
from models.ctr import flights
from models.ctr.build import inputs_of

from benchmarks.cnn.common import environment
from rankc.pipeline import compile_recipe
from rankc.recipe_load import load_recipe

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"
RECIPE = ROOT / "recipes" / "ctr-lowrank.yaml"
FOLDER = ROOT / "build" / "bench-train"
ROWS, HELD_OUT = FOLDER / "ctr-training.npz", FOLDER / "ctr-holdout.npz"

BARE = (
    "gates=[]",
    "lower=[{backend: onnxruntime}]",
    "latency={batch_sizes: [1], repeats: 3}",
    "timing.revert=false",
)
LOOP = "epochs: 8, optimizer: adam, lr: 0.002, weight_decay: 0, guard: false"
RECOVERIES = {
    "mixed": f"{{{LOOP}, objective: {{temperature: 10}}, augment: {{mix: 0.15}}}}",
    "patient": (
        "{epochs: 32, evaluate: 4, optimizer: adam, lr: 0.001, weight_decay: 0, guard: false, "
        "average: 0.99, objective: {temperature: 10}, augment: {mix: 0.2}}"
    ),
    "plain": f"{{{LOOP}, objective: {{temperature: 10}}}}",
    "labels": f"{{{LOOP}, objective: {{label: 0.5, distill: 0.5}}}}",
    "singular": (
        f"{{{LOOP}, objective: {{temperature: 10}}, augment: {{mix: 0.15}}, parameters: singular}}"
    ),
}
HEAD = (
    *("model", "recovery", "seed", "size", "AUC before", "after", "won back", "log-loss before"),
    *("after", "held-out loss", "guard", "seconds"),
)
SIZES: dict[str, tuple[str, ...]] = {
    "uncompressed": ("passes=[gather_fusion]", "budget=null"),
    "float-5x": ("budget.keep_ratio=0.2", "passes.embedding.int8=false"),
    "float-8x": ("budget.keep_ratio=0.125", "passes.embedding.int8=false"),
    "float-16x": ("budget.keep_ratio=0.0625", "passes.embedding.int8=false"),
    "int8-12x": (),
    "int8-16x": ("budget.keep_ratio=0.0625",),
    "int8-32x": ("budget.keep_ratio=0.03125",),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """One compilation."""

    size: str
    recovery: str | None  # None: before any
    seed: int = 0

    @property
    def key(self) -> str:
        return f"{self.size} {self.recovery or 'before'} {self.seed}"

    def options(self) -> list[str]:
        """What follows `--set`."""
        found = [*BARE, *SIZES[self.size], f"seed={self.seed}"]
        if self.recovery is None:
            return [*found, "data.training=null", "data.holdout=null", "recover=null"]
        return [
            *found,
            f"data.training={{path: {ROWS}, batch_size: 1024, label: label}}",
            f"data.holdout={{path: {HELD_OUT}, batch_size: 4096, label: label}}",
            f"recover={RECOVERIES[self.recovery]}",
        ]


def runs() -> list[Run]:
    """All compilations, those that matter most first."""
    found = [Run(size, None) for size in SIZES]
    found += [Run(size, "mixed") for size in SIZES]
    found += [Run("float-16x", "mixed", seed) for seed in (1, 2)]
    found += [Run("int8-32x", "patient", seed) for seed in (0, 1, 2)]
    found += [Run("float-16x", other) for other in ("plain", "labels", "singular")]
    return [*found, Run("uncompressed", "labels")]


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, write ctr.json and ctr.md; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="where results go")
    parser.add_argument("--table", action="store_true", help="write the table again, run nothing")
    options = parser.parse_args(argv)
    path = options.out / "ctr.json"
    options.out.mkdir(parents=True, exist_ok=True)
    raw: dict[str, Any] = {"format": 1, "runs": {}}
    if path.exists():
        raw = json.loads(path.read_text("utf-8"))
    if not options.table:
        write_rows()
    for run in [] if options.table else runs():
        if run.key not in raw["runs"]:
            raw["environment"] = environment()
            raw["runs"][run.key] = measured(run)
            path.write_text(json.dumps(raw, indent=1) + "\n", "utf-8")
            print(run.key, raw["runs"][run.key]["auc"], flush=True)
    (options.out / "ctr.md").write_text(table(raw["runs"]), "utf-8")
    print(table(raw["runs"]))
    return 0


def write_rows() -> None:
    """The training and the validation split, as recipes read them."""
    data = flights.load()
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path, rows in ((ROWS, data.train), (HELD_OUT, data.validation)):
        artifacts.save_npz(path, inputs_of(rows) | {"label": rows.label})


def measured(run: Run) -> dict[str, Any]:
    """Compile, and what came of it."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = load_recipe(RECIPE, run.options())
        metrics = compile_recipe(recipe, Path(folder) / "bundle").metrics
    assert metrics is not None
    return {
        "size_ratio": metrics["ratios"].get("size_bytes"),
        "auc": metrics["metrics"]["auc"],
        "logloss": metrics["metrics"]["logloss"],
        "training": metrics.get("training", []),
    }


def table(found: dict[str, Any]) -> str:
    """A row a size and recovery, in Markdown."""
    lines = [
        f"| {' | '.join(HEAD)} |",
        "|---" * len(HEAD) + "|",
    ]
    for run in runs():
        after, before = found.get(run.key), found.get(Run(run.size, None).key)
        if run.recovery is not None and after is not None and before is not None:
            lines.append(_row(run, before, after))
    return "\n".join(lines) + "\n"


def _row(run: Run, before: dict[str, Any], after: dict[str, Any]) -> str:
    (lesson,) = after["training"]
    lost, left = before["auc"]["difference"], after["auc"]["difference"]
    won = f"{100 * (1 - left / lost):.0f} %" if lost < -1e-5 else ""
    better = lesson["best"] > 0 and lesson["fall"] > 2 * lesson["standard_error"]
    first = lesson["looks"][0]["loss"]
    cells = (
        run.size,
        str(run.recovery),
        str(run.seed),
        f"{after['size_ratio']:.2f}",
        _signed(lost),
        _signed(left),
        won,
        _signed(before["logloss"]["difference"]),
        _signed(after["logloss"]["difference"]),
        f"{first:.3g} to {first - lesson['fall']:.3g}",
        "keep" if better else "leave",
        f"{lesson['seconds']:.0f}",
    )
    return "| " + " | ".join(cells) + " |"


def _signed(value: float) -> str:
    return f"{value:+.5f}" if abs(value) >= 5e-6 else "0.00000"


if __name__ == "__main__":
    raise SystemExit(main())
