"""Operators that work on each number by itself, with broadcasting."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it

from rankc.train.registry import Builder, Function, Op, Tensor


def plain(function: Function) -> Builder:
    """The builder of an operator without attributes."""
    return lambda op: function


def _div(x: Tensor, y: Tensor) -> Tensor:
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def _pow(x: Tensor, y: Tensor) -> Tensor:
    return torch.pow(x, y).to(x.dtype)


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    return lambda *tensors: functools.reduce(function, tensors)


def _clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return x if low is None and high is None else torch.clamp(x, low, high)


def _cast(op: Op) -> Function:
    dtype = op.dtype("to")
    return lambda x: x.to(dtype)


def _leaky_relu(op: Op) -> Function:
    alpha = op.number("alpha", 0.01)
    return lambda x: F.leaky_relu(x, alpha)


def _gelu(op: Op) -> Function:
    how = op.text("approximate", "none")
    return lambda x: F.gelu(x, approximate=how)


OPERATORS: Mapping[str, Builder] = {
    "Abs": plain(torch.abs),
    "Add": plain(torch.add),
    "And": plain(torch.logical_and),
    "Cast": _cast,
    "Clip": plain(_clip),
    "Div": plain(_div),
    "Equal": plain(torch.eq),
    "Erf": plain(torch.erf),
    "Exp": plain(torch.exp),
    "Gelu": _gelu,
    "Greater": plain(torch.gt),
    "Identity": plain(lambda x: x),
    "LeakyRelu": _leaky_relu,
    "Less": plain(torch.lt),
    "Log": plain(torch.log),
    "Max": plain(_folded(torch.maximum)),
    "Min": plain(_folded(torch.minimum)),
    "Mul": plain(torch.mul),
    "Neg": plain(torch.neg),
    "Not": plain(torch.logical_not),
    "Or": plain(torch.logical_or),
    "Pow": plain(_pow),
    "Reciprocal": plain(torch.reciprocal),
    "Relu": plain(F.relu),
    "Sigmoid": plain(torch.sigmoid),
    "Sqrt": plain(torch.sqrt),
    "Sub": plain(torch.sub),
    "Sum": plain(_folded(torch.add)),
    "Tanh": plain(torch.tanh),
    "Where": plain(torch.where),
}
