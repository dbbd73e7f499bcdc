"""Run by `memory.py` in a fresh interpreter: how much memory one model adds.

Imports the runtime only: what the compiler's own imports free again would hide what a model takes.
Usage: memory_probe.py MODEL FEEDS.npz; prints bytes, or nothing where the system cannot tell.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np

from rankrt.session import open_model

_STATUS = Path("/proc/self/status")


def main(model: str, feeds_file: str) -> None:
    """Print the peak of opening the model and running one batch, less what was used before."""
    with np.load(feeds_file, allow_pickle=False) as archive:
        feeds = dict(archive)
    before = _reset()
    open_model(Path(model), threads=1).run(feeds)
    after = _peak()
    if before is not None and after is not None:
        print(max(after - before, 0))


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
    main(sys.argv[1], sys.argv[2])
