"""Gradients through operators, in float64, against finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rankc.train import (
    ops_activation,
    ops_create,
    ops_elementwise,
    ops_index,
    ops_linear,
    ops_logic,
    ops_loss,
    ops_pad,
    ops_reduce,
    ops_scatter,
    ops_shape,
    ops_signal,
)
from rankc.train.interpreter import Interpreter
from rankc.train.registry import Tensor
from train.nodes import one_node

Array = NDArray[Any]
FAMILIES = (
    ops_activation, ops_create, ops_elementwise, ops_index, ops_linear, ops_logic, ops_loss,
    ops_pad, ops_reduce, ops_scatter, ops_shape, ops_signal,
)  # fmt: skip


def x(*shape: int, seed: int = 0, low: float = 0.2, signs: bool = True) -> Array:
    """Numbers of distinct magnitudes, 0.2 to 0.8 or as much above `low`, none near a kink."""
    rng = np.random.default_rng(seed)
    size = int(np.prod(shape))
    found = rng.permutation(np.linspace(low, low + 0.6, size) + 0.0017 * seed)
    found *= rng.choice([-1.0, 1.0], size) if signs else 1.0
    return found.reshape(shape)


def ints(*values: Any) -> Array:
    return np.array(values[0] if len(values) == 1 else values, np.int64)


def words(text: str) -> list[str]:
    return text.split()


WITHOUT = words(
    "And ArgMax ArgMin BitCast BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor BlackmanWindow "
    "Constant ConstantOfShape Equal EyeLike Greater GreaterOrEqual HammingWindow HannWindow IsInf "
    "IsNaN Less LessOrEqual NonZero Not Or Shape Size Xor"
)
POSITIVE = x(2, 3, signs=False)
ABOVE_ONE = x(2, 3, low=1.2, signs=False)
PAIR = (x(2, 3), x(3, seed=1))
ONE = (x(2, 3),)
LIST: list[tuple[str, tuple[Array | None, ...], dict[str, Any]]] = [
    *((name, ONE, {}) for name in words(
        "Abs Acos Asin Asinh Atan Atanh Celu Ceil Cos Cosh Dropout Elu Erf Exp Flatten Floor Gelu "
        "HardSigmoid HardSwish Hardmax Identity LeakyRelu LogSoftmax Mish Neg Reciprocal ReduceL1 "
        "ReduceL2 ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum "
        "ReduceSumSquare Relu Round Selu Sigmoid Sign Sin Sinh Softmax Softplus Softsign Squeeze "
        "Swish Tan Tanh Transpose Trilu Unique"
    )),
    *((name, (POSITIVE,), {}) for name in ("Log", "Sqrt", "ReduceLogSum")),
    *((name, PAIR, {}) for name in words("Add Div Max Mean Min Mod Mul PRelu Sub Sum")),
    ("Mod", PAIR, {"fmod": 1}),
    ("Acosh", (ABOVE_ONE,), {}),
    ("Cast", ONE, {"to": 11}),
    ("CastLike", (x(2, 3), x(1)), {}),
    ("CenterCropPad", (x(2, 3), ints(4, 1)), {}),
    ("Clip", (x(2, 3), np.array(-0.5), np.array(0.5)), {}),
    ("Clip", (x(2, 3), None, np.array(0.5)), {}),
    ("Compress", (x(2, 3), np.array([True, False, True])), {"axis": 1}),
    ("Concat", (x(2, 3), x(2, 1, seed=1)), {"axis": 1}),
    ("CumProd", (x(2, 3), ints(1)), {"exclusive": 1}),
    ("CumSum", (x(2, 3), ints(1)), {"reverse": 1}),
    ("DepthToSpace", (x(1, 8, 1, 2),), {"blocksize": 2, "mode": "CRD"}),
    ("Det", (x(2, 3, 3),), {}),
    ("DFT", (x(2, 3, 1), ints(4)), {"onesided": 1}),
    ("DFT", (x(2, 3, 2),), {"inverse": 1}),
    ("Einsum", (x(2, 3), x(3, 4, seed=1)), {"equation": "ij,jk->ki"}),
    ("Elu", ONE, {"alpha": 2.0}),
    ("Expand", (x(2, 1), ints(2, 3)), {}),
    ("Gather", (x(3, 2), ints([[0, -1], [2, 0]])), {}),
    ("Gather", (x(2, 3), ints(-1)), {"axis": 1}),
    ("GatherElements", (x(2, 3), ints([[0, -1], [2, 0]])), {"axis": 1}),
    ("GatherND", (x(2, 3, 2), ints([[1], [-1]])), {"batch_dims": 1}),
    ("Gelu", ONE, {"approximate": "tanh"}),
    ("Gemm", (x(3, 2), x(4, 3, seed=1), x(4, seed=2)), {"transA": 1, "transB": 1, "alpha": 0.5}),
    ("Gemm", (x(2, 3), x(3, 4, seed=1)), {"alpha": 0.5}),
    ("MatMul", (x(2, 2, 3), x(3, 4, seed=1)), {}),
    ("NegativeLogLikelihoodLoss", (x(3, 2), ints(0, 1, 1), x(2, signs=False)), {}),
    ("OneHot", (ints(0, -1), ints(3), x(2)), {}),
    ("Pad", (x(2, 3), ints(0, 1, 0, -1), np.array(2.0)), {}),
    ("Pad", (x(2, 3), ints(2, 1), None, ints(1)), {"mode": "reflect"}),
    ("Pad", (x(2, 3), ints(2, 1), None, ints(1)), {"mode": "edge"}),
    ("Pow", (POSITIVE, x(3, seed=1)), {}),
    ("Pow", (x(2, 3), ints(3)), {}),
    ("Range", (np.array(0.3), np.array(2.0), np.array(0.45)), {}),
    ("Reshape", (x(2, 3), ints(3, -1)), {}),
    ("ReverseSequence", (x(3, 2), ints(3, 2)), {}),
    ("ScatterElements", (x(2, 3), ints([[0, 2]]), x(1, 2, seed=1)), {"axis": 1}),
    *(
        (name, (x(3, 2), index, x(*shape, seed=1)), {"reduction": how})
        for name, index, shape in (
            ("ScatterElements", ints([[0, 2], [0, 1]]), (2, 2)),
            ("ScatterND", ints([[0], [-1], [0]]), (3, 2)),
        )
        for how in ("add", "mul", "min", "max")
    ),
    ("ScatterND", (x(3, 2), ints([[0], [-1]]), x(2, 2, seed=1)), {}),
    ("SoftmaxCrossEntropyLoss", (x(3, 2), ints(0, 1, 1)), {"ignore_index": 0}),
    ("STFT", (x(1, 5, 1), ints(2), x(3, seed=1)), {}),
    ("Scatter", (x(2, 3), ints([[0, 2]]), x(1, 2, seed=1)), {"axis": 1}),
    ("Shrink", ONE, {"lambd": 0.5, "bias": 0.1}),
    ("Slice", (x(3, 4), ints(-1, 1), ints(-10, 3), ints(1, 0), ints(-2, 1)), {}),
    ("SpaceToDepth", (x(1, 2, 2, 4),), {"blocksize": 2}),
    ("Split", (x(5, 2),), {"num_outputs": 2}),
    ("SwiGLU", (x(2, 3), x(2, 3, seed=1)), {"alpha": 0.7}),
    ("Swish", ONE, {"alpha": 0.7}),
    ("ThresholdedRelu", ONE, {"alpha": 0.5}),
    ("Tile", (x(2, 3), ints(1, 2)), {}),
    ("TopK", (x(2, 3), ints([2])), {}),
    ("Unsqueeze", (x(2, 3), ints(0, -1)), {}),
    ("Where", (np.array([True, False, True]), *PAIR), {}),
]  # fmt: skip
OUTPUTS = {"Split": 2, "TopK": 2, "Unique": 4}


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes"),
    LIST,
    ids=[f"{operator}-{k}" for k, (operator, _, _) in enumerate(LIST)],
)
def test_gradient(
    operator: str, inputs: tuple[Array | None, ...], attributes: dict[str, Any]
) -> None:
    constants = [k for k, v in enumerate(inputs) if v is not None and v.dtype != np.float64]
    net = Interpreter(
        one_node(
            operator, inputs, attributes, constants=constants, outputs=OUTPUTS.get(operator, 1)
        )
    )

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(y for y in net(*tensors) if y.is_floating_point())

    asked = [
        torch.tensor(v, requires_grad=True) for v in inputs if v is not None and v.dtype.kind == "f"
    ]
    assert torch.autograd.gradcheck(run, asked)


def test_every_operator_has_its_gradient_checked_or_has_none() -> None:
    claimed = {operator for family in FAMILIES for operator in family.OPERATORS}
    assert {operator for operator, _, _ in LIST} | set(WITHOUT) == claimed
