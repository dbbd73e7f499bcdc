"""What the rules of `gradient` are written with: appending nodes, constants, undoing broadcasts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

PREFIX = "rankc.grad"

Attribute = int | float | str | Sequence[int] | ir.TensorProtocol


class NoGradientError(Exception):
    """A rule cannot say what the gradient is; the text is the reason. Never reaches a user."""


def dims(value: ir.Value) -> list[int | str | None]:
    """Dimensions of `value`: a length, the name of a symbol, or None where nothing is known.

    Raises:
        NoGradientError: Not even the rank is known.
    """
    if value.shape is None:
        raise NoGradientError(f"the shape of '{value.name}' is unknown")
    return [d if isinstance(d, int) else _name(d) for d in value.shape]


def _name(dim: ir.SymbolicDim) -> str | None:
    """The symbol's name, unless shape inference only made one up."""
    return None if dim.value is None or dim.value.startswith("unk__") else dim.value


def length(value: ir.Value, axis: int) -> int:
    """Static length of one axis. Raises NoGradientError where it is symbolic."""
    size = dims(value)[axis]
    if not isinstance(size, int):
        raise NoGradientError(f"axis {axis} of '{value.name}' has no fixed length")
    return size


def constant_of(node: ir.Node, index: int) -> NDArray[Any] | None:
    """The constant at input `index`, None where the input is absent. Raises NoGradientError."""
    value = operand(node, index)
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None or value.is_graph_input():
        raise NoGradientError(f"input '{value.name}' of '{node.name}' is not a constant")
    return tensor.numpy()


def operand(node: ir.Node, index: int) -> ir.Value | None:
    """Input `index` of the node, None where it is absent."""
    return node.inputs[index] if index < len(node.inputs) else None


def required(node: ir.Node, index: int) -> ir.Value:
    """Input `index` of the node, which the operator cannot be without."""
    value = operand(node, index)
    if value is None:
        raise NoGradientError(f"node '{node.name}' has no input {index}")
    return value


def integers(node: ir.Node, name: str, index: int) -> list[int] | None:
    """Integers that are attribute `name` in old opsets and input `index` in newer ones."""
    if name in node.attributes:
        return [int(i) for i in node.attributes[name].as_ints()]
    array = constant_of(node, index)
    return None if array is None else [int(i) for i in array.reshape(-1)]


def integer(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute."""
    return node.attributes.get_int(name, default) if name in node.attributes else default


def real(node: ir.Node, name: str, default: float) -> float:
    """A float attribute."""
    return node.attributes.get_float(name, default) if name in node.attributes else default


def _may_be_equal(small: int | str | None, large: int | str | None) -> bool:
    """Whether neither has a length and one has no name: shape inference lost it in a Reshape."""
    nameless = small is None or large is None
    return nameless and not isinstance(small, int) and not isinstance(large, int)


class GradientTape:
    """Appends backward nodes to a graph."""

    def __init__(self, graph: ir.Graph) -> None:
        self._tape = ir.tape.Tape(graph)
        self.opset = graph.opset_imports.get("", 18)
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        self.gradients: dict[ir.Value, ir.Value] = {}  # of forward values, summed so far

    @property
    def nodes(self) -> Sequence[ir.Node]:
        """What was appended, in order."""
        return self._tape.nodes

    @property
    def constants(self) -> Sequence[ir.Value]:
        """Initializers that were made on the way."""
        return tuple(self._constants.values())

    def op(self, op_type: str, *inputs: ir.Value, **attributes: Attribute) -> ir.Value:
        """Append a node of the default domain with one output."""
        name = f"{PREFIX}.{len(self._tape.nodes)}"
        out = ir.Value(name=name)
        return self._tape.op(op_type, inputs, attributes or None, name=name, output=out)

    def second(self, op_type: str, *inputs: ir.Value, **attributes: Attribute) -> ir.Value:
        """Append a node with two outputs; returns the second."""
        name = f"{PREFIX}.{len(self._tape.nodes)}"
        outs = [ir.Value(name=name), ir.Value(name=f"{name}.second")]
        self._tape.op_multi_out(op_type, inputs, attributes or None, name=name, outputs=outs)
        return outs[1]

    def accumulate(self, value: ir.Value, gradient: ir.Value) -> None:
        """Add to the gradient of a forward value."""
        known = self.gradients.get(value)
        self.gradients[value] = gradient if known is None else self.op("Add", known, gradient)

    def constant(self, array: NDArray[Any]) -> ir.Value:
        """An initializer; equal arrays share one."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"{PREFIX}.const.{len(self._constants)}"
            self._constants[key] = self._tape.initializer(ir.tensor(array, name=name))
        return self._constants[key]

    def ints(self, values: Sequence[int]) -> ir.Value:
        """A 1-D int64 constant."""
        return self.constant(np.asarray(values, dtype=np.int64).reshape(-1))

    def scalar(self, like: ir.Value, number: float) -> ir.Value:
        """A 0-D constant of the type of `like`."""
        if like.dtype is None:
            raise NoGradientError(f"the type of '{like.name}' is unknown")
        return self.constant(np.asarray(number, dtype=like.dtype.numpy()))

    def filled_like(self, value: ir.Value, number: float) -> ir.Value:
        """A tensor of the shape and type of `value`, every element `number`."""
        if value.dtype is None:
            raise NoGradientError(f"the type of '{value.name}' is unknown")
        fill = ir.tensor(np.full(1, number, dtype=value.dtype.numpy()))
        return self.op("ConstantOfShape", self.op("Shape", value), value=fill)

    def cast_like(self, value: ir.Value, like: ir.Value) -> ir.Value:
        """`value` in the type of `like`."""
        if like.dtype is None:
            raise NoGradientError(f"the type of '{like.name}' is unknown")
        return self.op("Cast", value, to=int(like.dtype))

    def times(self, gradient: ir.Value, like: ir.Value, number: float) -> ir.Value:
        """`gradient` times a number; nothing is appended for 1."""
        return gradient if number == 1 else self.op("Mul", gradient, self.scalar(like, number))

    def reduce(self, op_type: str, value: ir.Value, axes: Sequence[int]) -> ir.Value:
        """ReduceSum or ReduceMean over `axes`, which stay as length 1."""
        if op_type == "ReduceSum" or self.opset >= 18:
            return self.op(op_type, value, self.ints(axes), keepdims=1)
        return self.op(op_type, value, axes=list(axes), keepdims=1)

    def reshape_like(self, gradient: ir.Value, value: ir.Value) -> ir.Value:
        """`gradient` in the shape of `value`, which has as many elements."""
        sizes = None if value.shape is None else dims(value)
        if sizes is None or sum(not isinstance(size, int) for size in sizes) > 1:
            return self.op("Reshape", gradient, self.op("Shape", value))
        target = [size if isinstance(size, int) else -1 for size in sizes]
        return self.op("Reshape", gradient, self.ints(target))

    def unbroadcast(
        self, gradient: ir.Value, value: ir.Value, result: Sequence[int | str | None]
    ) -> ir.Value:
        """Sum `gradient`, of shape `result`, over the axes along which `value` was expanded.

        An axis without a length is the batch, or another axis that the whole graph agrees on: it
        is taken not to be expanded, unless its names differ.

        Raises:
            NoGradientError: It cannot be told from the shapes which axes those are.
        """
        own = dims(value)
        lead = len(result) - len(own)
        axes = list(range(lead))
        for axis, (small, large) in enumerate(zip(own, result[lead:], strict=True), start=lead):
            if small == 1 and large != 1:
                axes.append(axis)
            elif small != large and not _may_be_equal(small, large):
                raise NoGradientError(f"axis {axis} of '{value.name}' may be broadcast")
        if not axes:
            return gradient
        summed = self.reduce("ReduceSum", gradient, axes)
        return self.reshape_like(summed, value) if lead else summed
