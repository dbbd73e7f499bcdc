"""Quantisation, with a gradient that passes straight through the rounding.

Where all readers of a quantised tensor calculate on with it (DequantizeLinear, MatMulInteger and
the like), it stays a float tensor of whole numbers, which carries the gradient: 1 where a number
was not clipped, 0 where it was (Y. Bengio et al., "Estimating or propagating gradients through
stochastic neurons", 2013). A scale that is trained gets the gradient of S. Esser et al., "Learned
step size quantization", ICLR 2020. Anything else reads integers, and no gradient comes back.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
import torch

from rankc.train.ops_window import OPERATORS as _WINDOWS
from rankc.train.registry import Builder, Function, Op, Tensor, dtype_of

_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
# Operators that calculate on with whole numbers in a float tensor, and which of their inputs.
_CALCULATE: Mapping[str, tuple[int, ...]] = {
    "DequantizeLinear": (0,),
    "MatMulInteger": (0, 1),
    "ConvInteger": (0, 1),
    "QLinearMatMul": (0, 3),
    "QLinearConv": (0, 3),
}
_MOVE = {
    "Expand", "Flatten", "Identity", "MaxPool", "Reshape", "Slice", "Split", "Squeeze", "Transpose",
    "Unsqueeze",
}  # fmt: skip


def _carries(value: ir.Value) -> bool:
    """Whether whatever reads the value takes whole numbers in a float tensor for integers."""
    if value.is_graph_output():
        return False
    for node, index in value.uses():
        if index in _CALCULATE.get(node.op_type, ()) or _makes_float(node):
            continue
        moved = node.op_type in _MOVE and index == 0
        if not (moved and all(_carries(output) for output in node.outputs)):
            return False
    return True


def _makes_float(node: ir.Node) -> bool:
    to = node.attributes.get("to")
    return node.op_type == "Cast" and to is not None and ir.DataType(to.as_int()) in _FLOATS


def _known(op: Op, value: ir.Value | None) -> None:
    """Refuse the types that torch does not have."""
    if value is not None and value.dtype is not None:
        dtype_of(value.dtype, op.where)


def _rounded(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The nearest whole number within limits, of two the even one.

    The gradient is 1 up to half a step beyond a limit: there it is the rounding that brings a
    number back, as it does with the largest one where the scale is the tensor's own.
    """
    near = torch.clamp(x, low - 0.5, high + 0.5)
    return near + (torch.clamp(torch.round(near), low, high) - near).detach()


def _quantized(x: Tensor, scale: Tensor, zero: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Whole numbers within the type's limits, in a float tensor."""
    limits = torch.iinfo(dtype)
    offset = torch.zeros_like(scale) if zero is None else zero.to(scale.dtype)
    return _rounded(x / scale, limits.min - offset, limits.max - offset) + offset


def _spread(one: Tensor, x: Tensor, axis: int, block: int) -> Tensor:
    """A scale or a zero point, laid out for the tensor that it belongs to."""
    if block:
        return one.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    if one.dim() != 1 or one.numel() == 1:
        return one if one.dim() == 0 or one.dim() == x.dim() else one.reshape(())
    shape = [1] * x.dim()
    shape[axis] = -1
    return one.reshape(shape)


def _quantize(op: Op) -> Function:
    axis, block = op.integer("axis", 1), op.integer("block_size", 0)
    carried = _carries(op.node.outputs[0])
    _known(op, op.node.outputs[0])
    if op.has(2):
        _known(op, op.node.inputs[2])
    wanted = op.integer("output_dtype", 0)
    given = dtype_of(ir.DataType(wanted), op.where) if wanted else torch.uint8

    def quantize(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        dtype = given if zero is None else zero.dtype
        scale = _spread(scale, x, axis, block)
        zero = None if zero is None else _spread(zero, x, axis, block)
        found = _quantized(x.to(scale.dtype), scale, zero, dtype)
        return found if carried else found.to(dtype)

    return quantize


def _dequantize(op: Op) -> Function:
    axis, block = op.integer("axis", 1), op.integer("block_size", 0)
    _known(op, op.node.inputs[0])
    wanted = op.integer("output_dtype", 0)
    given = dtype_of(ir.DataType(wanted), op.where) if wanted else None

    def dequantize(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        scale = _spread(scale, x, axis, block)
        offset = None if zero is None else _spread(zero, x, axis, block)
        found = _less(x, offset).to(scale.dtype) * scale
        return found if given is None else found.to(given)

    return dequantize


def _less(x: Tensor, zero: Tensor | None) -> Tensor:
    """Without the zero point: exactly, whether integers or whole numbers in a float tensor."""
    wide = x if x.is_floating_point() else x.to(torch.int32)
    return wide if zero is None else wide - zero.to(wide.dtype)


def _dynamic(op: Op) -> Function:
    """To 0..255 with a scale that the tensor gives, which counts as a constant."""
    carried = _carries(op.node.outputs[0])

    def dynamic(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            low, high = x.min().clamp_max(0), x.max().clamp_min(0)
            scale = (high - low) / 255
            scale = torch.where(scale > 0, scale, 1)
            zero = torch.round(torch.clamp(-low / scale, 0, 255)).to(torch.uint8)
        found = _quantized(x, scale, zero, torch.uint8)
        return found if carried else found.to(torch.uint8), scale, zero

    return dynamic


def _wide(x: Tensor, zero: Tensor | None) -> Tensor:
    """For products: float64 holds sums of up to 2^37 of them exactly."""
    return _less(x, zero).to(torch.float64)


def _by_row(zero: Tensor | None) -> Tensor | None:
    """A zero point for each row of the left operand of a product."""
    return zero.unsqueeze(-1) if zero is not None and zero.dim() == 1 and len(zero) > 1 else zero


def _matmul_integer(op: Op) -> Function:
    carried = _carries(op.node.outputs[0])

    def matmul(
        a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None
    ) -> Tensor:
        found = _wide(a, _by_row(a_zero)) @ _wide(b, b_zero)
        return found if carried else found.to(torch.int32)

    return matmul


def _conv_integer(op: Op) -> Function:
    conv, carried = _WINDOWS["Conv"](op), _carries(op.node.outputs[0])

    def conv_integer(
        x: Tensor, w: Tensor, x_zero: Tensor | None = None, w_zero: Tensor | None = None
    ) -> Tensor:
        zero = None if w_zero is None else _spread(w_zero, w, 0, 0)
        found: Tensor = conv(_wide(x, x_zero), _wide(w, zero))
        return found if carried else found.to(torch.int32)

    return conv_integer


def _requantized(total: Tensor, scale: Tensor, zero: Tensor, carried: bool) -> Tensor:
    found = _quantized(total, scale.to(total.dtype), zero, zero.dtype)
    return found.to(torch.float32) if carried else found.to(zero.dtype)


def _qlinear_matmul(op: Op) -> Function:
    carried = _carries(op.node.outputs[0])

    def matmul(
        a: Tensor, a_scale: Tensor, a_zero: Tensor, b: Tensor, b_scale: Tensor, b_zero: Tensor,
        y_scale: Tensor, y_zero: Tensor,
    ) -> Tensor:  # fmt: skip
        total = _wide(a, _by_row(a_zero)) @ _wide(b, b_zero)
        left = a_scale.unsqueeze(-1) if a_scale.dim() == 1 and len(a_scale) > 1 else a_scale
        return _requantized(total * left * b_scale, y_scale, y_zero, carried)

    return matmul


def _qlinear_conv(op: Op) -> Function:
    conv, carried = _WINDOWS["Conv"](op), _carries(op.node.outputs[0])

    def qlinear_conv(
        x: Tensor, x_scale: Tensor, x_zero: Tensor, w: Tensor, w_scale: Tensor, w_zero: Tensor,
        y_scale: Tensor, y_zero: Tensor, b: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        bias = None if b is None else b.to(torch.float64)
        total = conv(_wide(x, x_zero), _wide(w, _spread(w_zero, w, 0, 0)), bias)
        scale = x_scale * _spread(w_scale, total, 1, 0)
        return _requantized(total * scale, y_scale, y_zero, carried)

    return qlinear_conv


OPERATORS: Mapping[str, Builder] = {
    "ConvInteger": _conv_integer,
    "DequantizeLinear": _dequantize,
    "DynamicQuantizeLinear": _dynamic,
    "MatMulInteger": _matmul_integer,
    "QLinearConv": _qlinear_conv,
    "QLinearMatMul": _qlinear_matmul,
    "QuantizeLinear": _quantize,
}
