"""From a path to a model that is safe to work on, or an error that says what to do about it."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from rankc.errors import MachineError, ModelError
from rankc.intake_tensors import check_finite, check_tensors
from rankc.shapes import check_shapes, first_line
from rankrt.backends.onnxruntime import available
from rankrt.errors import BackendError
from rankrt.session import Array, Session, open_model

MIN_OPSET = 13  # from here on Squeeze, Unsqueeze, ReduceSum and Split take their axes as inputs
_PROTOBUF_LIMIT = (1 << 31) - 1
_MAX_NODES = 1_000_000
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")  # what ONNX Runtime ships kernels for

# The beginnings of files that people take for ONNX models.
_LOOKALIKES: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: run `git lfs pull`"),
    (
        b"PK\x03\x04",
        "a zip archive (a PyTorch checkpoint is one): export it with torch.onnx.export",
    ),
    (b"\x80\x02", "a Python pickle: export the model with torch.onnx.export"),
    (b"\x80\x03", "a Python pickle: export the model with torch.onnx.export"),
    (b"\x80\x04", "a Python pickle: export the model with torch.onnx.export"),
    (b"\x80\x05", "a Python pickle: export the model with torch.onnx.export"),
    (b"\x89HDF", "an HDF5 file (Keras): export it with tf2onnx"),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"ptrt", "a TensorRT engine: give the ONNX model it was built from"),
    (b"ftrt", "a TensorRT engine: give the ONNX model it was built from"),
    (b"<", "a web page or XML"),
    (b"{", "a JSON file"),
)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output of the model."""

    name: str
    dtype: str  # as numpy spells it: float32, int64
    shape: tuple[int | str | None, ...]  # a string is a symbol; None: unknown


@dataclass(frozen=True, slots=True)
class Intake:
    """A model as it came in. External data stays on disk and is mapped when read."""

    model: ir.Model
    path: Path
    sha256: str  # of the file; with external data, of all files (see `load`)
    size_bytes: int  # of all files
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def load(path: Path, *, max_bytes: int = 64 << 30) -> Intake:
    """Read an ONNX model that nobody vouches for.

    Checked before use: the file, external data (contained in the model's folder, complete),
    declared against held data, the ONNX checker, opset, operator domains, finite weights, shapes.
    Functions are inlined; nodes without a name get one.

    Args:
        path: The model.
        max_bytes: Limit on all files together.

    Returns:
        The model; its sha256 is that of the file alone, as `sha256sum` says, or, where there is
        external data, over the model's bytes and then name and bytes of each file in order.

    Raises:
        ModelError: It cannot be used; says why, and how to repair it.
    """
    try:
        return _load(path, max_bytes)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error.__cause__


def _load(path: Path, max_bytes: int) -> Intake:
    raw = _read(path, max_bytes)
    digest, size = hashlib.sha256(raw), len(raw)
    proto = _parse(raw)
    del raw  # as big as the model
    real = path.resolve()
    files = check_tensors(proto, real.parent)
    for location, file in sorted(files.items()):
        digest.update(location.encode())
        size += _hash_file(file, digest, max_bytes - size)
    opset = _check_structure(proto, real)
    _name_nodes(proto)
    model = _deserialize(proto)
    _inline(model)
    _bind_external(model, real.parent)
    _check_operators(model)
    check_finite(model)
    check_shapes(model)
    inputs = tuple(_spec(v) for v in model.graph.inputs if not v.is_initializer())
    outputs = tuple(_spec(value) for value in model.graph.outputs)
    return Intake(model, path, digest.hexdigest(), size, opset, inputs, outputs)


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ModelError("is a folder or a device, not a file")
        _check_limit(found.st_size, max_bytes)
        if found.st_size > _PROTOBUF_LIMIT:
            raise ModelError(
                "is over 2 GiB, which no ONNX file can be; re-save it with "
                "onnx.save(..., save_as_external_data=True)"
            )
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError("there is no such file") from error
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}") from error
    if not raw:
        raise ModelError("is empty; export the model again")
    return raw


def _check_limit(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise ModelError(f"takes {size:,} bytes, above the limit of {max_bytes:,}")


def _parse(raw: bytes) -> onnx.ModelProto:
    for start, what in _LOOKALIKES:
        if raw.startswith(start):
            raise ModelError(f"is not an ONNX model but {what}")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(raw)
    except Exception as error:  # protobuf's DecodeError, and more from its other implementations
        raise ModelError(
            "is not an ONNX model, or was cut short or damaged on its way here; "
            "compare its size with the original's, or export it again"
        ) from error
    if not proto.ir_version or not proto.HasField("graph"):
        raise ModelError("is not an ONNX model: it has no graph or no IR version")
    return proto


def _hash_file(file: Path, digest: hashlib._Hash, limit: int) -> int:
    """Add the file to the digest; returns its size."""
    size = file.stat().st_size
    _check_limit(size, limit)
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return size


def _check_structure(proto: onnx.ModelProto, path: Path) -> int:
    """The checker's verdict, and that there is something to compile; returns the opset."""
    opsets = {entry.domain or "ai.onnx": entry.version for entry in proto.opset_import}
    opset, newest = opsets.get("ai.onnx", 0), onnx.defs.onnx_opset_version()
    if not MIN_OPSET <= opset <= newest:
        raise ModelError(
            f"has opset {opset}; supported are {MIN_OPSET} to {newest}\n"
            f"  export it with opset_version={min(20, newest)}, or convert it with "
            f"onnx.version_converter.convert_version(model, {min(20, newest)})"
        )
    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        raise ModelError(f"is not valid ONNX: {first_line(error)}") from error
    named = {tensor.name for tensor in proto.graph.initializer}
    if not proto.graph.node:
        raise ModelError("has no nodes: there is nothing to compile")
    if all(value.name in named for value in proto.graph.input):
        raise ModelError("has no inputs: it computes a constant")
    if not proto.graph.output:
        raise ModelError("has no outputs: it computes nothing")
    return int(opset)


def _name_nodes(proto: onnx.ModelProto) -> None:
    """Give nodes without a name one, as sites are called after nodes.

    The k-th node of a kind becomes `<kind>_<k>`, so that an edit elsewhere changes few names.
    """
    taken = {node.name for node in proto.graph.node}
    counts: dict[str, int] = {}
    for node in proto.graph.node:
        k = counts[node.op_type] = counts.get(node.op_type, -1) + 1
        if not node.name:
            while f"{node.op_type}_{k}" in taken:
                k += 1
            node.name = f"{node.op_type}_{k}"
            taken.add(node.name)


def _deserialize(proto: onnx.ModelProto) -> ir.Model:
    try:
        return ir.serde.deserialize_model(proto)
    except Exception as error:  # a malformed model makes the library fail in many ways
        raise ModelError(f"is not valid ONNX: {first_line(error)}") from error


def _inline(model: ir.Model) -> None:
    if _inlined_nodes(model) > _MAX_NODES:
        raise ModelError(f"has more than {_MAX_NODES:,} nodes once its functions are inlined")
    try:
        common.InlinePass()(model)
    except Exception as error:  # as above
        raise ModelError(f"its functions cannot be inlined: {first_line(error)}") from error


def _bind_external(model: ir.Model, folder: Path) -> None:
    """Say where external data lies, and read the small pieces, which shape inference asks for."""
    ir.external_data.set_base_dir(model.graph, folder)
    for graph in model.graphs():
        for value in graph.initializers.values():
            if (
                isinstance(value.const_value, ir.ExternalTensor)
                and value.const_value.nbytes <= 1024
            ):
                value.const_value = _in_memory(value.const_value)
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if isinstance(attribute.value, ir.ExternalTensor):
                    node.attributes[name] = ir.AttrTensor(name, _in_memory(attribute.value))


def _in_memory(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    copied = ir.Tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=tensor.name)
    tensor.release()
    return copied


def _inlined_nodes(model: ir.Model) -> int:
    """Number of nodes that inlining would make; a small file can ask for 2^40 of them."""
    sizes: dict[ir.OperatorIdentifier, int] = {}

    def size_of(body: ir.Graph | ir.Function) -> int:
        return sum(
            called(node.op_identifier()) if node.op_identifier() in model.functions else 1
            for node in body.all_nodes()
        )

    def called(name: ir.OperatorIdentifier) -> int:
        if name not in sizes:
            sizes[name] = _MAX_NODES + 1  # what a call to itself finds
            sizes[name] = size_of(model.functions[name])
        return sizes[name]

    return size_of(model.graph)


def _check_operators(model: ir.Model) -> None:
    """Every operator is one that ONNX Runtime has."""
    unknown = sorted({n.domain for n in model.graph.all_nodes() if n.domain not in _DOMAINS})
    if unknown:
        raise ModelError(
            f"has operators of {', '.join(unknown)}, which ONNX Runtime cannot run without "
            "the library that defines them\n  export the model without custom operators"
        )


def _spec(value: ir.Value) -> TensorSpec:
    if not isinstance(value.type, ir.TensorType):
        raise ModelError(f"'{value.name}' is not a tensor: sequences and maps are not supported")
    if value.dtype == ir.DataType.STRING:
        raise ModelError(f"'{value.name}' holds text, which is not supported; export numbers")
    dims = value.shape.dims if value.shape is not None else ()
    shape = tuple(d if isinstance(d, int) else d.value for d in dims)
    return TensorSpec(str(value.name), str(value.type.dtype.numpy()), shape)


def open_original(taken: Intake) -> Session:
    """The model as it came, in ONNX Runtime.

    Raises:
        ModelError: ONNX Runtime refuses it.
        MachineError: there is no ONNX Runtime.
    """
    if problem := available():
        raise MachineError(problem)
    try:
        return open_model(taken.path)
    except BackendError as error:
        raise ModelError(str(error)) from error


def ask_original(taken: Intake, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """What the model as it came answers: its outputs of a floating type, in float64.

    Raises:
        ModelError: ONNX Runtime refuses the model, fails to run it, or answers NaN or infinity.
        FeedError: the rows do not fit it.
    """
    session = open_original(taken)
    try:
        answers = session.run(feeds)
    except BackendError as error:
        raise ModelError(f"{taken.path}: {error}") from error
    if not any(a.dtype.kind == "f" for a in answers.values()):
        listed = ", ".join(map(str, session.outputs))
        raise ModelError(f"{taken.path}: no output of a floating type to compare, only {listed}")
    answers = {k: a.astype(np.float64) for k, a in answers.items() if a.dtype.kind == "f"}
    for name, answer in answers.items():
        if not np.isfinite(answer).all():
            raise ModelError(
                f"{taken.path}: output '{name}' is NaN or infinite for some rows of the data; "
                "look at the checkpoint the model was exported from"
            )
    return answers


def stamp(model: ir.Model, fields: Mapping[str, str]) -> None:
    """Note where the model comes from: sets `rankc.<field>` in its metadata.

    Raises:
        ValueError: A field is an absolute path; those belong to the machine, not to the model.
    """
    for name, text in fields.items():
        if PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute():
            raise ValueError(f"rankc.{name}: {text!r} is a path of this machine")
        model.metadata_props[f"rankc.{name}"] = text
