"""Recipes that train, on a net and rows so small that an epoch takes a blink."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from conv_builders import convnet, images
from projects import Project, project, save
from rankrt.session import open_model

Array = NDArray[Any]
ROWS, BATCH = 160, 16
LABELS = {"label": 1.0, "distill": 0.0}
TRP = {"trp": {"min_size": 64, "round_to": 1, "period": 3, "scheme": "spatial"}}
MAESTRO = {"maestro": {"min_size": 64, "round_to": 1}}
CONV = {"conv": {"min_size": 64, "round_to": 1}}
STEPS = 2 * 9  # of `train` below: 16 of 160 rows are held out


def trained(folder: Path, *passes: Any, model: ir.Model | None = None, **changes: Any) -> Project:
    """A net for images; labels are the classes that it gives them. `train` where TRP learns."""
    model, rows = model or convnet(), images(ROWS)
    recipe: dict[str, Any] = {
        "name": "trained", "passes": list(passes), "budget": {"unit": "macs", "keep_ratio": 0.6},
    }  # fmt: skip
    if any(one in (TRP, MAESTRO) for one in passes):
        recipe["train"] = {"epochs": 2, "lr": 0.01, "holdout": 0.1}
    made = project(folder, model, {"x": rows[:64]}, **recipe)
    label(made, "training", rows)
    label(made, "validation", images(64, seed=2))
    spec = {"path": "training.npz", "batch_size": BATCH, "label": "label"}
    return made.edit(lambda tree: tree["data"].update(training=spec)).set(**changes)


def label(made: Project, name: str, rows: Array, **changed: int) -> None:
    """Write rows with the classes that the original gives them, some of them changed."""
    labels = next(iter(made.original({"x": rows}).values())).argmax(axis=1)
    for row, value in changed.items():
        labels[int(row.removeprefix("row"))] = value
    save(made.folder / f"{name}.npz", {"x": rows, "label": labels})


def training(made: Project) -> Path:
    """Where checkpoints lie."""
    return made.out.with_name(f"{made.out.name}.training")


def model_bytes(made: Project) -> bytes:
    return (made.out / "model.onnx").read_bytes()


def lesson(made: Project, stage: str) -> Any:
    """What metrics.json tells of a training."""
    (found,) = [one for one in made.metrics["training"] if one["stage"] == stage]
    return found


def initializers(made: Project) -> dict[str, Array]:
    """Of the bundle's model, by name."""
    found = ir.load(made.out / "model.onnx").graph.initializers
    return {str(k): np.asarray(v.const_value.numpy()) for k, v in found.items() if v.const_value}


def distance(made: Project) -> float:
    """Mean squared difference of the bundle's answers from the original's, on other rows."""
    rows: Mapping[str, Array] = {"x": images(64, seed=3)}
    (got,) = open_model(made.out / "model.onnx").run(rows).values()
    (want,) = made.original(rows).values()
    return float(np.square(got.astype(np.float64) - want).mean())
