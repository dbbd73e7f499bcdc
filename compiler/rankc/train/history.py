"""What became of a training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from rankc.train.looks import Look


@dataclasses.dataclass(frozen=True, slots=True)
class History:
    """All that is told of a training; `to_dict` gives JSON."""

    steps: int  # made, of all runs together where it was cut off
    epochs: float
    seconds: float
    looks: tuple[Look, ...]  # the first before any step
    best: int  # the look whose weights were kept; with a hook that keeps the last, the last
    stopped: str  # why it ended
    resumed: str  # where from, or why not; empty where nothing was to be gone on from
    hooks: Mapping[str, Any]  # reports by name

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)

    def told(self) -> str:
        """In a line."""
        first, kept = self.looks[0], self.looks[self.best]
        where = f" ({self.resumed})" if self.resumed else ""
        return (
            f"{self.epochs:.3g} epochs, {self.stopped}: held-out loss {first.loss:.5g} → "
            f"{kept.loss:.5g}, of epoch {kept.epoch:.3g}{where}"
        )
