from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankc.errors import RecipeError
from rankc.recipe import Data, DataSpec, Gate, Recipe
from rankc.validate.baseline import Baseline, _apart, open_baseline
from rankc.validate.baseline_file import (
    Subject,
    baseline_path,
    part_of,
    read_baseline,
    renewed,
    target_of,
    write_baseline,
)
from rankc.validate.gates import check, check_gates_possible
from rankc.validate.quantities import QUANTITIES
from rankc.validate.schema import Metrics
from sample_metrics import measured, some_metrics

ROWS: Any = {"sha256": "d" * 64, "rows": None, "label": "label", "group": None}
THEN = Subject(original="a" * 64, compressed="b" * 64, data=ROWS)
NOW = Subject(original="a" * 64, compressed="c" * 64, data=ROWS)
AUC = Gate("auc", "max-degradation", 0.001, against="baseline")


def recipe(folder: Path, *gates: Gate) -> Recipe:
    data = Data(DataSpec("c.npz"), DataSpec("v.npz", label="label"))
    return Recipe("some", "m.onnx", data, (), gates=gates, file=folder / "some.yaml")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = baseline_path(recipe(tmp_path))
    write_baseline(path, renewed(None, some_metrics(), THEN))
    return path


def opened(path: Path, subject: Subject = NOW) -> Baseline:
    found = open_baseline(recipe(path.parent, AUC), lambda: subject)
    assert found is not None
    return found


def later(**metrics: Any) -> Metrics:
    found = some_metrics()
    found["metrics"].update(metrics)
    return found


def test_the_file_lies_beside_the_recipe_and_comes_back_as_it_was(path: Path) -> None:
    assert path.name == "some.baseline.json"
    content = read_baseline(path)
    assert content == renewed(None, some_metrics(), THEN)
    text = path.read_text("utf-8")
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"
    assert list(path.parent.iterdir()) == [path]


def test_every_metric_has_its_part() -> None:
    parts = {name: part_of(name) for name in QUANTITIES}
    assert parts["auc"] == parts["cosine"] == part_of("my_own") == "accuracy"
    assert parts["size_bytes"] == parts["macs_ratio"] == "sizes"
    assert parts["latency_ms"] == parts["peak_memory_bytes"] == "times"


def test_an_update_keeps_other_rows_and_other_targets(path: Path) -> None:
    before = read_baseline(path)
    found = some_metrics()
    found["latency_how"]["device"] = "a board"
    found["metrics"]["size_bytes"] = measured(1200, 90)
    other: Any = {**NOW, "data": {**ROWS, "sha256": "e" * 64}}
    after = renewed(before, found, other)
    assert set(after["accuracy"]) == {"d" * 64, "e" * 64}
    assert set(after["times"]) == {target_of(some_metrics()), "onnxruntime-fp32 on a board"}
    assert after["sizes"]["metrics"]["size_bytes"]["compressed"] == 90


@pytest.mark.parametrize(
    ("gate", "passed", "observed"),
    [
        (Gate("auc", "max-degradation", 0.004, against="baseline"), False, 0.005),
        (Gate("auc", "max-degradation", 0.006, against="baseline"), True, 0.005),
        (Gate("auc", "percent-max-degradation", 0.7, against="baseline"), True, 100 / 155),
        (Gate("size_bytes", "percent-max-degradation", 5, against="baseline"), False, 10.0),
        (Gate("size_ratio", "max-degradation", 0.5, against="baseline"), True, 0.0),
        (Gate("latency_ratio", "max-degradation", 0.02, batch=1, against="baseline"), True, 0.0),
        (Gate("latency_ms", "max-degradation", 0.0, batch=1, against="baseline"), True, 0.0),
    ],
)
def test_changes_are_counted_from_the_baseline(
    path: Path, gate: Gate, passed: bool, observed: float
) -> None:
    metrics = later(auc=measured(0.8, 0.77), size_bytes=measured(1200, 110))
    (result,) = check([gate], metrics, opened(path))
    assert result.observed == pytest.approx(observed, abs=1e-12)
    assert "baseline" in result.text
    assert result.row().get("against") == "baseline"
    if result.gate.metric == "auc":
        assert result.message.startswith("auc fell by")
        assert "since the baseline" in result.message
    assert result.passed is passed


def test_the_interval_of_a_change_of_changes(path: Path) -> None:
    """auc fell by 0.025 (0.03 to 0.02) then and by 0.03 (0.04 to 0.02) now."""
    metrics = later(auc=measured(0.8, 0.77, (-0.04, -0.02)))
    found = opened(path).reference(AUC, metrics)
    half = math.hypot(0.01, 0.005)
    assert found.value == 0.775
    assert found.interval == pytest.approx((-0.005 - half, -0.005 + half))


def test_the_same_bytes_on_the_same_rows_have_not_changed_at_all(path: Path) -> None:
    assert opened(path, THEN).reference(AUC, some_metrics()).interval == (0.0, 0.0)


def test_without_an_interval_then_there_is_none_now(path: Path) -> None:
    gate = dataclasses.replace(AUC, metric="logloss")
    assert opened(path).reference(gate, some_metrics()).interval is None


numbers = st.floats(-1e3, 1e3)
widths = st.floats(0, 10)


@given(numbers, numbers, widths, widths, widths, widths)
def test_combined_intervals_hold_the_difference_and_are_wider_than_either(
    a: float, b: float, w: float, x: float, y: float, z: float
) -> None:
    found = _apart((a, (a - w, a + x)), (b, (b - y, b + z)))
    assert found is not None
    low, high = found
    assert low <= a - b <= high
    assert (a - b) - low >= max(w, z) - 1e-9
    assert high - (a - b) >= max(x, y) - 1e-9
    assert _apart((a, None), (b, (b, b))) is None


REFUSED = {
    "rows": (AUC, {**NOW, "data": {**ROWS, "sha256": "f" * 64}}, "other validation data only"),
    "label": (AUC, {**NOW, "data": {**ROWS, "label": "y"}}, "this is sha256 dddddddddddd…, label"),
    "no data": (AUC, {**NOW, "data": None}, "there is none now"),
    "lacks": (
        Gate("kl_div", "max-degradation", 1, against="baseline"), NOW,
        "no kl_div; it has auc, logloss, accuracy_top1",
    ),
    "lacks a batch": (
        Gate("latency_ms", "max-degradation", 1, batch=7, against="baseline"), NOW,
        "has no latency_ms at batch 7; it has load_ms, cold_start_ms, latency_ms (batch 1)",
    ),
    "another original": (
        Gate("mean_abs_err", "max-degradation", 1, against="baseline"),
        {**NOW, "original": "9" * 64},
        "a distance from another original model",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("gate", "subject", "says"), REFUSED.values(), ids=REFUSED)
def test_what_the_baseline_cannot_decide_is_refused_before_and_after(
    path: Path, gate: Gate, subject: Any, says: str
) -> None:
    baseline = opened(path, subject)
    with pytest.raises(RecipeError, match=r"rankc baseline update BUNDLE") as caught:
        baseline.check([gate], target_of(some_metrics()))
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    with pytest.raises(RecipeError):
        baseline.reference(gate, some_metrics())


def test_times_of_another_device_are_refused_and_accuracies_are_not(path: Path) -> None:
    gate = Gate("latency_ms", "max-degradation", 1, batch=1, against="baseline")
    with pytest.raises(RecipeError, match=r"on some processor; this is .* on a board.*\n.*--here"):
        opened(path).check([AUC, gate], "onnxruntime-fp32 on a board")
    opened(path).check([AUC, dataclasses.replace(gate, against="original")], "on a board")


def test_an_original_that_was_trained_again_leaves_what_labels_judge(path: Path) -> None:
    found = opened(path, {**NOW, "original": "9" * 64}).reference(AUC, some_metrics())
    assert (found.value, found.interval) == (0.775, None)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "not a baseline: the whole"),
        ('{"format": 2}', "a baseline of format 2, this version reads 1\n  upgrade rankc"),
        ('{"format": 1}', "not a baseline: recipe"),
        (" " * 4_000_001, "larger than"),
        ('{"format": 1, "accuracy": NaN}', "not a baseline"),
    ],
)
def test_a_damaged_or_future_file_is_told_with_the_fix(path: Path, text: str, says: str) -> None:
    path.write_text(text, "utf-8")
    with pytest.raises(RecipeError) as caught:
        opened(path)
    assert says in str(caught.value)
    assert "rankc baseline update BUNDLE" in str(caught.value)


def test_no_file_is_an_error_only_where_a_gate_needs_it(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"there is no .*some\.baseline\.json\n  make it"):
        open_baseline(recipe(tmp_path, AUC), lambda: NOW)
    plain = dataclasses.replace(AUC, against="original")
    assert open_baseline(recipe(tmp_path, plain), lambda: NOW) is None


def test_a_threshold_against_the_baseline_means_nothing(tmp_path: Path) -> None:
    gate = Gate("auc", "threshold", 0.7, against="baseline")
    with pytest.raises(RecipeError, match="a threshold compares with nothing"):
        check_gates_possible(recipe(tmp_path, gate))
    check_gates_possible(
        recipe(tmp_path, Gate("size_ratio", "max-degradation", 1, against="baseline"))
    )
