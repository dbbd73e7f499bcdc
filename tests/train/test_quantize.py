"""Quantised graphs: ONNX Runtime's numbers, and gradients straight through the rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray

from rankc.train.interpreter import Interpreter
from rankrt.session import open_model

Array = NDArray[Any]

# A layer of quantised weights between quantised activations, as quantisation-aware training has it
QDQ = """
<ir_version: 10, opset_import: ["": 21]>
layer (float[n,4] x) => (float[n,3] y) <
    float s = {0.02}, uint8 z = {128}, float[3] sw = {0.5, 0.25, 0.125}, int8[3] zw = {0, 0, 0},
    float[4,3] w = {1,2,3, -4,5,-6, 7,-8,9, 2,0,1}
> {
    q = QuantizeLinear (x, s, z)
    turned = Identity (q)
    a = DequantizeLinear (turned, s, z)
    qw = QuantizeLinear <axis = 1> (w, sw, zw)
    b = DequantizeLinear <axis = 1> (qw, sw, zw)
    y = MatMul (a, b)
}
"""

# As dynamic quantisation writes a layer: integers multiplied, then scaled back
DYNAMIC = """
<ir_version: 10, opset_import: ["": 21]>
layer (float[n,4] x) => (float[n,3] y)
    <int8[4,3] w = {1,2,3, -4,5,-6, 7,-8,9, 2,0,1}, int8 zw = {1}, float sw = {0.1}> {
    q, s, z = DynamicQuantizeLinear (x)
    product = MatMulInteger (q, w, z, zw)
    wide = Cast <to = 1> (product)
    scale = Mul (s, sw)
    y = Mul (wide, scale)
}
"""

# The integers are an output too
SHOWN = QDQ.replace("=> (float[n,3] y)", "=> (float[n,3] y, uint8[n,4] turned)")


def rows(count: int, largest: float = 2.0) -> Array:
    """Some of them beyond what 8 bits hold at that scale."""
    found = np.random.default_rng(0).uniform(-largest, largest, (count, 4))
    return np.concatenate((found, [[4.0, -4.0, 0.01, 0.03]])).astype(np.float32)


@pytest.mark.parametrize("text", [QDQ, DYNAMIC, SHOWN])
@pytest.mark.parametrize("count", [1, 6])
def test_quantised_graphs_put_out_what_onnx_runtime_does(text: str, count: int) -> None:
    model, x = ir.from_onnx_text(text), rows(count)
    wanted = open_model(ir.to_proto(model).SerializeToString()).run({"x": x})
    found = Interpreter(model).run({"x": torch.from_numpy(x)})
    for name, array in wanted.items():
        assert found[name].detach().numpy().dtype == array.dtype
        np.testing.assert_allclose(found[name].detach().numpy(), array, rtol=1e-6, atol=1e-6)


def test_gradients_pass_where_nothing_is_clipped() -> None:
    net, x = Interpreter(ir.from_onnx_text(QDQ)), torch.from_numpy(rows(6)).requires_grad_()
    grad, of_weight = torch.autograd.grad(net(x)[0].sum(), [x, net.weight("w")])
    q = net.run({"x": x})["y"]
    steps = x.detach() / 0.02 + 128
    inside = (steps >= 0) & (steps <= 255)
    assert inside.any()
    assert not inside.all()
    dequantised = torch.round(net.weight("w").detach() / net.weight("sw").detach())
    weights = (dequantised.clamp(-128, 127) * net.weight("sw").detach()).sum(1)
    torch.testing.assert_close(grad, inside * weights)
    assert of_weight.all()
    assert q.requires_grad


def test_gradients_pass_products_of_integers() -> None:
    net, x = Interpreter(ir.from_onnx_text(DYNAMIC)), torch.from_numpy(rows(6)).requires_grad_()
    (grad,) = torch.autograd.grad(net(x)[0].sum(), [x])
    weights = 0.1 * (net.weight("w").float() - 1).sum(1)
    torch.testing.assert_close(grad, weights.expand_as(grad))


def test_integers_that_are_put_out_end_the_gradient() -> None:
    net, x = Interpreter(ir.from_onnx_text(SHOWN)), torch.from_numpy(rows(6)).requires_grad_()
    found = net(x)[0]
    (of_weight,) = torch.autograd.grad(found.sum(), [net.weight("w")])
    assert of_weight.any()
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(net(x)[0].sum(), [x])
