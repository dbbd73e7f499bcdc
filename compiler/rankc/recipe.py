"""A recipe: what to compress, how far, and what must still hold afterwards."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, MinLen

Goal = Literal[
    "threshold",
    "min-improvement",
    "percent-min-improvement",
    "max-degradation",
    "percent-max-degradation",
]
Metric = Literal[
    "auc",
    "logloss",
    "max_abs_err",
    "mean_abs_err",
    "cosine",
    "size_bytes",
    "params",
    "macs",
    "nodes",
    "peak_memory_bytes",
    "size_ratio",
    "params_ratio",
    "macs_ratio",
    "latency_ms",
    "latency_ratio",
]

Count = Annotated[int, Ge(1)]


@dataclasses.dataclass(frozen=True, slots=True)
class DataSpec:
    """Where rows come from: .npz, a folder of .npy, .parquet, .csv, or `module.py:function`."""

    path: Annotated[str, MinLen(1)]  # relative to the recipe
    batch_size: Count = 1024
    rows: Count | None = None  # read at most this many
    label: str | None = None  # array or column with the target; validation only


@dataclasses.dataclass(frozen=True, slots=True)
class Data:
    """The rows that the compiler looks at."""

    calibration: DataSpec  # what the compressed model is fitted on; no labels needed
    validation: DataSpec | None = None  # what the original and the result are compared on


@dataclasses.dataclass(frozen=True, slots=True)
class Budget:
    """How large the result may be: `max` in the unit, or `keep_ratio` of the original."""

    unit: Literal["bytes", "parameters"] = "bytes"  # what is counted, over all weights
    keep_ratio: Annotated[float, Gt(0), Le(1)] | None = None  # share of the original, in (0, 1]
    max: Count | None = None  # the most that the result may have, in the unit

    def __post_init__(self) -> None:
        if (self.keep_ratio is None) == (self.max is None):
            given = "neither" if self.max is None else "both"
            raise ValueError(f"give exactly one of keep_ratio and max ({given} is given)")


@dataclasses.dataclass(frozen=True, slots=True)
class Gate:
    """One promise, checked on the finished model. `metric` names a row of metrics.json."""

    metric: Metric  # what is measured
    goal: Goal  # how `value` is meant
    value: float  # in the metric's unit, or in percent of the original's
    batch: Count | None = None  # latency gates: at which of latency.batch_sizes


@dataclasses.dataclass(frozen=True, slots=True)
class Latency:
    """How latency is measured: the original and the result in turn, one thread, CPU time."""

    batch_sizes: Annotated[tuple[Count, ...], MinLen(1)] = (1, 32, 256)  # one measurement each
    repeats: Count = 60  # interleaved pairs per batch size

    def __post_init__(self) -> None:
        if len(set(self.batch_sizes)) < len(self.batch_sizes):
            raise ValueError(f"batch_sizes names a size twice: {list(self.batch_sizes)}")


@dataclasses.dataclass(frozen=True, slots=True)
class Profile:
    """Batch sizes that an engine is built for, in TensorRT's sense."""

    min: Count = 1  # smallest batch that the engine accepts
    opt: Count = 256  # the batch it is tuned for
    max: Count = 4096  # largest batch that the engine accepts

    def __post_init__(self) -> None:
        if not self.min <= self.opt <= self.max:
            raise ValueError(
                f"needs min <= opt <= max, and has min {self.min}, opt {self.opt}, max {self.max}"
            )


_CAPABILITY = re.compile(r"[1-9]\d*\.\d")


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """One engine to build beside the ONNX file."""

    backend: Literal["onnxruntime", "tensorrt-rtx", "tensorrt"]  # what runs it
    precision: Literal["fp32", "fp16"] = "fp32"  # of the weights and the arithmetic
    profile: Profile = Profile()  # TensorRT: which batch sizes
    compute_capability: tuple[str, ...] = ()  # e.g. ["8.6", "8.9"]; empty: the backend's default

    def __post_init__(self) -> None:
        for text in self.compute_capability:
            if not _CAPABILITY.fullmatch(text):
                raise ValueError(f"compute_capability is written like '8.6', not {text!r}")

    @property
    def name(self) -> str:
        return f"{self.backend}-{self.precision}"


@dataclasses.dataclass(frozen=True, slots=True)
class PassSpec:
    """One pass of the recipe."""

    name: str
    options: Mapping[str, Any]  # as written; checked against the pass's own fields


_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclasses.dataclass(frozen=True, slots=True)
class Recipe:
    """One compilation from end to end."""

    name: str  # what the result is called; also its folder under build/
    model: Annotated[str, MinLen(1)]  # the ONNX file, relative to the recipe
    data: Data
    passes: tuple[PassSpec, ...]  # what may be done, each at most once
    budget: Budget | None = None  # without it every site keeps what its pass alone thinks right
    gates: tuple[Gate, ...] = ()  # the exit code tells whether they hold
    latency: Latency = Latency()
    lower: tuple[Target, ...] = (Target("onnxruntime"),)
    seed: Annotated[int, Ge(0)] = 0  # of everything that draws random numbers
    folder: Path = Path()  # of the recipe file; not a key

    def __post_init__(self) -> None:
        if not _FILE_NAME.fullmatch(self.name):
            raise ValueError(
                f"name must be usable as a folder name (letters, digits, '.', '_', '-'), "
                f"not {self.name!r}"
            )
