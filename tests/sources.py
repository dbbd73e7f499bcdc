"""Rows in memory, in the form in which the compiler reads its data."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from rankc.data import Batch, Source

Array = NDArray[Any]


@dataclasses.dataclass
class Rows(Source):
    """A source over arrays."""

    feeds: dict[str, Array]
    batch_size: int = 256
    labels: Array | None = None
    groups: Array | None = None
    path: Path = Path("in memory")

    def __post_init__(self) -> None:
        self.rows = len(next(iter(self.feeds.values())))

    def batches(self) -> Iterator[Batch]:
        assert self.rows is not None
        for start in range(0, self.rows, self.batch_size):
            part = slice(start, start + self.batch_size)
            labels, groups = (
                None if column is None else column[part] for column in (self.labels, self.groups)
            )
            yield Batch({name: rows[part] for name, rows in self.feeds.items()}, labels, groups)

    def digest(self) -> str:
        return "in memory"
