"""Rows to train on, shuffled, and rows held out, from any source that calibration takes.

What fits into `memory_mb` is read once and shuffled as a whole. A larger source is read again in
every epoch, through a buffer of that size: of every batch that comes in, as many rows go out, drawn
from the buffer; so a row moves forward as far as the buffer reaches back, and no further. Files
that are sorted by class had better be shuffled once, or be given enough memory.

The rows of an epoch depend on the seed and the epoch alone, so that a training that was cut off
finds the place where it stopped.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from rankc.data import Source
from rankc.errors import DataError
from rankc.train.minibatches import Block, Minibatch, Store, joined

MEMORY_MB = 1024
_HELD_OUT, _ORDER, _JUDGED = 1, 2, 11  # what numbers are drawn for


class Rows:
    """Training rows and held-out rows."""

    def __init__(
        self,
        training: Source,
        held_out: Source | None = None,
        *,
        batch_size: int,
        share: float = 0.1,
        seed: int = 0,
        memory_mb: int | None = None,
        judged: bool = False,
    ) -> None:
        """Read the rows once, to count them and to keep them where they fit.

        Args:
            training: rows to train on.
            held_out: rows to look at; None: a share of the others, which are not trained on.
            batch_size: rows of a step. The last rows of an epoch that fill no step are left out of
                it: statistics of a batch are no good for a few rows.
            share: one row of every 1/share is held out, which one is drawn.
            seed: of the order and of what is held out.
            memory_mb: for rows, in 2^20 bytes; a quarter of it is for those held out.
            judged: look at half of the rows held out only, one of every two, which one is drawn;
                leave the rest to `judging`. Takes four of them.

        Raises:
            DataError: rows that do not fit, fewer than a step takes, none to hold out.
        """
        self._training, self._held_out = training, held_out
        self.batch_size, self._share, self._seed = batch_size, share, seed
        self._memory = (memory_mb or MEMORY_MB) << 20
        self._kept = _Kept(self._memory * 3 // 4, training.rows)
        self._looked_at = _Kept(self._memory // 4, (held_out or training).rows)
        read = hashlib.sha256()
        for block, chosen in self._read():
            block.hash_into(read)
            if held_out is None:
                self._looked_at.add(block.take(chosen))
            self._kept.add(block.take(~chosen))
        if held_out is not None:
            read.update(b"held out")
            for block in _blocks(held_out):
                block.hash_into(read)
                self._looked_at.add(block)
        self._content = read.hexdigest()
        self.count, self.held_out_count = self._kept.count, self._looked_at.count
        self._judged = judged
        self._require_enough(judged)

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return self.count // self.batch_size

    @property
    def digest(self) -> str:
        """What the rows and their order depend on.

        Of the values as they were read, not of the files: those hang on the label's column, on how
        images are cut and scaled, and on what code reads, too.
        """
        how = (self.batch_size, self._share, self._seed, self._memory, self.count, self._judged)
        return " ".join(map(str, (self._content, *how)))

    @property
    def where(self) -> str:
        """The source, for messages."""
        return str(self._training.path)

    @property
    def where_held_out(self) -> str:
        """The source of the rows held out."""
        return str((self._held_out or self._training).path)

    def first(self) -> Minibatch:
        """A few rows, to try things on."""
        assert self._kept.first is not None
        return self._kept.first.minibatch(slice(0, self.batch_size))

    def in_memory(self) -> Iterator[Minibatch]:
        """All rows to train on that are in memory as a whole: none of them otherwise."""
        if self._kept.whole is not None:
            for at in range(0, self.count, self.batch_size):
                yield self._kept.whole.minibatch(slice(at, at + self.batch_size))

    def held_out_in_memory(self) -> Iterator[Minibatch]:
        """The rows that looks go by, where those held out are in memory: none otherwise."""
        if self._looked_at.whole is not None:
            yield from self.held_out()

    def batches(self, epoch: int, skip: int = 0) -> Iterator[Minibatch]:
        """The steps of an epoch.

        Args:
            epoch: counted from 0.
            skip: steps to leave out, the first ones.

        Raises:
            DataError: rows that do not fit, or no longer as many as there were.
        """
        rng = np.random.default_rng([_ORDER, self._seed, epoch])
        if self._kept.whole is not None:
            order = rng.permutation(self.count)
            for k in range(skip, self.steps):
                which = order[k * self.batch_size : (k + 1) * self.batch_size]
                yield self._kept.whole.minibatch(which)
            return
        given = 0
        for block in self._even(self._shuffled(rng)):
            given += 1
            if given > skip:
                yield block.minibatch()
        if given != self.steps:
            raise DataError(
                f"{self.where}: {given * self.batch_size} rows in epoch {epoch + 1}, and "
                f"{self.count} before; a source has to give the same rows every time"
            )

    def some(self, steps: int) -> Iterator[Minibatch]:
        """Rows to train on, the same at every call, for so many steps at most; no other order.

        Where they do not fit into memory, the first of them.
        """
        if self._kept.whole is not None:
            yield from itertools.islice(self.batches(0), steps)
            return
        trained = (block.take(~chosen) for block, chosen in self._read() if not chosen.all())
        for block in itertools.islice(self._even(trained), steps):
            yield block.minibatch()

    def held_out(self) -> Iterator[Minibatch]:
        """The rows that looks go by, in their order, in batches of the same size at every look."""
        return self._held(self._looked())

    def judging(self) -> Iterator[Minibatch]:
        """The rows held out that no look has gone by; all of them where none is left for that."""
        return self._held(~self._looked() if self._judged else self._looked())

    def _looked(self) -> NDArray[np.bool_]:
        """Which of the rows held out looks go by, (rows held out,)."""
        places = np.arange(self.held_out_count)
        if not self._judged:
            return np.ones(len(places), np.bool_)
        first = np.random.default_rng([_JUDGED, self._seed]).integers(0, 2, len(places) // 2 + 1)
        looked: NDArray[np.bool_] = places % 2 == first[places // 2]
        return looked

    def _held(self, chosen: NDArray[np.bool_]) -> Iterator[Minibatch]:
        """Some of the rows held out."""
        if self._looked_at.whole is not None:
            which = np.flatnonzero(chosen)
            for at in range(0, len(which), self.batch_size):
                yield self._looked_at.whole.minibatch(which[at : at + self.batch_size])
            return
        at = 0
        for block in self._held_out_blocks():
            which = np.flatnonzero(chosen[at : at + len(block)])
            at += len(block)
            if len(which):
                yield block.minibatch(which)

    def _held_out_blocks(self) -> Iterator[Block]:
        if self._held_out is not None:
            yield from _blocks(self._held_out)
        else:
            yield from (block.take(chosen) for block, chosen in self._read())

    def _read(self) -> Iterator[tuple[Block, NDArray[np.bool_]]]:
        """All rows of the training source, and which of them are held out."""
        for block in _blocks(self._training):
            if self._held_out is None:
                yield block, held_out_of(block.rows, self._share, self._seed)
            else:
                yield block, np.zeros(len(block), np.bool_)

    def _shuffled(self, rng: np.random.Generator) -> Iterator[Block]:
        """Blocks of rows out of a buffer."""
        store, buffer = Store(self._memory * 3 // 4), None
        for block, chosen in self._read():
            fresh = block.take(~chosen)
            if not len(fresh) or (buffer is None and store.add(fresh)):
                continue
            buffer = store.block() if buffer is None else buffer
            places = rng.permutation(len(buffer))[: len(fresh)]
            yield buffer.swap(places, fresh.take(np.arange(len(places))))
            if len(places) < len(fresh):  # more than the whole buffer
                yield fresh.take(np.arange(len(places), len(fresh)))
        rest = rng.permutation(store.count)
        buffer = store.block() if buffer is None else buffer
        for at in range(0, len(rest), self.batch_size):
            yield buffer.take(rest[at : at + self.batch_size])

    def _even(self, blocks: Iterator[Block]) -> Iterator[Block]:
        """The same rows in blocks of a step each; what remains is left out."""
        waiting = list[Block]()
        for block in blocks:
            waiting.append(block)
            if sum(map(len, waiting)) < self.batch_size:
                continue
            whole, at = joined(waiting), 0
            for at in range(self.batch_size, len(whole) + 1, self.batch_size):
                yield whole.take(np.arange(at - self.batch_size, at))
            waiting = [whole.take(np.arange(at, len(whole)))]

    def _require_enough(self, judged: bool) -> None:
        if self.held_out_count < (least := 4 if judged else 1):
            found, held = self.held_out_count or "none", self._held_out is not None
            where, of = ("", "") if held else (f" at holdout = {self._share}", f" of {self.count}")
            why = ", half of them to choose by and half for the guard" if judged else ""
            more = "give more rows" + ("" if held else ", a larger share, or data.holdout")
            raise DataError(
                f"{self.where_held_out}: {found}{of} rows would be held out{where}, and at least "
                f"{least} are needed{why}; {more}"
            )
        if self.count < self.batch_size:
            apart = f", and {self.held_out_count} held out" if self._held_out is None else ""
            raise DataError(
                f"{self.where}: {self.count} rows to train on{apart}, and a step takes batch_size "
                f"= {self.batch_size}; set data.training.batch_size to {self.count} or less, or "
                "give more rows"
            )


def held_out_of(rows: NDArray[np.int64], share: float, seed: int) -> NDArray[np.bool_]:
    """Which rows are held out: one of every 1/share, and which one is drawn.

    Neither depends on how many rows there are, so that a stream can be split as it comes.

    Args:
        rows: numbers of rows, (n,).
        share: of all rows, in (0, 1).
        seed: draws.
    """
    stratum = np.floor(rows * share).astype(np.int64)
    stratum -= rows < _start(stratum, share)  # product and quotient may be rounded apart
    stratum += rows >= _start(stratum + 1, share)
    start = _start(stratum, share)
    size = np.maximum(_start(stratum + 1, share) - start, 1)
    drawn = [
        np.random.default_rng([_HELD_OUT, seed, int(one)]).random() for one in np.unique(stratum)
    ]
    place = np.asarray(drawn)[np.searchsorted(np.unique(stratum), stratum)]
    chosen: NDArray[np.bool_] = rows == start + np.floor(place * size).astype(np.int64)
    return chosen


def _start(stratum: NDArray[np.int64], share: float) -> NDArray[np.int64]:
    return np.ceil(stratum / share).astype(np.int64)


class _Kept:
    """Rows as they come in: all of them as long as they fit, else the first block and a count."""

    def __init__(self, memory: int, rows: int | None) -> None:
        self._store: Store | None = Store(memory, rows)
        self.first: Block | None = None
        self.count = 0

    def add(self, block: Block) -> None:
        if not len(block):
            return
        self.count += len(block)
        self.first = block if self.first is None else self.first
        if self._store is not None and not self._store.add(block):
            self._store = None

    @property
    def whole(self) -> Block | None:
        """All of them; None if they do not fit."""
        return None if self._store is None or not self.count else self._store.block()


def _blocks(source: Source) -> Iterator[Block]:
    start = 0
    for batch in source.batches():
        yield Block.of(batch, start)
        start += batch.rows
