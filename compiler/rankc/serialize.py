"""Writing a model: whole or not at all, the same bytes for the same model."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir

from rankc.errors import MachineError, ModelError

SINGLE_FILE_BYTES = 1_500_000_000  # protobuf ends at 2 GiB, the graph itself takes some of it
_SMALL_BYTES = 1024  # stay in the graph: shape inference reads them
_IR_VERSION = 10  # what TensorRT 10.3 and ONNX Runtime 1.20 still read
_LAST_OPSET_OF_IR = 22


def save(model: ir.Model, path: Path, *, single_file_bytes: int = SINGLE_FILE_BYTES) -> None:
    """Write `model` to `path`, which is replaced only once everything is on disk.

    Weights of more than `single_file_bytes` go to a file beside it, called `<name>.data`. The
    model in memory is left as it is.

    Raises:
        MachineError: The disk is full or the folder cannot be written; nothing is left behind.
        ModelError: The model reads its weights from the very file that would be replaced.
    """
    data = Path(f"{path}.data")
    external = _weight_bytes(model) > single_file_bytes
    if external and any(_same_file(t, data) for t in _external_tensors(model)):
        raise ModelError(f"{path}: the model reads its weights from {data.name}; save elsewhere")
    try:
        with _scratch_folder(path.parent) as folder:
            if external:
                _write_external(model, folder / path.name, data.name)
                os.replace(folder / data.name, data)
            else:
                _write(_proto(_in_memory(model)), folder / path.name)
            os.replace(folder / path.name, path)
    except OSError as error:
        raise MachineError(
            f"{path}: cannot be written: {error.strerror or error}\n"
            "  free some disk space, or choose another folder"
        ) from error


@contextlib.contextmanager
def _scratch_folder(parent: Path) -> Iterator[Path]:
    """A folder beside the target: renaming is atomic only within a file system."""
    folder = Path(tempfile.mkdtemp(prefix=".rankc-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _weight_bytes(model: ir.Model) -> int:
    tensors = (v.const_value for g in model.graphs() for v in g.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def _external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield value.const_value


def _same_file(tensor: ir.ExternalTensor, path: Path) -> bool:
    return path.exists() and Path(tensor.path).exists() and path.samefile(tensor.path)


def _in_memory(model: ir.Model) -> ir.Model:
    """The model, with tensors that are views of mapped files in the place of references to them."""
    if not any(True for _ in _external_tensors(model)):
        return model
    inline = model.clone()
    for graph in inline.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)
    return inline


def _proto(model: ir.Model) -> onnx.ModelProto:
    proto = ir.serde.serialize_model(model)
    if model.opset_imports.get("", 0) <= _LAST_OPSET_OF_IR:
        proto.ir_version = min(proto.ir_version, _IR_VERSION)
    return proto


def _write(proto: onnx.ModelProto, path: Path) -> None:
    with path.open("wb") as stream:
        stream.write(proto.SerializeToString(deterministic=True))
        stream.flush()
        os.fsync(stream.fileno())


def _write_external(model: ir.Model, path: Path, data_name: str) -> None:
    unloaded = ir.external_data.unload_from_model(
        model.clone(), path.parent, data_name, size_threshold_bytes=_SMALL_BYTES
    )
    _write(_proto(unloaded), path)
