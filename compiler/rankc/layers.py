"""Layers with constant weights, y = x W + b: read as numpy, written back as factors."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from rankc.graph import attribute, constant, new_initializer, only_input, replace_node
from rankc.linalg import Floats


def has_row_bias(node: ir.Node) -> bool:
    """Whether what is added to x W is nothing or one constant row: a Gemm's C may be a matrix."""
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return True
    bias = constant(node.inputs[2])
    return bias is not None and (bias.ndim < 2 or bias.shape[0] == 1)


def layer(node: ir.Node) -> tuple[Floats, Floats | None]:
    """W (n, m) and b (m,) or None of y = x W + b, float64, Gemm's alpha and beta applied."""
    matrix = constant(node.inputs[1], ndim=2)
    assert matrix is not None, node.name
    weight = matrix.astype(np.float64)
    if node.op_type == "MatMul":
        return weight, None
    if attribute(node, "transB", 0):
        weight = weight.T
    scale = {key: a.as_float() for key, a in node.attributes.items() if key in ("alpha", "beta")}
    weight = weight * scale.get("alpha", 1.0)
    added = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if added is None:
        return weight, None
    bias = added.reshape(-1).astype(np.float64) * scale.get("beta", 1.0)
    return weight, np.broadcast_to(bias, weight.shape[1:])


def replace_layer(
    model: ir.Model,
    node: ir.Node,
    first: NDArray[np.float32],
    second: NDArray[np.float32],
    bias: Floats | None,
) -> None:
    """Put (x first) second + bias in the place of `node`; a Gemm stays a Gemm."""
    name, tape = str(node.name), ir.tape.Tape()
    a, b = (new_initializer(model, f"{name}.{k}", f) for k, f in (("A", first), ("B", second)))
    hidden = tape.op("MatMul", [only_input(node), a], name=f"{name}.A")
    added = [] if bias is None else [new_initializer(model, f"{name}.b", bias.astype(np.float32))]
    if node.op_type == "Gemm":
        out = tape.op("Gemm", [hidden, b, *added], name=f"{name}.B")
    else:
        out = tape.op("MatMul", [hidden, b], name=f"{name}.B")
        if added:
            out = tape.op("Add", [out, *added], name=f"{name}.b")
    replace_node(model, node, tape.nodes, out)
