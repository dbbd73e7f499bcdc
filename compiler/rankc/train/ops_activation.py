"""Activations."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it

from rankc.train.ops_elementwise import plain
from rankc.train.registry import Builder, Function, Op, Tensor
from rankc.train.tensors import together


def _leaky_relu(op: Op) -> Function:
    alpha = op.number("alpha", 0.01)
    return lambda x: F.leaky_relu(x, alpha)


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    x, slope = together(x, slope)
    return torch.where(x < 0, slope * x, x)


def _elu(op: Op) -> Function:
    alpha = op.number("alpha", 1.0)
    return lambda x: F.elu(x, alpha)


def _celu(op: Op) -> Function:
    alpha = op.number("alpha", 1.0)
    return lambda x: F.celu(x, alpha)


def _selu(op: Op) -> Function:
    alpha = op.number("alpha", 1.67326319217681884765625)
    gamma = op.number("gamma", 1.05070102214813232421875)
    return lambda x: gamma * F.elu(x, alpha)


def _thresholded_relu(op: Op) -> Function:
    alpha = op.number("alpha", 1.0)
    return lambda x: F.threshold(x, alpha, 0.0)


def _hard_sigmoid(op: Op) -> Function:
    alpha, beta = op.number("alpha", 0.2), op.number("beta", 0.5)
    return lambda x: torch.clamp(alpha * x + beta, 0.0, 1.0)


def _gelu(op: Op) -> Function:
    how = op.text("approximate", "none")
    if how not in ("none", "tanh"):
        raise op.refuse(f"approximate is {how!r}; known are none and tanh")
    return lambda x: F.gelu(x, approximate=how)


def _swish(op: Op) -> Function:
    alpha = op.number("alpha", 1.0)
    return F.silu if alpha == 1.0 else lambda x: x * torch.sigmoid(alpha * x)


def _swiglu(op: Op) -> Function:
    swish = _swish(op)
    return lambda gate, x: swish(gate) * x


def _shrink(op: Op) -> Function:
    bias, least = op.number("bias", 0.0), op.number("lambd", 0.5)

    def shrink(x: Tensor) -> Tensor:
        moved = torch.where(x > least, x - bias, x + bias).to(x.dtype)
        return torch.where(x.abs() > least, moved, torch.zeros_like(x))

    return shrink


def _softmax(op: Op) -> Function:
    axis = op.integer("axis", -1)
    return lambda x: F.softmax(x, axis)


def _log_softmax(op: Op) -> Function:
    axis = op.integer("axis", -1)
    return lambda x: F.log_softmax(x, axis)


def _hardmax(op: Op) -> Function:
    axis = op.integer("axis", -1)
    return lambda x: torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1.0)


def _dropout(op: Op) -> Function:
    """The identity, also in training: the loop regularises in other ways, and is deterministic."""
    message = "drops at random (training_mode is set); export the model for inference"
    if (training := op.constant(2)) is not None and training.any():
        raise op.refuse(message)

    def dropout(
        x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        if training is not None and training and (ratio is None or ratio):
            raise op.refuse(message)
        return x if op.outputs == 1 else (x, torch.ones_like(x, dtype=torch.bool))

    return dropout


OPERATORS: Mapping[str, Builder] = {
    "Celu": _celu,
    "Dropout": _dropout,
    "Elu": _elu,
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": plain(F.hardswish),
    "Hardmax": _hardmax,
    "LeakyRelu": _leaky_relu,
    "LogSoftmax": _log_softmax,
    "Mish": plain(F.mish),
    "PRelu": plain(_prelu),
    "Relu": plain(F.relu),
    "Selu": _selu,
    "Shrink": _shrink,
    "Sigmoid": plain(torch.sigmoid),
    "Softmax": _softmax,
    "Softplus": plain(F.softplus),
    "Softsign": plain(F.softsign),
    "SwiGLU": _swiglu,
    "Swish": _swish,
    "ThresholdedRelu": _thresholded_relu,
}
