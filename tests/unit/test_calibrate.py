from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import pytest

from builders import Array, lookup, lookup_rows, mlp, mlp_rows, model_of, weight
from rankc.calibrate import GRADIENT_EVERY, Calibration, calibrate
from rankc.cleanup import clean
from rankc.errors import DataError
from rankc.passbase import Pass, Site
from rankc.passes.conv import Conv
from rankc.passes.embedding import Embedding
from rankc.passes.lowrank import LowRank
from rankc.progress import SilentProgress
from sources import Rows

LAYERS = LowRank(min_size=1, round_to=1)


def seen(model: ir.Model, rows: Rows, pass_: Pass = LAYERS) -> Calibration:
    model = cleaned(model)
    sites = [site for site in pass_.match(model) if isinstance(site, Site)]
    with SilentProgress().stage("calibrate") as stage:
        return calibrate(model, {site: pass_.probe(model, site) for site in sites}, rows, stage)


def cleaned(model: ir.Model) -> ir.Model:
    copy = model.clone()
    clean(copy)
    return copy


def site_of(found: Calibration, name: str) -> Site:
    return next(site for site in found.stats if site.name == name)


def weight_of(found: Calibration, name: str) -> Array:
    felt = found.stats[site_of(found, name)].output_weight
    assert isinstance(felt, np.ndarray)
    return felt


def layers(*widths: int, dims: Sequence[int] = (), kind: str = "Relu") -> ir.Model:
    """y = x W0, then `kind` and x W1, and so on: layers l0, l1, ...; x is (batch, *dims, n)."""
    rng = np.random.default_rng(4)
    x = ir.val("x", ir.DataType.FLOAT, ["batch", *dims, widths[0]])
    tape, value = ir.tape.Tape(), x
    for k, (n, m) in enumerate(itertools.pairwise(widths)):
        w = weight(tape, f"W{k}", (rng.normal(size=(n, m)) / np.sqrt(n)).astype(np.float32))
        value = tape.op("MatMul", [value if k == 0 else tape.op(kind, [value]), w], name=f"l{k}")
    value.name, value.dtype = "y", ir.DataType.FLOAT
    value.shape = ir.Shape(["batch", *dims, widths[-1]])
    return model_of(tape, [x], [value])


def weights(model: ir.Model, name: str) -> Array:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy().astype(np.float64)


@pytest.mark.parametrize("batch_size", [1000, 256, 7])
def test_moments_are_those_of_numpy(batch_size: int) -> None:
    x = mlp_rows(1000)
    found = seen(mlp(), Rows({"x": x}, batch_size))
    assert found.rows == 1000
    hidden = np.maximum(x.astype(np.float64) @ weights(mlp(), "A"), 0)
    for name, inputs in (("up", x.astype(np.float64)), ("down", hidden)):
        moments = found.stats[site_of(found, name)].inputs
        assert moments is not None
        assert moments.count == 1000
        scale = np.abs(inputs).max()
        np.testing.assert_allclose(moments.mean, inputs.mean(axis=0), rtol=1e-6, atol=1e-6 * scale)
        want = inputs.T @ inputs / 1000
        np.testing.assert_allclose(moments.second, want, rtol=1e-6, atol=1e-6 * scale**2)


def test_a_large_mean_costs_no_digits_of_the_covariance() -> None:
    x = (mlp_rows(2000) + 1000).astype(np.float32)
    found = seen(mlp(), Rows({"x": x}, 256))
    moments = found.stats[site_of(found, "up")].inputs
    assert moments is not None
    want = np.cov(x.astype(np.float64), rowvar=False, bias=True)
    np.testing.assert_allclose(moments.covariance, want, atol=1e-5 * want.max())


def test_an_input_that_two_layers_read_is_counted_once() -> None:
    rng = np.random.default_rng(0)
    x, tape = ir.val("x", ir.DataType.FLOAT, ["batch", 16]), ir.tape.Tape()
    q, k = (
        tape.op(
            "MatMul",
            [x, weight(tape, f"W{name}", rng.normal(size=(16, 8)).astype(np.float32))],
            name=name,
        )
        for name in "qk"
    )
    y = ir.val("y", ir.DataType.FLOAT, ["batch", 8])
    tape.op("Mul", [q, k], output=y)
    found = seen(model_of(tape, [x], [y]), Rows({"x": mlp_rows(300)}))
    a, b = (found.stats[site_of(found, name)].inputs for name in "qk")
    assert a is not None and b is not None
    assert a.count == b.count == 300
    np.testing.assert_array_equal(a.second, b.second)


def test_every_position_of_a_sequence_is_a_row() -> None:
    x = mlp_rows(600).reshape(100, 6, 16)
    found = seen(layers(16, 4, 1, dims=(6,)), Rows({"x": x}, 32))
    assert found.rows == 100
    moments = found.stats[site_of(found, "l0")].inputs
    assert moments is not None
    assert moments.count == 600
    flat = x.reshape(-1, 16).astype(np.float64)
    np.testing.assert_allclose(moments.second, flat.T @ flat / 600, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_size", [10_000, 100])
def test_counts_are_exact_and_summed_over_the_readers(batch_size: int) -> None:
    ids = lookup_rows(40_000)  # more than are collected before they are counted
    found = seen(lookup(), Rows({"ids": ids}, batch_size), Embedding())
    user, item = (found.stats[site_of(found, name)].counts for name in ("user", "item"))
    assert user is not None and item is not None
    np.testing.assert_array_equal(user, np.bincount(ids[:, [0, 2]].reshape(-1), minlength=60))
    np.testing.assert_array_equal(item, np.bincount(ids[:, 1], minlength=9))


@pytest.mark.parametrize("bad", [-1, 9, 2**62])
def test_an_id_outside_its_table_is_named(bad: int) -> None:
    ids = lookup_rows(600)
    ids[300, 1] = bad
    with pytest.raises(DataError, match=f"id {bad} for table 'item', whose rows are 0 to 8"):
        seen(lookup(), Rows({"ids": ids}, 300), Embedding())


def test_rows_that_the_model_refuses_are_named() -> None:
    ids = lookup_rows(600)
    ids[300, 1] = 9
    with pytest.raises(DataError, match=r"in memory: rows 256 to 511: .*'lookup1'.*idx=9"):
        seen(lookup(), Rows({"ids": ids}, 256))


def test_the_weight_of_one_logit_is_the_closed_form() -> None:
    """g = W1 where the unit is on, so E[g gT] = W1 W1T * P(both are on)."""
    model, x = layers(16, 12, 1), mlp_rows(500)
    found = seen(model, Rows({"x": x}, 500))
    on = (x.astype(np.float64) @ weights(model, "W0") > 0).astype(np.float64)
    want = np.outer(weights(model, "W1"), weights(model, "W1")) * (on.T @ on / 500)
    felt = weight_of(found, "l0")
    np.testing.assert_allclose(felt, want, rtol=1e-5, atol=1e-7)
    assert not found.ungraded


def test_the_weight_of_many_logits_is_estimated_without_bias() -> None:
    """E[JT J] from random signs: of the mlp's eight logits, before their sigmoid."""
    model, x = mlp(), mlp_rows(20_000)
    found = seen(model, Rows({"x": x}, 20_000))
    b = weights(model, "B")  # (8, 24)
    on = (x.astype(np.float64) @ weights(model, "A") > 0).astype(np.float64)
    want = (b.T @ b) * (on.T @ on / len(x))
    felt = weight_of(found, "up")
    assert np.linalg.norm(felt - want) < 0.05 * np.linalg.norm(want)
    logits = weight_of(found, "down")
    np.testing.assert_allclose(np.diag(logits), 1)
    np.testing.assert_allclose(logits, np.eye(8), atol=0.05)


def test_gradients_are_taken_on_every_24th_batch() -> None:
    """Their mean is over the rows of those batches, not over all."""
    model, x = layers(16, 12, 1), mlp_rows(26 * 8)
    found = seen(model, Rows({"x": x}, 8))
    at = [*range(8), *range(8 * GRADIENT_EVERY, 8 * GRADIENT_EVERY + 8)]
    on = (x[at].astype(np.float64) @ weights(model, "W0") > 0).astype(np.float64)
    want = np.outer(weights(model, "W1"), weights(model, "W1")) * (on.T @ on / 16)
    felt = weight_of(found, "l0")
    np.testing.assert_allclose(felt, want, rtol=1e-5, atol=1e-7)


def squares(images: int, *sizes: int, batch: int | str = "batch") -> tuple[ir.Model, Array]:
    """A logit, the mean over pixels of |y|^2, where y = x; image k has ones in channel k alone.

    The gradient at y is 2 y / pixels, so that E[g gT] tells which images it was taken of.
    """
    tape, x = ir.tape.Tape(), ir.val("x", ir.DataType.FLOAT, [batch, images, *sizes])
    w = weight(tape, "w", np.eye(images, dtype=np.float32)[:, :, None, None])
    y = tape.op("Conv", [x, w], name="conv")
    mean = tape.op("Flatten", [tape.op("GlobalAveragePool", [tape.op("Mul", [y, y])])])
    logit = ir.val("logit", ir.DataType.FLOAT, [batch, 1])
    ones = weight(tape, "ones", np.ones((images, 1), np.float32))
    tape.op("MatMul", [mean, ones], name="head", output=logit)
    rows = np.zeros((images, images, *sizes), np.float32)
    rows[np.arange(images), np.arange(images)] = 1
    return model_of(tape, [x], [logit]), rows


@pytest.mark.parametrize(
    ("images", "batch_size", "each"),
    [(48, 24, 8), (96, 24, 4), (10, 4, None), (16, 32, None), (480, 96, 4)],
)
def test_gradients_are_taken_of_some_images_of_every_batch(
    images: int, batch_size: int, each: int | None
) -> None:
    """At least 16 in all, and one of 24; of fewer all."""
    model, rows = squares(images, 1, 2)
    found = seen(model, Rows({"x": rows}, batch_size), Conv(min_size=0))
    felt = weight_of(found, "conv")
    np.testing.assert_allclose(felt, np.diag(np.diag(felt)))
    taken = np.flatnonzero(np.diag(felt))
    counts = np.bincount(taken // batch_size)
    if each is None:
        assert len(taken) == min(images, max(16, images // 24)) and counts.max() <= batch_size
    else:
        assert counts.tolist() == [each] * (images // batch_size)
    # Each: two pixels with a gradient of (2 / 2)^2, and the mean is over images.
    np.testing.assert_allclose(np.diag(felt)[taken], 2 / len(taken))


def test_a_model_of_a_fixed_batch_has_gradients_of_whole_batches() -> None:
    model, rows = squares(8, 2, 2, batch=4)
    found = seen(model, Rows({"x": rows}, 4), Conv(min_size=0))
    assert np.flatnonzero(np.diag(weight_of(found, "conv"))).tolist() == [0, 1, 2, 3]


def test_the_images_that_gradients_are_taken_of_are_the_same_each_time() -> None:
    model, rows = squares(48, 2, 2)
    first, second = (seen(model, Rows({"x": rows}, 24), Conv(min_size=0)) for _ in range(2))
    np.testing.assert_array_equal(weight_of(first, "conv"), weight_of(second, "conv"))


def test_a_site_without_a_gradient_is_named_with_the_reason() -> None:
    model = layers(16, 12, 1, kind="Round")
    found = seen(model, Rows({"x": mlp_rows(100)}))
    assert {s.name: why for s, why in found.ungraded.items()} == {
        "l0": "operator Round is not differentiated: node 'node_Round_0'"
    }
    stats = found.stats[site_of(found, "l0")]
    assert stats.output_weight is None
    assert stats.inputs is not None


def test_a_site_that_is_not_to_be_graded_is_left_to_perturbation() -> None:
    model = cleaned(layers(16, 12, 1))
    (site,) = (s for s in LAYERS.match(model) if s.name == "l0" and isinstance(s, Site))
    probe = dataclasses.replace(LAYERS.probe(model, site), graded=False)
    with SilentProgress().stage("calibrate") as stage:
        found = calibrate(model, {site: probe}, Rows({"x": mlp_rows(100)}), stage)
    assert list(found.ungraded) == [site]
    assert found.stats[site].output_weight is None


def test_no_rows_are_an_error() -> None:
    with pytest.raises(DataError, match="in memory: no rows to calibrate on"):
        seen(mlp(), Rows({"x": mlp_rows(0)}))


@pytest.mark.parametrize("batch_size", [300, 100])
def test_values_that_overflow_are_an_error_that_names_the_layer(batch_size: int) -> None:
    x = mlp_rows(300)
    x[250, 3] = 3e30
    with pytest.raises(DataError, match="the input of 'up' is not finite or overflows"):
        seen(mlp(), Rows({"x": x}, batch_size))


def test_a_gradient_that_overflows_is_an_error_that_names_the_layer() -> None:
    model = layers(16, 12, 1)
    large = (weights(model, "W1") * 1e30).astype(np.float32)
    model.graph.initializers["W1"].const_value = ir.tensor(large, name="W1")
    with pytest.raises(DataError, match="the gradient at 'l0' is not finite or overflows"):
        seen(model, Rows({"x": mlp_rows(100)}))


def test_the_model_is_left_as_it_was() -> None:
    model = lookup()
    before = ir.to_proto(model).SerializeToString()
    for pass_ in (LAYERS, Embedding()):
        seen(model, Rows({"ids": lookup_rows()}), pass_)
    assert ir.to_proto(model).SerializeToString() == before
