from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rankrt
from builders import mlp_rows
from bundles import write_mlp_bundle
from rankc.packing import GOLDEN, write_golden, write_manifest
from rankc.recipe import Gate as RecipeGate
from rankc.validate.device_gates import device_gates
from rankc.validate.gates import finish
from rankrt import golden
from rankrt.cli import run
from rankrt.gates import ELSEWHERE
from rankrt.manifest import Gate, Golden
from sample_metrics import some_metrics

Done = tuple[int, str]


def bundle_of(
    folder: Path, *gates: Gate, shift: float = 0.25, miss: float = 0.0, passed: bool = True
) -> Path:
    """A bundle whose original put out `shift` more than its model, golden rows off by `miss`."""
    manifest = write_mlp_bundle(folder)
    inputs = {"x": mlp_rows(8)}
    outputs = rankrt.open_model(folder / "model.onnx").run(inputs)
    original = {"y": outputs["y"] + np.float32(shift)}
    write_golden(folder, inputs, {"y": outputs["y"] + np.float32(miss)}, original)
    write_manifest(
        folder,
        name="tiny",
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        golden=Golden(GOLDEN, 1e-4),
        gates=gates,
        metrics={"passed": passed},
    )
    return folder


def error(bound: float | None, metric: str = "mean_abs_err", **fields: Any) -> Gate:
    return Gate(metric, "accuracy", f"at most {bound}", False, bound, output="y", **fields)


def cost(metric: str, bound: float, batch: int | None = None, *, least: bool = False) -> Gate:
    percentile = 50 if batch else None
    return Gate(metric, "performance", "a cost", least, bound, batch, percentile)


def gate(folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> Done:
    code = run(["gate", str(folder), "--seconds", "0.01", *words])
    return code, capsys.readouterr().out


@pytest.mark.parametrize(
    ("gates", "code", "last"),
    [
        ((error(0.3), cost("size_bytes", 1e9)), 0, "PASSED | 2 gates hold"),
        ((error(0.2), cost("size_bytes", 1e9)), 4, "FAILED | mean_abs_err"),
        ((error(0.3), cost("size_bytes", 10)), 5, "FAILED | size_bytes"),
        ((error(0.2), cost("size_bytes", 10)), 4, "FAILED | mean_abs_err, size_bytes"),
        ((error(None, "auc"),), 0, "PASSED | 0 gates hold, 1 not decided here"),
        ((error(0.2499, "max_abs_err"),), 4, "FAILED | max_abs_err"),
        ((cost("latency_ms", 1e6, 4),), 0, "PASSED | 1 gate holds"),
        ((cost("latency_ms", 0, 4),), 5, "FAILED | latency_ms at batch 4"),
        ((cost("throughput", 1e-3, 2, least=True),), 0, "PASSED | 1 gate holds"),
    ],
)
def test_gates_fail_by_their_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], gates: Any, code: int, last: str
) -> None:
    got, out = gate(bundle_of(tmp_path / "b", *gates), capsys)
    assert (got, out.splitlines()[-1]) == (code, last)


def test_golden_rows_that_are_missed_fail_whatever_the_gates_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = gate(bundle_of(tmp_path / "b", error(1.0), miss=0.01), capsys)
    assert code == 4
    assert out.splitlines()[-1] == "FAILED | golden outputs missed"


@pytest.mark.parametrize(("metric", "code"), [("auc", 4), ("mean_abs_err", 0)])
def test_a_bundle_that_failed_passes_only_where_all_is_decided(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], metric: str, code: int
) -> None:
    asked = error(None if metric == "auc" else 1.0, metric)
    got, out = gate(bundle_of(tmp_path / "b", asked, passed=False), capsys)
    assert got == code
    assert ("did not pass its gates when it was compiled" in out) == (code == 4)


def test_what_cannot_be_decided_says_what_would(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    late = Gate("latency_ms", "performance", "p99", False, 1.0, 1, 99)
    folder = bundle_of(tmp_path / "b", error(None, "auc"), late)
    code, out = gate(folder, capsys, "--json")
    facts = json.loads(out)
    assert (code, facts["ok"]) == (0, True)
    assert all(ELSEWHERE in one["note"] and one["passed"] is None for one in facts["gates"])
    write_mlp_bundle(tmp_path / "old", gates=(error(0.1),))  # golden rows without the original's
    code, out = gate(tmp_path / "old", capsys)
    assert code == 0
    assert "keeps no outputs of the original" in out


def test_cosine_is_of_the_whole_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    near = Gate("cosine", "accuracy", "near", True, 1 - 1e-9, output="y")
    assert gate(bundle_of(tmp_path / "a", near, shift=0.0), capsys)[0] == 0
    assert gate(bundle_of(tmp_path / "b", near, shift=0.5), capsys)[0] == 4


def test_references_come_back_and_foreign_arrays_do_not(tmp_path: Path) -> None:
    rows = {"y": np.ones((2, 3), np.float32)}
    path = write_golden(tmp_path, {"x": np.zeros((2, 1))}, rows, {"y": 2 * rows["y"]})
    assert golden.read_all(path)[2]["y"].tolist() == [[2] * 3] * 2
    assert len(golden.read(path)) == 2
    write_golden(tmp_path, {"x": np.zeros((2, 1))}, rows, {"z": rows["y"]})
    with pytest.raises(rankrt.BundleError, match="ref:<name> arrays and nothing else"):
        golden.read(path)


@pytest.mark.parametrize(
    ("asked", "bound", "least"),
    [
        (RecipeGate("size_bytes", "threshold", 100), 100, False),
        (RecipeGate("size_bytes", "percent-min-improvement", 75), 300, False),
        (RecipeGate("size_bytes", "max-degradation", 10), 1210, False),
        (RecipeGate("mean_abs_err", "max-degradation", 0.2), 0.2, False),
        (RecipeGate("auc", "threshold", 0.7), None, True),
        (RecipeGate("latency_ms", "threshold", 2, batch=1), 2, False),
        (RecipeGate("latency_ms", "max-degradation", 2, batch=1), None, False),
        (RecipeGate("latency_ratio", "threshold", 2, batch=1), None, False),
    ],
)
def test_goals_become_bounds_where_the_original_is_known(
    asked: RecipeGate, bound: float | None, least: bool
) -> None:
    (found,) = device_gates([asked], finish(some_metrics(), [asked]))
    assert found.at_least is least
    assert found.bound == (None if bound is None else pytest.approx(bound))
