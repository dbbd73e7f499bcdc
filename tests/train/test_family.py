"""A family of a model that is trained once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from conv_builders import convnet, images
from projects import Done, Project, command, project, read_json
from rankc.errors import Exit
from rankrt.session import open_model

Array = NDArray[Any]
KEEPS = "0.8,0.5"


def family(of: Project, keeps: str, *options: str) -> Done:
    return command("family", str(of.recipe), "--out", str(of.out), "--keep", keeps, *options)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Done]:
    """Two members out of one training, without rows to prove them on."""
    found = project(
        tmp_path_factory.mktemp("family"),
        convnet(),
        {"x": images(320)},
        passes=[{"maestro": {"min_size": 64, "round_to": 1}}],
        budget={"unit": "macs", "keep_ratio": 1.0},
        train={"epochs": 2, "lr": 0.01},
    ).without_validation()
    rows = {"path": "calibration.npz", "batch_size": 32}
    found.edit(lambda tree: tree["data"].update(training=rows))
    return found, family(found, KEEPS)


def weights(folder: Path) -> dict[str, Array]:
    model = ir.load(folder / "model.onnx")
    values = model.graph.initializers.items()
    return {str(k): np.asarray(v.const_value.numpy()) for k, v in values if v.const_value}


def test_members_have_the_first_directions_of_the_same_factors(
    made: tuple[Project, Done],
) -> None:
    of, done = made
    assert done.code == Exit.OK, done.out + done.err
    assert done.out.count("  train ") == 1, "trained once"
    large, small = (weights(of.out / keep) for keep in ("0.8", "0.5"))
    members = read_json(of.out / "family.json")["members"]
    ranks = [member["ranks"] for member in members]
    both = sorted(ranks[0].keys() & ranks[1].keys())
    assert any(ranks[1][name] < ranks[0][name] for name in both)
    for name in both:
        a, b = (w[f"{name}.A"] for w in (large, small))
        axis = 0 if a.ndim > 2 else 1  # that of the rank
        shared = np.arange(min(a.shape[axis], b.shape[axis]))
        np.testing.assert_array_equal(a.take(shared, axis), b.take(shared, axis))


def test_another_member_trains_nothing(made: tuple[Project, Done]) -> None:
    of, _ = made
    done = family(of, f"{KEEPS},0.65")
    assert done.code == Exit.OK, done.out + done.err
    assert done.out.count("is there, made from the same") == 2
    lesson = read_json(of.out / "0.65" / "metrics.json")["training"][0]
    first = read_json(of.out / "0.8" / "metrics.json")["training"][0]
    assert lesson["looks"] == first["looks"]
    assert "gone on from step 18" in done.out
    x = images(8, seed=9)
    answers = [
        open_model(of.out / keep / "model.onnx").run({"x": x})["logits"]
        for keep in ("0.8", "0.65", "0.5")
    ]
    want = of.original({"x": x})["logits"]
    gaps = [float(np.square(answer - want).mean()) for answer in answers]
    assert gaps == sorted(gaps), "the larger a member, the closer"
