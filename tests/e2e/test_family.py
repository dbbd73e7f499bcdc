"""Many bundles of one preparation: each as a compile would make it, none made twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from projects import Done, Project, command, read_json
from rankc.errors import Exit
from rankrt import load

KEEPS = "0.35,0.8"
AUC = {"metric": "auc", "goal": "max-degradation", "value": 0.05}
HALF = {"metric": "size_ratio", "goal": "threshold", "value": 2}  # of the recipe's one budget


def family(project: Project, *options: str) -> Done:
    return command("family", str(project.recipe), "--out", str(out_of(project)), *options)


def out_of(project: Project) -> Path:
    return project.folder / "build" / "family"


def index_of(project: Project) -> Any:
    return read_json(out_of(project) / "family.json")


def written(project: Project) -> dict[str, int]:
    """When the manifest of each member was written, by folder."""
    return {p.parent.name: p.stat().st_mtime_ns for p in out_of(project).glob("*/manifest.json")}


@pytest.fixture(scope="session")
def made(template: Project, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Done]:
    """A family of two, and how that went; not to be changed."""
    folder = tmp_path_factory.mktemp("family") / "project"
    project = Project(Path(shutil.copytree(template.folder, folder))).set(gates=[AUC, HALF])
    return project, family(project, "--keep", KEEPS)


@pytest.fixture
def finished(made: tuple[Project, Done], tmp_path: Path) -> Project:
    """A copy of it."""
    return Project(Path(shutil.copytree(made[0].folder, tmp_path / "project")))


def test_every_member_is_the_bundle_that_a_compile_makes(made: tuple[Project, Done]) -> None:
    project, done = made
    assert done.code == Exit.OK, done.out + done.err
    assert done.last.startswith("PASSED | 2 members | ")
    large = read_json(out_of(project) / "0.8" / "metrics.json")
    assert large["ratios"]["size_bytes"] < HALF["value"], "nobody asks the larger one for that"
    assert [gate["metric"] for gate in large["gates"]] == ["auc"]
    index = index_of(project)
    assert [m["folder"] for m in index["members"]] == ["0.8", "0.35"], "the largest first"
    assert (index["recipe"], index["unit"], index["nested"]) == ("small", "bytes", True)
    whole = (project.folder / "model.onnx").stat().st_size
    for member in index["members"]:
        folder = out_of(project) / member["folder"]
        assert (folder / "model.onnx").stat().st_size <= member["keep"] * whole
        assert member["passed"]
        assert member["ranks"] == read_json(folder / "manifest.json")["ranks"]
        with load(folder) as bundle:
            assert bundle.check_golden() is not None
        measured = read_json(folder / "metrics.json")["metrics"]["auc"]
        assert member["metrics"]["auc"] == [measured["original"], measured["compressed"]]
    assert "2.9" in done.out, "how many times smaller the small one is"


def test_a_member_has_the_bytes_of_the_same_budget_compiled_alone(finished: Project) -> None:
    finished.set(budget={"keep_ratio": 0.35}, gates=[AUC]).rankc("compile")
    alone = finished.bundle()
    for name in ("model.onnx", "plan.json", "recipe.yaml", "recipe.lock.json", "golden.npz"):
        assert (out_of(finished) / "0.35" / name).read_bytes() == alone[name], name


def test_what_is_there_is_not_made_again(finished: Project) -> None:
    """Unless it was made from something else, or damaged."""
    before = written(finished)
    index = (out_of(finished) / "family.json").read_bytes()
    done = family(finished, "--keep", KEEPS)
    assert done.code == Exit.OK
    assert done.out.count("is there, made from the same") == 2
    assert "calibrate" not in done.out
    assert written(finished) == before
    assert (out_of(finished) / "family.json").read_bytes() == index
    with (out_of(finished) / "0.8" / "model.onnx").open("ab") as file:
        file.write(b"more")
    done = family(finished, "--keep", KEEPS)
    after = written(finished)
    assert done.code == Exit.OK
    assert after["0.35"] == before["0.35"]
    assert after["0.8"] != before["0.8"]
    family(finished, "--keep", "0.35", "--set", "seed=1")
    assert written(finished)["0.35"] != before["0.35"]


def test_the_member_that_is_worst_off_decides_the_exit_code(small: Project) -> None:
    """A share that is impossible leaves the others as they are."""
    small.set(gates=[{"metric": "max_abs_err", "goal": "threshold", "value": 1e-5}])
    done = family(small, "--keep", "0.01,0.6")
    assert done.code == Exit.USAGE
    assert "keep 0.6: max_abs_err is" in done.last
    assert "keep 0.01: budget:" in done.last
    assert [m["exit_code"] for m in index_of(small)["members"]] == [Exit.ACCURACY, Exit.USAGE]
    assert (out_of(small) / "0.6" / "manifest.json").is_file()
    assert not (out_of(small) / "0.01").exists()
    assert family(small, "--keep", "0.6").code == Exit.ACCURACY


def test_shares_and_unit_may_stand_in_the_recipe(small: Project) -> None:
    """Budgets of another unit hold; the page has the front, and JSON is the index."""
    small.set(family={"keep_ratios": [0.6], "unit": "parameters"}, search={"steps": 1})
    done = family(small, "--json")
    assert done.code == Exit.OK, done.err
    index = index_of(small)
    assert index["unit"] == "parameters"
    plan = read_json(out_of(small) / "0.6" / "plan.json")
    assert {limit["unit"] for limit in plan["limits"]} == {"parameters", "bytes"}
    assert "front" not in read_json(out_of(small) / "0.6" / "metrics.json")
    page = (out_of(small) / "family.html").read_text("utf-8")
    assert "<svg" in page
    assert "auc over budget in parameters of 1 plans" in page
    assert json.loads(done.out) == index


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ((), "a family of what sizes?"),
        (("--keep", "1.5"), "up to 1, not 1.5"),
        (("--keep", "0"), "above 0"),
        (("--keep", "nan"), "not nan"),
        (("--keep", "half"), "--keep half: expected shares like"),
        (("--keep", "0.5", "--unit", "bits"), "--unit bits: no such unit; choose bytes"),
        (("--keep", "0.5", "--set", "family={keep_ratios: [2]}"), "less than or equal to 1"),
    ],
)
def test_sizes_that_are_none_are_refused(
    template: Project, options: tuple[str, ...], word: str
) -> None:
    done = family(template, *options)
    assert done.code == Exit.USAGE
    assert word in done.last + done.err
    assert not out_of(template).exists()


def test_ctrl_c_keeps_what_is_finished(small: Project) -> None:
    words = ["family", str(small.recipe), "--out", str(out_of(small)), "--keep", "0.6,0.5,0.35"]
    process = subprocess.Popen(
        [sys.executable, "-m", "rankc", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (out_of(small) / "family.json").exists():
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == Exit.INTERRUPTED, out + err
    assert "has what was finished, run it again to go on" in out
    done_by_then = [member["folder"] for member in index_of(small)["members"]]
    assert done_by_then[0] == "0.6"
    assert len(done_by_then) < 3
    before = written(small)
    assert {path.name for path in out_of(small).iterdir() if path.name.startswith(".")} == set()
    assert family(small, "--keep", "0.6,0.5,0.35").code == Exit.OK
    after = written(small)
    assert set(after) == {"0.6", "0.5", "0.35"}
    assert {name: after[name] for name in before} == before
