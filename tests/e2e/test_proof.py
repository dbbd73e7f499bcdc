"""`rankc gate` and `rankc baseline` on a bundle that was compiled."""

from __future__ import annotations

import dataclasses
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
    stored = on(made, "baseline", "update", "--quiet")
    assert stored.code == Exit.OK
    assert stored.last.endswith("although 1 gate failed")


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


def compared(old: Path, new: Path) -> dict[str, dict[str, object]]:
    done = command("compare", str(old), str(new), "--json")
    assert done.code == Exit.OK, done.err
    return {line["name"]: line for line in json.loads(done.out)}


def test_two_bundles_are_shown_side_by_side(made: Project, tmp_path: Path) -> None:
    other = tmp_path / "other"
    done = command(
        "compile", str(made.recipe), "--out", str(other), "--set", "budget.keep_ratio=0.4"
    )
    assert done.code == Exit.OK, done.err
    lines = compared(made.out, other)
    sizes = lines["size_bytes"]
    assert sizes["new"] < sizes["old"]  # type: ignore[operator]
    assert sizes["change"] == sizes["new"] - sizes["old"]  # type: ignore[operator]
    assert lines["latency_ms b1"]["note"] == lines["auc"]["note"] == ""
    assert any(line["part"] == "ranks" for line in lines.values())
    assert not any(line["part"] == "versions" for line in lines.values())
    table = command("compare", str(made.out), str(other))
    assert table.last.startswith("PASSED | ")
    assert [word for word in ("accuracy", "sizes", "times", "gates", "ranks") if word not in
            table.out] == []  # fmt: skip


def test_a_bundle_is_no_other_than_itself(made: Project) -> None:
    lines = compared(made.out, made.out)
    assert {line["change"] for line in lines.values() if line["part"] != "gates"} == {0}


def test_what_cannot_be_compared_says_why(compiled: tuple[Project, Done]) -> None:
    from rankc.comparing import cells, compare, side_of
    from rankrt.bundle import read

    contents = read(compiled[0].out)
    old = side_of(contents)
    how = {**old.proof.metrics["latency_how"], "device": "a board"}
    data = {**(old.proof.subject["data"] or {}), "sha256": "0" * 64}
    proof = dataclasses.replace(
        old.proof,
        metrics={**old.proof.metrics, "latency_how": how},  # type: ignore[typeddict-item]
        subject={**old.proof.subject, "data": data},  # type: ignore[typeddict-item]
    )
    lines = {line.name: line for line in compare(old, dataclasses.replace(old, proof=proof))}
    assert "on a board" in cells(lines["latency_ms b1"])[3]
    assert "other validation data" in cells(lines["auc"])[3]
    assert lines["size_bytes"].change == 0


def test_a_device_decides_what_it_can(
    compiled: tuple[Project, Done], capsys: pytest.CaptureFixture[str]
) -> None:
    from rankrt.cli import run

    assert run(["gate", str(compiled[0].out), "--seconds", "0.01"]) == 0
    out = capsys.readouterr().out
    assert "8 of 8 inputs" in out
    assert out.splitlines()[-1] == "PASSED | 0 gates hold, 2 not decided here"


def test_github_is_told_where_it_runs_this(made: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    made.set(gates=[{"metric": "size_ratio", "goal": "threshold", "value": 99}])
    summary = made.folder / "summary.md"
    monkeypatch.chdir(made.folder)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    done = on(made, "gate", "--quiet")
    assert done.code == Exit.PERFORMANCE
    lines = made.recipe.read_text("utf-8").splitlines()
    line = 1 + next(i for i, text in enumerate(lines) if "size_ratio" in text)
    assert f"::error file=recipe.yaml,line={line},title=rankc%3A size_ratio fail::" in done.err
    assert summary.read_text("utf-8").startswith("# small: FAILED")
