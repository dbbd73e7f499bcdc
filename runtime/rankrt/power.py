"""What a GPU says of itself while it works: clock, power, temperature, and why it slowed down.

NVIDIA's own tools are asked, `nvidia-smi` or on a Jetson `tegrastats`: a program that prints a line
every few milliseconds, read by a thread. Nothing has to be installed, and nothing here needs a GPU
but `watching`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from rankrt.errors import BackendError

INTERVAL_MS = 20
CLOCK_TOLERANCE = 0.03  # of the median: clocks move in steps of 15 MHz even when nothing is wrong
_MIN_READINGS = 3
_QUERY = ("clocks.sm", "power.draw", "temperature.gpu")
# The name of the last column since driver 535, and before.
_REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
# Bits of NVML's nvmlClocksEventReason*; 0x1 (idle) and 0x2, 0x100 (clocks that someone set) are
# not slow-downs.
_SLOWED = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost with another GPU",
    0x20: "heat (driver)",
    0x40: "heat (hardware)",
    0x80: "power brake",
}


@dataclass(frozen=True, slots=True)
class Reading:
    """One line of it; None: not told."""

    at: float  # time.monotonic(), seconds
    sm_mhz: float | None
    power_w: float | None  # of the board; on a Jetson of the whole module
    temperature_c: float | None
    slowed: tuple[str, ...] = ()  # why the clock is lower than it would be


_WHOLE = ("VDD_IN", "POM_5V_IN", "VIN_SYS_5V0")  # rails that feed the whole module

Parse = Callable[[str, float], Reading | None]


def parse_nvidia_smi(line: str, at: float) -> Reading | None:
    """A line such as `1980, 312.45, 54, 0x0000000000000000`; None if it is none."""
    cells = [cell.strip() for cell in line.split(",")]
    if len(cells) != len(_QUERY) + 1:
        return None
    try:
        reasons = int(cells[3], 16) if cells[3].startswith("0x") else 0
    except ValueError:
        return None
    slowed = tuple(why for bit, why in _SLOWED.items() if reasons & bit)
    clock, power, temperature = map(_number, cells[:3])
    return Reading(at, clock, power, temperature, slowed)


def parse_tegrastats(line: str, at: float) -> Reading | None:
    """A line of a Jetson's tegrastats; None if it says nothing of the GPU.

    Of power rails the module's input is taken, `VDD_IN` (Orin, Xavier NX) or `POM_5V_IN` (Nano),
    else the sum of those that are there. It does not say why a clock is low.
    """
    gpu = re.search(r"GR3D_FREQ (\d+)%(?:@\[?(\d+))?", line)
    if gpu is None:
        return None
    heat = re.search(r"\bgpu@(-?[\d.]+)C", line, re.IGNORECASE)
    rails = {name: float(now) for name, now in re.findall(r"(\w+) (\d+)(?:mW)?/\d+(?:mW)?", line)}
    rails = {name: mw for name, mw in rails.items() if re.match(r"VDD_|POM_|CPU_|VIN_", name)}
    whole = next(
        (rails[name] for name in ("VDD_IN", "POM_5V_IN", "VIN_SYS_5V0") if name in rails), None
    )
    power = whole if whole is not None else (sum(rails.values()) if rails else None)
    return Reading(
        at,
        float(gpu[2]) if gpu[2] else None,
        None if power is None else power / 1e3,
        float(heat[1]) if heat else None,
    )


def _number(cell: str) -> float | None:
    """None of `[N/A]`, `[Not Supported]` and the like."""
    try:
        return float(cell)
    except ValueError:
        return None


@contextmanager
def watching(bus_id: str) -> Iterator[list[Reading]]:
    """Read the device until the block ends; the list grows meanwhile.

    Args:
        bus_id: PCI address of the device, as CUDA tells it: nvidia-smi counts devices otherwise.

    Raises:
        BackendError: neither tool is here, or it says nothing within two seconds.
    """
    readings: list[Reading] = []
    process, parse = _started(bus_id)
    reader = threading.Thread(target=_read, args=(process, parse, readings), daemon=True)
    reader.start()
    try:
        deadline = time.monotonic() + 2.0
        while not readings:
            if time.monotonic() > deadline or process.poll() is not None:
                raise BackendError(f"{process.args!r} tells nothing of the GPU: run it by hand")
            time.sleep(INTERVAL_MS / 1e3)
        yield readings
    finally:
        process.kill()
        process.wait()
        reader.join()
        if process.stdout is not None:
            process.stdout.close()


def _started(bus_id: str) -> tuple[subprocess.Popen[str], Parse]:
    if (tool := shutil.which("nvidia-smi")) is not None:
        base = [tool, "-i", bus_id, "--format=csv,noheader,nounits"]
        # An unknown column is told by the exit status.
        queries = [f"--query-gpu={','.join((*_QUERY, last))}" for last in _REASONS]
        known = [q for q in queries if _works([*base, q])]
        if known:
            return _piped([*base, known[0], f"-lms={INTERVAL_MS}"]), parse_nvidia_smi
    if (tool := shutil.which("tegrastats")) is not None:
        return _piped([tool, "--interval", str(INTERVAL_MS)]), parse_tegrastats
    raise BackendError(
        "neither nvidia-smi nor tegrastats can tell the GPU's clock and power: install the tools "
        "of its driver"
    )


def _works(command: Sequence[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False, timeout=20).returncode == 0


def _piped(command: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def _read(process: subprocess.Popen[str], parse: Parse, readings: list[Reading]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if (reading := parse(line, time.monotonic())) is not None:
            readings.append(reading)  # noqa: PERF401  # others look at the list meanwhile


def unsteady(during: Sequence[Reading], tolerance: float = CLOCK_TOLERANCE) -> str | None:
    """Why times taken meanwhile say nothing of the model, or None if they may be used."""
    if len(during) < _MIN_READINGS:
        return f"only {len(during)} readings of the clock: time for longer"
    if slowed := sorted({why for reading in during for why in reading.slowed}):
        return f"the GPU slowed itself down: {', '.join(slowed)}"
    clocks = [reading.sm_mhz for reading in during if reading.sm_mhz is not None]
    if clocks and max(clocks) - min(clocks) > tolerance * float(np.median(clocks)):
        return f"the SM clock moved from {min(clocks):.0f} to {max(clocks):.0f} MHz"
    return None


def energy_joules(readings: Sequence[Reading], start: float, end: float) -> float | None:
    """Power over time by trapezoids, the nearest reading held at both ends; None: not told.

    Args:
        readings: in the order of time.
        start: from when, of the same clock as `Reading.at`.
        end: until when.
    """
    known = [(one.at, one.power_w) for one in readings if one.power_w is not None]
    if not known:
        return None
    at, watts = (np.array(column) for column in zip(*known, strict=True))
    inner = (at > start) & (at < end)
    times = np.concatenate([[start], at[inner], [end]])
    powers = np.interp(times, at, watts)  # holds the first and the last beyond them
    return float(((powers[1:] + powers[:-1]) / 2 * np.diff(times)).sum())
