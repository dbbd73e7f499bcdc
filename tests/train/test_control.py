"""Graphs within graphs: held against ONNX Runtime, and gradients come out of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray

from rankc.errors import ModelError
from rankc.train.interpreter import Interpreter
from rankrt.session import open_model

Array = NDArray[Any]

# s <- s w + x, at most `most` times, for as long as the sum of s is below 100
LOOP = """
<ir_version: 10, opset_import: ["": 18]>
loops (float[n,3] x, int64 most) => (float[n,3] last, float[k,n,3] all, int64[k] steps)
    <float[3,3] w = {1.5,0,0.25, 0,1.25,0, 0.5,0,1}> {
    yes = Constant <value = bool {1}> ()
    last, all, steps = Loop (most, yes, x) <body = body (int64 i, bool go, float[n,3] s)
        => (bool again, float[n,3] next, float[n,3] seen, int64 step) {
        product = MatMul (s, w)
        next = Add (product, x)
        seen = Identity (next)
        step = Identity (i)
        total = ReduceSum <keepdims = 0> (next)
        limit = Constant <value = float {100}> ()
        again = Less (total, limit)
    }>
}
"""

BRANCH = """
<ir_version: 10, opset_import: ["": 18]>
branches (float[n,3] x, bool which) => (float[n,3] y)
    <float[3] w = {1,2,3}, float[3] v = {4,5,6}> {
    y = If (which) <
        then_branch = yes () => (float[n,3] a) { a = Mul (x, w) },
        else_branch = no () => (float[n,3] b) { d = Sub (x, v) b = Mul (d, w) }
    >
}
"""

# running sums of the columns of x from the last to the first, and their squares
SCAN = """
<ir_version: 10, opset_import: ["": 18]>
scans (float[n] start, float[n,t] x) => (float[n] last, float[n,t] sums, float[t,n] squares)
    <float[1] w = {0.5}> {
    last, sums, squares = Scan <num_scan_inputs = 1, scan_input_axes = [1],
        scan_input_directions = [1], scan_output_axes = [1, 0], scan_output_directions = [1, 0],
        body = body (float[n] s, float[n] c) => (float[n] next, float[n] seen, float[n] square) {
            old = Mul (s, w)
            next = Add (old, c)
            seen = Identity (next)
            square = Mul (next, next)
        }> (start, x)
}
"""


def rows(*shape: int) -> Array:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def agree(text: str, feeds: dict[str, Array]) -> dict[str, torch.Tensor]:
    """The interpreter's outputs, which are ONNX Runtime's."""
    model = ir.from_onnx_text(text)
    wanted = open_model(ir.to_proto(model).SerializeToString()).run(feeds)
    found = Interpreter(model).run({name: torch.from_numpy(x) for name, x in feeds.items()})
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name].detach().numpy(), array, rtol=1e-5, atol=1e-6)
    return found


@pytest.mark.parametrize("most", [3, 1000])
@pytest.mark.parametrize("count", [2, 5])
def test_loop_ends_by_its_count_or_by_its_condition(most: int, count: int) -> None:
    found = agree(LOOP, {"x": np.abs(rows(count, 3)), "most": np.array(most)})
    steps = len(found["steps"])
    assert steps == 3 or 3 < steps < 1000 == most


def test_loop_that_never_runs_and_does_not_say_the_shape_is_refused() -> None:
    net = Interpreter(ir.from_onnx_text(LOOP))
    with pytest.raises(ModelError, match=r"body never ran, and does not say .* 'seen'"):
        net(torch.ones(2, 3), torch.tensor(0))
    fixed = LOOP.replace("float[n,3]", "float[2,3]").replace("float[k,n,3]", "float[k,2,3]")
    found = agree(fixed, {"x": rows(2, 3), "most": np.array(0)})
    assert found["all"].shape == (0, 2, 3)


@pytest.mark.parametrize("which", [True, False])
def test_the_branch_taken_gets_gradients(which: bool) -> None:
    agree(BRANCH, {"x": rows(4, 3), "which": np.array(which)})
    net = Interpreter(ir.from_onnx_text(BRANCH))
    net(torch.from_numpy(rows(4, 3)), torch.tensor(which))[0].sum().backward()
    assert (net.weight("v").grad is None) == which
    assert net.weight("w").grad is not None


@pytest.mark.parametrize("steps", [1, 4])
def test_scan_along_other_axes_and_backwards(steps: int) -> None:
    agree(SCAN, {"start": rows(3), "x": rows(3, steps)})


def test_gradients_through_a_loop_are_those_of_the_unrolled_steps() -> None:
    net, x = Interpreter(ir.from_onnx_text(LOOP)), torch.from_numpy(rows(2, 3))
    w = net.weight("w")
    net(x, torch.tensor(3))[0].square().sum().backward()
    twin = w.detach().clone().requires_grad_()
    s = x
    for _ in range(3):
        s = s @ twin + x
    (wanted,) = torch.autograd.grad(s.square().sum(), twin)
    assert w.grad is not None
    torch.testing.assert_close(w.grad, wanted)
