"""Comparisons, truth values, bits, and choosing by a condition."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from rankc.train.ops_elementwise import plain
from rankc.train.registry import Builder, Function, Op, Tensor
from rankc.train.tensors import exact, together


def _bit_shift(op: Op) -> Function:
    direction = op.text("direction")
    if direction == "LEFT":
        return exact(torch.bitwise_left_shift, np.left_shift)
    if direction == "RIGHT":
        return exact(torch.bitwise_right_shift, np.right_shift)
    raise op.refuse(f"direction is {direction!r}; bits are shifted LEFT or RIGHT")


def _is_inf(op: Op) -> Function:
    low, high = op.integer("detect_negative", 1), op.integer("detect_positive", 1)
    if low and high:
        return torch.isinf
    if low or high:
        return torch.isneginf if low else torch.isposinf
    return lambda x: torch.zeros_like(x, dtype=torch.bool)


def _where(condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    condition, x, y = together(condition, x, y)
    return torch.where(condition, x, y)


OPERATORS: Mapping[str, Builder] = {
    "And": plain(exact(torch.logical_and, np.logical_and)),
    "BitShift": _bit_shift,
    "BitwiseAnd": plain(exact(torch.bitwise_and, np.bitwise_and)),
    "BitwiseNot": plain(exact(torch.bitwise_not, np.bitwise_not)),
    "BitwiseOr": plain(exact(torch.bitwise_or, np.bitwise_or)),
    "BitwiseXor": plain(exact(torch.bitwise_xor, np.bitwise_xor)),
    "Equal": plain(exact(torch.eq, np.equal)),
    "Greater": plain(exact(torch.gt, np.greater)),
    "GreaterOrEqual": plain(exact(torch.ge, np.greater_equal)),
    "IsInf": _is_inf,
    "IsNaN": plain(torch.isnan),
    "Less": plain(exact(torch.lt, np.less)),
    "LessOrEqual": plain(exact(torch.le, np.less_equal)),
    "Not": plain(torch.logical_not),
    "Or": plain(exact(torch.logical_or, np.logical_or)),
    "Where": plain(_where),
    "Xor": plain(exact(torch.logical_xor, np.logical_xor)),
}
