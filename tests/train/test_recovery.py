"""Pairs, their gauge, and what of a compressed model is trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from builders import model_of, weight
from rankc.errors import ModelError
from rankc.train.interpreter import Interpreter
from rankc.train.pairs import orthogonal, pairs_of, rebalance
from rankc.train.recovery import (
    Recovering,
    from_identity,
    frozen_but,
    prepared,
)


def pair_models() -> list[ir.Model]:
    """x (2, 6, 5, 5) or (4, 6) through a pair and a Relu: spatial, channel-wise, MatMul, Gemm."""
    rng = np.random.default_rng(0)

    def array(*shape: int) -> NDArray[Any]:
        return rng.normal(size=shape).astype(np.float32)

    models = []
    for a, b in (((3, 6, 3, 1), (7, 3, 1, 3)), ((4, 6, 3, 3), (7, 4, 1, 1))):
        x, tape = ir.val("x", ir.DataType.FLOAT, ["batch", 6, 5, 5]), ir.tape.Tape()
        pads = [{"pads": [s // 2 for s in w[2:]] * 2, "kernel_shape": list(w[2:])} for w in (a, b)]
        mid = tape.op("Conv", [x, weight(tape, "A", array(*a))], attributes=pads[0], name="c.A")
        inputs = [mid, weight(tape, "B", array(*b)), weight(tape, "bias", array(7))]
        out = tape.op("Conv", inputs, attributes=pads[1], name="c.B")
        y = ir.val("y", ir.DataType.FLOAT, ["batch", 7, 5, 5])
        tape.op("Relu", [out], name="relu", output=y)
        models.append(model_of(tape, [x], [y]))
    x, tape = ir.val("x", ir.DataType.FLOAT, ["batch", 6]), ir.tape.Tape()
    mid = tape.op("MatMul", [x, weight(tape, "A", array(6, 3))], name="l.A")
    inputs = [mid, weight(tape, "B", array(7, 3)), weight(tape, "bias", array(7))]
    out = tape.op("Gemm", inputs, attributes={"transB": 1}, name="l.B")
    y = ir.val("y", ir.DataType.FLOAT, ["batch", 7])
    tape.op("Relu", [out], name="relu", output=y)
    models.append(model_of(tape, [x], [y]))
    return models


def rows_of(model: ir.Model) -> torch.Tensor:
    shape = model.graph.inputs[0].shape
    assert shape is not None
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, *(int(d) for d in list(shape)[1:]), generator=generator)  # type: ignore[arg-type]


@given(st.integers(1, 6), st.integers(1, 8), st.integers(1, 8), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_a_balanced_pair_is_the_same_product(r: int, p: int, q: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(r, p)), rng.normal(size=(r, q))
    left, right = orthogonal(a, b)
    np.testing.assert_allclose(left.T @ right, a.T @ b, atol=1e-12)
    rank = min(r, p, q)
    np.testing.assert_allclose(left[:rank] @ left[:rank].T, np.eye(rank), atol=1e-12)
    lengths = np.linalg.norm(right, axis=1)
    assert (np.diff(lengths) <= 1e-12).all()
    np.testing.assert_allclose(lengths[:rank], np.linalg.svd(a.T @ b)[1][:rank], atol=1e-12)


@pytest.mark.parametrize("kind", range(3))
def test_rebalancing_keeps_the_function_and_makes_the_penalty_zero(kind: int) -> None:
    model = pair_models()[kind]
    before = Interpreter(model)(rows_of(model))[0]
    (pair,) = pairs_of(model.graph)
    assert pair.plain
    rebalance(model, [pair])
    net = Interpreter(model)
    torch.testing.assert_close(net(rows_of(model))[0], before, rtol=1e-5, atol=1e-5)
    assert from_identity(net.weight("A"), pair.first).item() < 1e-10


@pytest.mark.parametrize("kind", range(3))
def test_only_singular_values_move(kind: int) -> None:
    model = pair_models()[kind]
    pairs = prepared(model, "singular", 0.0)
    net = Interpreter(model, frozen_but(model, pairs, "singular"))
    hook = Recovering(pairs, "singular", 0.0)
    before = net(rows_of(model))[0].detach()
    hook.start(net, 1)
    assert [tuple(p.shape) for p in net.parameters()] == [(4 if kind == 1 else 3,)]
    torch.testing.assert_close(net(rows_of(model))[0], before)
    first, second = net.weight("A").clone(), pairs[0].second.rows(_value(model, "B"))
    net(rows_of(model))[0].square().sum().backward()
    with torch.no_grad():
        for parameter in net.parameters():
            assert parameter.grad is not None
            parameter.sub_(0.1 * parameter.grad / parameter.grad.norm())
    hook.finish(net)
    after = pairs[0].second.rows(_value(net.to_onnx(), "B"))
    assert torch.equal(net.weight("A"), first)
    ratio = np.linalg.norm(after, axis=1) / np.linalg.norm(second, axis=1)
    np.testing.assert_allclose(after, ratio[:, None] * second, rtol=1e-5, atol=1e-7)
    assert (np.abs(ratio - 1) > 1e-4).all()


def _value(model: ir.Model, name: str) -> NDArray[Any]:
    value = model.graph.initializers[name].const_value
    assert value is not None
    return np.asarray(value.numpy())


def test_factors_are_both_weights_and_the_bias_behind() -> None:
    model = pair_models()[0]
    pairs = prepared(model, "factors", 0.0)
    net = Interpreter(model, frozen_but(model, pairs, "factors"))
    assert set(net.weight_names) == {"A", "B", "bias"}


def test_factors_without_a_pair_are_an_error() -> None:
    x, tape = ir.val("x", ir.DataType.FLOAT, ["batch", 6]), ir.tape.Tape()
    y = ir.val("y", ir.DataType.FLOAT, ["batch", 3])
    w = weight(tape, "w", np.ones((6, 3), np.float32))
    tape.op("MatMul", [x, w], name="only", output=y)
    with pytest.raises(ModelError, match="no low-rank layer; set it to all"):
        prepared(model_of(tape, [x], [y]), "factors", 0.0)


def test_the_penalty_pulls_the_first_factor_to_orthonormal_rows() -> None:
    model = pair_models()[1]
    pairs = pairs_of(model.graph)
    net = Interpreter(model)
    hook = Recovering(pairs, "all", 0.1)
    hook.start(net, 50)
    start = from_identity(net.weight("A"), pairs[0].first).item()
    optimizer = torch.optim.SGD([net.weight("A")], lr=0.02)
    for _ in range(50):
        optimizer.zero_grad()
        penalty = hook.penalty()
        assert penalty is not None
        penalty.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert from_identity(net.weight("A"), pairs[0].first).item() < 0.05 * start
