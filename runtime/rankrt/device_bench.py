"""Times of a GPU's own work, taken only while its clock stands still.

Around every call lie two CUDA events, so the host is not part of a time, and copies are timed by
themselves. A run in which the clock moved, or the device slowed itself down, is thrown away and
taken again. What it does with a device stands behind two small interfaces, `DeviceCalls` and
`Watch`. Never run on a device where this was written: there was none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np

from rankrt.errors import BackendError
from rankrt.power import Reading, energy_joules, unsteady

ATTEMPTS = 3
MIN_CALLS = 20
_FALLING = 0.98  # as in rankc: below this share of the best, it is still warming up
_STEADY = 3
_WARM_UP_SECONDS = 3.0
_CHUNK = 10  # calls between looks at the clock
_MARGIN_SECONDS = 0.2  # of readings before and after

Watch = Callable[[], AbstractContextManager[list[Reading]]]


class DeviceCalls(Protocol):
    """One model and one batch that lies on the device already."""

    graph: bool  # whether calls are launches of a captured CUDA graph

    def kernel_ms(self, calls: int) -> list[float]:
        """Run so many times; the device's time of each, copies left out."""
        ...

    def copy_ms(self) -> float:
        """Time of copying one batch there and its outputs back."""
        ...


@dataclass(frozen=True, slots=True)
class DeviceTiming:
    """One batch size; None: the device does not tell."""

    batch: int
    runs: int
    graph: bool  # of a CUDA graph
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    copy_ms: float  # of one batch and its outputs, not part of the others
    energy_mj: float | None  # of one call, idle power included
    sm_mhz: float | None  # medians while it ran
    power_w: float | None
    before_c: float | None
    after_c: float | None
    refused: tuple[str, ...]  # why earlier attempts were thrown away


def time_on_device(calls: DeviceCalls, batch: int, seconds: float, watch: Watch) -> DeviceTiming:
    """Time one batch size for about `seconds`, at a steady clock.

    Raises:
        BackendError: in three attempts the clock was never steady; says why each was refused.
    """
    refused: list[str] = []
    with watch() as readings:
        while len(refused) < ATTEMPTS:
            warm_up(calls)
            first, start = len(readings), time.monotonic()
            taken = _timed(calls, seconds)
            end = time.monotonic()
            time.sleep(_MARGIN_SECONDS)
            during = [one for one in readings[max(first - 1, 0) :] if start <= one.at <= end]
            if (reason := unsteady(during)) is None:
                return _summary(calls, batch, taken, list(readings), (start, end), tuple(refused))
            refused.append(reason)
    raise BackendError(
        f"batch {batch}: no steady clock in {ATTEMPTS} attempts ({'; '.join(refused)}); lock it "
        "with `nvidia-smi --lock-gpu-clocks`, on a Jetson with `jetson_clocks`, or cool the device"
    )


def warm_up(calls: DeviceCalls) -> None:
    """Run until times stop falling: an idle GPU takes a while to raise its clock."""
    best, steady = float("inf"), 0
    deadline = time.monotonic() + _WARM_UP_SECONDS
    while steady < _STEADY and time.monotonic() < deadline:
        taken = float(np.median(calls.kernel_ms(_CHUNK)))
        steady = 0 if taken < _FALLING * best else steady + 1
        best = min(best, taken)


def _timed(calls: DeviceCalls, seconds: float) -> list[float]:
    taken: list[float] = []
    deadline = time.monotonic() + seconds
    while len(taken) < MIN_CALLS or time.monotonic() < deadline:
        taken += calls.kernel_ms(_CHUNK)
    return taken


def _summary(
    calls: DeviceCalls,
    batch: int,
    taken: Sequence[float],
    readings: Sequence[Reading],
    window: tuple[float, float],
    refused: tuple[str, ...],
) -> DeviceTiming:
    start, end = window
    joules = energy_joules(readings, start, end)
    during = [one for one in readings if start <= one.at <= end]
    p50, p90, p95, p99 = map(float, np.percentile(taken, (50, 90, 95, 99)))
    return DeviceTiming(
        batch=batch,
        runs=len(taken),
        graph=calls.graph,
        p50_ms=p50,
        p90_ms=p90,
        p95_ms=p95,
        p99_ms=p99,
        copy_ms=calls.copy_ms(),
        energy_mj=None if joules is None else 1e3 * joules / len(taken),
        sm_mhz=_median([one.sm_mhz for one in during]),
        power_w=_median([one.power_w for one in during]),
        before_c=next((one.temperature_c for one in reversed(readings) if one.at < start), None),
        after_c=next((one.temperature_c for one in readings if one.at > end), None),
        refused=refused,
    )


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def device_facts(found: Sequence[DeviceTiming] | str) -> dict[str, object]:
    """For JSON: `batches`, or `reason` where there are none."""
    if isinstance(found, str):
        return {"batches": [], "reason": found}
    return {"batches": [asdict(timing) for timing in found], "reason": None}


def print_device(found: Sequence[DeviceTiming] | str) -> None:
    """A table for people; nothing where no device was meant to be timed."""
    if isinstance(found, str):
        print(f"device    not timed: {found}")
    if isinstance(found, str) or not found:
        return
    head = ("p50", "p95", "copies", "mJ")
    print(f"{'batch':>7} {'runs':>6} {' '.join(f'{h:>10}' for h in head)} {'MHz':>6} {'W':>7}")
    for t in found:
        times = " ".join(f"{ms:>10.4f}" for ms in (t.p50_ms, t.p95_ms, t.copy_ms))
        told = f"{_told(t.energy_mj, 4):>10} {_told(t.sm_mhz, 0):>6} {_told(t.power_w, 1):>7}"
        print(f"{t.batch:>7} {t.runs:>6} {times} {told}")
    graphs = {t.graph for t in found}
    how = "some as" if len(graphs) == 2 else "as" if graphs == {True} else "not as"
    print(
        f"milliseconds of the GPU's own work, by events, {how} CUDA graphs; copies by themselves; "
        "mJ a call, idle power included.\nThe clock stood still, or the run was thrown away.\n"
    )


def _told(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
