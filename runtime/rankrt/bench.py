"""How fast a bundle is here: wall-clock time, and CPU time of the calling thread."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rankrt.errors import FeedError
from rankrt.manifest import Manifest
from rankrt.session import Array, TensorSpec

WARMUP = 5  # runs before the clock starts
MIN_RUNS, MAX_RUNS = 20, 5000
_SEED = 0


@dataclass(frozen=True, slots=True)
class Timing:
    """One batch size; milliseconds a call."""

    batch: int
    runs: int
    wall_p50_ms: float
    wall_p95_ms: float
    cpu_p50_ms: float  # of the calling thread only
    cpu_p95_ms: float


def time_batch(run: Callable[[], object], batch: int, seconds: float) -> Timing:
    """Call `run` for about `seconds`, and MIN_RUNS times at least."""
    for _ in range(WARMUP):
        run()
    walls: list[int] = []
    cpus: list[int] = []  # nanoseconds, both
    end = time.perf_counter() + seconds
    while len(walls) < MIN_RUNS or (time.perf_counter() < end and len(walls) < MAX_RUNS):
        wall, cpu = time.perf_counter_ns(), time.thread_time_ns()
        run()
        cpus.append(time.thread_time_ns() - cpu)
        walls.append(time.perf_counter_ns() - wall)
    wall_ms = np.percentile(walls, (50, 95)) / 1e6
    cpu_ms = np.percentile(cpus, (50, 95)) / 1e6
    return Timing(batch, len(walls), *map(float, (*wall_ms, *cpu_ms)))


def peak_memory_bytes() -> int | None:
    """Peak resident memory of this process, or None where the system does not tell."""
    if sys.platform == "linux":  # its rusage counts what ran before exec, e.g. a large parent
        status = Path("/proc/self/status").read_text()
        peak = re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)
        return int(peak[1]) * 1024 if peak else None
    if sys.platform == "win32":
        return None
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def tiled(inputs: Mapping[str, Array], specs: Sequence[TensorSpec], batch: int) -> dict[str, Array]:
    """Golden inputs, repeated along the batch axis to `batch` rows."""
    feeds: dict[str, Array] = {}
    for spec in specs:
        array = inputs[spec.name]
        if has_batch(spec) and array.shape[0]:
            feeds[spec.name] = np.take(array, np.arange(batch) % array.shape[0], axis=0)
        else:
            feeds[spec.name] = array
    return feeds


def made_up(manifest: Manifest, batch: int, sizes: Mapping[str, int]) -> dict[str, Array]:
    """Random inputs of the specs' shapes: floats from N(0, 1), ids within their ranges, seeded.

    Args:
        manifest: whose inputs they are for.
        batch: the size of axis 0 wherever that is not fixed.
        sizes: of the other named dimensions.

    Raises:
        FeedError: a dimension has no size.
    """
    rng = np.random.default_rng(_SEED)
    feeds: dict[str, Array] = {}
    for spec in manifest.inputs:
        shape = _shape(spec, batch, sizes)
        kind = np.dtype(spec.dtype).kind
        if kind == "f":
            feeds[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
        elif kind in "iub":
            most = manifest.id_ranges.get(spec.name, 1)
            feeds[spec.name] = rng.integers(0, most, shape, endpoint=True).astype(spec.dtype)
        else:
            raise FeedError(f"no values can be made up for {spec}; only golden rows would do")
    return feeds


def has_batch(spec: TensorSpec) -> bool:
    """Whether axis 0 may have any size."""
    return bool(spec.shape) and not isinstance(spec.shape[0], int)


def _shape(spec: TensorSpec, batch: int, sizes: Mapping[str, int]) -> tuple[int, ...]:
    shape: list[int] = []
    for axis, size in enumerate(spec.shape):
        if isinstance(size, int):
            shape.append(size)
        elif axis == 0:
            shape.append(batch)
        elif size in sizes:
            shape.append(sizes[str(size)])
        else:
            raise FeedError(f"input {spec}: axis {axis} has no size; give it with --dim {size}=N")
    return tuple(shape)
