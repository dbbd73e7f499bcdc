"""Peak memory of opening a model and running one batch, measured in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankc.errors import MachineError

_PROBE = Path(__file__).with_name("memory_probe.py")


def peak_memory_bytes(model: Path, feeds: Mapping[str, NDArray[Any]]) -> int | None:
    """How far one model and one batch raise the resident memory of a fresh process.

    Args:
        model: An ONNX file.
        feeds: One batch; loaded before the measurement starts, so not part of it.

    Returns:
        Bytes; None on a system that does not tell (Windows).

    Raises:
        MachineError: The process failed, as when the system ran out of memory.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "feeds.npz")
        arrays: dict[str, Any] = dict(feeds)
        np.savez(file, **arrays)
        # As text and not by path: a script's folder, full of modules, would lead its search path.
        source = _PROBE.read_text(encoding="utf-8")
        command = [sys.executable, "-c", source, str(model), str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise MachineError(
            f"{model.name}: could not be opened and run in a process of its own to measure its "
            f"memory: {reason[0]}"
        )
    return int(done.stdout) if done.stdout.strip() else None
