"""Every backward rule against central differences of the forward graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from builders import Array
from gradient_builders import (
    ROWS,
    Build,
    c,
    central_differences,
    differentiable,
    ints,
    op,
    op_ints,
    run,
)
from rankc.gradient import RULES, add_gradients

rng = np.random.default_rng(7)


def split_first(tape: ir.tape.Tape, xs: list[ir.Value]) -> ir.Value:
    parts = tape.op_multi_out("Split", [xs[0], ints(tape, 2, 2)], {"axis": 1}, num_outputs=2)
    return tape.op("Exp", [parts[1]])


def split_all(tape: ir.tape.Tape, xs: list[ir.Value]) -> ir.Value:
    a, b = tape.op_multi_out("Split", [xs[0]], {"axis": 1, "num_outputs": 2}, num_outputs=2)
    return tape.op("Mul", [a, b])


def where(tape: ir.tape.Tape, xs: list[ir.Value]) -> ir.Value:
    positive = tape.op("Greater", [xs[0], c(tape, 0.0)])
    return tape.op("Where", [positive, xs[0], xs[1]])


def lower_rank(tape: ir.tape.Tape, xs: list[ir.Value]) -> ir.Value:
    product = tape.op("Mul", [xs[0], c(tape, rng.normal(size=(2, 1, 1, 4)))])  # (2, b, 3, 4)
    return tape.op("Transpose", [product], {"perm": [1, 0, 2, 3]})


def through_float(tape: ir.tape.Tape, xs: list[ir.Value]) -> ir.Value:
    single = tape.op("Cast", [xs[0]], {"to": int(ir.DataType.FLOAT)})
    return tape.op("Cast", [single], {"to": int(ir.DataType.DOUBLE)})


def in_float(op_type: str, *constants: Any, **attributes: Any) -> Build:
    """For kernels that ONNX Runtime has in float32 only."""

    def build(tape: ir.tape.Tape, xs: list[ir.Value]) -> ir.Value:
        singles = [tape.op("Cast", [x], {"to": int(ir.DataType.FLOAT)}) for x in xs]
        more = [c(tape, k, np.float32) for k in constants]
        y = tape.op(op_type, [*singles, *more], attributes or None)
        return tape.op("Cast", [y], {"to": int(ir.DataType.DOUBLE)})

    return build


def wide_hard_swish(tape: ir.tape.Tape, xs: list[ir.Value]) -> ir.Value:
    return in_float("HardSwish")(tape, [tape.op("Mul", [xs[0], c(tape, 4.0)])])


W = rng.normal(size=(4, 5))
K = rng.normal(size=(4, 4, 3, 2))
CASES: list[tuple[str, Build, list[tuple[int, ...]]]] = [
    ("Gemm", op("Gemm", W, rng.normal(size=5), alpha=0.5, beta=2.0), [(4,)]),
    ("Gemm transB", op("Gemm", W.T, alpha=0.5, transB=1), [(4,)]),
    ("Gemm bias", lambda t, x: t.op("Gemm", [x[0], c(t, W), x[1]], {"beta": 2.0}), [(4,), (5,)]),
    ("Gemm bias column", lambda t, x: t.op("Gemm", [x[0], c(t, W), x[1]]), [(4,), (1,)]),
    ("MatMul", op("MatMul", W), [(4,)]),
    ("MatMul 3-D", op("MatMul", W), [(2, 4)]),
    ("MatMul stacked", op("MatMul", rng.normal(size=(2, 4, 5))), [(2, 3, 4)]),
    ("MatMul expanded", op("MatMul", rng.normal(size=(2, 4, 5))), [(1, 3, 4)]),
    ("MatMul both", op("MatMul"), [(2, 3, 4), (2, 4, 2)]),
    ("MatMul vector", op("MatMul", rng.normal(size=4)), [(2, 4)]),
    ("Add", op("Add"), [(2, 4), (2, 4)]),
    ("Add row", op("Add"), [(2, 4), (1, 4)]),
    ("Add scalar", op("Add", 2.0), [(4,)]),
    ("Sub", op("Sub"), [(2, 4), (2, 1)]),
    ("Mul", op("Mul"), [(2, 4), (1, 1)]),
    ("Mul square", lambda t, x: t.op("Mul", [x[0], x[0]]), [(4,)]),
    ("Mul lower rank", lower_rank, [(3, 4)]),
    ("Div", op("Div"), [(4,), (1,)]),
    ("Sum", op("Sum"), [(4,), (1,), (4,)]),
    ("Neg", op("Neg"), [(4,)]),
    ("Abs", op("Abs"), [(4,)]),
    ("Relu", op("Relu"), [(4,)]),
    ("LeakyRelu", in_float("LeakyRelu", alpha=0.2), [(4,)]),
    ("PRelu", in_float("PRelu", [0.1, 0.2, 0.3, 0.4]), [(4,)]),
    ("Sigmoid", op("Sigmoid"), [(4,)]),
    ("Tanh", op("Tanh"), [(4,)]),
    ("Softplus", in_float("Softplus"), [(4,)]),
    ("Exp", op("Exp"), [(4,)]),
    ("Log", lambda t, x: t.op("Log", [t.op("Exp", [x[0]])]), [(4,)]),
    ("Sqrt", lambda t, x: t.op("Sqrt", [t.op("Exp", [x[0]])]), [(4,)]),
    ("Reciprocal", op("Reciprocal"), [(4,)]),
    ("Pow 2", op("Pow", 2.0), [(4,)]),
    ("Pow 3", op("Pow", [3.0]), [(4,)]),
    ("Erf", in_float("Erf"), [(4,)]),
    ("HardSigmoid", in_float("HardSigmoid", alpha=0.4, beta=0.6), [(8,)]),
    ("HardSwish", wide_hard_swish, [(8,)]),
    ("Gelu", in_float("Gelu"), [(4,)]),
    ("Gelu tanh", in_float("Gelu", approximate="tanh"), [(4,)]),
    ("Clip", op("Clip", -0.5, 0.5), [(6,)]),
    ("Max", op("Max"), [(4,), (1,)]),
    ("Min", op("Min"), [(4,), (4,)]),
    ("Where", where, [(4,), (1,)]),
    ("Softmax", op("Softmax", axis=1), [(4, 2)]),
    ("LogSoftmax", op("LogSoftmax", axis=1), [(4, 2)]),
    ("ReduceSum", op_ints("ReduceSum", [1], keepdims=0), [(4, 2)]),
    ("ReduceSum kept", op_ints("ReduceSum", [-1, 1]), [(4, 2)]),
    ("ReduceSum none", op("ReduceSum", noop_with_empty_axes=1), [(4,)]),
    ("ReduceMean", op_ints("ReduceMean", [2], keepdims=0), [(4, 2)]),
    ("ReduceSumSquare", op_ints("ReduceSumSquare", [1], keepdims=0), [(4, 2)]),
    ("ReduceL2", in_float("ReduceL2"), [(4, 2)]),
    ("BatchNormalization", op("BatchNormalization", *rng.uniform(1, 2, (4, 4))), [(4, 2)]),
    (
        "LayerNormalization",
        op("LayerNormalization", *rng.uniform(1, 2, (2, 4, 2)), axis=-2),
        [(3, 4, 2)],
    ),
    (
        "InstanceNormalization",
        in_float("InstanceNormalization", *rng.uniform(1, 2, (2, 3))),
        [(3, 4, 2)],
    ),
    ("Conv", in_float("Conv", K, strides=[2, 1], pads=[1, 0, 0, 2]), [(4, 5, 4)]),
    ("Conv 1-D", in_float("Conv", K[..., 0], [1.0] * 4, dilations=[2], group=1), [(4, 7)]),
    ("ConvTranspose", in_float("ConvTranspose", K, strides=[2, 2]), [(4, 3, 2)]),
    ("AveragePool", in_float("AveragePool", kernel_shape=[3, 2], pads=[1, 0, 1, 1]), [(2, 4, 5)]),
    ("GlobalAveragePool", in_float("GlobalAveragePool"), [(2, 3, 4)]),
    ("GlobalMaxPool", in_float("GlobalMaxPool"), [(2, 3, 4)]),
    ("MaxPool", op("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4), [(2, 5, 6)]),
    ("Pad", op_ints("Pad", [0, 1, -1, 0, 0, 2]), [(3, 4)]),
    ("Pad axes", lambda t, x: t.op("Pad", [x[0], ints(t, 2, -1), None, ints(t, -1)]), [(3, 4)]),
    ("Resize", in_float("Resize", [], [1, 1, 2, 3]), [(2, 3, 2)]),
    ("Concat", op("Concat", axis=1), [(4,), (2,), (3,)]),
    ("Concat last", op("Concat", axis=-1), [(2, 4), (2, 1)]),
    ("Split", split_first, [(4,)]),
    ("Split all", split_all, [(4,)]),
    ("Slice", op_ints("Slice", [1, -2], [3, 9], [1, 2]), [(4, 5)]),
    ("Slice step", op_ints("Slice", [-1], [-(2**62)], [2], [-2]), [(4, 5)]),
    ("Reshape", op_ints("Reshape", [0, 2, 4]), [(4, 2)]),
    ("Flatten", op("Flatten"), [(4, 2)]),
    ("Squeeze", op_ints("Squeeze", [1]), [(1, 2)]),
    ("Unsqueeze", op_ints("Unsqueeze", [1]), [(2,)]),
    ("Transpose", op("Transpose", perm=[0, 3, 1, 2]), [(2, 3, 4)]),
    ("Gather number", op_ints("Gather", 2, axis=1), [(4, 2)]),  # type: ignore[arg-type]
    ("Gather run", op_ints("Gather", [1, 2], axis=1), [(4, 2)]),
    ("Gather list", op_ints("Gather", [-1, 0], axis=1), [(4, 2)]),
    ("Gather repeated", op_ints("Gather", [3, 0, 3], axis=1), [(4, 2)]),
    ("Gather last axis", op_ints("Gather", [3, 0, 3], axis=2), [(2, 4)]),
    ("Expand", op_ints("Expand", [1, 5, 2]), [(1, 2)]),
    ("Cast", through_float, [(4,)]),
    ("Dropout", op("Dropout"), [(4,)]),
    ("Identity", op("Identity"), [(4,)]),
]


@pytest.mark.parametrize(("build", "shapes"), [k[1:] for k in CASES], ids=[k[0] for k in CASES])
def test_every_rule_agrees_with_central_differences(
    build: Build, shapes: list[tuple[int, ...]]
) -> None:
    model = differentiable(build, shapes)
    rows = np.random.default_rng(3)
    feeds: dict[str, Array] = {f"x{k}": rows.normal(size=(ROWS, *s)) for k, s in enumerate(shapes)}
    single = any(n.op_type == "Cast" for n in model.graph)  # float32 inside: a wider step
    step, tolerance = (1e-2, 5e-3) if single else (1e-6, 1e-7)
    expected = {name: central_differences(model, feeds, name, step) for name in feeds}
    gradients = add_gradients(model, list(feeds))
    assert not gradients.unreachable
    assert gradients.cotangent is None
    result = run(model, feeds)
    for name, slope in expected.items():
        np.testing.assert_allclose(
            result[gradients.outputs[name]], slope, rtol=tolerance, atol=tolerance
        )


def test_every_rule_has_a_case() -> None:
    assert {name.split()[0] for name, *_ in CASES} == set(RULES)
