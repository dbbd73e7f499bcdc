"""What GitHub Actions shows beside a pull request: annotations, and the summary of a job.

Workflow commands and their escapes are those of github.com/actions/toolkit, packages/core.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rankc.errors import MachineError
from rankc.report.place import Place, notes
from rankc.validate.schema import GateRow, Metrics

MAX_SUMMARY = 1_000_000  # bytes that GitHub takes of a step, 1 MiB; more is refused as a whole
_NOTICES = 10  # annotations of a kind that GitHub shows of a step


def workflow_commands(
    metrics: Metrics, plan: Mapping[str, Any] | None, place: Place
) -> Iterator[str]:
    """A workflow command for each gate that did not hold, and for layers that were left alone."""
    for index, gate in enumerate(metrics["gates"]):
        if gate["verdict"] != "pass":
            kind = "warning" if gate["passed"] else "error"
            yield _command(kind, place, place.gate(index), _title(gate), gate["message"])
    told = notes(metrics, plan)
    for name, text in told[:_NOTICES]:
        yield _command("notice", place, place.pass_(name), f"rankc: {name}", text)


def append_summary(report: str, summary: Path) -> None:
    """Put report.md at the end of the job's summary.

    Args:
        report: The text; where it is longer than GitHub takes, its end is left out and said so.
        summary: The file that GITHUB_STEP_SUMMARY names.

    Raises:
        MachineError: It cannot be written.
    """
    raw = report.encode("utf-8")
    if len(raw) > MAX_SUMMARY:
        cut = raw[:MAX_SUMMARY].decode("utf-8", "ignore").rpartition("\n")[0]
        raw = f"{cut}\n\nThe rest is in report.md.\n".encode()
    try:
        with summary.open("ab") as file:
            file.write(raw + b"\n")
    except OSError as error:
        raise MachineError(
            f"{summary}: GITHUB_STEP_SUMMARY names it, and it cannot be written: {error.strerror}"
        ) from error


def _title(gate: GateRow) -> str:
    at = "" if gate["batch"] is None else f" at batch {gate['batch']}"
    return f"rankc: {gate['metric']}{at} {gate['verdict']}"


def _command(kind: str, place: Place, line: int | None, title: str, message: str) -> str:
    where = f"file={_property(place.uri)},line={line or 1},title={_property(title)}"
    return f"::{kind} {where}::{_data(message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
