"""A Python module in a process of its own, because TensorRT may crash, hang or eat the memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

_STDERR_TAIL = 300  # characters of it that a reason quotes


class ProcessError(Exception):
    """The process gave no answer; the message says why."""


def call(module: str, request: dict[str, Any], answer: Path, time_limit: float) -> dict[str, Any]:
    """Run `python -m module`, hand it the request, read the JSON that it leaves in `answer`.

    Args:
        module: what to run; it reads JSON from standard input.
        request: what it reads.
        answer: the file that it writes.
        time_limit: seconds after which it is killed.

    Raises:
        ProcessError: it crashed, was killed, took too long, or left no answer.
    """
    safe_path = {**os.environ, "PYTHONSAFEPATH": "1"}  # no module from the current folder
    try:
        done = subprocess.run(
            [sys.executable, "-m", module],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=time_limit,
            env=safe_path,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ProcessError(f"it took more than {time_limit:g} s and was stopped") from error
    if done.returncode != 0:
        raise ProcessError(_death(done.returncode, done.stderr))
    try:
        found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ProcessError(f"its process left no answer ({error})") from error
    return found


def _death(code: int, stderr: str) -> str:
    last = stderr.strip()[-_STDERR_TAIL:]
    said = f": {last}" if last else ""
    if code >= 0:
        return f"its process ended with status {code}{said}"
    if code == -signal.SIGKILL:
        return f"its process was killed; the machine ran out of memory, most likely{said}"
    return f"its process crashed with {signal.Signals(-code).name}{said}"
