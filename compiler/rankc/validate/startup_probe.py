"""Run by `startup.py` in a fresh interpreter: what one model costs until it has answered.

Imports the runtime only: what the compiler's own imports free again would hide what a model takes.
Usage: startup_probe.py MODEL FEEDS.npz STARTED; STARTED: `time.monotonic_ns()` when the process was
started. Prints JSON: `load_ns`, `cold_ns` and `peak_bytes`, null where the system cannot tell.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import numpy as np

from rankrt.session import open_model

_STATUS = Path("/proc/self/status")


def main(model: str, feeds_file: str, started: str) -> None:
    """Print what opening the model and running one batch took, reading the batch left out."""
    reading = time.monotonic_ns()
    with np.load(feeds_file, allow_pickle=False) as archive:
        feeds = dict(archive)
    before = _reset()
    opening = time.monotonic_ns()
    session = open_model(Path(model), threads=1)
    opened = time.monotonic_ns()
    session.run(feeds)
    answered = time.monotonic_ns()
    after = _peak()
    found = {
        "load_ns": opened - opening,
        "cold_ns": answered - int(started) - (opening - reading),
        "peak_bytes": None if before is None or after is None else max(after - before, 0),
    }
    print(json.dumps(found))


def _reset() -> int | None:
    """Bytes in use now; on Linux the recorded peak starts again from there."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux, or a sandbox: then only growth beyond the old peak is seen
        return _peak()
    return _status("VmRSS")


def _peak() -> int | None:
    if _STATUS.exists():
        return _status("VmHWM")
    if sys.platform == "win32":
        return None
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status(field: str) -> int | None:
    found = re.search(rf"{field}:\s+(\d+) kB", _STATUS.read_text())
    return int(found[1]) * 1024 if found else None


if __name__ == "__main__":
    main(*sys.argv[1:4])
