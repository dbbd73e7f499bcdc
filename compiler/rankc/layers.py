"""Layers with constant weights, y = x W + b: read as numpy, written back as factors."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from rankc.graph import attribute, constant, new_initializer, only_input, replace_node, why_shared
from rankc.linalg import Floats
from rankc.pivot import Pivoted, in_order


def has_row_bias(node: ir.Node) -> bool:
    """Whether what is added to x W is nothing or one constant row: a Gemm's C may be a matrix."""
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return True
    bias = constant(node.inputs[2])
    return bias is not None and (bias.ndim < 2 or bias.shape[0] == 1)


def refusal(node: ir.Node) -> str | None:
    """Why a MatMul or Gemm with a constant weight cannot be read as `layer` does, else None."""
    if reason := why_shared(only_input(node, 1)):
        return reason
    if node.op_type == "Gemm" and attribute(node, "transA", 0):
        return "a Gemm with transA has no batch rows"
    if not has_row_bias(node):
        return "its bias is not one constant row"
    return None


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


def replace_by_pivots(
    model: ir.Model,
    node: ir.Node,
    factors: tuple[NDArray[np.float32], NDArray[np.float32]],
    bias: Floats | None,
    found: Pivoted,
) -> None:
    """Put the outputs that are kept, and the others out of those, in the place of `node`.

    Args:
        model: that `node` is in.
        node: a Gemm stays Gemms.
        factors: of the kept outputs, (n, r), and C, (r, m - r).
        bias: of all outputs, (m,).
        found: which outputs are kept.
    """
    name, tape, (kept, mix) = str(node.name), ir.tape.Tape(), factors
    first, second = found.biases(bias)
    out = _applied(model, tape, node, only_input(node), (f"{name}.kept", kept, first))
    if len(found.others):
        rest = _applied(model, tape, node, out, (f"{name}.others", mix, second))
        out = in_order(model, tape, name, [out, rest], found, _last_axis(node))
    replace_node(model, node, tape.nodes, out)


def _applied(
    model: ir.Model,
    tape: ir.tape.Tape,
    node: ir.Node,
    value: ir.Value,
    by: tuple[str, NDArray[np.float32], Floats | None],
) -> ir.Value:
    """The value times a matrix plus a bias, by the operator of `node`."""
    name, matrix, bias = by
    weight = new_initializer(model, name, matrix)
    added = []
    if bias is not None:
        added.append(new_initializer(model, f"{name}.b", bias.astype(np.float32)))
    if node.op_type == "Gemm":
        return tape.op("Gemm", [value, weight, *added], name=name)
    out = tape.op("MatMul", [value, weight], name=name)
    return tape.op("Add", [out, *added], name=f"{name}.b") if added else out


def _last_axis(node: ir.Node) -> int:
    """Of its output; counted from the back where its shape is not known."""
    shape = node.outputs[0].shape
    return 1 if node.op_type == "Gemm" else -1 if shape is None else len(shape) - 1
