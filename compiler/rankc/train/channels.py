"""Layers whose channels can be scaled and shifted: what a BatchNormalization folds into."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from rankc.graph import array_of, attribute, drop_unused, new_initializer, only_input, values
from rankc.linalg import Floats

Array = NDArray[Any]

CONVOLUTIONS = ("Conv", "ConvTranspose")
LAYERS = (*CONVOLUTIONS, "Gemm", "MatMul")


@dataclasses.dataclass(frozen=True, slots=True)
class Layer:
    """y = W x + b, W and b constant; the channels of y are along its axis 1."""

    node: ir.Node
    add: ir.Node | None  # that adds the bias of a MatMul
    bias: Floats | None  # (channels,)

    @property
    def output(self) -> ir.Value:
        """Where y is."""
        return (self.add or self.node).outputs[0]

    @property
    def channels(self) -> int:
        """How many there are."""
        return _channels(self.node, np.asarray(array_of(self.node.inputs[1])))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the weight."""
        found = only_input(self.node, 1).dtype
        assert found is not None
        return found.numpy()


def layer_of(node: ir.Node) -> Layer | None:
    """The layer that `node` is, or None where it is none that can be scaled by channel."""
    weight = array_of(node.inputs[1]) if node.op_type in LAYERS else None
    if weight is None or not np.issubdtype(weight.dtype, np.floating):
        return None
    if node.op_type == "MatMul" and (weight.ndim != 2 or _rank(node.outputs[0]) != 2):
        return None
    add = _add_behind(node) if node.op_type == "MatMul" else None
    read = node.inputs[2:] if add is None else add.inputs
    value = next((v for v in read if v not in (None, node.outputs[0])), None)
    if value is None:
        return Layer(node, add, None)
    row = _row(value, _channels(node, weight))
    return None if row is None else Layer(node, add, _beta(node) * row)


def scale_weight(model: ir.Model, node: ir.Node, by: Floats) -> None:
    """Scale the channels of a layer; weights that others read stay as they are."""
    value = only_input(node, 1)
    tensor = value.const_value
    assert tensor is not None
    array = _scaled(node, tensor.numpy(), by).astype(tensor.numpy().dtype)
    if len(value.uses()) > 1 or value.is_graph_output():
        node.replace_input_with(1, new_initializer(model, f"{node.name}.weight", array))
    else:
        value.const_value = ir.tensor(array, name=value.name)


def take_bias(model: ir.Model, layer: Layer) -> str | None:
    """Let a layer read no bias; the name that this frees."""
    holder, k = (layer.node, 2) if layer.add is None else (layer.add, _added(layer))
    bias = holder.inputs[k] if len(holder.inputs) > k else None
    if bias is None:
        return None
    holder.replace_input_with(k, None)
    if layer.add is None:
        holder.resize_inputs(2)
    drop_unused(model, [bias])
    return None if bias.uses() or bias.is_graph_output() else str(bias.name)


def give_bias(model: ir.Model, layer: Layer, bias: ir.Value) -> None:
    """Let a layer whose bias was taken, or that never had one, add this one."""
    node, product = layer.node, layer.node.outputs[0]
    if layer.add is not None:
        layer.add.replace_input_with([v is None for v in layer.add.inputs].index(True), bias)
    elif node.op_type != "MatMul":
        node.resize_inputs(3)
        node.replace_input_with(2, bias)
        node.attributes.pop("beta", None)
    else:
        total = ir.Value(name=product.name, type=product.type, shape=product.shape)
        product.name = unique_name(f"{node.name}.product", {str(v.name) for v in values(model)})
        ir.convenience.replace_all_uses_with(product, total, replace_graph_outputs=True)
        name = unique_name(f"{node.name}.b", {str(n.name) for n in model.graph})
        add = ir.Node("", "Add", [product, bias], outputs=[total], name=name)
        model.graph.insert_after(node, add)


def unique_name(name: str, taken: Collection[str]) -> str:
    """The name, with a number behind it where it is taken."""
    unique, k = name, 1
    while unique in taken:
        unique, k = f"{name}.{k}", k + 1
    return unique


def _add_behind(node: ir.Node) -> ir.Node | None:
    """The Add that is the only reader of a MatMul, where it adds a constant row."""
    product, weight = node.outputs[0], array_of(node.inputs[1])
    readers = product.consumers()
    if len(readers) != 1 or readers[0].op_type != "Add" or product.is_graph_output():
        return None
    others = [v for v in readers[0].inputs if v is not product]
    assert weight is not None
    added = len(others) == 1 and _row(others[0], weight.shape[1]) is not None
    return readers[0] if added and _rank(readers[0].outputs[0]) == 2 else None


def _row(value: ir.Value | None, width: int) -> Floats | None:
    """A constant of one row, (width,) in float64; None where it is anything else."""
    array = array_of(value)
    if array is None or array.size not in (1, width) or array.shape[-1:] not in ((), (array.size,)):
        return None
    return np.broadcast_to(array.reshape(-1).astype(np.float64), (width,))


def _rank(value: ir.Value) -> int | None:
    return None if value.shape is None else len(value.shape)


def _beta(node: ir.Node) -> float:
    found = node.attributes.get("beta")
    return 1.0 if found is None else float(found.as_float())


def _channels(node: ir.Node, weight: Array) -> int:
    if node.op_type == "ConvTranspose":
        return int(weight.shape[1]) * attribute(node, "group", 1)
    first = node.op_type == "Conv" or attribute(node, "transB", 0)
    return int(weight.shape[0 if first else 1])


def _scaled(node: ir.Node, weight: Array, by: Floats) -> Floats:
    """The weights of a layer whose channel k puts out by[k] as much."""
    array = weight.astype(np.float64)
    if node.op_type == "ConvTranspose":  # (inputs, outputs of a group, ...)
        groups = attribute(node, "group", 1)
        split = array.reshape(groups, -1, *array.shape[1:])
        factors = by.reshape(groups, 1, -1, *[1] * (array.ndim - 2))
        return np.asarray(split * factors).reshape(array.shape)
    first = node.op_type == "Conv" or attribute(node, "transB", 0)
    return np.asarray(array * (by.reshape(-1, *[1] * (array.ndim - 1)) if first else by))


def _added(layer: Layer) -> int:
    """Which input of the Add is the bias."""
    assert layer.add is not None
    return 1 if layer.add.inputs[0] is layer.node.outputs[0] else 0
