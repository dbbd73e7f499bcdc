"""What a model costs before it answers: memory, load time and cold start, in fresh processes."""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankc.errors import MachineError
from rankc.validate.schema import Startup

_PROBE = Path(__file__).with_name("startup_probe.py")


@dataclasses.dataclass(frozen=True, slots=True)
class Started:
    """One model; medians over the processes."""

    times: Startup
    peak_memory_bytes: int | None  # that it adds; None on a system that does not tell (Windows)


def start_in_turn(
    models: Sequence[Path], feeds: Mapping[str, NDArray[Any]], repeats: int
) -> list[Started]:
    """Open each model and run one batch, each time in a process of its own, the models in turn.

    Args:
        models: ONNX files. They have been read before, so the system has them in its cache.
        feeds: One batch; reading it is not part of what is measured.
        repeats: Processes a model.

    Raises:
        MachineError: A process failed, as when the system ran out of memory.
    """
    found: list[list[dict[str, Any]]] = [[] for _ in models]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "feeds.npz")
        arrays: dict[str, Any] = dict(feeds)
        np.savez(file, **arrays)
        for _ in range(repeats):
            for model, runs in zip(models, found, strict=True):
                runs.append(_probe(model, file))
    return [_medians(runs) for runs in found]


def _probe(model: Path, feeds: Path) -> dict[str, Any]:
    # As text and not by path: a script's folder, full of modules, would lead its search path.
    source = _PROBE.read_text(encoding="utf-8")
    # The clock counts since the machine was started, so two processes can share it.
    started = str(time.monotonic_ns())
    command = [sys.executable, "-c", source, str(model), str(feeds), started]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise MachineError(
            f"{model.name}: could not be opened and run in a process of its own to measure its "
            f"memory and start: {reason[0]}"
        )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _medians(runs: Sequence[Mapping[str, Any]]) -> Started:
    load, cold = (
        statistics.median(run[key] for run in runs) / 1e6 for key in ("load_ns", "cold_ns")
    )
    peaks = [run["peak_bytes"] for run in runs if run["peak_bytes"] is not None]
    return Started(
        Startup(load_ms=load, cold_start_ms=cold),
        round(statistics.median(peaks)) if peaks else None,
    )
