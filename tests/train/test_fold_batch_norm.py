"""BatchNormalization folded into the layer before it changes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import mlp_rows, model_of, weight
from conv_builders import convnet, images, random_conv
from norm_builders import (
    added,
    answers,
    batches,
    cleaned,
    convolutions,
    kinds,
    made,
    normed,
    pictures,
    same,
    transposed,
    weights,
)
from rankc.cleanup import clean
from rankc.graph import node_named, value_named
from rankc.train.batch_norm import fold_batch_norms, insert_batch_norms
from rankc.train.interpreter import Interpreter


def test_folding_gives_back_the_weights_and_their_names() -> None:
    model = cleaned(convnet())
    before = model.clone()
    names = insert_batch_norms(model, batches(images()))
    assert fold_batch_norms(model) == len(names)
    assert kinds(model) == kinds(before)
    assert made(model) == made(before)
    old, new = weights(before), weights(model)
    assert sorted(new) == sorted(old)
    for name, array in old.items():
        np.testing.assert_allclose(new[name], array, rtol=1e-5, atol=1e-5, err_msg=name)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_inserting_and_folding_are_the_identity(seed: int) -> None:
    rng = np.random.default_rng(seed)
    model, shape = random_conv(rng)
    before, x = model.clone(), rng.normal(size=(12, *shape)).astype(np.float32)
    assert insert_batch_norms(model, batches(x, 5)) == ["conv/batch_norm"]
    same(model, before, x)
    assert fold_batch_norms(model) == 1
    assert kinds(model) == ["Conv"]
    same(model, before, x)


def test_transposed_convolutions_too() -> None:
    model = cleaned(transposed())
    before = model.clone()
    assert insert_batch_norms(model, batches(pictures())) == ["up/batch_norm"]
    same(model, before, pictures())
    scale = node_named(model, "up/batch_norm").inputs[1]
    assert scale is not None
    scale.const_value = ir.tensor(np.arange(-2, 4, dtype=np.float32), name=scale.name)
    trained = model.clone()
    assert fold_batch_norms(model) == 1
    assert kinds(model) == ["ConvTranspose"]
    same(model, trained, pictures())


def test_a_batch_norm_behind_a_product_and_its_bias_is_folded() -> None:
    bare = added()
    value = str(node_named(bare, "fc.add").outputs[0].name)
    model, x = normed(bare, value, 4), np.random.default_rng(2).normal(size=(40, 3)).astype("f")
    before = model.clone()
    assert fold_batch_norms(model) == 1
    assert kinds(model) == ["MatMul", "Add", "Relu"]
    same(model, before, x)


def test_gemms_of_every_kind_are_folded() -> None:
    rng, x = np.random.default_rng(0), mlp_rows(30)
    kinds_of: list[dict[str, Any]] = [{}, {"transB": 1}, {"alpha": 0.5, "beta": 3.0}]
    for k, attributes in enumerate(kinds_of):
        tape = ir.tape.Tape()
        inputs = [ir.val("x", ir.DataType.FLOAT, ["batch", 16])]
        shape = (5, 16) if "transB" in attributes else (16, 5)
        inputs.append(weight(tape, "w", rng.normal(size=shape).astype(np.float32)))
        if k:
            inputs.append(weight(tape, "b", rng.normal(size=(1, 5)).astype(np.float32)))
        y = ir.val("y", ir.DataType.FLOAT, ["batch", 5])
        hidden = tape.op("Gemm", inputs, attributes=attributes, name="fc")
        tape.op("Relu", [hidden], output=y)
        model = normed(cleaned(model_of(tape, inputs[:1], [y])), str(hidden.name), 5)
        before = model.clone()
        assert fold_batch_norms(model) == 1
        assert kinds(model) == ["Gemm", "Relu"]
        same(model, before, x)


def test_a_layer_that_others_read_keeps_its_batch_norm() -> None:
    model = convolutions(("a", (4, 3, 3, 3), True), relu=True)
    raw = node_named(model, "a").outputs[0]
    insert_batch_norms(model, batches(pictures()))
    shown = ir.Node("", "Neg", [raw], name="shown")
    shown.outputs[0].name, shown.outputs[0].type = "z", raw.type
    shown.outputs[0].shape = raw.shape
    model.graph.append(shown)
    model.graph.outputs.append(shown.outputs[0])
    before = model.clone()
    assert fold_batch_norms(model) == 0
    assert kinds(model).count("BatchNormalization") == 1
    same(model, before, pictures())


def test_weights_that_two_layers_share_are_folded_apart() -> None:
    model = convolutions(("a", (3, 3, 1, 1), True), ("b", (3, 3, 1, 1), True), relu=True)
    node_named(model, "b").replace_input_with(1, value_named(model, "a.w"))
    node_named(model, "b").replace_input_with(2, value_named(model, "a.b"))
    clean(model)
    before = model.clone()
    insert_batch_norms(model, batches(pictures()))
    same(model, before, pictures())
    for name in ("a", "b"):
        scale = node_named(model, f"{name}/batch_norm").inputs[1]
        assert scale is not None
        scale.const_value = ir.tensor(np.array([2, 0.5, 1], "f"), name=scale.name)
    trained = model.clone()
    assert fold_batch_norms(model) == 2
    same(model, trained, pictures())


def test_training_moves_the_statistics_and_every_weight_and_folds_to_the_same() -> None:
    model, x = cleaned(convnet()), images(48)
    names = insert_batch_norms(model, batches(x))
    net = Interpreter(model).train()
    before = weights(net.to_onnx())
    steps = torch.optim.SGD(net.parameters(), lr=0.01)
    for batch in batches(x):
        (logits,) = net(torch.from_numpy(batch["x"]))
        steps.zero_grad()
        logits.square().mean().backward()
        steps.step()
    trained = net.train(False).to_onnx()
    after = weights(trained)
    moved = {name for name, array in before.items() if not np.array_equal(after[name], array)}
    shift = "depthwise.bias"  # the next layer's BatchNormalization takes it away
    assert moved | {shift} == {name for name, a in before.items() if a.dtype == np.float32}
    folded = trained.clone()
    assert fold_batch_norms(folded) == len(names)
    same(folded, trained, x)
    with torch.no_grad():
        (logits,) = net(torch.from_numpy(x))
    bound = 1e-5 * float(logits.abs().max())
    np.testing.assert_allclose(
        answers(folded, {"x": x})["logits"], logits.numpy(), rtol=0, atol=max(bound, 1e-5)
    )
