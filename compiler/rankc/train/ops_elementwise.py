"""Arithmetic on each number by itself, with broadcasting."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from rankc.train.registry import Builder, Function, Op, Tensor
from rankc.train.tensors import by_numpy, exact, is_stored, together


def plain(function: Function) -> Builder:
    """The builder of an operator without attributes."""
    return lambda op: function


def _div(x: Tensor, y: Tensor) -> Tensor:
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def _mod(op: Op) -> Function:
    if op.integer("fmod", 0):
        return exact(torch.fmod, np.fmod)
    return exact(torch.remainder, np.remainder)


def _pow(op: Op) -> Function:
    """Of the base's type. By a number that is known, squares are products and not logarithms."""
    number = _number(op, 1)

    def power(x: Tensor, y: Tensor) -> Tensor:
        if number is None or y.dim() > x.dim() or not x.is_floating_point():
            return _pow_by(x, y)
        return torch.pow(x, number)

    return power


def _pow_by(x: Tensor, y: Tensor) -> Tensor:
    x, y = together(x, y)
    if is_stored(x):
        return by_numpy(lambda a, b: np.power(a, b).astype(a.dtype), x, y.detach())
    return torch.pow(x, y.to(torch.int64) if is_stored(y) else y).to(x.dtype)


def _folded(function: Function, unsigned: Function) -> Builder:
    step = exact(function, unsigned)
    return plain(lambda *tensors: functools.reduce(step, tensors))


def _mean(*tensors: Tensor) -> Tensor:
    total: Tensor = functools.reduce(torch.add, together(*tensors))
    return total / len(tensors)


def _clip(op: Op) -> Function:
    low, high = _number(op, 1), _number(op, 2)
    if all(bound is not None or not op.has(k) for k, bound in ((1, low), (2, high))):
        return _clip_between(low, high)
    return _clip_by


def _number(op: Op, index: int) -> Any:
    """An input that is one number and known beforehand, as a Python number."""
    found = op.constant(index)
    return None if found is None or found.size != 1 else found.item()


def _clip_between(low: Any, high: Any) -> Function:
    def clip(x: Tensor, *bounds: Tensor | None) -> Tensor:
        if low is None and high is None:
            return x
        if is_stored(x):
            return by_numpy(lambda a: np.clip(a, low, high), x)
        return torch.clamp(x, low, high)

    return clip


def _clip_by(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    if low is not None:
        x = _larger(x, low)
    return x if high is None else _smaller(x, high)


_larger, _smaller = exact(torch.maximum, np.maximum), exact(torch.minimum, np.minimum)


def _cast(op: Op) -> Function:
    dtype = op.dtype("to")
    return lambda x: x.to(dtype)


def _bit_cast(op: Op) -> Function:
    dtype = op.dtype("to")

    def bit_cast(x: Tensor) -> Tensor:
        if x.dtype.itemsize != dtype.itemsize:
            raise op.refuse(f"a bit cast of {x.dtype} to {dtype}, which is of another width")
        return x.view(dtype)

    return bit_cast


OPERATORS: Mapping[str, Builder] = {
    "Abs": plain(exact(torch.abs, np.abs)),
    "Acos": plain(torch.acos),
    "Acosh": plain(torch.acosh),
    "Add": plain(exact(torch.add, np.add)),
    "Asin": plain(torch.asin),
    "Asinh": plain(torch.asinh),
    "Atan": plain(torch.atan),
    "Atanh": plain(torch.atanh),
    "BitCast": _bit_cast,
    "Cast": _cast,
    "CastLike": plain(lambda x, like: x.to(like.dtype)),
    "Ceil": plain(torch.ceil),
    "Clip": _clip,
    "Cos": plain(torch.cos),
    "Cosh": plain(torch.cosh),
    "Div": plain(exact(_div, np.floor_divide)),
    "Erf": plain(torch.erf),
    "Exp": plain(torch.exp),
    "Floor": plain(torch.floor),
    "Identity": plain(lambda x: x),
    "Log": plain(torch.log),
    "Max": _folded(torch.maximum, np.maximum),
    "Mean": plain(_mean),
    "Min": _folded(torch.minimum, np.minimum),
    "Mod": _mod,
    "Mul": plain(exact(torch.mul, np.multiply)),
    "Neg": plain(torch.neg),
    "Pow": _pow,
    "Reciprocal": plain(torch.reciprocal),
    "Round": plain(torch.round),  # halves to the even number
    "Sign": plain(exact(torch.sign, np.sign)),
    "Sin": plain(torch.sin),
    "Sinh": plain(torch.sinh),
    "Sqrt": plain(torch.sqrt),
    "Sub": plain(exact(torch.sub, np.subtract)),
    "Sum": _folded(torch.add, np.add),
    "Tan": plain(torch.tan),
    "Tanh": plain(torch.tanh),
}
