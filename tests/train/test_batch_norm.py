"""BatchNormalization put behind layers changes nothing, can be trained, and folds away again."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from builders import mlp, mlp_rows, model_of, weight
from conv_builders import convnet, images, random_conv
from rankc.cleanup import clean
from rankc.errors import DataError, ModelError
from rankc.graph import array_of, node_named, value_named
from rankc.train.batch_norm import fold_batch_norms, insert_batch_norms, reestimate_batch_norms
from rankc.train.interpreter import Interpreter
from rankrt.session import open_model

Array = NDArray[Any]


def answers(model: ir.Model, feeds: dict[str, Array]) -> dict[str, Array]:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return open_model(proto.SerializeToString()).run(feeds)


def same(model: ir.Model, other: ir.Model, x: Array, share: float = 1e-5) -> None:
    """In ONNX Runtime the outputs agree to a share of their size."""
    wanted, found = answers(other, {"x": x}), answers(model, {"x": x})
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        bound = share * max(1.0, float(np.abs(array).max()))
        np.testing.assert_allclose(found[name], array, rtol=0, atol=bound)


def batches(array: Array, size: int = 16) -> list[dict[str, Array]]:
    return [{"x": array[k : k + size]} for k in range(0, len(array), size)]


def tensors(array: Array, size: int = 16) -> list[dict[str, torch.Tensor]]:
    return [{"x": torch.from_numpy(one["x"])} for one in batches(array, size)]


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def made(model: ir.Model) -> list[str | None]:
    """Names of all values that nodes put out."""
    return [value.name for node in model.graph for value in node.outputs]


def weights(model: ir.Model) -> dict[str, Array]:
    return {name: np.array(array_of(v)) for name, v in model.graph.initializers.items()}


def parameters(model: ir.Model, name: str) -> list[Array]:
    """Scale, bias, mean and variance of a BatchNormalization, float64."""
    return [np.array(array_of(v), np.float64) for v in node_named(model, name).inputs[1:]]


def cleaned(model: ir.Model) -> ir.Model:
    clean(model)
    return model


def convolutions(*layers: tuple[str, tuple[int, ...], bool], relu: bool = False) -> ir.Model:
    """x (batch, 3, 6, 6) through convolutions (name, shape, biased), one into the other; y."""
    rng, tape = np.random.default_rng(7), ir.tape.Tape()
    x = value = ir.val("x", ir.DataType.FLOAT, ["batch", 3, 6, 6])
    for name, shape, biased in layers:
        inputs = [value, weight(tape, f"{name}.w", rng.normal(size=shape).astype(np.float32))]
        if biased:
            inputs.append(weight(tape, f"{name}.b", rng.normal(size=shape[0]).astype(np.float32)))
        value = tape.op("Conv", inputs, name=name)
        if relu:
            value = tape.op("Relu", [value], name=f"{name}.relu")
    y = ir.val("y", ir.DataType.FLOAT, ["batch", layers[-1][1][0], None, None])
    tape.op("Identity", [value], name="last", output=y)
    return cleaned(model_of(tape, [x], [y]))


def pictures(rows: int = 20, seed: int = 3) -> Array:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(rows, 3, 6, 6)) * [[[2.0]], [[1.0]], [[0.1]]] + 1).astype(np.float32)


def test_a_net_with_batch_norms_computes_the_same() -> None:
    model, x = cleaned(convnet()), images(20, seed=5)
    before = model.clone()
    names = insert_batch_norms(model, batches(images()))
    assert names == [f"{node.name}/batch_norm" for node in before.graph if node.op_type == "Conv"]
    assert kinds(model).count("BatchNormalization") == len(names) == 6
    same(model, before, x)


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


def test_means_and_variances_are_those_of_all_rows_however_they_are_batched() -> None:
    model, x = cleaned(convnet()), images(31) * 50 + 3000
    stem = node_named(model, "stem")
    bias, net = np.array(array_of(stem.inputs[2]), np.float64), Interpreter(model)
    with torch.no_grad(), net.capture(str(stem.outputs[0].name)) as seen:
        net(torch.from_numpy(x))
    rows = next(iter(seen.values())).numpy().astype(np.float64).swapaxes(0, 1).reshape(8, -1)
    insert_batch_norms(model, batches(x, 7))
    scale, shift, mean, var = parameters(model, "stem/batch_norm")
    np.testing.assert_allclose(var, rows.var(1), rtol=1e-6)
    np.testing.assert_allclose(scale, np.sqrt(rows.var(1) + 1e-5), rtol=1e-6)
    np.testing.assert_allclose(shift, rows.mean(1), rtol=1e-6)
    np.testing.assert_allclose(mean, rows.mean(1) - bias, rtol=1e-6)


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
    model, x = random_conv(np.random.default_rng(3))[0], None
    shape = [int(d) for d in model.graph.inputs[0].shape or () if isinstance(d, int)]
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


def transposed(seed: int = 0) -> ir.Model:
    """x (batch, 3, 6, 6) through a ConvTranspose of three groups; y of six channels."""
    rng, tape = np.random.default_rng(seed), ir.tape.Tape()
    x, y = (ir.val(n, ir.DataType.FLOAT, ["batch", c, *s]) for n, c, s in (
        ("x", 3, [6, 6]), ("y", 6, [None, None])
    ))  # fmt: skip
    w = weight(tape, "w", rng.normal(size=(3, 2, 3, 2)).astype(np.float32))
    tape.op("ConvTranspose", [x, w], attributes={"group": 3}, name="up", output=y)
    return model_of(tape, [x], [y])


def test_transposed_convolutions_too() -> None:
    model = cleaned(transposed())
    tape = ir.tape.Tape()
    y = model.graph.outputs[0]
    last = tape.op("Relu", [y], name="relu")
    last.type, last.shape = y.type, y.shape
    model.graph.outputs[0] = last
    model.graph.append(tape.nodes[0])
    last.name = "last"
    normed(model, "y", 6)
    before = model.clone()
    assert fold_batch_norms(model) == 1
    assert kinds(model) == ["ConvTranspose", "Relu"]
    same(model, before, pictures())


def added(model_bias: tuple[int, ...] = (4,)) -> ir.Model:
    """y = relu(x W + b), the bias in an Add, on its left; x (batch, 3)."""
    rng, tape = np.random.default_rng(1), ir.tape.Tape()
    x, y = (ir.val(n, ir.DataType.FLOAT, ["batch", m]) for n, m in (("x", 3), ("y", 4)))
    product = tape.op(
        "MatMul", [x, weight(tape, "w", rng.normal(size=(3, 4)).astype("f"))], name="fc"
    )
    b = weight(tape, "b", rng.normal(size=model_bias).astype("f"))
    tape.op("Relu", [tape.op("Add", [b, product], name="fc.add")], name="relu", output=y)
    return cleaned(model_of(tape, [x], [y]))


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


def normed(model: ir.Model, value: str, channels: int) -> ir.Model:
    """The model with a BatchNormalization of random numbers behind a value."""
    rng, old = np.random.default_rng(4), value_named(model, value)
    tape, numbers = ir.tape.Tape(), rng.normal(size=(4, channels)).astype(np.float32)
    numbers[3] = np.abs(numbers[3]) + 0.1
    names = ("scale", "bias", "mean", "var")
    for one in (initial := [weight(tape, n, a) for n, a in zip(names, numbers, strict=True)]):
        model.graph.register_initializer(one)
    readers = list(old.uses())
    new = tape.op("BatchNormalization", [old, *initial], attributes={"epsilon": 0.03}, name="bn")
    new.type, new.shape = old.type, old.shape
    for node, k in readers:
        node.replace_input_with(k, new)
    model.graph.insert_after(old.producer(), tape.nodes)  # type: ignore[arg-type]
    return model


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
    for batch in tensors(x):
        (logits,) = net(batch["x"])
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


def normalised() -> tuple[Interpreter, Array]:
    model, x = convolutions(("a", (4, 3, 3, 3), True), relu=True), pictures(30)
    insert_batch_norms(model, batches(x))
    return Interpreter(model).train(False), x


def test_statistics_taken_anew_are_the_mean_over_all_rows() -> None:
    net, x = normalised()
    weight_, mean, var = (net.weight(n) for n in ("a.w", "a/batch_norm.mean", "a/batch_norm.var"))
    with torch.no_grad():
        weight_.mul_(3)
        mean.fill_(torch.nan)
        others = {k: v.clone() for k, v in net.state_dict().items()}
        with net.capture("a/batch_norm.input") as seen:
            net(torch.from_numpy(x))
    z = seen["a/batch_norm.input"]
    reestimate_batch_norms(net, tensors(x, 8))
    parts = [z[k : k + 8] for k in range(0, len(z), 8)]
    variances = [p.transpose(0, 1).flatten(1).var(1) * len(p) / len(z) for p in parts]
    torch.testing.assert_close(mean, z.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(var, torch.stack(variances).sum(0), rtol=1e-5, atol=1e-6)
    moved = [k for k, v in net.state_dict().items() if not torch.equal(v, others[k])]
    assert len(moved) == 2


@pytest.mark.parametrize("mode", [True, False])
def test_taking_statistics_anew_leaves_the_mode_as_it_was(mode: bool) -> None:
    net, x = normalised()
    net.train(mode)
    net.state.fixed_statistics = True
    reestimate_batch_norms(net, tensors(x))
    assert (net.training, net.state.training) == (mode, mode)
    assert (net.state.momentum, net.state.fixed_statistics) == (None, True)


def test_a_net_without_any_needs_no_batches() -> None:
    reestimate_batch_norms(Interpreter(cleaned(mlp())), [])


def test_statistics_of_nothing_are_refused_and_kept() -> None:
    net, _ = normalised()
    before = net.weight("a/batch_norm.var").clone()
    with pytest.raises(DataError, match="no rows to take the statistics from"):
        reestimate_batch_norms(net, [])
    assert torch.equal(net.weight("a/batch_norm.var"), before)


def test_a_batch_of_one_number_a_channel_is_refused() -> None:
    model, x = added(), np.ones((6, 3), np.float32)
    insert_batch_norms(model, batches(x), ["fc"])
    net = Interpreter(model).train(False)
    with pytest.raises(DataError, match="a batch has no variance"):
        reestimate_batch_norms(net, tensors(x, 1))
    assert not net.training
    assert net.state.momentum is None


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
