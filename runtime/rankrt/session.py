"""A model ready to run. Calibration, validation and serving all go through this."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rankrt.errors import FeedError

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a model."""

    name: str
    dtype: str  # numpy's name of it, e.g. "float32"; "object" for strings
    shape: tuple[
        int | str | None, ...
    ]  # a name: any size, equal wherever it appears; None: any size

    def __str__(self) -> str:
        sizes = ", ".join("?" if d is None else str(d) for d in self.shape)
        return f"{self.name} {self.dtype} ({sizes}{',' if len(self.shape) == 1 else ''})"


class Session(Protocol):
    """A model that one backend has opened."""

    @property
    def backend(self) -> str:
        """`onnxruntime`, `tensorrt-rtx` or `tensorrt`."""
        ...

    @property
    def version(self) -> str:
        """The backend's version."""
        ...

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What `run` takes."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `run` returns."""
        ...

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Every output by name, from every input by name.

        Raises:
            FeedError: a name is missing or unknown, or an array does not fit the model.
            BackendError: the backend failed.
        """
        ...


def open_model(
    model: Path | bytes,
    *,
    threads: int = 1,
    optimize: bool = True,
    providers: Sequence[str] = ("CPUExecutionProvider",),
) -> Session:
    """Open an ONNX model with ONNX Runtime.

    Args:
        model: the file, or its bytes (then external data cannot be found).
        threads: within one operator; 0 leaves the number to ONNX Runtime.
        optimize: False runs the graph exactly as it is written.
        providers: in order of preference; each of them must start, none is skipped in silence.

    Raises:
        BackendError: onnxruntime is missing, lacks a provider, or refuses the model.
    """
    from rankrt.backends.onnxruntime import OnnxRuntimeSession  # it imports this module

    return OnnxRuntimeSession(model, threads=threads, optimize=optimize, providers=providers)


def check_names(inputs: Sequence[TensorSpec], feeds: Mapping[str, Array]) -> None:
    """Refuse feeds whose names are not exactly those of `inputs`, or that are not arrays."""
    names = [spec.name for spec in inputs]
    if missing := [name for name in names if name not in feeds]:
        raise FeedError(f"missing inputs: {', '.join(missing)}; the model takes {_listed(inputs)}")
    if len(feeds) != len(names):
        unknown = [str(name) for name in feeds if name not in names]
        raise FeedError(f"unknown inputs: {', '.join(unknown)}; the model takes {_listed(inputs)}")
    for name in names:
        if not isinstance(feeds[name], np.ndarray):
            kind = type(feeds[name]).__name__
            raise FeedError(f"input {name} is a {kind}; wrap it in numpy.asarray(...)")


def check_array(spec: TensorSpec, array: Array, sizes: dict[str, int]) -> None:
    """Refuse an array of another dtype or shape; `sizes` collects what named dimensions are."""
    if array.dtype != spec.dtype:
        raise FeedError(
            f"input {spec.name} is {array.dtype}, the model takes {spec.dtype}; "
            f"convert it with .astype('{spec.dtype}') if no value is lost"
        )
    if array.ndim != len(spec.shape):
        raise FeedError(f"input {spec.name} has shape {array.shape}, the model takes {spec}")
    for axis, (got, want) in enumerate(zip(array.shape, spec.shape, strict=True)):
        if isinstance(want, str):
            want = sizes.setdefault(want, got)
        if want is not None and got != want:
            name = spec.shape[axis]
            why = f"; {name} is {want} in another input" if isinstance(name, str) else ""
            raise FeedError(
                f"input {spec.name} has shape {array.shape}, the model takes {spec}: "
                f"axis {axis} is {got}, expected {want}{why}"
            )


def _listed(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(str(spec) for spec in specs)
