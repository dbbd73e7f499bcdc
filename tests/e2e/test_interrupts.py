"""Ctrl-C, a full disk and too little memory in every stage: told, and nothing half-written."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import rankc.compression
import rankc.pipeline
from bundles import write_mlp_bundle
from projects import Project, Refusal
from rankc.errors import Exit
from rankc.validate import validate
from rankrt.bundle import load

# What the pipeline calls, in order; the last ones run after all stages.
BEFORE = ("load", "open_source", "clean", "calibrate", "fit", "save", "lower", "validate")
AFTER = ("write_golden", "write_reports", "resolved", "lock", "write_manifest")


@pytest.fixture
def quick(small: Project) -> Project:
    """A project that plans once and measures nothing."""
    passes = ["gather_fusion", {"embedding": {"rank": 4}}]
    return small.without_validation().set(passes=passes, budget=None)


@pytest.fixture
def older(quick: Project) -> Project:
    """A project with a bundle from an earlier run."""
    write_mlp_bundle(quick.out, name="older")
    return quick


@pytest.fixture(params=["quick", "older"])
def either(request: pytest.FixtureRequest) -> Project:
    project = request.getfixturevalue(request.param)
    assert isinstance(project, Project)
    return project


def fails_in(step: str, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a step of the pipeline do its work, and then fail."""
    module = rankc.pipeline if hasattr(rankc.pipeline, step) else rankc.compression
    real: Callable[..., Any] = getattr(module, step)

    def failing(*values: Any, **named: Any) -> Any:
        real(*values, **named)
        raise error

    monkeypatch.setattr(module, step, failing)


@pytest.mark.parametrize("step", BEFORE + AFTER)
def test_ctrl_c_in_any_step(
    quick: Project, refused: Refusal, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    fails_in(step, KeyboardInterrupt(), monkeypatch)
    done = refused(quick, Exit.INTERRUPTED)
    assert done.last == "FAILED | interrupted; nothing was written"
    assert done.err == ""


@pytest.mark.parametrize("step", ["calibrate", "write_manifest"])
@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (KeyboardInterrupt(), Exit.INTERRUPTED, "interrupted"),
        (
            OSError(errno.ENOSPC, "No space left on device", "x"),
            Exit.ENVIRONMENT,
            "free some space",
        ),
        (MemoryError(), Exit.ENVIRONMENT, "out of memory; use a smaller batch_size"),
        (ZeroDivisionError("division by zero"), Exit.INTERNAL, "--debug shows where"),
    ],
    ids=["ctrl-c", "full disk", "memory", "bug"],
)
def test_an_older_bundle_stays(
    older: Project,
    refused: Refusal,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    error: BaseException,
    code: Exit,
    says: str,
) -> None:
    fails_in(step, error, monkeypatch)
    refused(older, code, says)


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file may grow beyond that many bytes: for whoever writes, the disk is full."""
    import resource  # not on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such limits")
@pytest.mark.parametrize("size", [0, 5_000, 30_000])
def test_a_disk_that_takes_no_more(either: Project, refused: Refusal, size: int) -> None:
    """For real: the kernel refuses a write, in the middle of a file."""
    with files_up_to(size):
        refused(either, Exit.ENVIRONMENT, "cannot be written: File too large", "disk space")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("name", ["golden.npz", "metrics.json", "recipe.yaml", "manifest.json"])
def test_a_disk_that_is_full_at_the_end(
    either: Project, refused: Refusal, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """/dev/full in the place of one of the last files answers every write as a full disk does."""

    def validated(original: Path, compressed: Path, *values: Any) -> Any:
        (compressed.parent / name).symlink_to("/dev/full")
        return validate(original, compressed, *values)

    monkeypatch.setattr(rankc.pipeline, "validate", validated)
    refused(either, Exit.ENVIRONMENT, "No space left on device", "free some space")


def interrupted_after(project: Project, line: str) -> tuple[int, str, str]:
    """Send SIGINT to a compile once it has printed a line with that beginning."""
    process = project.process(env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert process.stdout is not None
    seen = ""
    for text in process.stdout:
        seen += text
        if text.startswith(line):
            process.send_signal(signal.SIGINT)
            break
    out, err = process.communicate(timeout=60)
    return process.returncode, seen + out, err


@pytest.mark.skipif(sys.platform == "win32", reason="signals of another kind")
@pytest.mark.parametrize("after", ["  intake", "  calibrate", "  plan"])
def test_a_real_ctrl_c(small: Project, after: str) -> None:
    code, out, err = interrupted_after(small, after)
    # Python ends by the signal itself where it struck in the middle of `exec`; shells say 130 too.
    assert code in (Exit.INTERRUPTED, -signal.SIGINT), out + err
    assert out.splitlines()[-1] == "FAILED | interrupted; nothing was written"
    assert err == ""
    assert not small.out.exists()
    assert small.leftovers() == []


@pytest.mark.skipif(sys.platform == "win32", reason="signals of another kind")
def test_what_a_killed_run_leaves_is_cleaned_up_by_the_next(small: Project) -> None:
    process = small.process(env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert process.stdout is not None
    for text in process.stdout:
        if text.startswith("  calibrate"):
            process.kill()
            break
    process.communicate(timeout=60)
    assert len(small.leftovers()) == 1
    assert not small.out.exists()
    assert small.without_validation().rankc("compile", "--quiet").code == Exit.OK
    assert small.leftovers() == []
    assert load(small.out).manifest.name == "small"
