"""Writing a model: whole or not at all, the same bytes for the same model."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

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
                _write_whole(model, folder / path.name)
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


def _read_branches(model: ir.Model) -> None:
    """Take weights of branches into memory where they are references to other files."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)


def _proto(model: ir.Model) -> onnx.ModelProto:
    proto = ir.serde.serialize_model(model)
    if model.opset_imports.get("", 0) <= _LAST_OPSET_OF_IR:
        proto.ir_version = min(proto.ir_version, _IR_VERSION)
    return proto


def _write_whole(model: ir.Model, path: Path) -> None:
    """One file, one weight at a time in memory.

    Protobuf would hold the model three more times: as messages, as bytes, and while it makes the
    second of the first. A message is its fields, one after the other, each a tag, a length and
    the content; so the weights can be put behind the rest of the graph as they are read.
    """
    outline = model.clone()
    weights = _take_weights(outline.graph)
    _read_branches(outline)
    proto = _proto(outline)
    graph = proto.graph.SerializeToString(deterministic=True)
    proto.ClearField("graph")
    heads = [_head(name, tensor) for name, tensor in weights]
    sizes = [len(head) + tensor.nbytes for head, (_, tensor) in zip(heads, weights, strict=True)]
    lead = [_tag(onnx.GraphProto.INITIALIZER_FIELD_NUMBER, size) for size in sizes]
    total = len(graph) + sum(map(len, lead)) + sum(sizes)
    with path.open("wb") as stream:
        stream.write(proto.SerializeToString(deterministic=True))
        stream.write(_tag(onnx.ModelProto.GRAPH_FIELD_NUMBER, total) + graph)
        for tag, head, (name, tensor) in zip(lead, heads, weights, strict=True):
            data = tensor.tobytes()
            assert len(data) == tensor.nbytes, name
            stream.write(tag + head)
            stream.write(data)
        _finish(stream)


def _take_weights(graph: ir.Graph) -> list[tuple[str, ir.TensorProtocol]]:
    """Remove the initializers, in order; strings stay, as they have no bytes of their own."""
    taken = [
        (name, value.const_value)
        for name, value in graph.initializers.items()
        if value.const_value is not None and value.const_value.dtype != ir.DataType.STRING
    ]
    for name, _ in taken:
        graph.initializers.pop(name)
    return taken


def _head(name: str, tensor: ir.TensorProtocol) -> bytes:
    """A TensorProto up to where its bytes begin."""
    proto = onnx.TensorProto(
        name=name, data_type=int(tensor.dtype), dims=[int(d) for d in tensor.shape.numpy()]
    )
    tag = _tag(onnx.TensorProto.RAW_DATA_FIELD_NUMBER, tensor.nbytes)
    return bytes(proto.SerializeToString(deterministic=True)) + tag


def _tag(field: int, length: int) -> bytes:
    """What stands before the content of a field: its number, its kind (2: bytes), its length."""
    return _varint(field << 3 | 2) + _varint(length)


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the top bit says that more follow."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _write_external(model: ir.Model, path: Path, data_name: str) -> None:
    unloaded = ir.external_data.unload_from_model(
        model.clone(), path.parent, data_name, size_threshold_bytes=_SMALL_BYTES
    )
    with path.open("wb") as stream:
        stream.write(_proto(unloaded).SerializeToString(deterministic=True))
        _finish(stream)


def _finish(stream: BinaryIO) -> None:
    """On disk before it gets its name: a crash leaves no empty file behind."""
    stream.flush()
    os.fsync(stream.fileno())
