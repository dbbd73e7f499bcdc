"""Layers that are linear in rows: a Conv over patches, a Gemm, a MatMul, read and written alike."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from rankc.convolution.kernel import Kernel, kernel_of, refusal
from rankc.factors import DIRECTIONS, LEARNED
from rankc.graph import attribute, constant, new_initializer, node_named
from rankc.layers import has_row_bias, layer
from rankc.linalg import Floats

Array = NDArray[Any]


class Linear(Protocol):
    """y = W x + b at every place of a value; x and y in groups that do not mix."""

    weight: Floats  # (groups, m, n)
    bias: Floats | None  # (groups m,)
    biased: bool  # whether it has a bias to write to: none is added, so that sizes are as planned
    grouped: bool  # whether its moments have an axis for groups, see `Moments`

    def draw(self, rng: np.random.Generator) -> Any:
        """Some places of one batch."""
        ...

    def inputs(self, value: Array, places: Any) -> Array:
        """Rows x of the input value at those places, (groups, N, n)."""
        ...

    def outputs(self, value: Array, places: Any) -> Array:
        """Rows of a value shaped like the output, at the same places, (groups, N, m)."""
        ...

    def write(self, model: ir.Model, name: str, weight: Floats, bias: Floats | None) -> None:
        """Give the node of that name in `model` other weights."""
        ...


def linear_of(node: ir.Node, positions: int) -> Linear | None:
    """A node with constant weights as a linear layer; None if it is none, or shares them."""
    if node.op_type == "Conv":
        return None if refusal(node) else _Conv(kernel_of(node, positions))
    if node.op_type not in ("Gemm", "MatMul") or constant(node.inputs[1], ndim=2) is None:
        return None
    if len(node.inputs[1].uses()) > 1 or not has_row_bias(node):  # type: ignore[union-attr]
        return None
    return None if node.op_type == "Gemm" and attribute(node, "transA", 0) else _Dense(node)


class _Conv:
    grouped = True

    def __init__(self, kernel: Kernel) -> None:
        self._kernel, self.weight, self.bias = kernel, kernel.matrix, kernel.bias
        self.biased = kernel.bias is not None

    def draw(self, rng: np.random.Generator) -> NDArray[np.int64]:
        return self._kernel.window.draw(rng)

    def inputs(self, value: Array, places: NDArray[np.int64]) -> Array:
        index, inside = self._kernel.window.under(places)
        flat = value.reshape(*value.shape[:2], -1)
        return self._kernel.window.rows(flat[:, :, index.ravel()], inside)

    def outputs(self, value: Array, places: NDArray[np.int64]) -> Array:
        groups = self._kernel.window.groups
        pixels = value.reshape(len(value), groups, value.shape[1] // groups, -1)[..., places]
        rows = pixels.transpose(1, 0, 3, 2)
        return np.asarray(rows.reshape(groups, -1, pixels.shape[2]))

    def write(self, model: ir.Model, name: str, weight: Floats, bias: Floats | None) -> None:
        node, shape = node_named(model, name), self._kernel.weight.shape
        whole = weight.reshape(-1, *shape[2:])
        _put(model, node, 1, whole)
        if bias is not None:
            _put(model, node, 2, bias)


class _Dense:
    grouped = False

    def __init__(self, node: ir.Node) -> None:
        weight, self.bias = layer(node)
        self.weight, self.biased = weight.T[None], self.bias is not None

    def draw(self, rng: np.random.Generator) -> None:
        return None

    def inputs(self, value: Array, places: None) -> Array:
        return value.reshape(1, -1, value.shape[-1])

    outputs = inputs

    def write(self, model: ir.Model, name: str, weight: Floats, bias: Floats | None) -> None:
        node = node_named(model, name)
        for key in ("alpha", "beta"):
            node.attributes.pop(key, None)
        turned = node.op_type == "Gemm" and attribute(node, "transB", 0)
        _put(model, node, 1, weight[0] if turned else weight[0].T)
        if bias is not None:
            _put(model, node, 2, bias)


def _put(model: ir.Model, node: ir.Node, index: int, array: Floats) -> None:
    """Let input `index` be a new initializer; what was read there stays for others, or goes."""
    before = node.inputs[index] if len(node.inputs) > index else None
    name = before.name if before is not None and before.name else f"{node.name}.{index}"
    if before is not None and len(before.uses()) == 1:
        model.graph.initializers.pop(str(before.name), None)
        before.name = f"{name}.before"
    if len(node.inputs) <= index:
        node.resize_inputs(index + 1)
    value = new_initializer(model, str(name), array.astype(np.float32))
    for key in (DIRECTIONS, LEARNED):
        if before is not None and key in before.meta:
            value.meta[DIRECTIONS] = before.meta[key]
    node.replace_input_with(index, value)
