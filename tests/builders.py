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
    """y = sigmoid(relu(x A) B + b): A (16, 24) of the given rank, B (24, 8) in a Gemm."""
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
    table: Array = rng.normal(size=(rows, 16)) @ mix + rng.normal(size=16)
    return table.astype(np.float32)


def lookup(seed: int = 0, padding: bool = False) -> ir.Model:
    """Two tables of correlated rows, concatenated, then layers of 40 and 1: p (batch, 1).

    `ids` (batch, 3): columns 0 and 2 read `user` (60, 12), column 1 reads `item` (9, 12).
    """
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(12, 12)) * 0.7 ** np.arange(12)
    user, item = ((rng.normal(size=(v, 12)) @ mix + 0.3).astype(np.float32) for v in (60, 9))
    if padding:
        user[0] = 0
    ids, tape = ir.val("ids", ir.DataType.INT64, ["batch", 3]), ir.tape.Tape()
    tables = {"user": weight(tape, "user", user), "item": weight(tape, "item", item)}
    rows = []
    for k, name in enumerate(("user", "item", "user")):
        column = weight(tape, f"column{k}", np.asarray(k, np.int64))
        field = tape.op("Gather", [ids, column], attributes={"axis": 1}, name=f"field{k}")
        rows.append(tape.op("Gather", [tables[name], field], name=f"lookup{k}"))
    x = tape.op("Concat", rows, attributes={"axis": 1}, name="concat")
    w1 = weight(tape, "w1", (rng.normal(size=(36, 40)) / 6).astype(np.float32))
    w2 = weight(tape, "w2", (rng.normal(size=(1, 40)) / 6).astype(np.float32))
    b1, b2 = (
        weight(tape, f"b{k}", rng.normal(size=m).astype(np.float32)) for k, m in ((1, 40), (2, 1))
    )
    hidden = tape.op("Relu", [tape.op("Gemm", [x, w1, b1], name="fc1")], name="relu1")
    logit = tape.op("Gemm", [hidden, w2, b2], attributes={"transB": 1}, name="fc2")
    p = ir.val("p", ir.DataType.FLOAT, ["batch", 1])
    tape.op("Sigmoid", [logit], name="head", output=p)
    return model_of(tape, [ids], [p])


def lookup_rows(rows: int = 512, seed: int = 1) -> Array:
    """Ids for `lookup`, the low ones read more often, (rows, 3)."""
    rng = np.random.default_rng(seed)
    skewed: Array = rng.random((rows, 3)) ** 2 * np.array([55, 9, 55])  # 55 to 59: never read
    return skewed.astype(np.int64)
