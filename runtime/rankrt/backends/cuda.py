"""The CUDA device: whether one is there (only the driver is asked), and memory on it."""

from __future__ import annotations

import ctypes
import importlib
import sys
import weakref
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from rankrt.errors import BackendError
from rankrt.session import Array

_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_CC_MAJOR, _CC_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_OK = 0


@dataclass(frozen=True, slots=True)
class Device:
    """The first CUDA device that this process may use."""

    name: str
    compute_capability: str  # e.g. "8.9"


def probe() -> Device | str:
    """The device, or the reason why none can be used."""
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return f"no NVIDIA driver here ({_DRIVER} is missing)"
    if code := driver.cuInit(0):
        return f"the NVIDIA driver finds no usable device ({_driver_error(driver, code)})"
    count, device, major, minor = (ctypes.c_int() for _ in range(4))
    if driver.cuDeviceGetCount(ctypes.byref(count)) != _OK or count.value == 0:
        return "the NVIDIA driver lists no device (is CUDA_VISIBLE_DEVICES empty?)"
    name = ctypes.create_string_buffer(256)
    for code in (
        driver.cuDeviceGet(ctypes.byref(device), 0),
        driver.cuDeviceGetAttribute(ctypes.byref(major), _CC_MAJOR, device),
        driver.cuDeviceGetAttribute(ctypes.byref(minor), _CC_MINOR, device),
        driver.cuDeviceGetName(name, len(name), device),
    ):
        if code != _OK:
            return f"the NVIDIA driver cannot describe device 0 ({_driver_error(driver, code)})"
    return Device(name.value.decode(errors="replace"), f"{major.value}.{minor.value}")


def runtime() -> ModuleType:
    """NVIDIA's Python bindings of the CUDA runtime.

    Raises:
        BackendError: they are not installed, or cannot be loaded.
    """
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise BackendError(
            f"CUDA's Python bindings cannot be imported ({error}): pip install cuda-python"
        ) from error


class DeviceMemory:
    """One stream, and one buffer a tensor that grows as needed; not for several threads at once."""

    def __init__(self) -> None:
        """Take device 0 for this thread and create the stream."""
        self.cuda = runtime()
        self.call("cudaSetDevice", 0)
        self.stream: Any = self.call("cudaStreamCreate")
        self._buffers: dict[str, tuple[int, int]] = {}  # name → (address, bytes)
        self.release = weakref.finalize(self, _free, self.cuda, self.stream, self._buffers)

    def reserve(self, name: str, size: int) -> int:
        """The device address of a buffer of at least `size` bytes for `name`."""
        address, capacity = self._buffers.get(name, (0, -1))
        if size > capacity:
            if self._buffers.pop(name, None):
                self.call("cudaFree", address)
            address = int(self.call("cudaMalloc", max(size, 1)))
            self._buffers[name] = (address, size)
        return address

    def upload(self, name: str, array: Array) -> int:
        """Copy a contiguous array to the device; it must live until `synchronize`."""
        address = self.reserve(name, array.nbytes)
        kind = self.cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, self.stream)
        return address

    def download(self, name: str, shape: tuple[int, ...], dtype: str) -> Array:
        """Start copying the buffer of `name` back; the array is filled after `synchronize`."""
        array = np.empty(shape, dtype)
        address, _ = self._buffers[name]
        kind = self.cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, self.stream)
        return array

    def synchronize(self) -> None:
        """Wait until all copies and kernels on the stream are done."""
        self.call("cudaStreamSynchronize", self.stream)

    def use(self) -> None:
        """Make device 0 current for the calling thread."""
        self.call("cudaSetDevice", 0)

    def bus_id(self) -> str:
        """PCI address of device 0, by which NVIDIA's tools know it."""
        text: bytes = self.call("cudaDeviceGetPCIBusId", 32, 0)
        return text.split(b"\0")[0].decode()

    def call(self, function: str, *arguments: Any) -> Any:
        """What a function of the CUDA runtime returns besides its status.

        Raises:
            BackendError: it failed, with CUDA's reason.
        """
        try:
            error, *values = getattr(self.cuda, function)(*arguments)
        except RuntimeError as failure:  # the bindings cannot load the driver
            raise BackendError(f"{function} failed: {failure}") from failure
        if int(error) != _OK:
            raise BackendError(f"{function} failed: {_runtime_error(self.cuda, error)}")
        return values[0] if values else None


def _free(cuda: ModuleType, stream: Any, buffers: dict[str, tuple[int, int]]) -> None:
    """Errors are of no use here: at exit the context may be gone before us."""
    for address, _ in buffers.values():
        cuda.cudaFree(address)
    buffers.clear()
    cuda.cudaStreamDestroy(stream)


def _runtime_error(cuda: ModuleType, error: Any) -> str:
    _, text = cuda.cudaGetErrorString(error)
    return f"{text.decode(errors='replace')} (cudaError {int(error)})"


def _driver_error(driver: ctypes.CDLL, code: int) -> str:
    text = ctypes.c_char_p()
    driver.cuGetErrorString(code, ctypes.byref(text))
    return f"{(text.value or b'unknown error').decode(errors='replace')}, CUresult {code}"
