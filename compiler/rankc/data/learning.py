"""What a training needs beside the model and its settings."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rankc.data.source import Source


@dataclasses.dataclass(frozen=True, slots=True)
class Learning:
    """Rows to learn from, and where what was learnt is kept."""

    rows: Source
    held_out: Source | None  # None: a share of the rows
    batch_size: int  # rows of a step
    folder: Path  # where checkpoints lie
    required: bool = False  # one that is there is gone on from, or it is an error
