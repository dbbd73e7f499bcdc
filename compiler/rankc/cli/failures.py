"""Every error as a message, a last line and an exit code."""

from __future__ import annotations

import errno
import sys
import traceback

from rankc.cli.words import last_line
from rankc.errors import Exit, MachineError, RankcError

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE}


def failed(error: BaseException, *, as_json: bool, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    code, message = _explained(error)
    first, *more = message.splitlines() or [type(error).__name__]
    if code == Exit.INTERRUPTED:
        return last_line("FAILED | interrupted; nothing was written", code, as_json)
    sys.stdout.flush()
    print("\n".join([f"error: {first}", *more]), file=sys.stderr, flush=True)
    return last_line(f"FAILED | {first}", code, as_json)


def _explained(error: BaseException) -> tuple[Exit, str]:
    """The exit code, and what to tell the user."""
    if isinstance(error, KeyboardInterrupt):
        return Exit.INTERRUPTED, ""
    if isinstance(error, RankcError):
        return error.exit_code, str(error)
    if type(error).__module__ == "rankrt.errors":  # importing it takes numpy, which may lack
        return Exit(getattr(error, "exit_code", Exit.INTERNAL)), str(error)
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("rankc."):
        missing = f"the Python package for {error.name!r} is not installed"
        return MachineError.exit_code, f"{missing}: pip install 'rankc[compiler,cpu]'"
    if isinstance(error, MemoryError):
        return (
            Exit.ENVIRONMENT,
            "out of memory; use a smaller batch_size of the data, or smaller latency.batch_sizes",
        )
    if isinstance(error, OSError) and error.errno in _DISK:
        where = f": {error.filename}" if error.filename else ""
        return Exit.ENVIRONMENT, f"{error.strerror}{where}; nothing was left half-written"
    text = f"{type(error).__name__}: {error}".strip(": ")
    return (
        Exit.INTERNAL,
        f"a bug in rankc: {text}\n  --debug shows where it happened; please report it",
    )
