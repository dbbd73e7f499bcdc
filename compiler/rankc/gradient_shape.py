"""Backward rules of data movement: the gradient goes back to where the element came from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from rankc.gradient_math import add
from rankc.gradient_tape import (
    GradientTape,
    NoGradientError,
    constant_of,
    dims,
    integer,
    integers,
    length,
    required,
)


def identity(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """Identity, and Dropout in inference."""
    if node.op_type == "Dropout" and len(node.inputs) > 2 and node.inputs[2] is not None:
        training = constant_of(node, 2)
        if training is None or bool(training):
            raise NoGradientError(f"Dropout '{node.name}' is in training mode")
    return g


def cast(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """From one float type to another."""
    source = required(node, 0).dtype
    if source is None:
        raise NoGradientError(f"the type of the input of '{node.name}' is unknown")
    return tape.op("Cast", g, to=int(source))


def reshape(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """Reshape, Flatten, Squeeze and Unsqueeze."""
    return tape.reshape_like(g, required(node, 0))


def expand(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """Broadcast to a given shape."""
    return add(tape, node, 0, g)


def transpose(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """The inverse permutation."""
    if "perm" not in node.attributes:
        return tape.op("Transpose", g)
    perm = node.attributes["perm"].as_ints()
    return tape.op("Transpose", g, perm=[int(i) for i in np.argsort(perm)])


def concat(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """Each operand gets its slice."""
    axis = integer(node, "axis", 0) % len(dims(node.outputs[0]))
    sizes = [length(required(node, k), axis) for k in range(index + 1)]
    bounds = ([sum(sizes[:-1])], [sum(sizes)], [axis])
    return tape.op("Slice", g, *(tape.ints(bound) for bound in bounds))


def split(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """Glue the gradients of all parts; parts that nobody reads count as zero."""
    parts = [tape.gradients.get(part) for part in node.outputs]
    filled = [
        tape.filled_like(out, 0.0) if part is None else part
        for out, part in zip(node.outputs, parts, strict=True)
    ]
    return tape.op("Concat", *filled, axis=integer(node, "axis", 0))


def take_slice(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """Slice with constant bounds, any step."""
    x = required(node, 0)
    starts, ends = integers(node, "starts", 1), integers(node, "ends", 2)
    if index != 0 or starts is None or ends is None:
        raise NoGradientError(f"the bounds of '{node.name}' are not differentiated")
    axes = integers(node, "axes", 3) or list(range(len(starts)))
    steps = integers(node, "steps", 4) or [1] * len(starts)
    for axis, *bounds in zip(axes, starts, ends, steps, strict=True):
        size = length(x, axis)
        g = _put_back(tape, g, x, axis, range(size)[slice(*bounds)])
    return g


def gather(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """Gather from a computed value with a constant index, a number or a list."""
    x = required(node, 0)
    picked = constant_of(node, 1) if index == 0 else None
    if picked is None or picked.ndim > 1:
        raise NoGradientError(f"the index of '{node.name}' is not a number or a list of them")
    axis = integer(node, "axis", 0) % len(dims(x))
    if picked.ndim == 0:
        g = tape.op("Unsqueeze", g, tape.ints([axis]))
    size = length(x, axis)
    return _put_back(tape, g, x, axis, [int(i) % size for i in picked.reshape(-1)])


def _put_back(
    tape: GradientTape, g: ir.Value, x: ir.Value, axis: int, picked: Sequence[int]
) -> ir.Value:
    """Gradient of x where slice k of g along `axis` was taken from slice picked[k] of x."""
    rank, size = len(dims(x)), length(x, axis)
    axis %= rank
    if list(picked) == list(range(size)):
        return g
    if not picked:
        raise NoGradientError(f"nothing is taken from '{x.name}'")
    first = picked[0]
    if list(picked) == list(range(first, first + len(picked))):
        return _pad(tape, g, rank, axis, first, size - first - len(picked))
    if len(set(picked)) < len(picked):
        return _add_back(tape, g, x, axis, picked)
    position = {slot: k for k, slot in enumerate(picked)}
    zero_slot = len(picked)
    padded = _pad(tape, g, rank, axis, 0, 1)
    inverse = tape.ints([position.get(slot, zero_slot) for slot in range(size)])
    return tape.op("Gather", padded, inverse, axis=axis)


def _pad(
    tape: GradientTape, g: ir.Value, rank: int, axis: int, before: int, after: int
) -> ir.Value:
    pads = [0] * (2 * rank)
    pads[axis], pads[rank + axis] = before, after
    return tape.op("Pad", g, tape.ints(pads))


def _add_back(
    tape: GradientTape, g: ir.Value, x: ir.Value, axis: int, picked: Sequence[int]
) -> ir.Value:
    """The same where some slices were taken twice: a product with a 0/1 matrix adds them up."""
    if x.dtype is None:
        raise NoGradientError(f"the type of '{x.name}' is unknown")
    rank, size = len(dims(x)), length(x, axis)
    onehot = np.zeros((len(picked), size), dtype=x.dtype.numpy())
    onehot[np.arange(len(picked)), list(picked)] = 1
    swap = list(range(rank))
    swap[axis], swap[-1] = rank - 1, axis
    last = g if axis == rank - 1 else tape.op("Transpose", g, perm=swap)
    added = tape.op("MatMul", last, tape.constant(onehot))
    return added if axis == rank - 1 else tape.op("Transpose", added, perm=swap)
