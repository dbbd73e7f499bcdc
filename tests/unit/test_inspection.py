from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from builders import Array, lookup, lookup_rows, mlp, model_of, weight
from rankc.errors import DataError, RecipeError
from rankc.inspection import BATCH, Inspection, SiteView, batch_size, inspect
from rankrt.session import TensorSpec


@pytest.fixture
def model(tmp_path: Path) -> Path:
    ir.save(lookup(), tmp_path / "model.onnx")
    np.savez(tmp_path / "rows.npz", ids=lookup_rows())
    return tmp_path / "model.onnx"


def site(found: Inspection, name: str) -> SiteView:
    return next(view for view in found.sites if view.name == name)


def initializers(model: ir.Model) -> dict[str, Array]:
    return {k: v.const_value.numpy() for k, v in model.graph.initializers.items()}  # type: ignore[union-attr]


def shares(squares: Array) -> Array:
    energies: Array = np.sort(squares)[::-1] / squares.sum()
    return energies


def test_without_rows_the_spectrum_is_that_of_the_weights(model: Path) -> None:
    found, weights = inspect(model), initializers(lookup())
    assert (found.rows, found.data) == (0, "")
    layer = site(found, "fc1")
    squares = np.linalg.svd(weights["w1"].astype(float), compute_uv=False) ** 2
    np.testing.assert_allclose(layer.spectrum.energies, shares(squares), atol=1e-6)
    assert (layer.operator, layer.shape, layer.weight_shape) == ("Gemm", (36, 40), (36, 40))
    table = site(found, "user")
    rows = weights["user"] - weights["user"].mean(axis=0)
    squares = np.linalg.svd(rows.astype(float), compute_uv=False) ** 2
    np.testing.assert_allclose(table.spectrum.energies, shares(squares), atol=1e-5)
    assert (table.operator, table.shape, table.full_rank) == ("Gather", (60, 12), 12)


def test_with_rows_it_is_that_of_the_outputs(model: Path) -> None:
    found, weights = inspect(model, str(model.with_name("rows.npz"))), initializers(lookup())
    assert (found.rows, found.data) == (512, "rows.npz")
    ids = lookup_rows()
    read = [weights[name][ids[:, k]] for k, name in enumerate(("user", "item", "user"))]
    outputs = np.concatenate(read, axis=1).astype(float) @ weights["w1"]
    variances = np.linalg.eigvalsh(np.cov(outputs.T, bias=True))[::-1][:36]
    layer = site(found, "fc1")
    np.testing.assert_allclose(layer.spectrum.energies, shares(variances), atol=1e-5)
    for offer in layer.offers:
        lost = variances[offer.rank :].sum() / variances.sum()
        assert offer.error == pytest.approx(lost, abs=1e-5)


def test_shares_of_macs_are_of_the_whole_model(model: Path) -> None:
    found = inspect(model)
    assert found.macs == 36 * 40 + 40
    assert site(found, "fc1").macs_share == pytest.approx(36 / 37)
    assert site(found, "user").macs == 0
    assert [(s.name, s.pass_name) for s in found.skips] == [("fc2", "lowrank")]


def test_the_rank_up_to_which_it_pays_is_exact(model: Path) -> None:
    # 36 x 40 in two factors: 76 r + 40 of a bias, against 1440 + 40
    assert site(inspect(model), "fc1").paying == {"": 18}


def test_the_same_model_and_rows_are_told_the_same(model: Path) -> None:
    rows = str(model.with_name("rows.npz"))
    first, second = (json.dumps(inspect(model, rows).to_dict()) for _ in range(2))
    assert first == second


def convolutional() -> ir.Model:
    """Two convolutions, the second in two groups."""
    rng = np.random.default_rng(0)
    x, tape = ir.val("x", ir.DataType.FLOAT, ["batch", 8, 6, 6]), ir.tape.Tape()
    wide, grouped = (rng.normal(size=(32, c, 3, 3)).astype(np.float32) for c in (8, 16))
    first = tape.op("Conv", [x, weight(tape, "w1", wide)], {"pads": [1] * 4}, name="conv1")
    hidden = tape.op("Relu", [first], name="relu")
    y = ir.val("y", ir.DataType.FLOAT, ["batch", 32, 4, 4])
    tape.op("Conv", [hidden, weight(tape, "w2", grouped)], {"group": 2}, name="conv2", output=y)
    return model_of(tape, [x], [y])


@pytest.mark.parametrize("rows", [0, 4])
def test_convolutions(tmp_path: Path, rows: int) -> None:
    ir.save(convolutional(), tmp_path / "model.onnx")
    images = np.random.default_rng(1).normal(size=(4, 8, 6, 6)).astype(np.float32)
    np.savez(tmp_path / "rows.npz", x=images)
    found = inspect(tmp_path / "model.onnx", str(tmp_path / "rows.npz") if rows else None)
    assert found.rows == rows
    assert {(v.name, v.operator, v.weight_shape) for v in found.sites} == {
        ("conv1", "Conv", (32, 8, 3, 3)),
        ("conv2", "Conv", (32, 16, 3, 3)),
    }
    macs = {"conv1": 32 * 72 * 36, "conv2": 32 * 144 * 16}
    for view in found.sites:
        assert view.macs == macs[view.name]
        assert view.macs_share == pytest.approx(macs[view.name] / sum(macs.values()))
        assert sum(view.spectrum.energies) == pytest.approx(1)
        assert 1 <= view.spectrum.effective_rank <= len(view.spectrum.energies)
        errors = [offer.error for offer in view.offers]
        assert errors == sorted(errors)
    first = site(found, "conv1")
    if not rows:
        matrix = initializers(convolutional())["w1"].reshape(32, 72).astype(float)
        squares = np.linalg.svd(matrix, compute_uv=False) ** 2
        np.testing.assert_allclose(first.spectrum.energies, shares(squares), atol=1e-6)


def test_a_model_without_sites_is_told_as_such(tmp_path: Path) -> None:
    ir.save(mlp(), tmp_path / "model.onnx")  # its layers are too small
    found = inspect(tmp_path / "model.onnx")
    assert found.sites == ()
    assert {skip.name for skip in found.skips} == {"up", "down"}


RECIPE = """\
name: tiny
model: model.onnx
data: {calibration: {path: rows.npz, rows: 100}}
passes: [embedding]
"""


def test_a_recipe_names_the_rows(model: Path) -> None:
    recipe = model.with_name("tiny.yaml")
    recipe.write_text(RECIPE, "utf-8")
    found = inspect(model, str(recipe))
    assert (found.rows, found.data) == (100, "rows.npz")


def test_data_that_cannot_be_used_is_refused_by_name(model: Path) -> None:
    missing = str(model.with_name("none.npz"))
    with pytest.raises(DataError, match=r"none\.npz: no such file"):
        inspect(model, missing)
    np.savez(model.with_name("other.npz"), x=np.zeros((4, 3)))
    with pytest.raises(DataError, match="ids"):
        inspect(model, str(model.with_name("other.npz")))
    np.savez(model.with_name("far.npz"), ids=np.full((4, 3), 60))
    with pytest.raises(DataError, match="60"):
        inspect(model, str(model.with_name("far.npz")))
    with pytest.raises(RecipeError, match="--trust-recipe-code"):
        inspect(model, "rows.py:rows")


def test_batches_are_as_the_model_insists_or_fit_into_memory() -> None:
    row, image = (TensorSpec("x", "float32", ("batch", *shape)) for shape in ((16,), (3, 224, 224)))
    assert batch_size([row]) == BATCH
    assert 1 <= batch_size([image]) * 3 * 224 * 224 * 4 <= 16 << 20
    assert batch_size([row, image]) <= batch_size([image])
    assert batch_size([TensorSpec("x", "float32", (7, 16))]) == 7
