"""A recipe: what to compress, how far, and what must still hold afterwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

Goal = Literal[
    "threshold",
    "min-improvement",
    "percent-min-improvement",
    "max-degradation",
    "percent-max-degradation",
]


@dataclasses.dataclass(frozen=True, slots=True)
class DataSpec:
    """Where rows come from: an .npz, a folder of .npy, a .parquet, a .csv, or `module.py:function`."""

    path: str  # relative to the recipe
    batch_size: int = 1024
    rows: int | None = None  # read at most this many
    label: str | None = None  # column with the target; validation only


@dataclasses.dataclass(frozen=True, slots=True)
class Data:
    calibration: DataSpec
    validation: DataSpec | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Budget:
    """How large the result may be: `max` in the unit, or `keep_ratio` of the original."""

    unit: Literal["bytes", "parameters"] = "bytes"
    keep_ratio: float | None = None  # in (0, 1]
    max: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Gate:
    """One promise, checked on the finished model. `metric` names a row of metrics.json."""

    metric: str  # auc, logloss, max_abs_err, mean_abs_err, cosine, size_bytes, params, macs, latency_ratio, ...
    goal: Goal
    value: float
    batch: int | None = None  # latency gates: at which batch size


@dataclasses.dataclass(frozen=True, slots=True)
class Latency:
    batch_sizes: tuple[int, ...] = (1, 32, 256)
    repeats: int = 60  # interleaved pairs per batch size


@dataclasses.dataclass(frozen=True, slots=True)
class Profile:
    """Batch sizes that an engine is built for, in TensorRT's sense."""

    min: int = 1
    opt: int = 256
    max: int = 4096


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """One engine to build beside the ONNX file."""

    backend: Literal["onnxruntime", "tensorrt-rtx", "tensorrt"]
    precision: Literal["fp32", "fp16"] = "fp32"
    profile: Profile = Profile()
    compute_capability: tuple[str, ...] = ()  # e.g. ("8.6", "8.9"); empty: the backend's default

    @property
    def name(self) -> str:
        return f"{self.backend}-{self.precision}"


@dataclasses.dataclass(frozen=True, slots=True)
class PassSpec:
    name: str
    options: Mapping[str, Any]  # checked against the pass's own fields


@dataclasses.dataclass(frozen=True, slots=True)
class Recipe:
    name: str
    model: str  # relative to the recipe
    data: Data
    passes: tuple[PassSpec, ...]
    budget: Budget | None = None
    gates: tuple[Gate, ...] = ()
    latency: Latency = Latency()
    lower: tuple[Target, ...] = (Target("onnxruntime"),)
    seed: int = 0
    folder: Path = Path()  # of the recipe file; not a key
