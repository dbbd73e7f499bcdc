"""Backward rules of image operators, of 1, 2 or 3 axes of space: (N, C, D1, ...).

Where a window slides, the gradient of what it read is the transposed sliding. Pixels that no
window reaches, because the stride does not divide what is left, get zero.

The batch may have any length. So may the axes of space where every window moves by one pixel; else
they must be fixed.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

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

_SCATTER_ADDS = 16  # first opset whose ScatterElements can add
_NEAREST = (("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"))


@dataclasses.dataclass(frozen=True, slots=True)
class _Sliding:
    """How a window moves over the small or the large image; one entry an axis of space."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]  # pixels of padding, or of cropping where the window paints
    ends: tuple[int, ...]

    @property
    def reach(self) -> tuple[int, ...]:
        """Pixels from the first that a window touches to the last."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    @property
    def overlaps(self) -> bool:
        return any(r > s for r, s in zip(self.reach, self.strides, strict=True))


def _integers(node: ir.Node, name: str, default: Sequence[int]) -> tuple[int, ...]:
    found = node.attributes.get(name)
    return tuple(default if found is None else (int(i) for i in found.as_ints()))


def _text(node: ir.Node, name: str, default: str) -> str:
    return node.attributes[name].as_string() if name in node.attributes else default


def _sliding(node: ir.Node, kernel: Sequence[int]) -> _Sliding:
    """Of a Conv, ConvTranspose or pool, `auto_pad` resolved."""
    rank = len(kernel)
    strides, dilations = (_integers(node, name, [1] * rank) for name in ("strides", "dilations"))
    pads = _integers(node, "pads", [0] * (2 * rank))
    auto = _text(node, "auto_pad", "NOTSET")
    sliding = _Sliding(tuple(kernel), strides, dilations, pads[:rank], pads[rank:])
    if auto == "NOTSET":
        return sliding
    if auto == "VALID":
        zero = (0,) * rank
        return dataclasses.replace(sliding, begins=zero, ends=zero)
    total = [
        reach - 1 if s == 1 else _missing(length(required(node, 0), axis), reach, s)
        for axis, (reach, s) in enumerate(zip(sliding.reach, strides, strict=True), start=2)
    ]
    if min(total) < -1:  # some clamp this to 0, and some start their windows inside the image
        raise NoGradientError(f"'{node.name}' leaves pixels out where the runtime likes to")
    less, more = tuple(max(n, 0) // 2 for n in total), tuple((max(n, 0) + 1) // 2 for n in total)
    begins, ends = (less, more) if auto == "SAME_UPPER" else (more, less)
    return dataclasses.replace(sliding, begins=begins, ends=ends)


def _missing(size: int, reach: int, stride: int) -> int:
    """Pixels by which `size` is too short for a window at every `stride`th pixel."""
    return ((size - 1) // stride) * stride + reach - size


def _attributes(node: ir.Node) -> dict[str, Any]:
    return {name: value.value for name, value in node.attributes.items()}


def _kernel(node: ir.Node) -> tuple[int, ...]:
    """The axes of space of a constant weight."""
    if constant_of(node, 1) is None:
        raise NoGradientError(f"node '{node.name}' has no weight")
    weight = required(node, 1)
    return tuple(length(weight, axis) for axis in range(2, len(dims(weight))))


def conv(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """The transposed convolution, with the same weight."""
    if index != 0:
        raise NoGradientError(f"the parameters of '{node.name}' are not differentiated")
    sliding = _sliding(node, _kernel(node))
    return _paint(tape, node, sliding, g, required(node, 1), integer(node, "group", 1))


def conv_transpose(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """The convolution with the same weight."""
    if index != 0:
        raise NoGradientError(f"the parameters of '{node.name}' are not differentiated")
    if "output_shape" in node.attributes or _text(node, "auto_pad", "NOTSET") != "NOTSET":
        raise NoGradientError(f"'{node.name}' leaves its padding to the runtime")
    sliding = _sliding(node, _kernel(node))
    rank = len(sliding.kernel)
    added = _integers(node, "output_padding", [0] * rank)
    ends = [max(end - more, 0) for end, more in zip(sliding.ends, added, strict=True)]
    return tape.op(
        "Conv",
        g,
        required(node, 1),
        kernel_shape=sliding.kernel,
        strides=sliding.strides,
        dilations=sliding.dilations,
        pads=(*sliding.begins, *ends),
        group=integer(node, "group", 1),
    )


def _paint(
    tape: GradientTape, node: ir.Node, sliding: _Sliding, g: ir.Value, weight: ir.Value, group: int
) -> ir.Value:
    """Gradient of the image that windows read: each pixel of g painted with the kernel."""
    ends = [
        end if sliding.strides[axis] == 1 else _crop(node, sliding, axis)
        for axis, end in enumerate(sliding.ends)
    ]
    return tape.op(
        "ConvTranspose",
        g,
        weight,
        kernel_shape=sliding.kernel,
        strides=sliding.strides,
        dilations=sliding.dilations,
        pads=(*sliding.begins, *(max(end, 0) for end in ends)),
        output_padding=[max(-end, 0) for end in ends],
        group=group,
    )


def _crop(node: ir.Node, sliding: _Sliding, axis: int) -> int:
    """Pixels that the last window painted beyond the image; negative: that it did not reach."""
    last = (length(node.outputs[0], axis + 2) - 1) * sliding.strides[axis]
    painted = last + sliding.reach[axis] - sliding.begins[axis]
    return painted - length(required(node, 0), axis + 2)


def average_pool(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """Every pixel under a window gets an equal share.

    The share is what the same node makes of an image of ones, over how many of them it sees: so
    `count_include_pad` and `ceil_mode` are counted as the runtime counts them.
    """
    x = required(node, 0)
    sliding = _sliding(node, node.attributes["kernel_shape"].as_ints())
    channels, size = length(x, 1), [length(x, axis) for axis in range(2, len(dims(x)))]
    if x.dtype is None:
        raise NoGradientError(f"the type of '{x.name}' is unknown")
    dtype = x.dtype.numpy()
    ones = tape.constant(np.ones((1, 1, *size), dtype))
    averaged = tape.op("AveragePool", ones, **_attributes(node))
    seen = np.ones((1, 1), dtype)
    for axis in range(len(size)):
        seen = np.multiply.outer(seen, _inside(node, sliding, axis)).astype(dtype)
    share = tape.op("Div", averaged, tape.constant(seen))
    kernel = tape.constant(np.ones((channels, 1, *sliding.kernel), dtype))
    return _paint(tape, node, sliding, tape.op("Mul", g, share), kernel, channels)


def _inside(node: ir.Node, sliding: _Sliding, axis: int) -> NDArray[np.int64]:
    """How many pixels of each window are inside the image, along one axis.

    Raises:
        NoGradientError: None are. Whether there is such a window at all depends on the runtime.
    """
    starts = np.arange(length(node.outputs[0], axis + 2)) * sliding.strides[axis]
    taps = np.arange(sliding.kernel[axis]) * sliding.dilations[axis]
    pixels = starts[:, None] - sliding.begins[axis] + taps
    inside = (pixels >= 0) & (pixels < length(required(node, 0), axis + 2))
    counted: NDArray[np.int64] = inside.sum(axis=1)
    if not counted.all():
        raise NoGradientError(f"a window of '{node.name}' lies in the padding")
    return counted


def max_pool(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """The pixel that won gets the gradient; of equal ones that which the runtime came by first."""
    x = required(node, 0)
    sliding = _sliding(node, node.attributes["kernel_shape"].as_ints())
    if integer(node, "ceil_mode", 0) or max(sliding.dilations) > 1:
        for axis in range(len(sliding.kernel)):
            _inside(node, sliding, axis)
    winners = tape.second("MaxPool", x, **_attributes(node) | {"storage_order": 0})  # flat, into x
    flat = tape.ints([-1])
    zeros = tape.op("Reshape", tape.filled_like(x, 0.0), flat)
    adds: dict[str, Any] = {"reduction": "add"} if tape.opset >= _SCATTER_ADDS else {}
    turns = [(winners, g)] if adds or not sliding.overlaps else _turns(tape, node, winners, g)
    parts = [
        tape.op("ScatterElements", zeros, *(tape.op("Reshape", v, flat) for v in turn), **adds)
        for turn in turns
    ]
    return tape.reshape_like(parts[0] if len(parts) == 1 else tape.op("Sum", *parts), x)


def _turns(
    tape: GradientTape, node: ir.Node, winners: ir.Value, g: ir.Value
) -> list[tuple[ir.Value, ir.Value]]:
    """Winners and gradients of every kth window, whose pixels do not overlap, from each start."""
    sliding = _sliding(node, node.attributes["kernel_shape"].as_ints())
    steps = [-(-r // s) for r, s in zip(sliding.reach, sliding.strides, strict=True)]
    windows = [length(node.outputs[0], axis) for axis in range(2, len(steps) + 2)]
    ends, axes = tape.ints(windows), tape.ints(range(2, len(steps) + 2))
    turns = []
    for starts in itertools.product(
        *(range(min(k, n)) for k, n in zip(steps, windows, strict=True))
    ):
        taken = (tape.ints(starts), ends, axes, tape.ints(steps))
        turns.append((tape.op("Slice", winners, *taken), tape.op("Slice", g, *taken)))
    return turns


def global_average_pool(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """Every pixel gets an equal share."""
    x = required(node, 0)
    pixels = tape.op("Div", tape.op("Size", x), tape.op("Size", node.outputs[0]))
    share = tape.op("Div", g, tape.cast_like(pixels, x))
    return tape.op("Expand", share, tape.op("Shape", x))


def global_max_pool(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """The pixel that is the maximum gets the gradient; several share it evenly."""
    x = required(node, 0)
    won = tape.cast_like(tape.op("Equal", x, node.outputs[0]), x)
    winners = tape.reduce("ReduceSum", won, range(2, len(dims(x))))
    return tape.op("Mul", tape.op("Div", g, winners), won)


def pad(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """Constant padding is cropped off, and what was cropped is padded with zeros."""
    mode = _text(node, "mode", "constant")
    pads = integers(node, "pads", 1)
    if index != 0 or mode != "constant" or pads is None:
        raise NoGradientError(f"'{node.name}' pads by what it reads (mode {mode})")
    rank = len(dims(required(node, 0)))
    axes = integers(node, "axes", 3) or list(range(rank))
    back = [0] * (2 * rank)
    for axis, begin, end in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        back[axis % rank], back[rank + axis % rank] = -begin, -end
    return tape.op("Pad", g, tape.ints(back))


def resize(tape: GradientTape, node: ir.Node, index: int, g: ir.Value) -> ir.Value:
    """Nearest neighbour, larger by whole factors: every pixel gets the sum over its copies."""
    x = required(node, 0)
    how = (
        _text(node, "coordinate_transformation_mode", "half_pixel"),
        _text(node, "nearest_mode", "round_prefer_floor"),
    )
    if index != 0 or _text(node, "mode", "nearest") != "nearest" or how not in _NEAREST:
        raise NoGradientError(f"only nearest neighbours are differentiated: node '{node.name}'")
    small, large = (
        [length(v, axis) for axis in range(1, len(dims(x)))] for v in (x, node.outputs[0])
    )
    if any(b % a for a, b in zip(small, large, strict=True)):
        raise NoGradientError(f"'{node.name}' does not enlarge by whole factors")
    blocks = [k for a, b in zip(small, large, strict=True) for k in (a, b // a)]
    apart = tape.op("Reshape", g, tape.ints([-1, *blocks]))
    copies = range(2, len(blocks) + 1, 2)
    return tape.reshape_like(tape.reduce("ReduceSum", apart, copies), x)
