"""Half of the rows of another source: one half to choose by, the other to be judged by."""

from __future__ import annotations

from collections.abc import Iterator

from rankc.data.source import Batch, Source


class EveryOther(Source):
    """The rows with an even number, or those with an odd one."""

    def __init__(self, source: Source, first: int) -> None:
        """Args: the rows; 0 for the even ones, 1 for the odd ones."""
        self._source, self._first = source, first
        self.path = source.path
        self.rows = None if source.rows is None else (source.rows + 1 - first) // 2

    def batches(self) -> Iterator[Batch]:
        start = 0
        for batch in self._source.batches():
            part = slice((start + self._first) % 2, None, 2)
            start += batch.rows
            if batch.rows > part.start:
                yield Batch(
                    {name: rows[part] for name, rows in batch.feeds.items()},
                    None if batch.labels is None else batch.labels[part],
                    None if batch.groups is None else batch.groups[part],
                )

    def digest(self) -> str:
        return self._source.digest()
