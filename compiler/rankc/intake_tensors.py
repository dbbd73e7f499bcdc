"""What a model's tensors claim, checked against what is there, before anything is read or made.

A model file is untrusted input: a location may point at any file of the machine, and a shape may
claim terabytes. Nothing here allocates by what the file claims.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from rankc.errors import ModelError

_CHUNK = 1 << 20  # elements looked at in one go
# Masks are made with infinities; these operators read them. (Add: but not as a layer's bias.)
_MASKING = {"Add", "Cast", "Clip", "Expand", "Max", "Min", "Pad", "Reshape", "Slice", "Unsqueeze"}
_MASKING |= {"Where"}


def check_tensors(proto: onnx.ModelProto, folder: Path) -> dict[str, Path]:
    """Check every tensor of the model, wherever it sits; returns location -> external file.

    Args:
        proto: The model, external data not loaded.
        folder: Its folder, resolved. External data may only come from in there.

    Raises:
        ModelError: Without the model's name, which the caller knows.
    """
    files: dict[str, Path] = {}
    for tensor in _tensors(proto):
        size = _declared_bytes(tensor)
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            _check_inline(tensor, size)
            continue
        info = {entry.key: entry.value for entry in tensor.external_data}
        location = info.get("location", "")
        if location not in files:
            files[location] = _contained_file(location, folder)
        _check_range(tensor, size, info, files[location])
    return files


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from _graph_tensors(proto.graph)
    for function in proto.functions:
        yield from _node_tensors(function.node)
        yield from _attribute_tensors(function.attribute_proto)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    if graph.sparse_initializer:
        raise ModelError("sparse initializers are not supported; export dense weights")
    yield from graph.initializer
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        yield from _attribute_tensors(node.attribute)


def _attribute_tensors(attributes: Iterable[onnx.AttributeProto]) -> Iterator[onnx.TensorProto]:
    for attribute in attributes:
        if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
            raise ModelError("sparse tensors are not supported; export dense weights")
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for graph in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            yield from _graph_tensors(graph)


def _type(tensor: onnx.TensorProto) -> ir.DataType:
    try:
        kind = ir.DataType(tensor.data_type)
    except ValueError:
        kind = ir.DataType.UNDEFINED
    if kind == ir.DataType.UNDEFINED:
        raise ModelError(f"tensor '{tensor.name}' has the unknown type {tensor.data_type}")
    return kind


def _declared_bytes(tensor: onnx.TensorProto) -> int:
    """Size that shape and type claim; of strings, their number."""
    if any(dim < 0 for dim in tensor.dims):
        raise ModelError(f"tensor '{tensor.name}' has a negative dimension: {list(tensor.dims)}")
    count = int(math.prod(tensor.dims))
    kind = _type(tensor)
    return count if kind == ir.DataType.STRING else math.ceil(count * kind.bitwidth / 8)


def _check_inline(tensor: onnx.TensorProto, size: int) -> None:
    """The data in the file itself is as much as the shape claims."""
    if tensor.HasField("raw_data"):
        held, unit = len(tensor.raw_data), "bytes"
    else:
        held, unit = _typed_elements(tensor), "elements"
        if unit == "elements" and _type(tensor) != ir.DataType.STRING:
            size = _expected_elements(tensor)
    if held != size:
        raise ModelError(
            f"tensor '{tensor.name}' of shape {list(tensor.dims)} should hold {size:,} {unit} "
            f"and holds {held:,}; the file is damaged, export it again"
        )


def _typed_elements(tensor: onnx.TensorProto) -> int:
    fields = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data)
    return sum(len(f) for f in (*fields, tensor.uint64_data, tensor.string_data))


def _expected_elements(tensor: onnx.TensorProto) -> int:
    """Entries of the typed field: packed below a byte, two for a complex number."""
    count, kind = int(math.prod(tensor.dims)), _type(tensor)
    if kind in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
        return 2 * count
    return math.ceil(count * kind.bitwidth / 8) if kind.bitwidth in (2, 4) else count


def _contained_file(location: str, folder: Path) -> Path:
    """The external data file, if it is one, and inside `folder` after following links."""
    if not location or "\0" in location:
        raise ModelError("an external tensor has no location; export the model again")
    rooted = PurePosixPath(location).is_absolute() or PureWindowsPath(location).anchor
    path = folder / location
    if rooted or not _inside(Path(os.path.normpath(path)), folder):
        raise _outside(location)
    try:
        real = path.resolve()
        found = real.stat()
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before 3.13
        raise ModelError(
            f"the external data file '{location}' is missing\n"
            "  copy it next to the model, under this name: the two belong together"
        ) from error
    if not _inside(real, folder):
        raise _outside(location)
    if real != Path(os.path.normpath(path)):  # the ONNX checker takes none, wherever it points
        raise ModelError(
            f"the external data file '{location}' is a symbolic link; refused\n"
            "  put a copy of the file in the place of the link"
        )
    if not stat.S_ISREG(found.st_mode):
        raise ModelError(f"the external data '{location}' is not a regular file; refused")
    if found.st_nlink > 1:
        raise ModelError(
            f"the external data file '{location}' has a second name (a hard link), and may be "
            "any file of this machine; refused\n  put a copy of the file in its place"
        )
    return real


def _inside(path: Path, folder: Path) -> bool:
    return path != folder and path.is_relative_to(folder)


def _outside(location: str) -> ModelError:
    return ModelError(
        f"the external data file '{location}' lies outside the model's folder; refused\n"
        "  copy the data next to the model, or re-save it with "
        "onnx.save(..., save_as_external_data=True)"
    )


def _check_range(tensor: onnx.TensorProto, size: int, info: dict[str, str], file: Path) -> None:
    """Offset and length are numbers, within the file, and as much as the shape claims."""
    if _type(tensor) == ir.DataType.STRING:
        raise ModelError(f"tensor '{tensor.name}' holds strings in an external file")
    try:
        offset, length = int(info.get("offset", "0")), int(info.get("length", str(size)))
    except ValueError as error:
        raise ModelError(
            f"tensor '{tensor.name}' has an offset or length that is not a number: {info}"
        ) from error
    if length != size:
        raise ModelError(
            f"tensor '{tensor.name}' of shape {list(tensor.dims)} needs {size:,} bytes and "
            f"declares {length:,} of '{info['location']}'"
        )
    if offset < 0 or offset + length > file.stat().st_size:
        raise ModelError(
            f"tensor '{tensor.name}' reads bytes {offset:,} to {offset + length:,} of "
            f"'{info['location']}', which has {file.stat().st_size:,}; the file is cut short or "
            "belongs to another model"
        )


def check_finite(model: ir.Model) -> None:
    """Refuse NaN anywhere, and infinities wherever they cannot be meant as a mask.

    Raises:
        ModelError: Naming the initializer; without the model's name.
    """
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                _check_values(value, value.const_value)
        for node in graph:
            if node.op_type == "Constant" and "value" in node.attributes:
                _check_values(node.outputs[0], node.attributes["value"].as_tensor())


def _check_values(value: ir.Value, tensor: ir.TensorProtocol) -> None:
    if not tensor.dtype.is_floating_point():
        return
    nans, infinities = _count_bad(tensor.numpy().reshape(-1))
    if isinstance(tensor, ir.ExternalTensor):
        tensor.release()  # unmap it: a big model must not stay in memory for this
    what = "NaN" if nans else "infinite" if infinities and not _is_mask(value, tensor) else None
    if what:
        raise ModelError(
            f"initializer '{value.name}' has {nans or infinities:,} {what} elements of "
            f"{tensor.size:,}\n  the training diverged or the export failed: look at the "
            "checkpoint it was exported from"
        )


def _count_bad(flat: NDArray[Any]) -> tuple[int, int]:
    nans = infinities = 0
    for start in range(0, len(flat), _CHUNK):
        chunk = flat[start : start + _CHUNK]
        if chunk.dtype.kind != "f":  # bfloat16 and other types that numpy does not know
            chunk = chunk.astype(np.float32)
        nans += int(np.isnan(chunk).sum())
        infinities += int(np.isinf(chunk).sum())
    return nans, infinities


def _is_mask(value: ir.Value, tensor: ir.TensorProtocol) -> bool:
    bias = len(tensor.shape) == 1
    return tensor.size == 1 or all(
        node.op_type in _MASKING and not (node.op_type == "Add" and bias)
        for node in value.consumers()
    )
