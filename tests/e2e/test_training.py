"""Recipes that train, through the command line: what is trained, kept, told, and written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from builders import model_of, weight
from conv_builders import convnet, images
from projects import Done, Project, command
from rankc.errors import Exit
from training_projects import (
    CONV,
    LABELS,
    MAESTRO,
    STEPS,
    TRP,
    distance,
    initializers,
    label,
    lesson,
    model_bytes,
    trained,
    training,
)

RECOVER = {"epochs": 8, "lr": 0.01, "holdout": 0.3}


def plan_of(made: Project) -> Any:
    return json.loads((made.out / "plan.json").read_text("utf-8"))


def compiled(made: Project, *options: str) -> Done:
    done = made.rankc("compile", *options)
    assert done.code == Exit.OK, done.out + done.err
    return done


def without_recovery(folder: Path, *passes: Any) -> Project:
    made = trained(folder, *passes)
    made.edit(lambda tree: tree["data"].pop("training"))
    compiled(made)
    return made


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Convolutions factored and nothing trained; not to be changed."""
    return without_recovery(tmp_path_factory.mktemp("plain") / "project", CONV)


@pytest.mark.parametrize("how", [TRP, MAESTRO], ids=["trp", "maestro"])
def test_a_pass_that_learns(tmp_path: Path, how: dict[str, Any]) -> None:
    """The bundle, what is told of the training, and twice the same bytes."""
    first, second = (trained(tmp_path / name, how) for name in ("first", "second"))
    done = compiled(first)
    compiled(second)
    assert model_bytes(first) == model_bytes(second)
    (name,) = how
    plan = plan_of(first)
    assert {choice["pass_name"] for choice in plan["choices"]} == {name}
    found = lesson(first, "train")
    assert (found["steps"], found["stopped"], found["kept"]) == (STEPS, "all steps made", True)
    assert [look["epoch"] for look in found["looks"]] == [0.0, 1.0, 2.0]
    assert found["ranks"].keys() >= {choice["site"] for choice in plan["choices"]}
    assert found["looks"] == lesson(second, "train")["looks"]
    assert "  train " in done.out
    page = (first.out / "report.html").read_text("utf-8")
    assert "Training before the plan" in page
    assert "Recovery of the compressed model" not in page
    assert "## Training" in (first.out / "report.md").read_text("utf-8")
    lock = json.loads((first.out / "recipe.lock.json").read_text("utf-8"))
    assert "training" in lock["sha256"]
    operators = {node.op_type for node in ir.load(first.out / "model.onnx").graph}
    assert "BatchNormalization" not in operators, "it was there for the training alone"


def test_labels_and_a_recovery_after_the_training(tmp_path: Path) -> None:
    """Both trainings in one recipe, by labels, in their order."""
    objective = {**LABELS, "distill": 0.5}
    made = trained(
        tmp_path / "project", TRP, train={"epochs": 1, "lr": 0.01, "objective": objective},
        recover={"epochs": 1, "lr": 0.01, "objective": objective, "metric": "accuracy_top1"},
    )  # fmt: skip
    compiled(made)
    assert [one["stage"] for one in made.metrics["training"]] == ["train", "recover"]
    assert "accuracy_top1" in lesson(made, "recover")["looks"][0]["metrics"]


def test_a_recovery_that_helps_is_kept(tmp_path: Path, plain: Project) -> None:
    made = trained(tmp_path / "project", CONV, recover=RECOVER)
    done = compiled(made)
    found = lesson(made, "recover")
    assert found["kept"], found["why"]
    assert found["why"].startswith("on 24 rows held out that chose nothing, the loss fell by ")
    assert found["looks"][-1]["loss"] < found["looks"][0]["loss"]
    assert "; kept" in done.out
    assert distance(made) < distance(plain), "closer to the original on rows of nobody's"
    assert "Recovery of the compressed model" in (made.out / "report.html").read_text("utf-8")
    before, after = initializers(plain), initializers(made)
    assert {k: v.shape for k, v in before.items()} == {k: v.shape for k, v in after.items()}


def test_a_recovery_that_does_not_help_is_not_kept(tmp_path: Path, plain: Project) -> None:
    """Steps too small to change a loss: the bytes are those without any recovery."""
    made = trained(tmp_path / "project", CONV, recover={"epochs": 1, "lr": 1e-12})
    done = compiled(made)
    found = lesson(made, "recover")
    assert not found["kept"]
    assert found["why"] == "no look at the rows held out was better than the one before any step"
    assert "not kept" in done.out
    assert model_bytes(made) == model_bytes(plain)
    assert "Not kept: the model is as it was before" in (made.out / "report.md").read_text("utf-8")


def test_an_uncompressed_model_has_nothing_to_recover(tmp_path: Path) -> None:
    """Distilled from itself it is perfect already, and stays what it is."""
    made = trained(tmp_path / "project", CONV, budget={"unit": "macs", "keep_ratio": 1.0})
    made.set(recover={"epochs": 2, "lr": 0.01})
    made.set(passes=[{"conv": {"min_size": 1_000_000}}], budget=None)
    compiled(made)
    assert not lesson(made, "recover")["kept"]
    assert distance(made) < 1e-10


@pytest.mark.parametrize("parameters", ["factors", "singular"])
def test_what_is_trained_of_the_compressed_model(
    tmp_path: Path, plain: Project, parameters: str
) -> None:
    """Layers that were left dense keep their bytes; the factors of the others do not."""
    made = trained(
        tmp_path / "project", CONV, recover={**RECOVER, "margin": 0.0, "parameters": parameters}
    )
    compiled(made)
    assert lesson(made, "recover")["kept"], lesson(made, "recover")["why"]
    before, after = initializers(plain), initializers(made)
    assert before.keys() == after.keys()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    plan = json.loads((made.out / "plan.json").read_text("utf-8"))
    sites = {choice["site"] for choice in plan["choices"]}
    assert {name.split(".")[0] for name in changed} <= sites
    assert changed
    if parameters == "singular":
        assert not [name for name in changed if name.endswith("bias")]


def test_what_is_frozen_keeps_its_bytes(tmp_path: Path, plain: Project) -> None:
    """A bias, too, behind whose layer a BatchNormalization would be folded; its weight learns."""
    made = trained(
        tmp_path / "project", CONV,
        recover={**RECOVER, "guard": False, "freeze": ["depthwise.bias", "pointwise.w"]},
    )  # fmt: skip
    compiled(made)
    assert lesson(made, "recover")["why"].startswith("on 48 rows held out the loss fell by ")
    before, after = initializers(plain), initializers(made)
    for name in ("depthwise.bias", "pointwise.w"):
        np.testing.assert_array_equal(after[name], before[name])
    for name in ("depthwise.w", "pointwise.bias"):
        assert not np.array_equal(after[name], before[name])


def two_outputs() -> ir.Model:
    """The net of these tests with another output, of its pixels."""
    model = convnet()
    pooled = next(node for node in model.graph if node.op_type == "Flatten").outputs[0]
    w = ir.val("side.w", const_value=ir.tensor(np.ones((16, 3), np.float32), name="side.w"))
    model.graph.register_initializer(w)
    node = ir.node("MatMul", [pooled, w], name="side")
    node.outputs[0].name, node.outputs[0].dtype = "side_out", ir.DataType.FLOAT
    node.outputs[0].shape = ir.Shape(["batch", 3])
    model.graph.append(node)
    model.graph.outputs.append(node.outputs[0])
    return model


def test_an_output_that_nothing_is_learnt_about_is_told(tmp_path: Path) -> None:
    """The objective is of the first answer; of others where objective.match names them."""
    recover = {"epochs": 1, "lr": 0.01}
    made = trained(tmp_path / "project", TRP, model=two_outputs(), recover=recover)
    compiled(made)
    for stage in ("train", "recover"):
        assert "nothing of it is about the output side_out" in lesson(made, stage)["why"]
    made.set(recover={**recover, "objective": {"match": {"side_*": 0.5}}})
    compiled(made)
    assert "about the output" not in lesson(made, "recover")["why"]


def test_a_search_recovers_every_plan_that_it_tries(tmp_path: Path) -> None:
    made = trained(tmp_path / "project", CONV, recover={"epochs": 1, "lr": 0.01})
    made.set(
        search={"steps": 2}, gates=[{"metric": "macs_ratio", "goal": "threshold", "value": 1.2}]
    )
    done = command("search", str(made.recipe), "--out", str(made.out))
    assert done.code in (Exit.OK, Exit.PERFORMANCE), done.out + done.err
    assert len(made.metrics["front"]) >= 2
    assert lesson(made, "recover")["steps"] == 9
    assert made.leftovers() == [], "a recovery is of one plan"


def test_a_stream_that_does_not_fit_in_memory(tmp_path: Path) -> None:
    """The rows are read again in every epoch, and rows held out may lie in a file of their own."""
    made = trained(tmp_path / "project", TRP, recover={"epochs": 1, "memory_mb": 1})
    made.edit(lambda tree: tree["train"].update(memory_mb=1))
    label(made, "holdout", images(32, seed=4))
    spec = {"path": "holdout.npz", "batch_size": 16}
    made.edit(lambda tree: tree["data"].update(holdout=spec))
    compiled(made)
    assert lesson(made, "train")["steps"] == 20, "all rows are trained on"


def test_bisect_goes_on_from_the_training_and_refuses_what_was_recovered(tmp_path: Path) -> None:
    """The training before the plan is there still, so a plan is made again in a moment."""
    made = trained(tmp_path / "project", TRP, budget={"unit": "macs", "keep_ratio": 0.4})
    compiled(made.without_labels())
    asked = ("bisect", str(made.out), "--recipe", str(made.recipe))
    done = command(*asked)
    assert done.code == Exit.OK, done.out + done.err
    assert f"gone on from step {STEPS}" in done.out
    made.set(recover={"epochs": 3, "lr": 0.01, "holdout": 0.3})
    compiled(made)
    assert lesson(made, "recover")["kept"], lesson(made, "recover")["why"]
    done = command(*asked)
    assert done.code == Exit.USAGE
    assert "--set recover=null --out ANOTHER" in done.last
    made.set(recover={"epochs": 1, "lr": 1e-12, "batch_norm": False})
    compiled(made)
    assert command(*asked).code == Exit.OK, "not kept: the weights are those of the plan"


def in_process(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
    )


def test_torch_is_not_imported_where_nothing_is_trained(tmp_path: Path) -> None:
    made = trained(tmp_path / "project", CONV).without_validation()
    made.edit(lambda tree: tree["data"].pop("training"))
    code = (
        "import sys, rankc.pipeline; from rankc.__main__ import main\n"
        "assert main(sys.argv[1:]) == 0; assert 'torch' not in sys.modules"
    )
    done = in_process(code, "compile", str(made.recipe), "--out", str(made.out))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (made.out / "model.onnx").is_file()


def test_without_torch_it_says_what_to_install(tmp_path: Path) -> None:
    """A finder that knows no torch stands for a machine that has none."""
    made = trained(tmp_path / "project", CONV, recover={})
    code = (
        "import importlib.util, sys; from rankc.__main__ import main\n"
        "real = importlib.util.find_spec\n"
        "def without(name, *more):\n"
        "    return None if name == 'torch' else real(name, *more)\n"
        "importlib.util.find_spec = without\n"
        "code = main(sys.argv[1:]); assert 'torch' not in sys.modules; sys.exit(code)"
    )
    done = in_process(code, "compile", str(made.recipe), "--out", str(made.out))
    assert done.returncode == Exit.ENVIRONMENT, done.stdout + done.stderr
    assert 'pip install "rankc[train]"' in done.stdout.splitlines()[-1]
    assert not made.out.exists()
    assert not training(made).exists()


def test_a_member_without_factors_has_none_to_recover(tmp_path: Path) -> None:
    """At its full size nothing is rewritten; that is no reason to make none of the others."""
    recover = {"epochs": 1, "lr": 0.01, "parameters": "factors"}
    made = trained(tmp_path / "project", CONV, recover=recover).without_validation()
    done = command(
        "family", str(made.recipe), "--out", str(made.out), "--keep", "1,0.6", "--unit", "macs"
    )
    assert done.code == Exit.OK, done.out + done.err
    assert "no low-rank layer in this plan" in done.out
    assert "training" not in json.loads((made.out / "1" / "metrics.json").read_text("utf-8"))
    assert "training" in json.loads((made.out / "0.6" / "metrics.json").read_text("utf-8"))


def test_bisect_says_how_a_bundle_without_recovery_is_made(tmp_path: Path) -> None:
    """Followed to the letter, where nothing but the recovery reads the rows to train on."""
    made = trained(tmp_path / "project", CONV, budget={"unit": "macs", "keep_ratio": 0.4})
    compiled(made.without_labels().set(recover=RECOVER))
    done = command("bisect", str(made.out), "--recipe", str(made.recipe))
    without, other = "--set recover=null --set data.training=null", str(tmp_path / "other")
    assert done.code == Exit.USAGE
    assert f"{without} --out ANOTHER" in done.last
    done = command("compile", str(made.recipe), *without.split(), "--out", other)
    assert done.code == Exit.OK, done.out + done.err
    done = command("bisect", other, "--recipe", str(made.recipe), *without.split())
    assert done.code == Exit.OK, done.out + done.err


def tied() -> ir.Model:
    """Pixels to classes, two of the three inner layers with one weight."""
    rng, tape = np.random.default_rng(0), ir.tape.Tape()
    x = ir.val("x", ir.DataType.FLOAT, ["batch", *images(1).shape[1:]])
    y = ir.val("y", ir.DataType.FLOAT, ["batch", 4])
    sizes = {"W": (24, 24), "narrow": (images(1)[0].size, 24), "head": (24, 4)}
    weights = {
        name: weight(tape, name, (rng.normal(size=size) / size[0] ** 0.5).astype(np.float32))
        for name, size in sizes.items()
    }
    hidden = tape.op("Flatten", [x])
    for layer, name in (("narrow", "narrow"), ("first", "W"), ("second", "W")):
        hidden = tape.op("Relu", [tape.op("MatMul", [hidden, weights[name]], name=layer)])
    tape.op("MatMul", [hidden, weights["head"]], name="head", output=y)
    return model_of(tape, [x], [y])


@pytest.mark.parametrize("how", [TRP, MAESTRO], ids=["trp", "maestro"])
def test_a_weight_that_two_layers_share_is_trained_apart_where_asked(
    tmp_path: Path, how: dict[str, Any]
) -> None:
    made = trained(tmp_path / "project", how, model=tied(), budget={"keep_ratio": 0.7})
    compiled(made)
    assert lesson(made, "train")["ranks"].keys() == {"head", "narrow"}
    skips = {one["name"]: one["reason"] for one in plan_of(made)["skips"]}
    assert all("train.unshare gives each its own" in skips[name] for name in ("first", "second"))
    made.edit(lambda tree: tree["train"].update(unshare=["W"]))
    compiled(made)
    assert {"first", "second"} <= lesson(made, "train")["ranks"].keys()
    assert not any("shared" in one["reason"] for one in plan_of(made)["skips"])


def test_no_weight_is_shared(tmp_path: Path) -> None:
    made = trained(tmp_path / "project", TRP, model=tied())
    made.edit(lambda tree: tree["train"].update(unshare=["head"]))
    done = made.rankc("compile")
    assert done.code == Exit.USAGE, done.err
    assert "train.unshare: 'head' fits no weight that several nodes read; there are W" in done.err
