"""The process that talks to TensorRT: `python -m rankc.lowering.worker`.

It may crash, hang or eat the memory without taking the compiler along. A `Request` comes as JSON on
standard input; the `Answer` goes as JSON to the file that the request names, because TensorRT
prints to standard output as it likes.

`tensorrt_rtx` and `tensorrt` share one interface. Versions differ in what they have, never in what
we ask of it: networks are strongly typed, so precision is in the graph and no flag is set.
"""

from __future__ import annotations

import dataclasses
import errno
import importlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from rankc.lowering.targets import opset_problem

Profile = dict[str, tuple[list[int], list[int], list[int]]]  # input: its min, opt and max shape
Status = Literal["built", "refused", "unavailable", "machine"]
_MAX_REASONS = 5
_SOURCE_LINE = re.compile(r"\s*In \S+ at /\S+|^\S+\.cpp:\d+:\s*|Error Code \d+:\s*")


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """What to build."""

    backend: str
    module: str
    model: str  # path of the ONNX file; external data lies beside it
    opset: int
    engine: str  # path to write
    answer: str  # path to write
    profile: Profile
    compute_capability: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """How it went."""

    status: Status
    reason: str = ""
    version: str | None = None
    layers: int | None = None


class _RefusedError(Exception):
    """TensorRT said no; the message has its reasons."""


def main() -> None:
    """Serve one request."""
    request = Request(**json.load(sys.stdin))
    answer = serve(request)
    Path(request.answer).write_text(json.dumps(dataclasses.asdict(answer)), encoding="utf-8")


def serve(request: Request) -> Answer:
    """Import the backend and build; every way in which that fails is an answer."""
    try:
        trt: Any = importlib.import_module(request.module)
    except ModuleNotFoundError as error:
        return Answer("unavailable", f"{error.name} is not installed")
    except (ImportError, OSError) as error:  # a shared library is missing or too old
        return Answer("unavailable", f"{request.module} does not load: {error}")
    version = str(trt.__version__)
    try:
        if problem := opset_problem(request.backend, version, request.opset):
            return Answer("refused", problem, version)
        layers = _build(trt, request)
    except _RefusedError as error:
        return Answer("refused", str(error), version)
    except MemoryError:
        return Answer("refused", "out of memory", version)
    except OSError as error:
        Path(request.engine).unlink(missing_ok=True)  # so that the answer finds room
        kind: Status = "machine" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "refused"
        return Answer(kind, f"cannot write the engine: {error.strerror}", version)
    return Answer("built", "", version, layers)


def _build(trt: Any, request: Request) -> int:
    """Parse, build, write.

    Returns:
        The number of layers in the parsed network.
    """
    logger = _logger(trt)
    try:
        builder = trt.Builder(logger)
    except (TypeError, RuntimeError) as error:  # pybind's factory got a null pointer: no driver
        raise _RefusedError(
            f"it cannot start (is there a GPU and its driver?): {_errors(logger) or error}"
        ) from error
    network = builder.create_network(_creation_flags(trt))  # has to outlive its parser
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(request.model):
        raise _RefusedError(
            _parser_errors(parser) or _errors(logger) or "the parser gave no reason"
        )
    config = _config(trt, builder, request)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise _RefusedError(_errors(logger) or "the builder gave no reason")
    Path(request.engine).write_bytes(memoryview(engine))
    return int(network.num_layers)


def _creation_flags(trt: Any) -> int:
    """Strong typing: needed by 10.x, the only mode of 11 and RTX."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _config(trt: Any, builder: Any, request: Request) -> Any:
    config = builder.create_builder_config()
    if request.profile:
        profile = builder.create_optimization_profile()
        for name, (smallest, usual, largest) in request.profile.items():
            profile.set_shape(name, smallest, usual, largest)
        config.add_optimization_profile(profile)
    if request.compute_capability:
        _set_compute_capability(trt, config, request.compute_capability)
    return config


def _set_compute_capability(trt: Any, config: Any, wanted: Sequence[str]) -> None:
    if not hasattr(trt, "ComputeCapability"):
        raise _RefusedError(
            f"{trt.__name__} {trt.__version__} builds for the GPU it runs on:"
            " remove compute_capability from the target"
        )
    members = trt.ComputeCapability.__members__
    known = {
        f"{name[2:-1]}.{name[-1]}": value for name, value in members.items() if name[2:].isdigit()
    }
    if unknown := [name for name in wanted if name not in known]:
        raise _RefusedError(
            f"compute capability {', '.join(unknown)} is not one that {trt.__name__}"
            f" {trt.__version__} builds for; it takes {', '.join(known)}"
        )
    config.num_compute_capabilities = len(wanted)
    for index, name in enumerate(wanted):
        config.set_compute_capability(known[name], index)


def _logger(trt: Any) -> Any:
    """A TensorRT logger that keeps the errors: the builder itself only returns None."""

    class Logger(trt.ILogger):  # type: ignore[misc]  # its base is known at run time only
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

    return Logger()


def _errors(logger: Any) -> str:
    """The logged errors in order, without places in TensorRT's own source."""
    lines = (_SOURCE_LINE.sub("", str(text)).strip() for text in logger.errors)
    return "; ".join(list(dict.fromkeys(line for line in lines if line))[:_MAX_REASONS])


def _parser_errors(parser: Any) -> str:
    """Every refused node by operator and name; the parser's own text is often just "false"."""
    reasons = list(dict.fromkeys(_parser_reasons(parser)))
    rest = len(reasons) - _MAX_REASONS
    return "; ".join(reasons[:_MAX_REASONS]) + (f"; and {rest} more" if rest > 0 else "")


def _parser_reasons(parser: Any) -> Iterator[str]:
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        text = _SOURCE_LINE.sub("", str(error.desc())).strip()
        code = getattr(error.code(), "name", str(error.code())).lower().replace("_", " ")
        detail = code if text in ("", "false") else f"{code}: {text}"
        operator, name = error.node_operator(), error.node_name()
        yield f"operator {operator} in node {name!r}: {detail}" if operator else detail


if __name__ == "__main__":
    main()
