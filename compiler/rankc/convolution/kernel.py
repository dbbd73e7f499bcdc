"""A Conv node as arrays, and chains of convolutions written back in its place."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from rankc.graph import constant, new_initializer, only_input, replace_node, why_shared
from rankc.linalg import Floats
from rankc.passbase import Dense
from rankc.windows import Window


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Kernel:
    """Weights and geometry of one convolution."""

    weight: Floats  # (groups, m, C, *kernel): outputs and inputs of one group
    bias: Floats | None  # (groups m,)
    window: Window

    @property
    def matrix(self) -> Floats:
        """(groups, m, C taps): y = matrix p + bias for a patch p."""
        groups, m = self.weight.shape[:2]
        return self.weight.reshape(groups, m, -1)

    @property
    def dense(self) -> Dense:
        """What it costs as it is."""
        count = self.weight.size + (0 if self.bias is None else self.bias.size)
        macs = self.weight.size * math.prod(self.window.output)
        return Dense(parameters=count, macs=macs, size_bytes=4 * count)


@dataclasses.dataclass(frozen=True, slots=True)
class Stage:
    """One convolution of a chain: what it costs is known before its weights are."""

    shape: tuple[int, ...]  # of its weight: (outputs, inputs of a group, *kernel)
    window: Window

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return math.prod(self.shape) * math.prod(self.window.output)


def refusal(node: ir.Node) -> str | None:
    """Why a Conv cannot be read as a `Kernel`, else None."""
    weight = node.inputs[1]
    if constant(weight) is None:
        return "its weight is no float32 constant"
    assert weight is not None
    if reason := why_shared(weight):
        return reason
    if len(node.inputs) > 2 and node.inputs[2] is not None and constant(node.inputs[2]) is None:
        return "its bias is no float32 constant"
    if space_of(only_input(node)) is None:
        return "its input has no fixed height and width: export with fixed sizes, a free batch axis"
    if _unread(node):
        return "auto_pad SAME with a stride that skips pixels means other things elsewhere"
    return None


def _unread(node: ir.Node) -> bool:
    """Whether auto_pad SAME would have to start inside the image, which not all runtimes do."""
    if not node.attributes.get_string("auto_pad", "NOTSET").startswith("SAME"):
        return False
    w = window_of(node)
    axes = zip(w.size, w.kernel, w.strides, w.dilations, w.output, strict=True)
    return any(n - ((out - 1) * s + d * (k - 1) + 1) > 1 for n, k, s, d, out in axes)


def kernel_of(node: ir.Node, positions: int = 64) -> Kernel:
    """Read a Conv with constant weights and an input of fixed size, see `refusal`."""
    array = constant(node.inputs[1])
    assert array is not None, node.name
    window = window_of(node, positions)
    weight = array.astype(np.float64)
    split = weight.reshape(window.groups, -1, *weight.shape[1:])
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    return Kernel(split, None if bias is None else bias.astype(np.float64), window)


def window_of(node: ir.Node, positions: int = 64) -> Window:
    """Geometry of a Conv, auto_pad resolved."""
    weight, size = only_input(node, 1).shape, space_of(only_input(node))
    assert weight is not None and size is not None, node.name
    kernel = tuple(int(k) for k in weight.numpy()[2:])
    axes = len(kernel)
    strides, dilations = _axes(node, "strides", (1,) * axes), _axes(node, "dilations", (1,) * axes)
    begins, ends = _pads(node, size, kernel, strides, dilations)
    groups = node.attributes.get_int("group", 1)
    return Window(size, kernel, strides, begins, ends, dilations, groups, positions)


def space_of(value: ir.Value) -> tuple[int, ...] | None:
    """The axes behind batch and channels, if all are numbers."""
    shape = value.shape
    if shape is None or len(shape) < 3 or not all(isinstance(d, int) for d in shape[2:]):
        return None
    return tuple(int(d) for d in shape[2:] if isinstance(d, int))


def _axes(node: ir.Node, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(node.attributes.get_ints(name, default) or default)


def _pads(
    node: ir.Node,
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Padding before and after each axis."""
    axes, mode = len(kernel), node.attributes.get_string("auto_pad", "NOTSET")
    if mode == "NOTSET":
        pads = _axes(node, "pads", (0,) * (2 * axes))
        return pads[:axes], pads[axes:]
    if mode == "VALID":
        return (0,) * axes, (0,) * axes
    whole = [
        max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
        for n, k, s, d in zip(size, kernel, strides, dilations, strict=True)
    ]
    less, more = tuple(p // 2 for p in whole), tuple(p - p // 2 for p in whole)
    return (less, more) if mode == "SAME_UPPER" else (more, less)


def pointwise(window: Window, size: tuple[int, ...], groups: int = 1) -> Window:
    """A 1 x 1 convolution over an image of that size."""
    ones, zeros = (1,) * len(size), (0,) * len(size)
    return dataclasses.replace(
        window,
        size=size,
        kernel=ones,
        strides=ones,
        begins=zeros,
        ends=zeros,
        dilations=ones,
        groups=groups,
    )


def along(window: Window, axes: Sequence[int], groups: int) -> Window:
    """The part of a convolution that runs along some axes of space; the others pass through."""

    def part(values: tuple[int, ...], default: int) -> tuple[int, ...]:
        return tuple(v if axis in axes else default for axis, v in enumerate(values))

    return dataclasses.replace(
        window,
        kernel=part(window.kernel, 1),
        strides=part(window.strides, 1),
        begins=part(window.begins, 0),
        ends=part(window.ends, 0),
        dilations=part(window.dilations, 1),
        groups=groups,
    )


def replace_conv(
    model: ir.Model,
    node: ir.Node,
    stages: Sequence[Stage],
    weights: Sequence[NDArray[np.float64]],
    bias: Floats | None,
) -> None:
    """Put a chain of convolutions in the place of `node`; the last one has the bias."""
    name, tape, value = str(node.name), ir.tape.Tape(), only_input(node)
    for k, (stage, weight) in enumerate(zip(stages, weights, strict=True)):
        added = bias if k == len(stages) - 1 else None
        value = convolve(
            model, tape, value, stage, (f"{name}.{'ABC'[k]}", weight), (f"{name}.b", added)
        )
    replace_node(model, node, tape.nodes, value)


def convolve(
    model: ir.Model,
    tape: ir.tape.Tape,
    value: ir.Value,
    stage: Stage,
    weight: tuple[str, Floats],
    bias: tuple[str, Floats | None],
) -> ir.Value:
    """One stage applied to a value; the node is called as its weight. The shape is set."""
    name, array = weight
    inputs = [value, new_initializer(model, name, array.reshape(stage.shape).astype(np.float32))]
    if bias[1] is not None:
        inputs.append(new_initializer(model, bias[0], bias[1].astype(np.float32)))
    batch = value.shape[0] if value.shape is not None else None
    found = tape.op("Conv", inputs, attributes=_attributes(stage.window), name=name)
    found.type = ir.TensorType(ir.DataType.FLOAT)
    found.shape = ir.Shape([batch, stage.shape[0], *stage.window.output])
    return found


def _attributes(window: Window) -> dict[str, int | list[int]]:
    return {
        "dilations": list(window.dilations),
        "group": window.groups,
        "kernel_shape": list(window.kernel),
        "pads": [*window.begins, *window.ends],
        "strides": list(window.strides),
    }
