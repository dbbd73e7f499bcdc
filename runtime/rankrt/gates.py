"""The recipe's gates, as far as a device can decide them with the bundle alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from rankrt import bench
from rankrt.bundle import Bundle
from rankrt.errors import BundleError
from rankrt.manifest import Gate
from rankrt.session import Array

ELSEWHERE = "needs rankc gate"


@dataclass(frozen=True, slots=True)
class Checked:
    """A gate, and what was seen here."""

    gate: Gate
    value: float | None  # None: not measured
    passed: bool | None  # None: not decided
    note: str  # how it was measured, or why it was not

    @property
    def name(self) -> str:
        at = "" if self.gate.batch is None else f" at batch {self.gate.batch}"
        return f"{self.gate.metric}{at}"


def check_gates(bundle: Bundle, seconds: float) -> list[Checked]:
    """Decide what can be decided here.

    Args:
        bundle: opened with the backend that is to be looked at.
        seconds: spent on timing each batch size.

    Raises:
        BundleError: the golden rows do not fit the model.
    """
    timings: dict[int, bench.Timing] = {}
    return [_check(bundle, gate, timings, seconds) for gate in bundle.manifest.gates]


def _check(bundle: Bundle, gate: Gate, timings: dict[int, bench.Timing], seconds: float) -> Checked:
    if gate.bound is None:
        return Checked(gate, None, None, ELSEWHERE)
    if gate.metric == "size_bytes":
        value: float | None = _size(bundle)
        note = "files of the model"
    elif gate.metric in ("latency_ms", "throughput"):
        value, note = _timed(bundle, gate, timings, seconds)
    else:
        value, note = _distance(bundle, gate)
    if value is None:
        return Checked(gate, None, None, f"{note}; {ELSEWHERE}")
    passed = value >= gate.bound if gate.at_least else value <= gate.bound
    return Checked(gate, value, passed, note)


def _size(bundle: Bundle) -> float:
    model, files = bundle.manifest.model, bundle.manifest.files
    return sum(files[name].size_bytes for name in (model, f"{model}.data") if name in files)


def _timed(
    bundle: Bundle, gate: Gate, timings: dict[int, bench.Timing], seconds: float
) -> tuple[float | None, str]:
    """CPU time where one thread does everything, else wall-clock time."""
    batch, rows = gate.batch or 1, bundle.golden_rows()
    if gate.percentile not in (50, 95):
        return None, f"p{gate.percentile} is not measured here"
    if rows is None:
        return None, "there are no golden rows to time"
    if not any(bench.has_batch(spec) for spec in bundle.manifest.inputs):
        fixed = {spec.shape[0] for spec in bundle.manifest.inputs if spec.shape}
        if fixed != {batch}:
            return None, f"the model takes no batch of {batch}"
    if batch not in timings:
        feeds = bench.tiled(rows[0], bundle.manifest.inputs, batch)
        timings[batch] = bench.time_batch(lambda: bundle.run(feeds), batch, seconds)
    t, cpu = timings[batch], bundle.engine is None
    times = (t.cpu_p50_ms, t.cpu_p95_ms) if cpu else (t.wall_p50_ms, t.wall_p95_ms)
    ms = times[gate.percentile == 95]
    clock = "CPU time of one thread" if cpu else "wall-clock time"
    note = f"p{gate.percentile} of {t.runs} calls of Bundle.run, {clock}"
    return (1e3 * batch / ms if gate.metric == "throughput" else ms), note


def _distance(bundle: Bundle, gate: Gate) -> tuple[float | None, str]:
    references, rows = bundle.references(), bundle.golden_rows()
    of, name = _DISTANCES.get(gate.metric), gate.output
    if of is None or rows is None or name is None or name not in references:
        return None, "the bundle keeps no outputs of the original"
    got, want = bundle.run(rows[0])[name], references[name]
    if got.shape != want.shape:
        raise BundleError(
            f"output {name} has shape {got.shape}, the original's golden one {want.shape}"
        )
    value = of(want.astype(np.float64), got.astype(np.float64))
    if not np.isfinite(value):
        return None, "an output is NaN or infinite"
    return value, f"on {len(want) if want.ndim else 1} golden rows only"


def _cosine(want: Array, got: Array) -> float:
    size = float(np.linalg.norm(want) * np.linalg.norm(got))
    return float((want * got).sum()) / size if size else float(not (want.any() or got.any()))


_DISTANCES: Mapping[str, Callable[[Array, Array], float]] = {
    "mean_abs_err": lambda want, got: float(np.abs(want - got).mean()),
    "max_abs_err": lambda want, got: float(np.abs(want - got).max(initial=0.0)),
    "cosine": _cosine,
}
