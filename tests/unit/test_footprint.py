from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from builders import mlp, mlp_rows, model_of, weight
from rankc.errors import MachineError
from rankc.validate.footprint import footprint
from rankc.validate.startup import start_in_turn


def saved(model: ir.Model, folder: Path, name: str = "model.onnx") -> Path:
    path = folder / name
    ir.save(model, path)
    return path


def test_a_known_model(tmp_path: Path) -> None:
    path = saved(mlp(), tmp_path)
    found = footprint(path)
    assert found.params == 16 * 24 + 24 * 8 + 8
    assert found.macs == 16 * 24 + 24 * 8
    assert found.nodes == 4
    assert found.size_bytes == path.stat().st_size


def test_external_data_counts_as_size_once_a_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    ir.save(mlp(), path, external_data="weights.bin", size_threshold_bytes=64)
    weights = (tmp_path / "weights.bin").stat().st_size
    assert weights > 4 * 16 * 24
    assert footprint(path).size_bytes == path.stat().st_size + weights


def conv_model(dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Model:
    """x (batch, 4, h, w) -> Conv 4 -> 6 in two groups, 3 x 3, stride 2 -> (batch, 6, h', w')."""
    x = ir.val("x", dtype, ["batch", 4, 9, 9])
    y = ir.val("y", dtype, ["batch", 6, 4, 4])
    tape = ir.tape.Tape()
    kernel = weight(tape, "k", np.zeros((6, 2, 3, 3), dtype.numpy()))
    tape.op("Conv", [x, kernel], attributes={"group": 2, "strides": [2, 2]}, name="conv", output=y)
    return model_of(tape, [x], [y])


def test_macs_of_a_grouped_convolution_for_one_row(tmp_path: Path) -> None:
    assert footprint(saved(conv_model(), tmp_path)).macs == (6 * 4 * 4) * (2 * 3 * 3)


def test_macs_of_a_transposed_gemm(tmp_path: Path) -> None:
    x = ir.val("x", ir.DataType.FLOAT, [5, 7])
    y = ir.val("y", ir.DataType.FLOAT, None)
    tape = ir.tape.Tape()
    other = weight(tape, "w", np.zeros((5, 3), np.float32))
    tape.op("Gemm", [x, other], attributes={"transA": 1}, name="gemm", output=y)
    assert footprint(saved(model_of(tape, [x], [y]), tmp_path)).macs == 7 * 3 * 5


def test_what_counts_as_a_parameter(tmp_path: Path) -> None:
    x = ir.val("x", ir.DataType.FLOAT, ["batch", 6])
    y = ir.val("y", ir.DataType.FLOAT, None)
    tape = ir.tape.Tape()
    shape = weight(tape, "shape", np.array([-1, 2, 3]))  # int64: not one
    table = weight(tape, "table", np.ones((2, 3), np.int8))  # quantised weights: are
    held = tape.op("Constant", [], attributes={"value": ir.tensor(np.ones(3, np.float32))})
    cast = tape.op("Cast", [table], attributes={"to": ir.DataType.FLOAT.value})
    folded = tape.op("Reshape", [x, shape])
    tape.op("Mul", [tape.op("Add", [folded, cast]), held], output=y)
    assert footprint(saved(model_of(tape, [x], [y]), tmp_path)).params == 6 + 3


def test_macs_that_cannot_be_counted_name_the_node(tmp_path: Path) -> None:
    x = ir.val("x", ir.DataType.FLOAT, ["batch", 4])
    y = ir.val("y", ir.DataType.FLOAT, None)
    tape = ir.tape.Tape()
    odd = tape.op("Strange", [x], domain="somewhere.else", name="strange")
    tape.op("MatMul", [odd, weight(tape, "w", np.ones((4, 2), np.float32))], name="mm", output=y)
    model = model_of(tape, [x], [y])
    model.opset_imports["somewhere.else"] = 1
    found = footprint(saved(model, tmp_path))
    assert found.macs is None
    assert "node 'mm' (MatMul)" in found.unknown


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell")
def test_peak_memory_sees_what_the_model_takes(tmp_path: Path) -> None:
    small = saved(mlp(), tmp_path, "small.onnx")
    x = ir.val("x", ir.DataType.FLOAT, ["batch", 16])
    y = ir.val("y", ir.DataType.FLOAT, None)
    tape = ir.tape.Tape()
    wide = weight(tape, "w", np.ones((16, 500_000), np.float32))  # 32 MB
    tape.op("ReduceSum", [tape.op("MatMul", [x, wide])], name="sum", output=y)
    large = saved(model_of(tape, [x], [y]), tmp_path, "large.onnx")
    feeds = {"x": mlp_rows(2)}
    first, second = start_in_turn((small, large), feeds, repeats=1)
    less, more = first.peak_memory_bytes, second.peak_memory_bytes
    assert less is not None
    assert more is not None
    assert 0 < less < 32e6 < more < 200e6
    for one in (first, second):  # a start has the interpreter and numpy in it, too
        assert 0 < one.times["load_ms"] < one.times["cold_start_ms"]


def test_memory_of_a_model_that_does_not_run(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"model\.onnx: could not be opened and run .*missing"):
        start_in_turn((saved(mlp(), tmp_path),), {"z": mlp_rows(1)}, repeats=1)
