"""BatchNormalization put behind layers changes nothing, and can be trained."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

from builders import mlp, mlp_rows
from conv_builders import convnet, images, random_conv
from norm_builders import (
    added,
    batches,
    cleaned,
    convolutions,
    kinds,
    parameters,
    pictures,
    same,
    weights,
)
from rankc.errors import DataError, ModelError
from rankc.factors import LEARNED, Factors, Unfolding
from rankc.graph import array_of, node_named, value_named
from rankc.train.batch_norm import fold_batch_norms, insert_batch_norms
from rankc.train.interpreter import Interpreter


def test_a_net_with_batch_norms_computes_the_same() -> None:
    model, x = cleaned(convnet()), images(20, seed=5)
    before = model.clone()
    names = insert_batch_norms(model, batches(images()))
    assert names == [f"{node.name}/batch_norm" for node in before.graph if node.op_type == "Conv"]
    assert kinds(model).count("BatchNormalization") == len(names) == 6
    same(model, before, x)


def test_means_and_variances_are_those_of_all_rows_however_they_are_batched() -> None:
    model, x = cleaned(convnet()), images(31) * 50 + 3000
    stem = node_named(model, "stem")
    bias, net = np.array(array_of(stem.inputs[2]), np.float64), Interpreter(model)
    with torch.no_grad(), net.capture(str(stem.outputs[0].name)) as seen:
        net(torch.from_numpy(x))
    rows = next(iter(seen.values())).numpy().astype(np.float64).swapaxes(0, 1).reshape(8, -1)
    before = weights(model)["stem.w"]
    insert_batch_norms(model, batches(x, 7))
    by = weights(model)["stem.w"].flat[0] / before.flat[0]
    scale, shift, mean, var = parameters(model, "stem/batch_norm")
    np.testing.assert_allclose(var, by**2 * rows.var(1), rtol=1e-6)
    np.testing.assert_allclose(scale, np.sqrt(by**2 * rows.var(1) + 1e-5) / by, rtol=1e-6)
    np.testing.assert_allclose(shift, rows.mean(1), rtol=1e-6)
    np.testing.assert_allclose(mean, by * (rows.mean(1) - bias), rtol=1e-6)


@pytest.mark.parametrize("size", [1e-4, 1.0, 300.0])
def test_weights_get_the_size_that_is_trained_by_a_power_of_two(size: float) -> None:
    model, x = convolutions(("a", (4, 3, 3, 3), True), relu=True), pictures()
    value, first = value_named(model, "a.w"), np.random.default_rng(0).normal(size=(27, 5))
    array = (size * weights(model)["a.w"]).astype(np.float32)
    value.const_value = ir.tensor(array, name="a.w")
    second = np.random.default_rng(1).normal(size=(5, 4))
    value.meta[LEARNED] = Factors(Unfolding(array.shape, (1, 2, 3, 0), 3), first, second)
    before = model.clone()
    insert_batch_norms(model, batches(x))
    found = weights(model)["a.w"]
    by = float(found.flat[0] / array.flat[0])
    assert np.log2(by).is_integer()
    np.testing.assert_array_equal(found, np.float32(by) * array)
    assert 2**-0.5 <= np.linalg.norm(found) / (2 * np.sqrt(4)) <= 2**0.5
    np.testing.assert_array_equal(value_named(model, "a.w").meta[LEARNED].second, by * second)
    same(model, before, x)
    assert fold_batch_norms(model) == 1
    np.testing.assert_allclose(weights(model)["a.w"], array, rtol=1e-5)


def test_inserted_in_training_it_passes_the_batch_on_as_it_came() -> None:
    """On the rows that it was measured on, the batch's statistics are the running ones."""
    model, x = convolutions(("a", (5, 3, 3, 3), True), relu=True), pictures(64)
    before = Interpreter(model)
    insert_batch_norms(model, batches(x))
    with torch.no_grad():
        wanted, found = (
            net(torch.from_numpy(x))[0] for net in (before, Interpreter(model).train())
        )
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_channel_without_variance_stays_exact_and_finite() -> None:
    model, x = convolutions(("a", (4, 3, 3, 3), True), relu=True), pictures()
    array = np.array(array_of(value_named(model, "a.w")))
    array[1], array[2] = 0, array[2] * 1e-9
    value_named(model, "a.w").const_value = ir.tensor(array, name="a.w")
    before = model.clone()
    insert_batch_norms(model, batches(x))
    assert parameters(model, "a/batch_norm")[3][1] == 0
    same(model, before, x, 1e-6)
    net = Interpreter(model).train()
    (y,) = net(torch.from_numpy(x))
    y.square().sum().backward()
    assert torch.isfinite(y).all()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)
    fold_batch_norms(model)
    same(model, before, x, 1e-6)


def test_of_a_low_rank_pair_the_last_factor_gets_one() -> None:
    pair = (("a", (2, 3, 3, 3), False), ("b", (6, 2, 1, 1), True))
    model, x = convolutions(*pair), pictures()
    before = model.clone()
    assert insert_batch_norms(model, batches(x)) == ["b/batch_norm"]
    same(model, before, x)


def test_a_convolution_with_a_bias_is_no_first_factor() -> None:
    """So are the linear bottlenecks of MobileNetV2 once BatchNormalization is folded."""
    model = convolutions(("a", (2, 3, 3, 3), True), ("b", (6, 2, 1, 1), True))
    assert insert_batch_norms(model, batches(pictures())) == ["a/batch_norm", "b/batch_norm"]


def test_a_layer_that_has_one_gets_no_other() -> None:
    model = convolutions(("a", (4, 3, 3, 3), False), ("b", (4, 4, 1, 1), True), relu=True)
    first = insert_batch_norms(model, batches(pictures()), ["a"])
    assert first == ["a/batch_norm"]
    assert insert_batch_norms(model, batches(pictures())) == ["b/batch_norm"]
    assert insert_batch_norms(model, []) == []


def test_a_layer_that_is_the_output_keeps_its_name() -> None:
    model, shape = random_conv(np.random.default_rng(3))
    x = np.random.default_rng(0).normal(size=(9, *shape)).astype(np.float32)
    before = model.clone()
    insert_batch_norms(model, batches(x))
    assert [v.name for v in model.graph.outputs] == ["y"]
    assert model.graph.outputs[0].producer() is node_named(model, "conv/batch_norm")
    same(model, before, x)


@pytest.mark.parametrize("named", [["up"], ["down"], ["down", "up"]])
def test_dense_layers_get_one_where_they_are_named(named: list[str]) -> None:
    model, x = cleaned(mlp()), mlp_rows(100)
    before = model.clone()
    assert insert_batch_norms(model, batches(x)) == []
    names = insert_batch_norms(model, batches(x), named)
    assert names == [f"{name}/batch_norm" for name in sorted(named, reverse=True)]
    same(model, before, x)
    assert fold_batch_norms(model) == len(named)
    assert "BatchNormalization" not in kinds(model)
    same(model, before, x)


def test_layers_with_frozen_weights_get_none() -> None:
    model = convolutions(("a", (4, 3, 3, 3), True), ("b", (4, 4, 1, 1), True), relu=True)
    before = weights(model)
    assert insert_batch_norms(model, batches(pictures()), frozen=["a.*"]) == ["b/batch_norm"]
    fold_batch_norms(model)
    np.testing.assert_array_equal(weights(model)["a.w"], before["a.w"])


@pytest.mark.parametrize("shape", [(4,), (1, 4), (1,), ()])
def test_the_bias_of_a_product_goes_into_it(shape: tuple[int, ...]) -> None:
    model, x = added(shape), np.random.default_rng(2).normal(size=(40, 3)).astype(np.float32)
    before = model.clone()
    insert_batch_norms(model, batches(x), ["fc"])
    assert kinds(model) == ["MatMul", "BatchNormalization", "Relu"]
    same(model, before, x)
    assert fold_batch_norms(model) == 1
    assert kinds(model) == ["MatMul", "Add", "Relu"]
    same(model, before, x)


def test_batches_that_cannot_be_measured_are_refused() -> None:
    model, x = convolutions(("a", (4, 3, 3, 3), True), relu=True), pictures()
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    with pytest.raises(DataError, match="no rows to measure"):
        insert_batch_norms(model, [])
    with pytest.raises(DataError, match="lacks the model's input 'x'"):
        insert_batch_norms(model, [{"image": x}])
    with pytest.raises(DataError, match="is not finite"):
        insert_batch_norms(model, batches(x * np.float32(np.inf)))
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    ("name", "words"),
    [("a.relu", "Relu node 'a.relu': no BatchNormalization"), ("b", "no node is called 'b'")],
)
def test_named_nodes_that_cannot_have_one_are_refused(name: str, words: str) -> None:
    model = convolutions(("a", (4, 3, 3, 3), True), relu=True)
    with pytest.raises(ModelError, match=words):
        insert_batch_norms(model, batches(pictures()), [name])


def test_same_rows_same_bytes() -> None:
    found = []
    for _ in range(2):
        model = cleaned(convnet())
        insert_batch_norms(model, batches(images()))
        found.append(ir.to_proto(model).SerializeToString(deterministic=True))
    assert found[0] == found[1]
