"""Backward rules of arithmetic: products, element-wise functions, reductions, normalisations.

A rule takes the tape, the forward node, the index of one of its inputs and the gradient g of its
output, and returns the gradient of that input. It raises NoGradientError where it cannot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from rankc.gradient_tape import (
    GradientTape,
    NoGradientError,
    constant_of,
    dims,
    integer,
    integers,
    length,
    operand,
    real,
    required,
)


def gemm(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """Y = alpha A' B' + beta C, where ' is an optional transposition."""
    left, right = required(node, 0), required(node, 1)
    trans_a, trans_b = integer(node, "transA", 0), integer(node, "transB", 0)
    alpha = real(node, "alpha", 1.0)
    if index == 2:
        bias = tape.unbroadcast(g, required(node, 2), dims(node.outputs[0]))
        return tape.times(bias, left, real(node, "beta", 1.0))
    if index == 0 and not trans_a:
        return tape.op("Gemm", g, right, alpha=alpha, transB=1 - trans_b)
    if index == 0:
        return tape.op("Gemm", right, g, alpha=alpha, transA=trans_b, transB=1)
    if not trans_b:
        return tape.op("Gemm", left, g, alpha=alpha, transA=1 - trans_a)
    return tape.op("Gemm", g, left, alpha=alpha, transA=1, transB=trans_a)


def matmul(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """A gets g B^T, B gets A^T g. A vector counts as a matrix of one row or column."""
    left, right = required(node, 0), required(node, 1)
    own, other = (left, right) if index == 0 else (right, left)
    shape = dims(node.outputs[0])
    if len(dims(right)) == 1:
        g, shape = tape.op("Unsqueeze", g, tape.ints([-1])), [*shape, 1]
    if len(dims(left)) == 1:
        g, shape = tape.op("Unsqueeze", g, tape.ints([-2])), [*shape[:-1], 1, shape[-1]]
    rank = len(dims(other))
    if rank == 1:
        flipped = tape.op("Unsqueeze", other, tape.ints([0 if index == 0 else 1]))
    else:
        swap = [*range(rank - 2), rank - 1, rank - 2]
        flipped = tape.op("Transpose", other, perm=swap)
    full = tape.op("MatMul", g, flipped) if index == 0 else tape.op("MatMul", flipped, g)
    if len(dims(own)) == 1:  # what is left of the batch axes is summed away
        return tape.reshape_like(tape.reduce("ReduceSum", full, range(len(shape) - 2)), own)
    return tape.unbroadcast(full, own, [*shape[:-2], *dims(own)[-2:]])


def add(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """Also Sum, which takes any number of operands."""
    return tape.unbroadcast(g, required(node, index), dims(node.outputs[0]))


def sub(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """A - B."""
    own = add(tape, node, index, g)
    return own if index == 0 else tape.op("Neg", own)


def mul(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """A B; the square x x visits both inputs, so it needs no case of its own."""
    return add(tape, node, index, tape.op("Mul", g, required(node, 1 - index)))


def div(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """Y = A / B: dA = g / B, dB = -g Y / B."""
    scaled = tape.op("Div", g, required(node, 1))
    if index == 0:
        return add(tape, node, 0, scaled)
    return add(tape, node, 1, tape.op("Neg", tape.op("Mul", scaled, node.outputs[0])))


def power(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """Slope p x^(p-1), p being a constant."""
    exponent = constant_of(node, 1) if index == 0 else None
    if exponent is None:
        raise NoGradientError(f"node '{node.name}' raises to a power that is not constant")
    base = required(node, 0)
    if exponent.size != 1:
        raise NoGradientError(f"node '{node.name}' raises to several powers at once")
    p = float(exponent.reshape(()))
    slope = base if p == 2 else tape.op("Pow", base, tape.scalar(base, p - 1))
    return add(tape, node, 0, tape.times(tape.op("Mul", g, slope), base, p))


def neg(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """Slope -1."""
    return tape.op("Neg", g)


def absolute(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """Slope sign(x)."""
    return tape.op("Mul", g, tape.op("Sign", required(node, 0)))


def relu(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """Slope 1 where y is positive and 0 elsewhere, which is its sign."""
    return tape.op("Mul", g, tape.op("Sign", node.outputs[0]))


def leaky_relu(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """x, or alpha x below zero."""
    x = required(node, 0)
    flat = tape.times(g, x, real(node, "alpha", 0.01))
    return tape.op("Where", tape.op("Greater", x, tape.scalar(x, 0.0)), g, flat)


def prelu(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """x, or slope x below zero; the slope is a parameter."""
    if index == 1:
        raise NoGradientError(f"the slope of '{node.name}' is not differentiated")
    x = required(node, 0)
    flat = tape.op("Mul", g, required(node, 1))
    return tape.op("Where", tape.op("Greater", x, tape.scalar(x, 0.0)), g, flat)


def sigmoid(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """Slope y (1 - y)."""
    y = node.outputs[0]
    return tape.op("Mul", g, tape.op("Sub", y, tape.op("Mul", y, y)))


def hard_sigmoid(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """Slope alpha between 0 and 1, else 0."""
    x, y = required(node, 0), node.outputs[0]
    zero, one = tape.scalar(x, 0.0), tape.scalar(x, 1.0)
    within = tape.op("And", tape.op("Greater", y, zero), tape.op("Less", y, one))
    return tape.times(tape.op("Where", within, g, zero), x, real(node, "alpha", 0.2))


def hard_swish(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """The function x clip(x / 6 + 1 / 2, 0, 1): slope 0, then x / 3 + 1 / 2, then 1."""
    x = required(node, 0)
    middle = tape.op("Add", tape.times(x, x, 1 / 3), tape.scalar(x, 0.5))
    beyond = tape.op("Greater", x, tape.scalar(x, 3.0))
    slope = tape.op("Where", beyond, tape.scalar(x, 1.0), middle)
    below = tape.op("Less", x, tape.scalar(x, -3.0))
    return tape.op("Mul", g, tape.op("Where", below, tape.scalar(x, 0.0), slope))


def tanh(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """Slope 1 - y^2."""
    y = node.outputs[0]
    return tape.op("Sub", g, tape.op("Mul", g, tape.op("Mul", y, y)))


def softplus(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """Slope sigmoid(x)."""
    return tape.op("Mul", g, tape.op("Sigmoid", required(node, 0)))


def exp(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """Slope y."""
    return tape.op("Mul", g, node.outputs[0])


def log(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """Slope 1 / x."""
    return tape.op("Div", g, required(node, 0))


def sqrt(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """Slope 1 / (2 y)."""
    y = node.outputs[0]
    return tape.times(tape.op("Div", g, y), y, 0.5)


def reciprocal(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """Slope -y^2."""
    y = node.outputs[0]
    return tape.op("Neg", tape.op("Mul", g, tape.op("Mul", y, y)))


def erf(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """Slope 2 / sqrt(pi) e^(-x^2)."""
    x = required(node, 0)
    bell = tape.op("Exp", tape.op("Neg", tape.op("Mul", x, x)))
    return tape.times(tape.op("Mul", g, bell), x, 2 / math.sqrt(math.pi))


def gelu(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """The function x P(x), exactly or with P's tanh approximation."""
    x = required(node, 0)
    how = node.attributes["approximate"].as_string() if "approximate" in node.attributes else "none"
    if how == "none":
        scaled = tape.times(x, x, math.sqrt(0.5))
        twice = tape.op("Erf", scaled)
        bell = tape.op("Exp", tape.op("Neg", tape.op("Mul", scaled, scaled)))
        twice_slope = tape.times(bell, x, math.sqrt(2 / math.pi))
    else:  # P = (1 + tanh u) / 2, u = sqrt(2 / pi) (x + 0.044715 x^3)
        square = tape.op("Mul", x, x)
        one = tape.scalar(x, 1.0)
        inner = tape.op("Add", tape.times(square, x, 0.044715), one)
        twice = tape.op("Tanh", tape.times(tape.op("Mul", x, inner), x, math.sqrt(2 / math.pi)))
        slope = tape.op("Add", tape.times(square, x, 3 * 0.044715), one)
        flat = tape.op("Sub", one, tape.op("Mul", twice, twice))
        twice_slope = tape.times(tape.op("Mul", flat, slope), x, math.sqrt(2 / math.pi))
    whole = tape.op("Add", twice, tape.op("Mul", x, twice_slope))
    half = tape.times(tape.op("Add", whole, tape.scalar(x, 1.0)), x, 0.5)
    return tape.op("Mul", g, half)


def clip(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """The operand that won gets the gradient: Clip's x, any operand of Max and Min."""
    own, y = required(node, index), node.outputs[0]
    won = tape.cast_like(tape.op("Equal", own, y), y)  # Where is several times slower
    return add(tape, node, index, tape.op("Mul", g, won))


def where(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """The operand that was chosen gets the gradient."""
    condition, zero = required(node, 0), tape.scalar(node.outputs[0], 0.0)
    branches = (g, zero) if index == 1 else (zero, g)
    return add(tape, node, index, tape.op("Where", condition, *branches))


def softmax(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """Gradient (g - sum(g y)) y."""
    y = node.outputs[0]
    weighted = tape.op("Mul", g, y)
    total = tape.reduce("ReduceSum", weighted, [integer(node, "axis", -1)])
    return tape.op("Sub", weighted, tape.op("Mul", y, total))


def log_softmax(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """Gradient g - e^y sum(g)."""
    total = tape.reduce("ReduceSum", g, [integer(node, "axis", -1)])
    return tape.op("Sub", g, tape.op("Mul", tape.op("Exp", node.outputs[0]), total))


def _reduced(node: ir.Node) -> list[int]:
    """Axes that a reduction reduces, not negative."""
    rank = len(dims(required(node, 0)))
    axes = integers(node, "axes", 1)
    if not axes:
        return [] if integer(node, "noop_with_empty_axes", 0) else list(range(rank))
    return sorted(axis % rank for axis in axes)


def _spread(tape: GradientTape, node: ir.Node, g: ir.Value) -> ir.Value:
    """The gradient with the reduced axes back as length 1."""
    axes = _reduced(node)
    if integer(node, "keepdims", 1) or not axes:
        return g
    return tape.op("Unsqueeze", g, tape.ints(axes))


def reduce_sum(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """Every element gets the gradient of its sum."""
    return tape.op("Expand", _spread(tape, node, g), tape.op("Shape", required(node, 0)))


def reduce_mean(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """Every element gets its share of the gradient."""
    x = required(node, 0)
    count = math.prod(length(x, axis) for axis in _reduced(node))
    return reduce_sum(tape, node, index, tape.times(g, x, 1 / count))


def reduce_sum_square(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """Slope 2 x."""
    x = required(node, 0)
    return tape.op("Mul", x, _spread(tape, node, tape.times(g, x, 2.0)))


def reduce_l2(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """Slope x / y."""
    share = tape.op("Div", g, node.outputs[0])
    return tape.op("Mul", required(node, 0), _spread(tape, node, share))


def batch_norm(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """Inference: scale / sqrt(var + eps) along axis 1; constants, which ONNX Runtime folds."""
    if index != 0 or integer(node, "training_mode", 0):
        raise NoGradientError(f"only the input of '{node.name}' in inference is differentiated")
    scale, variance = required(node, 1), required(node, 4)
    shifted = tape.op("Add", variance, tape.scalar(variance, real(node, "epsilon", 1e-5)))
    factor = tape.op("Div", scale, tape.op("Sqrt", shifted))
    wide = [-1, *([1] * (len(dims(required(node, 0))) - 2))]
    return tape.op("Mul", g, tape.op("Reshape", factor, tape.ints(wide)))


def layer_norm(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """Over the last axes."""
    if index != 0:
        raise NoGradientError(f"the parameters of '{node.name}' are not differentiated")
    rank, scale = len(dims(required(node, 0))), operand(node, 1)
    h = g if scale is None else tape.op("Mul", g, scale)
    return _normalised(tape, node, h, range(integer(node, "axis", -1) % rank, rank))


def instance_norm(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """Over the axes of space; one scale a channel, axis 1."""
    if index != 0:
        raise NoGradientError(f"the parameters of '{node.name}' are not differentiated")
    rank = len(dims(required(node, 0)))
    wide = tape.ints([-1, *([1] * (rank - 2))])
    h = tape.op("Mul", g, tape.op("Reshape", required(node, 1), wide))
    return _normalised(tape, node, h, range(2, rank))


def _normalised(tape: GradientTape, node: ir.Node, h: ir.Value, axes: Sequence[int]) -> ir.Value:
    """With u the normalised x and h = g scale: (h - mean(h) - u mean(h u)) / deviation."""
    x = required(node, 0)
    centred = tape.op("Sub", x, tape.reduce("ReduceMean", x, axes))
    variance = tape.reduce("ReduceMean", tape.op("Mul", centred, centred), axes)
    epsilon = tape.scalar(x, real(node, "epsilon", 1e-5))
    deviation = tape.op("Sqrt", tape.op("Add", variance, epsilon))
    u = tape.op("Div", centred, deviation)
    along = tape.op("Mul", u, tape.reduce("ReduceMean", tape.op("Mul", h, u), axes))
    rest = tape.op("Sub", tape.op("Sub", h, tape.reduce("ReduceMean", h, axes)), along)
    return tape.op("Div", rest, deviation)
