"""What became of one lowering target."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rankrt.session import Array

# How far outputs may be from the float32 model. Past it the engine computes something else; how
# good a lower precision is, is for the gates to say.
TOLERANCE: dict[str, float] = {"fp32": 1e-3, "fp16": 2e-2}


@dataclasses.dataclass(frozen=True, slots=True)
class EngineResult:
    """A backend's answer. A refusal is data: the report shows it, the caller decides on it."""

    backend: str
    precision: str
    built: bool
    ran: bool
    reason: str  # one line for the report: how it went, or why it did not
    file: Path | None = None
    size_bytes: int | None = None  # of the file and its external data
    layers: int | None = None  # of the parsed network, before the backend fuses them
    version: str | None = None  # of the backend
    seconds: float = 0.0
    available: bool = True  # False: the backend is not on this machine, which is nobody's mistake
    max_abs_err: float | None = None  # against the float32 model in ONNX Runtime, golden inputs

    @property
    def failed(self) -> bool:
        """Whether the backend was there and refused: exit code 7."""
        return self.available and not self.built


def tolerance(precision: str, want: Mapping[str, Array]) -> float:
    """The largest error that golden outputs may show: of order one, or relative to the largest."""
    floats = [array for array in want.values() if array.dtype.kind == "f" and array.size]
    peaks = [float(np.abs(array[np.isfinite(array)]).max(initial=0.0)) for array in floats]
    return TOLERANCE[precision] * max([1.0, *peaks])
