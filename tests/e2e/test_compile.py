"""A recipe through the command line: what comes out, what is printed, and with which exit code."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import yaml

import rankc
from projects import Done, Project, click_model, click_rows, command, read_json
from rankc.errors import Exit
from rankc.recipe_load import build_passes, load_recipe
from rankrt.__main__ import main as rankrt_main
from rankrt.bundle import load

RECIPES = Path(__file__).parents[2] / "recipes"
BUNDLE = {
    "golden.npz",
    "junit.xml",
    "layers.json",
    "manifest.json",
    "metrics.json",
    "model.onnx",
    "plan.json",
    "recipe.lock.json",
    "recipe.yaml",
    "report.html",
    "report.md",
    "report.sarif",
}
Compiled = tuple[Project, Done]


# --- the whole of it ------------------------------------------------------------------------


def test_a_whole_bundle_comes_out(compiled: Compiled) -> None:
    made, done = compiled
    assert done.code == Exit.OK
    assert done.err == ""
    assert {path.name for path in made.out.iterdir()} == BUNDLE
    assert made.leftovers() == []
    last = rf"PASSED \| \d+\.\d s \| rankc compile {made.recipe} --out {made.out}"
    assert re.fullmatch(last, done.last)
    stages = re.findall(r"^  (\w+) +\d+\.\d s ", done.out, re.MULTILINE)
    assert stages == ["intake", "cleanup", "calibrate", "plan", "lower", "validate"]
    onnx.checker.check_model(str(made.out / "model.onnx"), full_check=True)


def test_what_the_bundle_says_is_true(compiled: Compiled) -> None:
    made, _ = compiled
    metrics, plan = made.metrics, read_json(made.out / "plan.json")
    before, after = (made.folder / "model.onnx").stat(), (made.out / "model.onnx").stat()
    assert metrics["passed"] is True
    assert [gate["passed"] for gate in metrics["gates"]] == [True, True]
    assert metrics["ratios"]["size_bytes"] == pytest.approx(before.st_size / after.st_size)
    (limit,) = plan["limits"]
    assert after.st_size <= int(0.6 * before.st_size) == limit["budget"]
    assert limit["planned"] == after.st_size
    assert abs(metrics["metrics"]["auc"]["difference"]) < 0.01
    assert metrics["backends"]["onnxruntime-fp32"]["ran"] is True
    lock = read_json(made.out / "recipe.lock.json")
    assert set(lock["sha256"]) == {"model", "calibration", "validation", "recipe"}
    choices = {c["site"]: c["rank"] for c in plan["choices"]}
    assert load(made.out).manifest.ranks == choices
    report = (made.out / "report.md").read_text("utf-8")
    assert all(site in report for site in choices)
    assert 'tests="2"' in (made.out / "junit.xml").read_text("utf-8")
    for name in BUNDLE - {"model.onnx", "golden.npz"}:  # nothing of the machine that made it
        assert str(made.folder) not in (made.out / name).read_text("utf-8"), name


def test_the_resolved_recipe_makes_the_same_again(compiled: Compiled, small: Project) -> None:
    made, _ = compiled
    small.recipe.write_bytes((made.out / "recipe.yaml").read_bytes())
    assert small.rankc("compile", "--quiet").code == Exit.OK
    for name in ("model.onnx", "plan.json", "recipe.yaml", "recipe.lock.json", "golden.npz"):
        assert (small.out / name).read_bytes() == (made.out / name).read_bytes(), name


def test_another_process_makes_the_same_bytes(compiled: Compiled, small: Project) -> None:
    made, _ = compiled
    process = small.process(env={**os.environ, "PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1"})
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    for name in ("model.onnx", "plan.json", "recipe.yaml", "recipe.lock.json", "golden.npz"):
        assert (small.out / name).read_bytes() == (made.out / name).read_bytes(), name


def test_an_older_bundle_is_replaced(small: Project) -> None:
    assert small.rankc("compile", "--set", "data.validation=null", "--set", "gates=[]").code == 0
    first = (small.out / "manifest.json").read_bytes()
    assert small.rankc("compile", "--set", "data.validation=null", "--set", "gates=[]").code == 0
    assert (small.out / "manifest.json").read_bytes() == first
    assert small.leftovers() == []


def test_a_packed_bundle_is_the_same_one(small: Project) -> None:
    done = small.without_validation().rankc("compile", "--tar")
    assert done.code == Exit.OK
    assert done.last.endswith(f"--out {small.out} --tar")
    packed = small.out.with_name("bundle.tar")
    with load(packed) as here, load(small.out) as there:
        assert here.manifest == there.manifest


# --- exit codes and options -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("gates", "code", "says"),
    [
        ([("auc", "min-improvement", 0.5)], Exit.ACCURACY, "auc"),
        ([("size_ratio", "threshold", 100)], Exit.PERFORMANCE, "size_ratio is 1.7"),
        (
            [("size_ratio", "threshold", 100), ("max_abs_err", "threshold", 0)],
            Exit.ACCURACY,
            "max_abs_err is 0.",
        ),
    ],
)
def test_a_gate_that_fails_is_the_exit_code(
    small: Project, gates: list[tuple[str, str, float]], code: Exit, says: str
) -> None:
    keys = ("metric", "goal", "value")
    small.set(gates=[dict(zip(keys, gate, strict=True)) for gate in gates])
    done = small.rankc("compile")
    assert done.code == code
    assert done.last.startswith("FAILED | ")
    assert says in done.last
    assert small.metrics["passed"] is False
    assert "<failure" in (small.out / "junit.xml").read_text("utf-8")
    assert load(small.out).manifest.metrics["passed"] is False


def test_json_is_one_document_and_nothing_else(small: Project) -> None:
    done = small.rankc("compile", "--json")
    assert done.code == Exit.OK
    assert json.loads(done.out) == small.metrics
    assert done.err.splitlines()[-1].startswith("PASSED | ")


def test_quiet_prints_one_line(small: Project) -> None:
    done = small.rankc("plan", "--quiet")
    assert done.out.startswith("PASSED | ")
    assert len(done.out.splitlines()) == 1
    assert done.err == ""


@pytest.mark.parametrize("words", [("plan",), ("compile", "--dry-run")])
def test_a_plan_writes_nothing(small: Project, compiled: Compiled, words: tuple[str, ...]) -> None:
    before = sorted(small.folder.rglob("*"))
    done = small.rankc(*words, "--json")
    assert done.code == Exit.OK
    assert json.loads(done.out) == read_json(compiled[0].out / "plan.json")
    assert sorted(small.folder.rglob("*")) == before


def test_set_and_the_default_folder(small: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(small.folder)
    options = ("--set", "name=other", "--set", "budget.keep_ratio=0.5", "--set", "seed=3")
    done = command("compile", "recipe.yaml", *options, "--set", "passes.embedding.int8=false")
    assert done.code == Exit.OK
    out = small.folder / "build" / "other"
    kept = yaml.safe_load((out / "recipe.yaml").read_text("utf-8"))
    assert kept["seed"] == 3
    assert kept["budget"]["keep_ratio"] == 0.5
    assert kept["passes"][1]["embedding"]["int8"] is False
    whole = (small.folder / "model.onnx").stat().st_size
    assert (out / "model.onnx").stat().st_size <= 0.5 * whole


def test_inspect_shows_the_sites_that_a_plan_names(small: Project, compiled: Compiled) -> None:
    done = command("inspect", str(small.folder / "model.onnx"), "--json")
    assert done.code == Exit.OK
    sites = {site["name"] for site in json.loads(done.out)["sites"]}
    plan = read_json(compiled[0].out / "plan.json")
    assert {choice["site"] for choice in plan["choices"]} <= sites


def test_the_python_api_is_the_same_thing(small: Project, compiled: Compiled) -> None:
    result = rankc.compile_recipe(small.recipe, small.out)
    assert result.passed
    assert json.loads(json.dumps(result.metrics)) == small.metrics
    for name in ("model.onnx", "plan.json"):
        assert (small.out / name).read_bytes() == (compiled[0].out / name).read_bytes()


# --- what is shipped ------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_loads(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert len(build_passes(recipe)) == len(recipe.passes)
    for name in (recipe.model, recipe.data.calibration.path):
        file = path.parent / name
        if not file.exists():  # then it is made from the user's data, and the README says how
            left_out = (file.parent / ".gitignore").read_text("utf-8").split()
            assert any(file.match(pattern) for pattern in left_out), name
            assert (file.parent / "README.md").exists()


@pytest.mark.slow
def test_the_main_recipe_keeps_its_promises(tmp_path: Path) -> None:
    """Sizes and accuracy; how fast it is depends on the machine, and on who else is on it."""
    done = command("compile", str(RECIPES / "ctr-lowrank.yaml"), "--out", str(tmp_path / "out"))
    metrics = read_json(tmp_path / "out" / "metrics.json")
    failed = [gate["metric"] for gate in metrics["gates"] if not gate["passed"]]
    assert set(failed) <= {"latency_ratio"}, done.out
    assert done.code == (Exit.PERFORMANCE if failed else Exit.OK)
    assert metrics["ratios"]["size_bytes"] >= 12
    if importlib.util.find_spec("tensorrt_rtx"):
        assert metrics["backends"]["tensorrt-rtx-fp16"]["built"] is True
    assert rankrt_main(["selftest", str(tmp_path / "out"), "--backend", "onnxruntime"]) == 0


def test_the_bundle_answers_as_the_metrics_say(compiled: Compiled) -> None:
    made, _ = compiled
    rows = click_rows(click_model())
    with load(made.out) as bundle:
        got, want = bundle.run(rows)["p"], made.original(rows)["p"]
    measured = made.metrics["metrics"]["max_abs_err"]["compressed"]
    assert float(np.abs(got - want).max()) == pytest.approx(measured, rel=1e-3)


def test_a_model_of_a_fixed_batch_of_many_rows(small: Project) -> None:
    """Golden rows are as many as the model takes at a time."""
    path = small.folder / "model.onnx"
    model = ir.load(path)
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is not None:
            value.shape = ir.Shape([64, *list(value.shape)[1:]])
    ir.save(model, path)
    spec = {"path": "calibration.npz", "batch_size": 64}
    small.set(data={"calibration": spec}, latency={"batch_sizes": [64], "repeats": 5}, gates=[])
    done = small.rankc("compile")
    assert done.code == Exit.OK, done.out + done.err
    assert all(spec["shape"][0] == 64 for spec in read_json(small.out / "manifest.json")["inputs"])
