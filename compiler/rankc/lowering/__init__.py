"""From the finished ONNX model to something that runs on a device. Nothing else knows TensorRT."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path

from rankc.errors import MachineError, ModelError
from rankc.lowering.onnxruntime import prove
from rankc.lowering.result import EngineResult
from rankc.lowering.tensorrt import build_engine
from rankc.recipe import Target
from rankrt.errors import RankrtError
from rankrt.session import Array

__all__ = ["ENGINES", "TIME_LIMIT", "EngineResult", "lower"]

ENGINES = "engines"  # folder of the bundle in which engines lie
TIME_LIMIT = 900.0  # seconds for one engine


def lower(
    model_path: Path,
    target: Target,
    folder: Path,
    golden: Mapping[str, Array] | None = None,
    *,
    time_limit: float = TIME_LIMIT,
) -> EngineResult:
    """Lower one model to one target, and say how that went.

    A backend that is missing, refuses the model, crashes or takes too long is a result with
    `built=False` and the reason. Nothing of a failed engine stays behind.

    Args:
        model_path: the finished float32 model.
        target: backend and precision.
        folder: of the bundle; engines go to `engines/<target.name>.engine`, the float16 model of
            ONNX Runtime to `<stem>.fp16.onnx`.
        golden: inputs to run it on, by name, each (rows, ...).
        time_limit: seconds after which a build is stopped.

    Raises:
        MachineError: the disk is full, or a file cannot be read or written.
    """
    start = time.monotonic()
    try:
        if target.backend == "onnxruntime":
            result = prove(model_path, target, folder, golden)
        else:
            result = build_engine(model_path, target, folder / ENGINES, golden, time_limit)
    except (ModelError, RankrtError) as error:
        result = EngineResult(target.backend, target.precision, False, False, f"not built: {error}")
    except OSError as error:
        where = error.filename or folder
        raise MachineError(f"{target.name}: {where}: {error.strerror or error}") from error
    return dataclasses.replace(result, seconds=time.monotonic() - start)
