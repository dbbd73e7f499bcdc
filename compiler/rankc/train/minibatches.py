"""Rows as tensors, kept in memory in as few bytes as their values need."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rankc.data import Batch

Array = NDArray[Any]
Tensor = torch.Tensor


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Minibatch:
    """Rows of one step, or of one look."""

    feeds: Mapping[str, Tensor]  # by input name, (rows, ...), of the input's type
    labels: Tensor | None  # (rows,) or (rows, ...)
    rows: NDArray[np.int64]  # where in the source they stand, counted from 0

    @property
    def size(self) -> int:
        """How many rows."""
        return len(self.rows)

    def to(self, device: torch.device) -> Minibatch:
        """The same on a device."""
        feeds = {name: tensor.to(device) for name, tensor in self.feeds.items()}
        labels = None if self.labels is None else self.labels.to(device)
        return Minibatch(feeds, labels, self.rows)


@dataclasses.dataclass(slots=True, eq=False)
class Block:
    """Some rows of a source: arrays of equal length, and the numbers of their rows."""

    columns: dict[str, Array]  # inputs; labels under the empty name
    dtypes: Mapping[str, np.dtype[Any]]  # what the columns are to become
    rows: NDArray[np.int64]

    @classmethod
    def of(cls, batch: Batch, start: int) -> Block:
        """The rows of a batch whose first one has that number."""
        columns = dict(batch.feeds) | ({} if batch.labels is None else {"": batch.labels})
        dtypes = {name: column.dtype for name, column in columns.items()}
        kept = {name: compact(column) if name else column for name, column in columns.items()}
        return cls(kept, dtypes, np.arange(start, start + batch.rows))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""
        return sum(column.nbytes for column in self.columns.values()) + self.rows.nbytes

    def take(self, which: NDArray[Any]) -> Block:
        """Rows by place or by mask; a copy."""
        columns = {name: column[which] for name, column in self.columns.items()}
        return Block(columns, self.dtypes, self.rows[which])

    def minibatch(self, which: NDArray[Any] | slice = slice(None)) -> Minibatch:
        """Rows by place, as tensors of the types that they came in."""
        tensors = {
            name: torch.from_numpy(
                np.ascontiguousarray(column[which].astype(self.dtypes[name], copy=False))
            )
            for name, column in self.columns.items()
        }
        return Minibatch(
            {name: t for name, t in tensors.items() if name}, tensors.get(""), self.rows[which]
        )


def joined(blocks: Iterable[Block]) -> Block:
    """One block of several; a column that is compact in some of them only becomes what it was."""
    parts = list(blocks)
    columns: dict[str, Array] = {}
    for name, dtype in parts[0].dtypes.items():
        column = [part.columns[name] for part in parts]
        same = len({each.dtype for each in column}) == 1
        columns[name] = np.concatenate(column if same else [c.astype(dtype) for c in column])
    return Block(columns, parts[0].dtypes, np.concatenate([part.rows for part in parts]))


def compact(column: Array) -> Array:
    """Floats that are all whole numbers from 0 to 255, as pixels are, in a byte each."""
    if column.dtype.kind != "f" or column.ndim < 3:
        return column
    with np.errstate(invalid="ignore"):  # what does not fit shows in the comparison
        small = column.astype(np.uint8)
    return small if np.array_equal(small, column) else column
