"""TensorRT and TensorRT-RTX: one code path, since their run-time interfaces are the same.

An engine is machine code. The manifest's hash tells that it is the one the bundle was made with,
not that its maker meant well: load bundles of makers you trust.
"""

from __future__ import annotations

import importlib
import importlib.util
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from rankrt.backends import cuda, cuda_timing
from rankrt.errors import BackendError, FeedError
from rankrt.manifest import Engine
from rankrt.session import Array, TensorSpec, check_names

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
PACKAGES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt-rtx-cu12"}
# What TensorRT-RTX builds for when it is told nothing: Ampere, Ada, Blackwell and newer, but no
# data-centre chip since (9.0 is Hopper). Source: its support matrix, and its ComputeCapability.
RTX_DEFAULT = ("8.0", "8.6", "8.9", "12.0+")
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
_KEPT = 20  # last messages of TensorRT's log that an error quotes


def available(backend: str = "tensorrt") -> str | None:
    """None if the backend can be used here, else the reason and what to do."""
    if backend not in MODULES:
        return f"unknown backend {backend!r}; choose one of {', '.join(MODULES)}"
    if importlib.util.find_spec(MODULES[backend]) is None:
        return f"{MODULES[backend]} is not installed: pip install {PACKAGES[backend]}"
    device = cuda.probe()
    if isinstance(device, str):
        return device
    try:
        cuda.runtime()
        _module(backend)
    except BackendError as error:
        return str(error)
    return None


def wrong_device(engine: Engine) -> str | None:
    """Why the engine does not fit the device here, or None if it may."""
    device = cuda.probe()
    if isinstance(device, str):
        return device
    return capability_mismatch(engine, device)


def capability_mismatch(engine: Engine, device: cuda.Device) -> str | None:
    """Why an engine built for some compute capabilities cannot run on the device, or None.

    `8.6` stands for that one, `8.0+` for it and all newer. An engine of TensorRT that names none
    is left to TensorRT's own check when it is opened.
    """
    built_for = engine.compute_capability
    if not built_for and engine.backend == "tensorrt-rtx":
        built_for = RTX_DEFAULT
    if not built_for or any(_covers(one, device.compute_capability) for one in built_for):
        return None
    return (
        f"built for compute capability {', '.join(built_for)}; {device.name} has "
        f"{device.compute_capability}: recompile with that target"
    )


def _covers(built_for: str, capability: str) -> bool:
    if built_for.endswith("+"):
        return _parts(capability) >= _parts(built_for.removesuffix("+"))
    return built_for == capability


def _parts(capability: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in capability.split("."))
    except ValueError as error:
        raise BackendError(f"{capability!r} is no compute capability like 8.9") from error


def open_engine(path: Path, engine: Engine) -> TensorRTSession:
    """Open an engine file on device 0.

    Raises:
        BackendError: TensorRT refuses it, with TensorRT's own messages; or a tensor is of a kind
            that numpy cannot hold.
    """
    return TensorRTSession(path, engine)


class TensorRTSession:
    """A `Session` over an execution context; calls from several threads wait for each other."""

    def __init__(self, path: Path, engine: Engine) -> None:
        """Open the engine; see `open_engine`."""
        trt = _module(engine.backend)
        self.backend = engine.backend
        self.version: str = trt.__version__
        self.engine = engine  # its entry in the manifest
        self._log = _logger(trt)
        self._runtime = trt.Runtime(self._log)  # must outlive the engine
        self._engine = self._deserialize(path, engine)
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise BackendError(f"TensorRT gave no execution context: {self._said()}")
        self._memory = cuda.DeviceMemory()
        self.bus_id = self._memory.bus_id()  # of its device
        self._lock = threading.Lock()
        self._on_host = {
            name for name in self._names() if self._location(name) == trt.TensorLocation.HOST
        }
        self.inputs, self.outputs = self._specs(trt)
        self._bounds = {
            spec.name: tuple(tuple(d) for d in self._engine.get_tensor_profile_shape(spec.name, 0))
            for spec in self.inputs
            if spec.name not in self._on_host
        }

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Every output by name; see `rankrt.session.Session.run`."""
        check_names(self.inputs, feeds)
        arrays = {spec.name: self._prepared(spec, feeds[spec.name]) for spec in self.inputs}
        with self._lock:
            outputs = self._bind(arrays)
            self._enqueue()
            results = self._download(outputs)
            self._memory.synchronize()
        return results

    @contextmanager
    def on_device(self, feeds: Mapping[str, Array]) -> Iterator[cuda_timing.EventCalls]:
        """One batch on the device, to be run again and again and timed; others wait meanwhile.

        Raises:
            FeedError: the batch does not fit.
            BackendError: the device refuses it.
        """
        check_names(self.inputs, feeds)
        arrays = {spec.name: self._prepared(spec, feeds[spec.name]) for spec in self.inputs}

        def copy() -> None:
            for name, array in arrays.items():
                if name not in self._on_host:
                    self._memory.upload(name, array)
            kept.append(self._download(outputs))

        with self._lock:
            outputs = self._bind(arrays)
            kept = [outputs]  # arrays that a copy is still writing to
            yield cuda_timing.EventCalls(self._memory, self._enqueue, copy)
            self._memory.synchronize()

    def _bind(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Copy the inputs and give every output its place; arrays of the outputs' shapes."""
        self._memory.use()
        for name, array in arrays.items():
            self._bind_input(name, array)
        if unset := self._context.infer_shapes():
            raise BackendError(f"TensorRT wants more about {', '.join(unset)}: {self._said()}")
        return {spec.name: self._bind_output(spec) for spec in self.outputs}

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(int(self._memory.stream)):
            raise BackendError(f"TensorRT could not run the engine: {self._said()}")

    def _download(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        return {
            spec.name: outputs[spec.name]
            if spec.name in self._on_host
            else self._memory.download(spec.name, outputs[spec.name].shape, spec.dtype)
            for spec in self.outputs
        }

    def _deserialize(self, path: Path, engine: Engine) -> Any:
        try:
            opened = self._runtime.deserialize_cuda_engine(path.read_bytes())
        except OSError as error:
            raise BackendError(f"{path} cannot be read: {error}") from error
        if opened is None:
            raise BackendError(
                f"{engine.backend} {self.version} refuses the engine, built by {engine.version}: "
                f"{self._said()}"
            )
        return opened

    def _names(self) -> list[str]:
        return [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]

    def _location(self, name: str) -> Any:
        return self._engine.get_tensor_location(name)

    def _specs(self, trt: ModuleType) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        inputs: list[TensorSpec] = []
        outputs: list[TensorSpec] = []
        for name in self._names():
            kind = str(self._engine.get_tensor_dtype(name).name)
            if kind not in _DTYPES:
                raise BackendError(
                    f"{name} is {kind}, which numpy cannot hold; rebuild with inputs and outputs "
                    f"of one of {', '.join(_DTYPES)}"
                )
            sizes = tuple(self._engine.get_tensor_shape(name))
            spec = TensorSpec(name, _DTYPES[kind], tuple(d if d >= 0 else None for d in sizes))
            is_input = self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            (inputs if is_input else outputs).append(spec)
        return tuple(inputs), tuple(outputs)

    def _prepared(self, spec: TensorSpec, array: Array) -> Array:
        """The array as one block of memory, if the engine's profile takes it."""
        if array.dtype != spec.dtype or array.ndim != len(spec.shape):
            raise FeedError(
                f"input {spec.name} is {array.dtype} {array.shape}, the engine takes {spec}"
            )
        if spec.name in self._bounds:
            check_profile(spec.name, array.shape, self._bounds[spec.name])
        return np.ascontiguousarray(array)

    def _bind_input(self, name: str, array: Array) -> None:
        if name in self._on_host:
            address = array.ctypes.data
        elif not self._context.set_input_shape(name, array.shape):
            raise BackendError(f"TensorRT refuses {array.shape} for {name}: {self._said()}")
        else:
            address = self._memory.upload(name, array)
        self._set_address(name, address)

    def _bind_output(self, spec: TensorSpec) -> Array:
        """A host array of the output's shape; the device buffer is bound in its place."""
        shape = tuple(self._context.get_tensor_shape(spec.name))
        if any(size < 0 for size in shape):
            raise BackendError(
                f"output {spec.name} has shape {shape} that depends on the data; not supported"
            )
        array = np.empty(shape, spec.dtype)
        on_host = spec.name in self._on_host
        address = array.ctypes.data if on_host else self._memory.reserve(spec.name, array.nbytes)
        self._set_address(spec.name, address)
        return array

    def _set_address(self, name: str, address: int) -> None:
        if not self._context.set_tensor_address(name, address):
            raise BackendError(f"TensorRT refuses the memory of {name}: {self._said()}")

    def _said(self) -> str:
        return self._log.take() or "it gave no reason"


def check_profile(name: str, shape: tuple[int, ...], bounds: tuple[tuple[int, ...], ...]) -> None:
    """Refuse a shape outside the engine's profile; `bounds` is (min, opt, max), each a shape."""
    low, _, high = bounds
    for axis, size in enumerate(shape):
        if not low[axis] <= size <= high[axis]:
            raise FeedError(
                f"input {name} has shape {shape}: axis {axis} is {size}, the engine was built for "
                f"{low[axis]}..{high[axis]}; split the batch, or recompile with another profile"
            )


def _module(backend: str) -> ModuleType:
    try:
        return importlib.import_module(MODULES[backend])
    except (ImportError, OSError, RuntimeError) as error:  # its libraries fail in many ways
        raise BackendError(
            f"{MODULES[backend]} cannot be imported ({error}): pip install {PACKAGES[backend]}"
        ) from error


def _logger(trt: ModuleType) -> Any:
    """TensorRT tells its reasons to a logger and nowhere else; the class needs the module."""
    base: Any = trt.ILogger

    class Log(base):  # type: ignore[misc]  # the module is known only at run time
        def __init__(self) -> None:
            base.__init__(self)
            self._messages: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (base.INTERNAL_ERROR, base.ERROR):
                self._messages = [*self._messages, msg.strip()][-_KEPT:]

        def take(self) -> str:
            messages, self._messages = self._messages, []
            return "; ".join(messages)

    return Log()
