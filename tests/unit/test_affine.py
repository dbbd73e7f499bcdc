"""The affine map of a value says what ONNX Runtime computes, or there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx_ir.passes import common

import ctr_builders
from builders import Array, model_of, weight
from rankc.affine import Region, analyse

Build = Callable[["Bench"], ir.Value]


class Bench:
    """x (batch, 2, 3) and y (batch, 6), constants, and one operator to try."""

    def __init__(self) -> None:
        self.tape = ir.tape.Tape()
        self.x = ir.val("x", ir.DataType.FLOAT, ["batch", 2, 3])
        self.y = ir.val("y", ir.DataType.FLOAT, ["batch", 6])

    def const(self, array: Any) -> ir.Value:
        found = np.asarray(array)
        found = found.astype(np.float32) if found.dtype == np.float64 else found
        return weight(self.tape, f"c{len(self.tape.initializers)}", found)

    def op(self, kind: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        return self.tape.op(kind, inputs, attributes=attributes or None)

    def ints(self, *numbers: int) -> ir.Value:
        return self.const(np.array(numbers, np.int64))

    def model(self, result: ir.Value) -> ir.Model:
        result.name = "result"
        model = model_of(self.tape, [self.x, self.y], [result])
        common.ShapeInferencePass()(model)
        return model


RNG = np.random.default_rng(0)
AFFINE: dict[str, Build] = {
    "Reshape": lambda b: b.op("Reshape", b.x, b.ints(-1, 3, 2)),
    "Flatten": lambda b: b.op("Flatten", b.x, axis=1),
    "Unsqueeze": lambda b: b.op("Unsqueeze", b.y, b.ints(1)),
    "Squeeze": lambda b: b.op("Squeeze", b.op("Unsqueeze", b.y, b.ints(2)), b.ints(2)),
    "Transpose": lambda b: b.op("Transpose", b.x, perm=[0, 2, 1]),
    "Concat": lambda b: b.op("Concat", b.op("Flatten", b.x), b.y, axis=-1),
    "Split": lambda b: b.tape.op_multi_out(
        "Split", [b.x, b.ints(1, 2)], num_outputs=2, attributes={"axis": 2}
    )[1],
    "Slice": lambda b: b.op("Slice", b.x, b.ints(1, -2), b.ints(99, 3), b.ints(1, 2)),
    "Gather of columns": lambda b: b.op("Gather", b.x, b.ints(2, 0), axis=2),
    "ReduceSum": lambda b: b.op("ReduceSum", b.x, b.ints(1), keepdims=0),
    "ReduceSum of all but the batch": lambda b: b.op("ReduceSum", b.x, b.ints(1, -1)),
    "ReduceMean": lambda b: b.op("ReduceMean", b.x, b.ints(2)),
    "Add": lambda b: b.op("Add", b.op("Flatten", b.x), b.y),
    "Add with broadcasting": lambda b: b.op(
        "Add", b.x, b.op("ReduceSum", b.x, b.ints(1), keepdims=1)
    ),
    "Add itself": lambda b: b.op("Add", b.x, b.x),
    "Add a constant": lambda b: b.op("Add", b.const(RNG.normal(size=(2, 1))), b.x),
    "Add a constant row": lambda b: b.op("Add", b.y, b.const(RNG.normal(size=(1, 6)))),
    "Sub": lambda b: b.op("Sub", b.op("Flatten", b.x), b.y),
    "Sub from a constant": lambda b: b.op("Sub", b.const(RNG.normal(size=3)), b.x),
    "Neg": lambda b: b.op("Neg", b.x),
    "Mul by a constant": lambda b: b.op("Mul", b.const(RNG.normal(size=(1, 2, 3))), b.x),
    "Div by a constant": lambda b: b.op("Div", b.x, b.const(3.0)),
    "MatMul": lambda b: b.op("MatMul", b.x, b.const(RNG.normal(size=(3, 4)))),
    "Gemm": lambda b: b.op(
        "Gemm",
        b.y,
        b.const(RNG.normal(size=(4, 6))),
        b.const(RNG.normal(size=(1, 4))),
        transB=1,
        alpha=0.5,
        beta=2.0,
    ),
    "Gemm without bias": lambda b: b.op("Gemm", b.y, b.const(RNG.normal(size=(6, 4)))),
}
NOT_AFFINE: dict[str, Build] = {
    "Relu": lambda b: b.op("Relu", b.x),
    "Reshape into the batch": lambda b: b.op("Reshape", b.x, b.ints(-1, 3)),
    "Transpose of the batch": lambda b: b.op("Transpose", b.x, perm=[1, 0, 2]),
    "Concat along the batch": lambda b: b.op("Concat", b.y, b.y, axis=0),
    "ReduceSum over the batch": lambda b: b.op("ReduceSum", b.x, b.ints(0, 1)),
    "ReduceSum over everything": lambda b: b.op("ReduceSum", b.x),
    "Slice of the batch": lambda b: b.op("Slice", b.x, b.ints(0), b.ints(1), b.ints(0)),
    "Slice with a step": lambda b: b.op("Slice", b.y, b.ints(0), b.ints(6), b.ints(1), b.ints(2)),
    "Mul of two values": lambda b: b.op("Mul", b.op("Flatten", b.x), b.y),
    "Div of a constant": lambda b: b.op("Div", b.const(1.0), b.x),
    "Add something to each row of the batch": lambda b: b.op(
        "Add", b.y, b.const(RNG.normal(size=(16, 6)))
    ),
    "Gemm of two values": lambda b: b.op("MatMul", b.x, b.op("Transpose", b.x, perm=[0, 2, 1])),
    "Gemm with transA": lambda b: b.op("Gemm", b.y, b.const(RNG.normal(size=(16, 4))), transA=1),
}


def run(model: ir.Model, feeds: dict[str, Array]) -> list[Array]:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    return [np.asarray(found) for found in session.run(None, feeds)]


def mapped(region: Region, value: ir.Value, feeds: dict[str, Array]) -> Array:
    """The value by its affine map."""
    affine = region.maps[value]
    found: Array = np.broadcast_to(affine.const, (16, *affine.const.shape)).copy()
    for base, part in affine.parts.items():
        rows = feeds[str(base.name)].reshape(16, -1)
        found += np.tensordot(rows, part, 1)
    return found


@pytest.mark.parametrize("name", AFFINE)
def test_a_map_is_what_runs(name: str) -> None:
    bench = Bench()
    result = AFFINE[name](bench)
    model = bench.model(result)
    rng = np.random.default_rng(1)
    feeds = {
        "x": rng.normal(size=(16, 2, 3)).astype(np.float32),
        "y": rng.normal(size=(16, 6)).astype(np.float32),
    }
    region = analyse(model.graph)
    np.testing.assert_allclose(
        mapped(region, result, feeds), run(model, feeds)[0], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", NOT_AFFINE)
def test_what_is_not_affine_in_a_row_has_no_map(name: str) -> None:
    bench = Bench()
    result = NOT_AFFINE[name](bench)
    assert result not in analyse(bench.model(result).graph).maps


def test_lookups_are_found_with_their_column() -> None:
    model = ctr_builders.deepfm()
    common.ShapeInferencePass()(model)
    region = analyse(model.graph)
    found = {str(f.table.name): f for f in region.lookups.values()}
    assert len(found) == 8
    assert [found[f"emb.{k}"].column for k in range(4)] == [0, 1, 2, 3]
    assert {str(f.source.name) for f in found.values() if f.source is not None} == {"ids"}


def test_a_lookup_with_an_offset_stays_where_it_is() -> None:
    """Id 0 of `ids - 1` is the last row of its own table; stacked, it would be another table's."""
    tape, ids = ir.tape.Tape(), ir.val("ids", ir.DataType.INT64, ["batch", 2])
    added = tape.op("Add", [ids, weight(tape, "offsets", np.array([0, -1]))])
    second = tape.op("Slice", [added, *(weight(tape, n, np.array([1])) for n in "ac")])
    column = tape.op("Gather", [added, weight(tape, "k", np.array(1))], attributes={"axis": 1})
    rows = tape.op("Gather", [weight(tape, "table", np.eye(7, dtype=np.float32)), column])
    model = model_of(tape, [ids], [rows, second])
    common.ShapeInferencePass()(model)
    (lookup,) = analyse(model.graph).lookups.values()
    assert lookup.source is None


def test_a_table_that_something_else_reads_stays() -> None:
    net = ctr_builders.Net((5, 5), seed=0)
    table = net.random("shared", 5, 4)
    one = net.op("Gather", [table, net.columns[0]])
    history = ir.val("history", ir.DataType.INT64, ["batch", 6])
    many = net.op("ReduceMean", [net.op("Gather", [table, history]), net.one], keepdims=0)
    model = net.model(net.linear(net.op("Concat", [one, many], axis=1), "out", 8, 1), history)
    common.ShapeInferencePass()(model)
    region = analyse(model.graph)
    (lookup,) = region.lookups.values()
    assert lookup.source is None
    assert one in region.free


def test_the_square_of_looked_up_rows_is_a_base() -> None:
    model = ctr_builders.deepfm()
    common.ShapeInferencePass()(model)
    region = analyse(model.graph)
    (head,) = (node for node in model.graph if node.op_type == "Sigmoid")
    assert head.inputs[0] not in region.maps  # the tower is not affine
    assert len(region.squares) == 2
    sums = [v for v in region.maps if set(region.squares) <= set(region.maps[v].parts)]
    assert sums  # the term of the factorisation machine, and what it is added to
