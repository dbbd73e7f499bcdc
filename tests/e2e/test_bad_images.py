"""What is wrong with a convolutional net, its images or its budget is told by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from projects import Array, Project, Refusal, save
from rankc.errors import Exit

MODEL = Path(__file__).parents[2] / "models" / "digits-resnet"
RECIPE: dict[str, Any] = {
    "name": "digits",
    "model": "model.onnx",
    "data": {"calibration": {"path": "calibration.npz", "batch_size": 64, "rows": 160}},
    "passes": [{"conv": {"round_to": 8}}],
    "budget": {"unit": "macs", "keep_ratio": 0.6},
    "timing": {"revert": False},
    "latency": {"batch_sizes": [1], "repeats": 5},
}


@pytest.fixture
def digits(tmp_path: Path) -> Project:
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("model.onnx", "calibration.npz"):
        shutil.copy(MODEL / name, folder / name)
    made = Project(folder)
    made.recipe.write_text("{}", "utf-8")
    return made.set(**RECIPE)


def test_the_untouched_project_compiles(digits: Project) -> None:
    done = digits.rankc("compile")
    assert done.code == Exit.OK, done.err


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite(digits: Project, refused: Refusal, value: float) -> None:
    path = digits.folder / "model.onnx"
    model = ir.load(path)
    convs = (node for node in model.graph if node.op_type == "Conv")
    weight = next(node.inputs[1] for node in convs if node.name == "stage3.conv2")
    assert weight is not None and weight.const_value is not None
    spoiled = weight.const_value.numpy().copy()
    spoiled[3, 2, 1, 1] = value
    weight.const_value = ir.tensor(spoiled, name=weight.name)
    ir.save(model, path)
    refused(digits, Exit.MODEL, str(weight.name))


Change = Callable[[Mapping[str, Array]], Mapping[str, Array]]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: {"picture": next(iter(rows.values()))}, "picture"),
        (lambda rows: {n: a[:, :, :6] for n, a in rows.items()}, "shape"),
        (lambda rows: {n: a.reshape(len(a), -1) for n, a in rows.items()}, "shape"),
        (lambda rows: {n: np.full_like(a, np.nan) for n, a in rows.items()}, "must be finite"),
        (lambda rows: {n: a[:0] for n, a in rows.items()}, "no rows"),
        (lambda rows: {n: a[:100] for n, a in rows.items()}, "100 images are too few"),
    ],
    ids=["name", "size", "rank", "nan", "none", "few"],
)
def test_images_that_do_not_fit(
    digits: Project, refused: Refusal, change: Change, says: str
) -> None:
    path = digits.folder / "calibration.npz"
    with np.load(path) as held:
        rows = {name: held[name].astype(np.float32) for name in held.files}
    save(path, change(rows))
    refused(digits, Exit.USAGE, says)


@pytest.mark.parametrize("unit", ["macs", "parameters", "bytes"])
def test_a_budget_that_cannot_be_met(digits: Project, refused: Refusal, unit: str) -> None:
    budget = {"unit": unit, "max": 1000}
    refused(
        digits.set(budget=budget), Exit.USAGE, "cannot be met: the smallest", "raise the budget"
    )


def test_patterns_that_match_nothing(digits: Project, refused: Refusal) -> None:
    passes = [{"conv": {"targets": ["re:stage9.*"]}}]
    refused(digits.set(passes=passes), Exit.USAGE, "re:stage9", "match nothing", "rankc inspect")
