"""The digits model that is in git: its record is true, and its data is what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from models import artifacts
from models.digits import data
from numpy.typing import NDArray

from rankc.data import open_source
from rankc.recipe import DataSpec
from rankrt.session import TensorSpec

FOLDER = artifacts.MODELS / "digits-resnet"
MODEL = FOLDER / "model.onnx"
INPUT = TensorSpec("image", "float32", ("batch", 1, 8, 8))


def record() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "build.json").read_text("utf-8"))
    return found


def rows(name: str, label: str | None) -> tuple[NDArray[Any], list[NDArray[Any] | None]]:
    """All images of a file as rankc reads them, and the labels batch by batch."""
    batches = list(open_source(DataSpec(name, label=label), FOLDER, [INPUT]).batches())
    return np.concatenate([b.feeds["image"] for b in batches]), [b.labels for b in batches]


def test_files_are_those_that_the_record_describes() -> None:
    names = ("model.onnx", "calibration.npz", "training.npz", "validation.npz")
    assert record()["files"] == artifacts.described(FOLDER, names)
    assert MODEL.stat().st_size < 700_000


def test_accuracy_is_what_the_record_says() -> None:
    image, (label,) = rows("validation.npz", "label")
    said = record()["metrics"]["validation"]
    assert len(image) == said["rows"] == data.VALIDATION
    assert label is not None
    found = artifacts.accuracy(artifacts.predict(MODEL, image), label)
    assert found == pytest.approx(said["accuracy"], abs=1 / data.VALIDATION)
    assert said["accuracy"] >= 0.98


def test_accuracy_is_that_of_any_batch_size() -> None:
    image = rows("validation.npz", None)[0][:40]
    whole = artifacts.predict(MODEL, image, batch_size=40)
    np.testing.assert_allclose(artifacts.predict(MODEL, image, batch_size=7), whole, atol=1e-4)


def test_the_data_is_scikit_learns_cut_in_three() -> None:
    parts = data.load()
    validation, (label,) = rows("validation.npz", "label")
    calibration, _ = rows("calibration.npz", None)
    assert label is not None
    np.testing.assert_array_equal(validation, parts.validation.image)
    np.testing.assert_array_equal(label, parts.validation.label)
    expected = np.concatenate([parts.calibration.image, parts.train.image])
    np.testing.assert_array_equal(calibration, expected)
    said = record()
    assert said["train_rows"] == len(parts.train.label)
    assert said["calibration_rows"] == len(calibration)


def test_calibration_has_no_labels() -> None:
    with np.load(FOLDER / "calibration.npz") as archive:
        assert archive.files == ["image"]


def test_the_split_is_seeded_disjoint_and_complete() -> None:
    train, calibration, validation = data.split(1797)
    assert (len(train), len(calibration), len(validation)) == (1097, 300, 400)
    together = np.sort(np.concatenate([train, calibration, validation]))
    np.testing.assert_array_equal(together, np.arange(1797))
    np.testing.assert_array_equal(data.split(1797)[2], validation)
    assert not np.array_equal(data.split(1797, seed=1)[2], validation)


def test_a_split_without_training_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="need 701"):
        data.split(700)


def test_the_graph_is_folded_and_takes_any_batch() -> None:
    model = ir.load(MODEL)
    assert model.opset_imports[""] == 18
    assert "BatchNormalization" not in {node.op_type for node in model.graph}
    for value in (*model.graph.inputs, *model.graph.outputs):
        assert value.shape is not None
        assert str(value.shape[0]) == "batch"
    names = {node.name for node in model.graph if node.op_type == "Conv"}
    assert {"stage2.conv1", "stage2.shortcut.0"} < names
    assert len(names) == 9


def test_nothing_of_the_machine_that_built_it_is_in_the_model() -> None:
    model = ir.load(MODEL)
    assert not model.metadata_props
    assert not any(node.metadata_props or node.doc_string for node in model.graph)


def test_the_readme_tells_the_recorded_numbers() -> None:
    said, text = record(), Path(FOLDER / "README.md").read_text("utf-8")
    for number in (
        f"{said['metrics']['validation']['accuracy']:.1%}".replace("%", " %"),
        f"{said['parameters']:,} parameters",
        f"{said['files']['model.onnx']['bytes']:,} bytes",
        f"{said['calibration_rows']:,} rows",
    ):
        assert number in text
