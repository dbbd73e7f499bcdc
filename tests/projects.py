"""A recipe with its model and data in a folder, as a user has them, and the command line on it."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
import yaml
from numpy.typing import NDArray

import ctr_builders
from rankc.__main__ import main
from rankc.errors import Exit
from rankrt.session import open_model

Array = NDArray[Any]

# Large enough for tables to be worth compressing, small enough for a compile of a second.
VOCABULARIES, WIDTH, HIDDEN, ROWS = (300, 200, 150, 40), 8, 32, 1024


@dataclasses.dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        """The last line on standard output."""
        return self.out.splitlines()[-1]


@dataclasses.dataclass(frozen=True, slots=True)
class Project:
    """A folder with `recipe.yaml`; the bundle goes to `out`, which nothing else shares."""

    folder: Path

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.yaml"

    @property
    def out(self) -> Path:
        return self.folder / "build" / "bundle"

    def rankc(self, verb: str, *options: str) -> Done:
        """Run a command on the recipe, in this process."""
        return command(verb, str(self.recipe), *self._out(verb), *options)

    def process(self, *options: str, **settings: Any) -> subprocess.Popen[str]:
        """Start a compile in a process of its own."""
        words = ["compile", str(self.recipe), *self._out("compile"), *options]
        return subprocess.Popen(
            [sys.executable, "-m", "rankc", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **settings,
        )

    def _out(self, verb: str) -> tuple[str, ...]:
        return ("--out", str(self.out)) if verb == "compile" else ()

    def edit(self, change: Callable[[dict[str, Any]], object]) -> Project:
        """Change the recipe; returns the project."""
        tree = yaml.safe_load(self.recipe.read_text("utf-8"))
        change(tree)
        self.recipe.write_text(yaml.safe_dump(tree, sort_keys=False), "utf-8")
        return self

    def set(self, **changes: Any) -> Project:
        """Replace whole entries of the recipe; returns the project."""
        return self.edit(lambda tree: tree.update(changes))

    def without_validation(self) -> Project:
        """Half the time, where nothing is to be measured; returns the project."""
        return self.edit(lambda tree: tree["data"].pop("validation")).set(gates=[])

    def without_labels(self) -> Project:
        """Leave the label column alone; returns the project."""
        return self.edit(lambda tree: tree["data"]["validation"].pop("label"))

    @property
    def metrics(self) -> Any:
        """What the last compile measured."""
        return read_json(self.out / "metrics.json")

    def original(self, rows: Mapping[str, Array]) -> dict[str, Array]:
        """What the model answers as it came."""
        return open_model(self.folder / "model.onnx").run(rows)

    def bundle(self) -> dict[str, bytes]:
        """The files of the bundle, nothing where there is none."""
        files = (path for path in self.out.rglob("*") if path.is_file())
        return {path.relative_to(self.out).as_posix(): path.read_bytes() for path in files}

    def leftovers(self) -> list[str]:
        """What lies beside the bundle, hidden or not."""
        beside = self.out.parent
        names = [p.name for p in beside.iterdir()] if beside.is_dir() else []
        return sorted(name for name in names if name != self.out.name)


class Refusal(Protocol):
    """Compile a project and check that it was refused as it should be."""

    def __call__(self, spoiled: Project, code: Exit, *words: str) -> Done: ...


def command(*words: str) -> Done:
    """`rankc` in this process: exit code and both streams."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    return Done(code, out.getvalue(), err.getvalue())


def recipe_of(**changes: Any) -> dict[str, Any]:
    """A recipe for any of the click models; seconds are spent on nothing that is not tested."""
    return {
        "name": "small",
        "model": "model.onnx",
        "data": {
            "calibration": {"path": "calibration.npz", "batch_size": 256},
            "validation": {"path": "validation.npz", "batch_size": 256, "label": "label"},
        },
        "passes": [
            "gather_fusion",
            {"embedding": {"int8": True}},
            {"lowrank": {"round_to": 4, "min_size": 256}},
        ],
        "budget": {"keep_ratio": 0.6},
        "timing": {"revert": False},  # so that no decision hangs on how fast this machine is now
        "latency": {"batch_sizes": [1], "repeats": 5},
        "lower": [{"backend": "onnxruntime"}],
        **changes,
    }


def click_model() -> ir.Model:
    return ctr_builders.deepfm(VOCABULARIES, WIDTH, HIDDEN)


def project(folder: Path, model: ir.Model, rows: Mapping[str, Array], **changes: Any) -> Project:
    """Write model, data and recipe; labels are drawn from what the model says, where it can."""
    folder.mkdir(parents=True, exist_ok=True)
    ir.save(model, folder / "model.onnx")
    answers = next(iter(open_model(folder / "model.onnx").run(rows).values()))
    labels = np.random.default_rng(5).random(len(answers)) < answers.reshape(len(answers), -1)[:, 0]
    save(folder / "calibration.npz", rows)
    save(folder / "validation.npz", {**rows, "label": labels.astype(np.float32)})
    made = Project(folder)
    made.recipe.write_text(yaml.safe_dump(recipe_of(**changes), sort_keys=False), "utf-8")
    return made


def click_project(folder: Path, model: ir.Model | None = None, **changes: Any) -> Project:
    """The DeepFM model, or another of its kind, with ids of which some are frequent."""
    model = model or click_model()
    return project(folder, model, click_rows(model), **changes)


def click_rows(model: ir.Model, rows: int = ROWS) -> dict[str, Array]:
    """Inputs for a click model: low ids are frequent, the highest are never read."""
    rng = np.random.default_rng(3)
    feeds = ctr_builders.feeds(model, rows)
    for name, array in feeds.items():
        if array.dtype == np.int64:
            feeds[name] = (array * rng.random(array.shape)).astype(np.int64)
    return feeds


def read_json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def save(path: Path, arrays: Mapping[str, Any]) -> Path:
    savez: Any = np.savez  # its stub takes names that are computed for its own options
    savez(path, **arrays)
    return path
