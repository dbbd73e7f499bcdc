"""Rows as tensors, kept in memory in as few bytes as their values need."""

from __future__ import annotations

import dataclasses
import hashlib
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

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return next(iter(self.feeds.values())).device

    def to(self, device: torch.device) -> Minibatch:
        """The same on a device, images channels last."""
        feeds = {name: tensor.to(device) for name, tensor in self.feeds.items()}
        for name, tensor in feeds.items():
            if tensor.dim() == 4:
                feeds[name] = tensor.contiguous(memory_format=torch.channels_last)
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

    def hash_into(self, found: hashlib._Hash) -> None:
        """Take names, types and values into a hash."""
        for name, column in self.columns.items():
            found.update(repr((name, column.dtype, self.dtypes[name], column.shape)).encode())
            found.update(np.ascontiguousarray(column).data.cast("B"))

    def take(self, which: NDArray[Any]) -> Block:
        """Rows by place or by mask; a copy."""
        columns = {name: column[which] for name, column in self.columns.items()}
        return Block(columns, self.dtypes, self.rows[which])

    def swap(self, places: NDArray[np.int64], fresh: Block) -> Block:
        """Put other rows, as many, in the place of some; returns those that were there."""
        out = self.take(places)
        for name, column in fresh.columns.items():
            if self.columns[name].dtype != column.dtype:  # no longer whole numbers only
                self.columns[name] = self.columns[name].astype(self.dtypes[name])
            self.columns[name][places] = column
        self.rows[places] = fresh.rows
        return out

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


class Store:
    """Blocks put one behind the other, as long as they fit into so many bytes.

    Memory is set aside at once and touched as it fills, so that nothing is ever there twice.
    """

    def __init__(self, limit: int, rows: int | None = None) -> None:
        """Args: bytes; how many rows will come, where that is known."""
        self._limit, self._expected, self.count = limit, rows, 0
        self._columns: dict[str, Array] | None = None
        self._dtypes: Mapping[str, np.dtype[Any]] = {}
        self._rows = np.empty(0, np.int64)

    def add(self, block: Block) -> bool:
        """Whether there was room; a block that does not fit is left out."""
        if self._columns is None:
            self._dtypes = block.dtypes
            self._make_room(block.columns)
        assert self._columns is not None
        for name, column in block.columns.items():
            if column.dtype != self._columns[name].dtype:  # no longer whole numbers only
                self._widen(name)
        end = self.count + len(block)
        if end > self.capacity:
            return False
        for name, column in block.columns.items():
            self._columns[name][self.count : end] = column
        self._rows[self.count : end] = block.rows
        self.count = end
        return True

    @property
    def capacity(self) -> int:
        """How many rows fit."""
        return len(self._rows)

    def block(self) -> Block:
        """All of them; no copy."""
        assert self._columns is not None
        columns = {name: column[: self.count] for name, column in self._columns.items()}
        return Block(columns, self._dtypes, self._rows[: self.count])

    def _widen(self, name: str) -> None:
        assert self._columns is not None
        narrow = self._columns[name]
        if narrow.dtype != self._dtypes[name]:
            self._columns[name] = np.empty(narrow.shape, self._dtypes[name])
            self._columns[name][: self.count] = narrow[: self.count]
            self._rows = self._rows[: self._fitting(self._columns)]

    def _make_room(self, columns: Mapping[str, Array]) -> None:
        room = self._fitting(columns)
        self._columns = {
            name: np.empty((room, *column.shape[1:]), column.dtype)
            for name, column in columns.items()
        }
        self._rows = np.empty(room, np.int64)

    def _fitting(self, columns: Mapping[str, Array]) -> int:
        """Rows of these columns that fit."""
        sizes = (int(np.prod(c.shape[1:])) * c.itemsize for c in columns.values())
        room = int(self._limit // (sum(sizes) + self._rows.itemsize))
        return room if self._expected is None else min(room, self._expected)
