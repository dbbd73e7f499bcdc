"""The TensorRT form of int8 tables. It is plain ONNX, so ONNX Runtime judges it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from builders import model_of, weight
from rankc.errors import ModelError
from rankc.lowering.dequantize import dequantize_tables
from rankc.lowering.precision import to_fp16
from rankrt.session import Array, open_model

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
IDS = np.random.default_rng(1).integers(0, 40, (16, 3))


def fields(opset: int = 18) -> ir.Model:
    """Three fields of two int8 tables -> Concat -> Reshape -> Cast -> MatMul: y (batch, 4)."""
    rng = np.random.default_rng(0)
    ids, tape = ir.val("ids", ir.DataType.INT64, ["batch", 3]), ir.tape.Tape()
    tables = [
        weight(tape, f"T{k}", rng.integers(-127, 128, (40, 6)).astype(np.int8)) for k in range(2)
    ]
    rows = []
    for k in range(3):
        column = weight(tape, f"column{k}", np.asarray(k, np.int64))
        field = tape.op("Gather", [ids, column], attributes={"axis": 1}, name=f"field{k}")
        rows.append(tape.op("Gather", [tables[k % 2], field], name=f"lookup{k}"))
    wide = tape.op("Concat", rows, attributes={"axis": 1}, name="concat")
    flat = tape.op("Reshape", [wide, weight(tape, "s", np.array([-1, 18], np.int64))], name="flat")
    real = tape.op("Cast", [flat], attributes={"to": FLOAT}, name="real")
    decoder = weight(tape, "decoder", (rng.normal(size=(18, 4)) / 500).astype(np.float32))
    y = ir.val("y", FLOAT, ["batch", 4])
    tape.op("MatMul", [real, decoder], output=y, name="decode")
    return model_of(tape, [ids], [y], opset)


def run(model: ir.Model, path: Path) -> Array:
    ir.save(model, path)
    onnx.checker.check_model(path, full_check=True)
    return open_model(path).run({"ids": IDS})["y"]


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph if "field" not in str(node.name)]


LOOKUPS = [*(["DequantizeLinear"] * 2), *(["Gather"] * 3), "Concat", "Reshape"]


@pytest.mark.parametrize("opset", [13, 18, 21])
def test_tables_are_dequantized_first_and_nothing_else_changes(opset: int, tmp_path: Path) -> None:
    want = run(fields(opset), tmp_path / "canonical.onnx")
    model = fields(opset)
    assert dequantize_tables(model) == 2
    assert ops(model) == [*LOOKUPS, "MatMul"]
    assert [n.name for n in model.graph][:2] == ["dequantize_T0", "dequantize_T1"]
    assert model.graph.initializers["T0"].dtype == ir.DataType.INT8
    np.testing.assert_array_equal(run(model, tmp_path / "trt.onnx"), want)
    assert dequantize_tables(model) == 0  # a second run finds nothing


@pytest.mark.parametrize(("opset", "dtype"), [(18, FLOAT), (19, HALF)])
def test_in_half_the_tables_become_half_where_the_opset_can(
    opset: int, dtype: ir.DataType, tmp_path: Path
) -> None:
    want = run(fields(opset), tmp_path / "canonical.onnx")
    model = to_fp16(fields(opset))
    dequantize_tables(model)
    first = next(iter(model.graph))
    assert first.op_type == "DequantizeLinear" and first.outputs[0].dtype == dtype
    assert ops(model) == [*LOOKUPS, *(["Cast"] if dtype == FLOAT else []), "MatMul", "Cast"]
    np.testing.assert_allclose(run(model, tmp_path / "trt.onnx"), want, atol=5e-3)


def test_a_model_without_tables_is_left_alone() -> None:
    model = fields()
    dequantize_tables(model)
    before = ir.to_proto(model).SerializeToString()
    assert dequantize_tables(model) == 0
    assert ir.to_proto(model).SerializeToString() == before


def rejected(model: ir.Model) -> str:
    """The message; the model has not been touched."""
    before = ir.to_proto(model).SerializeToString()
    with pytest.raises(ModelError) as caught:
        dequantize_tables(model)
    assert ir.to_proto(model).SerializeToString() == before
    return str(caught.value)


def test_unsigned_tables_are_refused() -> None:
    model = fields()
    table = model.graph.initializers["T1"]
    table.const_value = ir.tensor(np.zeros((40, 6), np.uint8), name="T1")
    table.dtype = ir.DataType.UINT8
    assert "'T1' is uint8" in rejected(model)


def test_another_reader_is_named() -> None:
    model = fields()
    table = model.graph.initializers["T0"]
    model.graph.append(ir.node("NonZero", [table], name="odd"))
    assert "read by NonZero (node 'odd')" in rejected(model)


def test_a_table_as_output_is_refused() -> None:
    model = fields()
    rows = next(node for node in model.graph if node.name == "lookup0").outputs[0]
    model.graph.outputs.append(rows)
    assert "is a graph output" in rejected(model)


def test_eight_bits_from_elsewhere_are_refused() -> None:
    model = fields()
    concat = next(node for node in model.graph if node.name == "concat")
    given = ir.val("given", ir.DataType.INT8, ["batch", 6])
    model.graph.inputs.append(given)
    concat.replace_input_with(2, given)
    assert "mixes rows of a table with 'given'" in rejected(model)
