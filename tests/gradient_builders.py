"""One-operator graphs, and their slope by central differences in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx_ir.passes.common import ShapeInferencePass

from builders import Array, model_of, weight

Build = Callable[[ir.tape.Tape, list[ir.Value]], ir.Value]
ROWS = 3


def run(model: ir.Model, feeds: Mapping[str, Array]) -> dict[str, Array]:
    proto = ir.serde.serialize_model(model)
    onnx.checker.check_model(proto, full_check=True)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [out.name for out in session.get_outputs()]
    found: list[Any] = list(session.run(names, dict(feeds)))
    return dict(zip(names, found, strict=True))


def inferred(model: ir.Model) -> ir.Model:
    ShapeInferencePass()(model)
    return model


def c(tape: ir.tape.Tape, array: Any, dtype: Any = np.float64) -> ir.Value:
    """A constant of the graph."""
    return weight(tape, f"c{len(tape.initializers)}", np.asarray(array, dtype=dtype))


def ints(tape: ir.tape.Tape, *values: int) -> ir.Value:
    return c(tape, list(values), np.int64)


def op(op_type: str, *constants: Any, **attributes: Any) -> Build:
    """A graph of one operator: its inputs are the graph's, then float64 constants."""

    def build(tape: ir.tape.Tape, xs: list[ir.Value]) -> ir.Value:
        return tape.op(op_type, [*xs, *(c(tape, k) for k in constants)], attributes or None)

    return build


def op_ints(op_type: str, *constants: Sequence[int], **attributes: Any) -> Build:
    """The same with int64 constants."""

    def build(tape: ir.tape.Tape, xs: list[ir.Value]) -> ir.Value:
        more = [c(tape, k, np.int64) for k in constants]
        return tape.op(op_type, [*xs, *more], attributes or None)

    return build


def differentiable(build: Build, shapes: list[tuple[int, ...]], opset: int = 20) -> ir.Model:
    """Logit = a fixed random projection of the operator's output, one number a row."""
    tape = ir.tape.Tape()
    inputs = [ir.val(f"x{k}", ir.DataType.DOUBLE, ["b", *s]) for k, s in enumerate(shapes)]
    y = build(tape, [tape.op("Identity", [x]) for x in inputs])
    flat = tape.op("Flatten", [y], {"axis": 1})
    model = inferred(model_of(tape, inputs, [flat], opset))
    assert flat.shape is not None
    width = flat.shape[1]
    assert isinstance(width, int)
    logit = ir.val("logit", ir.DataType.DOUBLE, ["b", 1])
    mixed = np.random.default_rng(0).normal(size=(width, 1))
    model.graph.register_initializer(ir.val("mix", const_value=ir.tensor(mixed, name="mix")))
    model.graph.append(
        ir.node("MatMul", [flat, model.graph.initializers["mix"]], outputs=[logit], name="mix")
    )
    model.graph.outputs[0] = logit
    return inferred(model)


def central_differences(model: ir.Model, feeds: dict[str, Array], name: str, step: float) -> Array:
    """Of the sum of the logit over rows, one input element at a time."""
    slope = np.zeros_like(feeds[name])
    proto = ir.serde.serialize_model(model).SerializeToString()
    session = ort.InferenceSession(proto, providers=["CPUExecutionProvider"])
    for place in np.ndindex(slope.shape):
        sums = []
        for sign in (1, -1):
            moved = feeds[name].copy()
            moved[place] += sign * step
            sums.append(np.sum(np.asarray(session.run(["logit"], {**feeds, name: moved})[0])))
        slope[place] = (sums[0] - sums[1]) / (2 * step)
    return slope


def slope_of_row(model: ir.Model, row: Array, step: float) -> Array:
    """Central differences of the logit at one row of the input `x0`, all elements in one run."""
    moves = step * np.eye(row.size, dtype=row.dtype).reshape(row.size, *row.shape)
    proto = ir.serde.serialize_model(model).SerializeToString()
    session = ort.InferenceSession(proto, providers=["CPUExecutionProvider"])
    up, down = (
        np.asarray(session.run(["logit"], {"x0": row + sign * moves})[0]) for sign in (1, -1)
    )
    slope: Array = (up - down).reshape(row.shape) / (2 * step)
    return slope
