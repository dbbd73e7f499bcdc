"""What the loaders hand to training: rows of ids, numbers and labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class Rows(NamedTuple):
    """Some samples; in a model's terms, one batch of its inputs and the wanted answers."""

    ids: NDArray[np.int64]  # (rows, fields), each column in [0, size of its field)
    dense: NDArray[np.float32]  # (rows, numbers), standardised, missing is 0
    label: NDArray[np.float32]  # (rows,), 0 or 1

    def take(self, which: slice | NDArray[np.int64] | NDArray[np.bool_]) -> Rows:
        """Some of the rows, by slice, number or mask."""
        return Rows(self.ids[which], self.dense[which], self.label[which])

    def batches(self, size: int) -> Iterator[Rows]:
        """The rows in order, `size` at a time; the last batch may be short."""
        for start in range(0, len(self.label), size):
            yield self.take(slice(start, start + size))

    @staticmethod
    def join(parts: Sequence[Rows]) -> Rows:
        """The rows of several parts, one after the other."""
        return Rows(
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.dense for part in parts]),
            np.concatenate([part.label for part in parts]),
        )


class Source(Protocol):
    """What training needs to know of a data set, in memory or streamed."""

    @property
    def fields(self) -> tuple[str, ...]: ...
    @property
    def sizes(self) -> tuple[int, ...]: ...
    @property
    def dense_names(self) -> tuple[str, ...]: ...
    @property
    def train_rows(self) -> int: ...
    def train_batches(self, batch_size: int, seed: int) -> Iterator[Rows]: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Dataset:
    """A data set that fits in memory, split in three."""

    fields: tuple[str, ...]
    sizes: tuple[int, ...]  # vocabulary of each field, id 0 included
    dense_names: tuple[str, ...]
    train: Rows
    validation: Rows
    test: Rows

    @property
    def train_rows(self) -> int:
        return len(self.train.label)

    def train_batches(self, batch_size: int, seed: int) -> Iterator[Rows]:
        """All training rows once, in an order drawn from `seed`; the last batch may be short."""
        order = np.random.default_rng(seed).permutation(self.train_rows)
        for start in range(0, len(order), batch_size):
            yield self.train.take(order[start : start + batch_size])
