"""ONNX Runtime: the portable backend, and the reference for all others."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from rankrt.errors import BackendError, FeedError
from rankrt.session import Array, TensorSpec, check_names

_FATAL_ONLY = 4  # ONNX Runtime's log level: its errors are raised too, and told once
_DTYPES = {
    "float": "float32",
    "double": "float64",
    "string": "object",
    **{name: name for name in ("float16", "bool", "int8", "int16", "int32", "int64")},
    **{name: name for name in ("uint8", "uint16", "uint32", "uint64")},
}


def available() -> str | None:
    """None if ONNX Runtime can be used here, else the reason and what to do."""
    try:
        _module()
    except BackendError as error:
        return str(error)
    return None


class OnnxRuntimeSession:
    """A `Session` over onnxruntime.InferenceSession; safe to call from several threads."""

    backend = "onnxruntime"

    def __init__(
        self,
        model: Path | bytes,
        *,
        threads: int = 1,
        optimize: bool = True,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        profile: Path | None = None,
    ) -> None:
        """Open the model; the arguments are those of `rankrt.open_model`.

        `profile`: where a trace of every kernel is written, up to a suffix; see `end_profile`.
        """
        ort = _module()
        self.version: str = ort.__version__
        if threads < 0:
            raise BackendError(f"threads is {threads}; it must be 0 (automatic) or more")
        offered = _offered(ort, providers)
        options = _options(ort, threads, optimize)
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        source: str | bytes = model if isinstance(model, bytes) else str(model)
        where = "the model" if isinstance(model, bytes) else str(model)
        try:
            self._ort: Any = ort.InferenceSession(source, options, providers=offered)
        except Exception as error:  # onnxruntime's classes live in a private module, and vary
            raise BackendError(
                f"{where}: onnxruntime {self.version} refuses it: {error}"
            ) from error
        _require_started(self._ort.get_providers(), providers)
        self.inputs: tuple[TensorSpec, ...] = tuple(_spec(arg) for arg in self._ort.get_inputs())
        self.outputs: tuple[TensorSpec, ...] = tuple(_spec(arg) for arg in self._ort.get_outputs())

    def end_profile(self) -> Path:
        """Write the trace of what was run so far, and say where; `profile` must have been given."""
        return Path(self._ort.end_profiling())

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Every output by name; see `rankrt.session.Session.run`."""
        check_names(self.inputs, feeds)
        try:
            values: list[Array] = self._ort.run(None, dict(feeds))
        except Exception as error:  # as above
            raise _translated(error, self.inputs) from error
        return {spec.name: value for spec, value in zip(self.outputs, values, strict=True)}


def _module() -> ModuleType:
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # Ctrl-C during its C++ set-up
            raise KeyboardInterrupt from error
        raise BackendError(
            f"onnxruntime cannot be imported ({error}): pip install onnxruntime, or onnxruntime-gpu"
        ) from error


def _options(ort: ModuleType, threads: int, optimize: bool) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL_ONLY
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    return options


def _offered(ort: ModuleType, providers: Sequence[str]) -> list[str]:
    """Refuse what this build lacks: onnxruntime itself would warn and go on without."""
    offered = ort.get_available_providers()
    if missing := [name for name in providers if name not in offered]:
        raise BackendError(
            f"this onnxruntime has no {', '.join(missing)}; it has {', '.join(offered)}"
        )
    return list(providers)


def _require_started(started: Sequence[str], wanted: Sequence[str]) -> None:
    """A provider that is built in may still not start (no driver), which is only logged."""
    if failed := [name for name in wanted if name not in started]:
        raise BackendError(
            f"onnxruntime could not start {', '.join(failed)} (is its driver installed?); "
            f"it started {', '.join(started)}"
        )


def _spec(arg: Any) -> TensorSpec:
    """The spec of an onnxruntime NodeArg, e.g. type `tensor(float)`, shape `['batch', 16]`."""
    dtype = _DTYPES.get(str(arg.type).removeprefix("tensor(").removesuffix(")"))
    if dtype is None:
        raise BackendError(
            f"{arg.name} is a {arg.type}, which numpy cannot hold; give the model inputs and "
            f"outputs of one of {', '.join(sorted(set(_DTYPES.values())))}"
        )
    return TensorSpec(arg.name, dtype, tuple(d if d != "" else None for d in arg.shape))


def _translated(error: Exception, inputs: Sequence[TensorSpec]) -> BackendError | FeedError:
    """InvalidArgument is about the caller's arrays: shape, dtype, an id beyond its table."""
    if type(error).__name__ == "InvalidArgument":
        takes = ", ".join(str(spec) for spec in inputs)
        return FeedError(f"onnxruntime refuses the inputs: {error}; the model takes {takes}")
    return BackendError(f"onnxruntime failed: {error}")
