"""Tiny models that several tests share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Array = NDArray[Any]


def model_of(
    tape: ir.tape.Tape, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value], opset: int = 18
) -> ir.Model:
    """A model out of what was recorded on the tape."""
    graph = ir.Graph(
        list(inputs),
        list(outputs),
        nodes=tape.nodes,
        initializers=tape.initializers,
        opset_imports={"": opset},
        name="main_graph",
    )
    return ir.Model(graph, ir_version=10)


def weight(tape: ir.tape.Tape, name: str, array: Array) -> ir.Value:
    """Register `array` as an initializer called `name`."""
    return tape.initializer(ir.tensor(array, name=name))


def mlp(rank: int = 16, seed: int = 0) -> ir.Model:
    """p = sigmoid(relu(x A) B + b): A (16, 24) of the given rank, B (24, 8) as a Gemm; 8 outputs."""
    rng = np.random.default_rng(seed)
    a = (rng.normal(size=(16, rank)) @ rng.normal(size=(rank, 24))).astype(np.float32) / rank
    b = rng.normal(size=(8, 24)).astype(np.float32)
    bias = rng.normal(size=8).astype(np.float32)
    x = ir.val("x", ir.DataType.FLOAT, ["batch", 16])
    tape = ir.tape.Tape()
    up = tape.op("MatMul", [x, weight(tape, "A", a)], name="up")
    hidden = tape.op("Relu", [up], name="relu")
    down = tape.op(
        "Gemm",
        [hidden, weight(tape, "B", b), weight(tape, "b", bias)],
        attributes={"transB": 1},
        name="down",
    )
    y = ir.val("y", ir.DataType.FLOAT, ["batch", 8])
    tape.op("Sigmoid", [down], name="head", output=y)
    return model_of(tape, [x], [y])


def mlp_rows(rows: int = 256, seed: int = 1) -> Array:
    """Input rows for `mlp`, correlated and with a mean, (rows, 16)."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(16, 16)) * (0.6 ** np.arange(16))
    return (rng.normal(size=(rows, 16)) @ mix + rng.normal(size=16)).astype(np.float32)
