"""How stages tell what they are doing. The pipeline talks to this; the command line draws it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Stage(Protocol):
    """One running stage of the pipeline."""

    def advance(self, done: int, total: int | None = None) -> None:
        """`done` of `total` units are finished (`total` None: unknown)."""
        ...

    def note(self, text: str) -> None:
        """Set the one-line summary shown when the stage ends."""
        ...


class Progress(Protocol):
    """Where stages are announced."""

    def stage(self, name: str) -> AbstractContextManager[Stage]:
        """Context manager around one stage; yields its Stage."""
        ...


class _Silent:
    def advance(self, done: int, total: int | None = None) -> None: ...

    def note(self, text: str) -> None: ...


class SilentProgress:
    """Shows nothing: the default of the Python API."""

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        yield _Silent()
