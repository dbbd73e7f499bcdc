from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from builders import Array, model_of, weight
from rankc.fp16_split import add_split
from rankc.progress import SilentProgress
from rankc.recipe import Data, DataSpec, Gate, Latency, Recipe, Target
from rankc.report import report_markdown
from rankc.validate import check_metrics, validate
from rankc.validate.schema import Split
from rankc.validate.split import beyond_floor, split_changes
from sources import Rows

RNG = np.random.default_rng(0)
X = RNG.normal(size=(400, 16)).astype(np.float32)
W = RNG.normal(size=(16, 3)).astype(np.float32)
LABELS = np.argmax(X @ W + RNG.normal(size=(400, 3)), axis=1)


def classifier(weights: Array) -> ir.Model:
    x = ir.val("x", ir.DataType.FLOAT, ["batch", 16])
    y = ir.val("y", ir.DataType.FLOAT, ["batch", 3])
    tape = ir.tape.Tape()
    tape.op("MatMul", [x, weight(tape, "w", weights)], name="mm", output=y)
    return model_of(tape, [x], [y])


def saved(folder: Path, *weights: Array) -> list[Path]:
    paths = [folder / f"{k}.onnx" for k in range(len(weights))]
    for path, each in zip(paths, weights, strict=True):
        ir.save(classifier(each), path)
    return paths


def recipe(*targets: Target, gates: tuple[Gate, ...] = ()) -> Recipe:
    data = Data(DataSpec("c.npz"), DataSpec("v.npz", label="late"))
    return Recipe("some", "m.onnx", data, (), gates=gates, latency=Latency((1,), 2), lower=targets)


def rows(labels: Array | None = LABELS) -> Rows:
    return Rows({"x": X}, batch_size=64, labels=labels)


def test_parts_add_up_and_each_is_where_it_was_put(tmp_path: Path) -> None:
    rounded = np.round(W, 1)  # what stands for float16 of the original
    worse = W * np.array([1.0, 0.7, 1.0], np.float32)
    broken = worse * np.array([1.0, 1.0, 0.0], np.float32)  # what stands for its float16
    paths = saved(tmp_path, W, worse, rounded, broken)
    found = split_changes(paths, rows(), recipe())
    assert set(found) == {"accuracy_top1", "logloss"}
    for split in found.values():
        one: dict[str, Any] = {**split}
        assert one["compression"] + one["lowering"] == pytest.approx(one["total"])
        for part in ("floor", "compression", "lowering", "total"):
            low, high = one[f"{part}_interval"]
            assert low <= one[part] <= high
        assert abs(one["floor"]) < abs(one["lowering"])
        assert beyond_floor(split)


def test_same_intervals_as_those_of_the_gates(tmp_path: Path) -> None:
    worse = W * np.array([1.0, 0.7, 1.0], np.float32)
    before, after = saved(tmp_path, W, worse)
    alone = validate(before, after, rows(), recipe())
    found = split_changes([before, after, before, after], rows(), recipe())
    for name, one in found.items():
        measured = alone["metrics"][name]
        assert one["compression"] == measured["difference"] == one["total"]
        assert one["compression_interval"] == measured["interval"] == one["total_interval"]
        assert one["floor"] == one["lowering"] == 0.0
        assert not beyond_floor(one)


def test_distances_without_labels(tmp_path: Path) -> None:
    worse = W * np.array([1.0, 0.7, 1.0], np.float32)
    paths = saved(tmp_path, W, worse, W, worse.astype(np.float16).astype(np.float32))
    found = split_changes(paths, rows(None), recipe())
    assert set(found) == {"kl_div", "mean_abs_err"}
    low, high = found["mean_abs_err"]["lowering_interval"] or (0, 0)
    assert low <= found["mean_abs_err"]["lowering"] <= high
    assert found["mean_abs_err"]["floor"] == 0.0


def test_a_recipe_with_a_float16_target_gets_it(tmp_path: Path) -> None:
    worse = W * np.array([1.0, 0.7, 1.0], np.float32)
    before, after = saved(tmp_path, W, worse)
    plain, half = Target("onnxruntime"), Target("onnxruntime", "fp16")
    for targets, expected in (((plain,), None), ((plain, half), ["onnxruntime-fp16"])):
        told = recipe(*targets)
        metrics = validate(before, after, rows(), told)
        add_split(metrics, (before, after), rows(), told, {"x": X[:8]}, SilentProgress())
        assert (list(metrics["split"]) if "split" in metrics else None) == expected
        check_metrics(metrics)
        assert ("## Where the change comes from" in report_markdown(metrics)) == bool(expected)
    assert not list(tmp_path.glob(".split-*"))


def test_a_model_without_a_float16_form_is_no_error(tmp_path: Path) -> None:
    before, after = saved(tmp_path, W, W * np.float32(1e6))
    told = recipe(Target("onnxruntime", "fp16"))
    metrics = validate(before, after, rows(), told)
    add_split(metrics, (before, after), rows(), told, {"x": X[:8]}, SilentProgress())
    assert "split" not in metrics
    assert metrics["unavailable"]["split"].startswith("float16: nothing in the compressed model")


@pytest.mark.parametrize(
    ("lowering", "beyond"), [((-0.02, -0.01), True), ((-0.02, 0.001), False), ((0.01, 0.02), True)]
)
def test_beyond_the_floor(lowering: tuple[float, float], beyond: bool) -> None:
    one = Split(
        floor=0.0, compression=0.0, lowering=sum(lowering) / 2, total=0.0,
        floor_interval=(-0.005, 0.005), compression_interval=None,
        lowering_interval=lowering, total_interval=None,
    )  # fmt: skip
    assert beyond_floor(one) is beyond
