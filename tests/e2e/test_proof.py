"""`rankc gate` and `rankc baseline` on a bundle that was compiled."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from projects import Done, Project, command
from rankc.errors import Exit


@pytest.fixture
def made(compiled: tuple[Project, Done], tmp_path: Path) -> Project:
    return Project(Path(shutil.copytree(compiled[0].folder, tmp_path / "made")))


def on(made: Project, *words: str) -> Done:
    return command(*words, str(made.out), "--recipe", str(made.recipe))


def since_baseline(made: Project, metric: str, value: float, **more: object) -> Project:
    gate = {"metric": metric, "goal": "max-degradation", "value": value, "against": "baseline"}
    return made.set(gates=[{**gate, **more}])


def test_gates_are_decided_again_and_the_bundle_stays_as_it_was(made: Project) -> None:
    before = made.bundle()
    reports = made.folder / "reports"
    done = command("gate", str(made.out), "--recipe", str(made.recipe), "--out", str(reports))
    assert done.code == Exit.OK, done.out + done.err
    assert done.last.startswith("PASSED | 2 gates held | rankc gate")
    assert made.bundle() == before
    again = json.loads((reports / "metrics.json").read_text("utf-8"))
    assert again["metrics"]["auc"] == made.metrics["metrics"]["auc"]
    assert again["backends"] == made.metrics["backends"]
    assert {"report.md", "junit.xml"} <= {path.name for path in reports.iterdir()}


def test_gates_that_changed_count_and_fail_by_their_class(made: Project) -> None:
    made.set(gates=[{"metric": "size_ratio", "goal": "threshold", "value": 99}])
    done = on(made, "gate")
    assert done.code == Exit.PERFORMANCE
    assert done.last.startswith("FAILED | size_ratio is")
    assert "note: gates changed since" in done.err
    made.set(gates=[{"metric": "auc", "goal": "threshold", "value": 1.0}])
    assert on(made, "gate", "--json").code == Exit.ACCURACY


def test_another_original_or_a_damaged_bundle_is_refused(made: Project) -> None:
    assert on(made, "gate", "--out", str(made.out / "x")).code == Exit.USAGE
    shutil.copy(made.out / "model.onnx", made.folder / "model.onnx")
    done = on(made, "gate")
    assert done.code == Exit.USAGE
    assert "is not the model that" in done.err
    (made.out / "model.onnx").write_bytes(b"x")
    assert on(made, "gate").code == Exit.MODEL


def test_a_baseline_is_made_shown_and_held_against(made: Project) -> None:
    done = on(made, "baseline", "update")
    assert done.code == Exit.OK, done.err
    path = made.folder / "recipe.baseline.json"
    first = path.read_bytes()
    assert on(made, "baseline", "update").code == Exit.OK
    assert path.read_bytes() == first
    shown = command("baseline", "show", str(made.recipe))
    assert "auc" in shown.out
    assert "times of onnxruntime-fp32 on " in shown.out
    since_baseline(made, "auc", 0.0)  # the same model on the same rows: nothing has changed
    done = on(made, "gate")
    assert done.code == Exit.OK, done.out + done.err


def test_a_regression_from_the_baseline_fails_a_compile(made: Project) -> None:
    content = on(made, "baseline", "update", "--json")
    path = made.folder / "recipe.baseline.json"
    kept = json.loads(content.out)
    kept["sizes"]["metrics"]["size_bytes"]["compressed"] /= 2
    path.write_text(json.dumps(kept), "utf-8")
    since_baseline(made, "size_bytes", 100.0)
    done = made.rankc("compile")
    assert done.code == Exit.PERFORMANCE
    assert "since the baseline" in done.last


def test_what_no_baseline_has_is_told_before_any_work(made: Project) -> None:
    since_baseline(made, "auc", 0.01)
    done = made.rankc("compile")
    assert done.code == Exit.USAGE
    assert "there is no" in done.last
    assert "rankc baseline update" in done.err
    assert on(made, "baseline", "update").code == Exit.OK
    with np.load(made.folder / "validation.npz") as rows:
        fewer = {name: rows[name][:512] for name in rows.files}
    np.savez(made.folder / "validation.npz", **fewer)
    done = made.rankc("compile")
    assert done.code == Exit.USAGE
    assert "accuracies on other validation data only" in done.last


def test_times_of_this_machine_are_added(made: Project) -> None:
    assert on(made, "baseline", "update").code == Exit.OK
    path = made.folder / "recipe.baseline.json"
    kept = json.loads(path.read_text("utf-8"))
    ((name, times),) = kept["times"].items()
    kept["times"] = {"onnxruntime-fp32 on a board": times}
    path.write_text(json.dumps(kept), "utf-8")
    since_baseline(made, "latency_ratio", 9, batch=1)
    done = on(made, "gate")
    assert done.code == Exit.USAGE
    assert "--here" in done.err
    done = command("baseline", "update", str(made.out), "--here", "--recipe", str(made.recipe))
    assert done.code == Exit.OK, done.err
    assert set(json.loads(path.read_text("utf-8"))["times"]) == {name, *kept["times"]}
    assert on(made, "gate").code == Exit.OK
