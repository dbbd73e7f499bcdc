"""Small click models, node for node as torch.onnx.export writes them; local rewrites of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from builders import Array, model_of, weight
from rankc.graph import constant, new_initializer, only_input, replace_node

VOCABULARIES = (5, 7, 11, 6)


class Net:
    """What the builders below share: inputs `ids` (batch, F) and `dense` (batch, 3)."""

    def __init__(self, vocabularies: Sequence[int], seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.tape = ir.tape.Tape()
        self.vocabularies = vocabularies
        self.ids = ir.val("ids", ir.DataType.INT64, ["batch", len(vocabularies)])
        self.dense = ir.val("dense", ir.DataType.FLOAT, ["batch", 3])
        self.one = weight(self.tape, "one", np.array([1]))
        self.columns = [
            self.op("Gather", [self.ids, weight(self.tape, f"k{k}", np.array(k))], axis=1)
            for k in range(len(vocabularies))
        ]

    def op(
        self, kind: str, inputs: Sequence[ir.Value], name: str = "", **attributes: Any
    ) -> ir.Value:
        return self.tape.op(kind, inputs, attributes=attributes or None, name=name or None)

    def scalar(self, name: str, number: float) -> ir.Value:
        return weight(self.tape, name, np.array(number, np.float32))

    def random(self, name: str, *shape: int) -> ir.Value:
        array = self.rng.normal(size=shape) / np.sqrt(shape[-1])
        return weight(self.tape, name, array.astype(np.float32))

    def stack(self, label: str, width: int) -> ir.Value:
        """Rows of one table a field, (batch, F, width)."""
        rows = [
            self.op("Gather", [self.random(f"{label}.{k}", v, width), column], f"{label}_{k}")
            for k, (v, column) in enumerate(zip(self.vocabularies, self.columns, strict=True))
        ]
        return self.op("Concat", [self.op("Unsqueeze", [r, self.one]) for r in rows], axis=1)

    def flat(self, stacked: ir.Value, width: int) -> ir.Value:
        size = np.array([-1, len(self.vocabularies) * width])
        shape = weight(self.tape, "flat_shape", size)
        return self.op("Concat", [self.op("Reshape", [stacked, shape]), self.dense], "x0", axis=1)

    def linear(self, x: ir.Value, name: str, n: int, m: int) -> ir.Value:
        inputs = [x, self.random(f"{name}.weight", m, n), self.random(f"{name}.bias", m)]
        return self.op("Gemm", inputs, name, transB=1)

    def tower(self, x: ir.Value, n: int, hidden: int) -> ir.Value:
        x = self.op("Relu", [self.linear(x, "fc1", n, hidden)])
        return self.op("Relu", [self.linear(x, "fc2", hidden, hidden)])

    def total(self, x: ir.Value, keepdims: int = 0) -> ir.Value:
        return self.op("ReduceSum", [x, self.one], keepdims=keepdims)

    def model(self, logit: ir.Value, *more: ir.Value) -> ir.Model:
        p = ir.val("p", ir.DataType.FLOAT, ["batch", 1])
        self.tape.op("Sigmoid", [logit], name="head", output=p)
        return model_of(self.tape, [self.ids, self.dense, *more], [p])


def deepfm(
    vocabularies: Sequence[int] = VOCABULARIES, width: int = 4, hidden: int = 8, seed: int = 0
) -> ir.Model:
    """wide + FM + a linear term of `dense` + a tower."""
    net = Net(vocabularies, seed)
    e, wide = net.stack("emb", width), net.total(net.stack("wide", 1))
    two = net.scalar("two", 2.0)
    apart = net.op("Sub", [net.op("Pow", [net.total(e), two]), net.total(net.op("Mul", [e, e]))])
    fm = net.op("Mul", [net.total(apart, keepdims=1), net.scalar("half", 0.5)])
    n = len(vocabularies) * width + 3
    logit = net.op("Add", [wide, fm])
    logit = net.op("Add", [logit, net.linear(net.dense, "dense_linear", 3, 1)])
    deep = net.linear(net.tower(net.flat(e, width), n, hidden), "out", hidden, 1)
    return net.model(net.op("Add", [logit, deep]))


def dcn(
    vocabularies: Sequence[int] = VOCABULARIES, width: int = 4, hidden: int = 8, seed: int = 0
) -> ir.Model:
    """Two crosses x0 * (W x + b) + x beside a tower."""
    net = Net(vocabularies, seed)
    n = len(vocabularies) * width + 3
    x0 = net.flat(net.stack("emb", width), width)
    x = x0
    for k in range(2):
        x = net.op("Add", [net.op("Mul", [x0, net.linear(x, f"cross{k}", n, n)]), x])
    both = net.op("Concat", [x, net.tower(x0, n, hidden)], axis=1)
    return net.model(net.linear(both, "out", n + hidden, 1))


def wide_and_deep(
    vocabularies: Sequence[int] = VOCABULARIES, width: int = 4, hidden: int = 8, seed: int = 0
) -> ir.Model:
    """A sum of one weight per id, and a tower."""
    net = Net(vocabularies, seed)
    wide = net.total(net.stack("wide", 1))
    n = len(vocabularies) * width + 3
    tower = net.tower(net.flat(net.stack("emb", width), width), n, hidden)
    return net.model(net.op("Add", [net.linear(tower, "out", hidden, 1), wide]))


def sequence(
    vocabularies: Sequence[int] = VOCABULARIES, width: int = 4, hidden: int = 8, seed: int = 0
) -> ir.Model:
    """The mean of a history of ids, `history` (batch, 5), beside the fields."""
    net = Net(vocabularies, seed)
    history = ir.val("history", ir.DataType.INT64, ["batch", 5])
    rows = net.op("Gather", [net.random("items", 30, width), history], "items")
    mean = net.op("ReduceMean", [rows, net.one], "mean", keepdims=0)
    x = net.op("Concat", [net.flat(net.stack("emb", width), width), mean], axis=1)
    tower = net.tower(x, (len(vocabularies) + 1) * width + 3, hidden)
    return net.model(net.linear(tower, "out", hidden, 1), history)


def feeds(model: ir.Model, rows: int = 16, seed: int = 1) -> dict[str, Array]:
    """Random inputs for any of these models."""
    rng = np.random.default_rng(seed)
    found: dict[str, Array] = {}
    for value in model.graph.inputs:
        assert value.shape is not None
        size = (rows, *(int(d) for d in value.shape[1:]))  # type: ignore[arg-type]
        if value.name == "ids":
            limits = [_rows_read(model, k) for k in range(size[1])]
            found["ids"] = rng.integers(0, limits, size)
        elif value.dtype == ir.DataType.INT64:
            found[str(value.name)] = rng.integers(0, 30, size)
        else:
            found[str(value.name)] = rng.normal(size=size).astype(np.float32)
    return found


def _rows_read(model: ir.Model, column: int) -> int:
    tables = [
        constant(only_input(user))
        for node in model.graph
        if node.op_type == "Gather" and node.inputs[0] is model.graph.inputs[0]
        for user, _ in node.outputs[0].uses()
        if only_input(node, 1).const_value is not None
        and int(only_input(node, 1).const_value.numpy()) == column  # type: ignore[union-attr]
    ]
    return min(len(t) for t in tables if t is not None)


def project(
    model: ir.Model, ranks: Mapping[str, int], seed: int = 2, *, int8: bool = False
) -> None:
    """Give each named table random codes of that rank and a decoder, as the embedding pass does.

    The decoder is orthonormal on all columns but the last when that is a glued wide weight.
    """
    rng = np.random.default_rng(seed)
    for name, rank in ranks.items():
        table = model.graph.initializers[name]
        array = constant(table)
        assert array is not None
        (height, width), deep = array.shape, array.shape[1]
        for node, _ in table.uses():
            if any(u.op_type == "Split" for u, _ in node.outputs[0].uses()):
                deep = width - 1
        decoder = rng.normal(size=(rank, width))
        decoder[:, :deep] = np.linalg.qr(rng.normal(size=(deep, deep)))[0][:, :rank].T
        codes: NDArray[Any] = rng.normal(size=(height, rank)).astype(np.float32)
        if int8:
            codes = rng.integers(-127, 128, (height, rank)).astype(np.int8)
            decoder *= rng.uniform(0.5, 2, (rank, 1)) / 127
        _decode(model, table, codes, decoder, rng.normal(size=width) * np.float64(rank % 2))


def _decode(model: ir.Model, table: ir.Value, codes: Array, decoder: Array, mean: Array) -> None:
    name = str(table.name)
    z, d, m = (
        new_initializer(model, f"{name}.{label}", array)
        for label, array in (
            ("codes", codes),
            ("decoder", decoder.astype(np.float32)),
            ("mean", mean.astype(np.float32)),
        )
    )
    for node, _ in list(table.uses()):
        tape = ir.tape.Tape()
        out = tape.op("Gather", [z, only_input(node, 1)])
        if codes.dtype == np.int8:
            out = tape.op("Cast", [out], attributes={"to": int(ir.DataType.FLOAT)})
        out = tape.op("MatMul", [out, d])
        if mean.any():
            out = tape.op("Add", [out, m])
        replace_node(model, node, tape.nodes, out)
    if not mean.any():
        model.graph.initializers.pop(str(m.name))
