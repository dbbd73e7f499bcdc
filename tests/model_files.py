"""Model files to spoil, and what intake says of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from builders import Array
from rankc.errors import ModelError
from rankc.intake import load


def proto_of(model: ir.Model) -> onnx.ModelProto:
    return ir.serde.serialize_model(model)


def weight_of(model: ir.Model) -> Array:
    tensor = model.graph.initializers["A"].const_value
    assert tensor is not None
    return tensor.numpy()


def edited(path: Path, edit: Callable[[onnx.ModelProto], object]) -> Path:
    proto = onnx.load_model(path, load_external_data=False)
    edit(proto)
    path.write_bytes(proto.SerializeToString())
    return path


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")
