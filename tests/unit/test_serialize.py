"""Writing is all or nothing, and repeatable."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from builders import mlp, model_of, weight
from rankc.errors import MachineError, ModelError
from rankc.intake import load
from rankc.serialize import save


def same_weights(model: ir.Model) -> None:
    for name, value in mlp().graph.initializers.items():
        found = model.graph.initializers[name].const_value
        assert found is not None
        assert value.const_value is not None
        np.testing.assert_array_equal(found.numpy(), value.const_value.numpy())


def test_a_small_model_is_one_file(tmp_path: Path) -> None:
    save(mlp(), tmp_path / "model.onnx")
    assert os.listdir(tmp_path) == ["model.onnx"]
    same_weights(load(tmp_path / "model.onnx").model)


def test_the_file_is_what_protobuf_would_have_written(tmp_path: Path) -> None:
    tape = ir.tape.Tape()
    x = ir.val("x", ir.DataType.FLOAT, ["b", 3])
    half = weight(tape, "half", np.ones((1, 3), np.float16))
    h = tape.op("Add", [x, tape.op("Cast", [half], {"to": 1})])
    h = tape.op("Mul", [h, weight(tape, "scalar", np.array(2, np.float32))])
    h = tape.op("Concat", [h, weight(tape, "empty", np.zeros((1, 0), np.float32))], {"axis": 1})
    packed = ir.tensor([[1, -2, 3]], dtype=ir.DataType.INT4, name="packed")
    four = tape.op("Cast", [tape.initializer(packed)], {"to": 1})
    strings = tape.initializer(ir.tensor(["a", "b"], name="strings"))
    y = ir.val("y", ir.DataType.FLOAT, ["b", 3])
    tape.op("Mul", [h, four], output=y)
    size = ir.val("size", ir.DataType.INT64, [1])
    tape.op("Shape", [strings], output=size)
    model = model_of(tape, [x], [y, size], opset=21)
    save(model, tmp_path / "model.onnx")
    saved = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(saved, full_check=True)
    expected = ir.serde.serialize_model(model)
    kept = sorted(saved.graph.initializer, key=lambda t: t.name)
    for tensor, other in zip(
        kept, sorted(expected.graph.initializer, key=lambda t: t.name), strict=True
    ):
        assert tensor == other
    saved.graph.ClearField("initializer")
    expected.graph.ClearField("initializer")
    for proto in (saved, expected):  # shapes of initializers are in the initializers
        proto.graph.ClearField("value_info")
    assert saved == expected


def test_a_big_model_keeps_its_weights_beside_it(tmp_path: Path) -> None:
    model = mlp()
    save(model, tmp_path / "model.onnx", single_file_bytes=1000)
    assert sorted(os.listdir(tmp_path)) == ["model.onnx", "model.onnx.data"]
    loaded = load(tmp_path / "model.onnx").model
    assert isinstance(loaded.graph.initializers["A"].const_value, ir.ExternalTensor)
    same_weights(loaded)
    assert not isinstance(model.graph.initializers["A"].const_value, ir.ExternalTensor)


def test_external_weights_travel_with_a_model_that_is_saved_elsewhere(tmp_path: Path) -> None:
    save(mlp(), tmp_path / "model.onnx", single_file_bytes=1000)
    (tmp_path / "copy").mkdir()
    source = load(tmp_path / "model.onnx").model
    save(source, tmp_path / "copy/model.onnx")
    save(source, tmp_path / "copy/split.onnx", single_file_bytes=1000)
    assert isinstance(source.graph.initializers["A"].const_value, ir.ExternalTensor)
    (tmp_path / "model.onnx.data").unlink()
    same_weights(load(tmp_path / "copy/model.onnx").model)
    same_weights(load(tmp_path / "copy/split.onnx").model)


def test_a_model_is_not_written_over_the_weights_it_reads(tmp_path: Path) -> None:
    save(mlp(), tmp_path / "model.onnx", single_file_bytes=1000)
    model = load(tmp_path / "model.onnx").model
    with pytest.raises(ModelError, match=r"reads its weights from model\.onnx\.data"):
        save(model, tmp_path / "model.onnx", single_file_bytes=1000)
    same_weights(load(tmp_path / "model.onnx").model)


@pytest.mark.parametrize("limit", [1000, 1_000_000])
def test_equal_models_give_equal_bytes(tmp_path: Path, limit: int) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save(mlp(), tmp_path / name / "model.onnx", single_file_bytes=limit)
    for file in os.listdir(tmp_path / "a"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_ir_version_is_one_that_old_targets_read(tmp_path: Path) -> None:
    model = mlp()
    model.ir_version = 13
    save(model, tmp_path / "model.onnx")
    assert onnx.load(tmp_path / "model.onnx").ir_version == 10
    assert model.ir_version == 13


@pytest.mark.parametrize("limit", [1000, 1_000_000])
@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_a_failure_on_the_way_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, failure: BaseException
) -> None:
    target = tmp_path / "model.onnx"
    target.write_bytes(b"old")

    def fail(descriptor: int) -> None:
        raise failure

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises((MachineError, KeyboardInterrupt)) as caught:
        save(mlp(), target, single_file_bytes=limit)
    if isinstance(failure, OSError):
        assert "No space left\n  free some disk space" in str(caught.value)
    assert os.listdir(tmp_path) == ["model.onnx"]
    assert target.read_bytes() == b"old"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="No such file or directory"):
        save(mlp(), tmp_path / "nowhere/model.onnx")
