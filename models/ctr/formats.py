"""Streaming loaders for the public Criteo (Kaggle, DAC) and Avazu click logs.

Both sets are too large for memory and may not be passed on, so they are read from a folder of the
user's, in two passes: the first counts values and sums numbers, the second encodes. Memory is
bounded by `max_values` counters per field and one window of rows. NumPy and the standard library
are all it needs.
"""

from __future__ import annotations

import dataclasses
import gzip
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import cache
from itertools import islice
from pathlib import Path
from typing import IO, Literal, NamedTuple, NoReturn, TypeVar

import numpy as np
from models.ctr.rows import Rows
from numpy.typing import NDArray

T = TypeVar("T")
Part = Literal["train", "validation", "test"]
Floats = NDArray[np.float64]
Progress = Callable[[int], None]  # called with the number of rows read so far
WINDOW = 65_536  # rows held at a time, and how far a row can move when shuffled


class FormatError(ValueError):
    """A file that is missing or not of the stated format; says where and what was expected."""


@dataclasses.dataclass(frozen=True, slots=True)
class Format:
    """How one log is laid out. A column that has no role here (an id of the row) is not used."""

    name: str
    files: tuple[str, ...]  # names looked for in the folder, first match wins
    delimiter: str
    header: bool
    columns: tuple[str, ...]
    label: str
    numbers: tuple[str, ...]  # empty text is missing
    categories: tuple[str, ...]  # opaque text, empty is missing
    time: str | None = None  # YYMMDDHH, becomes the fields hour_of_day and day_of_week

    @property
    def fields(self) -> tuple[str, ...]:
        return (*self.categories, *(("hour_of_day", "day_of_week") if self.time else ()))


_CRITEO_NUMBERS = tuple(f"I{i}" for i in range(1, 14))
_CRITEO_CATEGORIES = tuple(f"C{i}" for i in range(1, 27))
CRITEO = Format(
    name="criteo",
    files=("train.txt", "train.txt.gz"),
    delimiter="\t",
    header=False,
    columns=("label", *_CRITEO_NUMBERS, *_CRITEO_CATEGORIES),
    label="label",
    numbers=_CRITEO_NUMBERS,
    categories=_CRITEO_CATEGORIES,
)
_AVAZU_CATEGORIES = (
    *("C1", "banner_pos", "site_id", "site_domain", "site_category"),
    *("app_id", "app_domain", "app_category"),
    *("device_id", "device_ip", "device_model", "device_type", "device_conn_type"),
    *(f"C{i}" for i in range(14, 22)),
)
AVAZU = Format(
    name="avazu",
    files=("train.csv", "train.csv.gz", "train.gz", "train"),
    delimiter=",",
    header=True,
    columns=("id", "click", "hour", *_AVAZU_CATEGORIES),
    label="click",
    numbers=(),
    categories=_AVAZU_CATEGORIES,
    time="hour",
)
FORMATS = {format_.name: format_ for format_ in (CRITEO, AVAZU)}


class Chunk(NamedTuple):
    """Consecutive rows as raw text, by column name, and where they came from."""

    path: Path
    first_row: int  # of the file, from 0
    first_line: int  # of the file, from 1
    columns: dict[str, tuple[str, ...]]

    def fail(self, row: int, message: str) -> NoReturn:
        """Report what is wrong in a row of this chunk."""
        raise FormatError(f"{self.path}:{self.first_line + row}: {message}")


def find_file(folder: Path, format_: Format) -> Path:
    """The log inside `folder`.

    Raises:
        FormatError: None of the format's file names is there.
    """
    for name in format_.files:
        if (folder / name).is_file():
            return folder / name
    raise FormatError(f"{folder}: no {format_.name} log; looked for {', '.join(format_.files)}")


def read_chunks(path: Path, format_: Format, rows: int = WINDOW) -> Iterator[Chunk]:
    """All rows of a log, `rows` at a time.

    Raises:
        FormatError: A row has the wrong number of columns, the header differs, or the file is
            truncated, not text, or empty.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8", newline="\n") as stream:
            yield from _chunks(stream, path, format_, rows)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FormatError(f"{path}: damaged gzip file: {error}; download it again") from error
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not text: {error}") from error


def _chunks(stream: IO[str], path: Path, format_: Format, rows: int) -> Iterator[Chunk]:
    if format_.header:
        found = stream.readline().rstrip("\r\n")
        wanted = format_.delimiter.join(format_.columns)
        if found != wanted:
            raise FormatError(f"{path}:1: expected the header {wanted!r}, found {found[:300]!r}")
    first_row = 0
    while lines := list(islice(stream, rows)):
        table = [line.rstrip("\r\n").split(format_.delimiter) for line in lines]
        empty = Chunk(path, first_row, first_row + 1 + format_.header, {})
        for row, cells in enumerate(table):
            if len(cells) != len(format_.columns):
                wanted = f"expected {len(format_.columns)} columns separated by"
                empty.fail(row, f"{wanted} {format_.delimiter!r}, found {len(cells)}")
        columns = zip(*table, strict=True)
        yield empty._replace(columns=dict(zip(format_.columns, columns, strict=True)))
        first_row += len(lines)
    if first_row == 0:
        raise FormatError(f"{path}: no rows")


def labels_of(chunk: Chunk, format_: Format) -> NDArray[np.float32]:
    """Labels of a chunk (rows,).

    Raises:
        FormatError: A label is neither 0 nor 1.
    """
    column = chunk.columns[format_.label]
    for row, text in enumerate(column):
        if text not in ("0", "1"):
            chunk.fail(row, f"column {format_.label}: expected 0 or 1, found {text!r}")
    return np.array([text == "1" for text in column], dtype=np.float32)


def numbers_of(chunk: Chunk, format_: Format) -> Floats:
    """Numbers of a chunk on a signed log scale, (rows, numbers); NaN where missing.

    Raises:
        FormatError: A cell is not a whole number.
    """
    columns = [_parse(chunk, name, _whole, "a whole number or nothing") for name in format_.numbers]
    rows = len(chunk.columns[format_.label])
    raw = np.array(columns, dtype=np.float64).reshape(-1, rows).T
    # Counts with a long tail, some negative: log1p evens them out and keeps the sign.
    return np.asarray(np.sign(raw) * np.log1p(np.abs(raw)))


def categories_of(chunk: Chunk, format_: Format) -> list[Sequence[str]]:
    """Raw text of a chunk by field, in the order of `format_.fields`.

    Raises:
        FormatError: A time stamp is not YYMMDDHH.
    """
    columns: list[Sequence[str]] = [chunk.columns[name] for name in format_.categories]
    if format_.time is None:
        return columns
    times = _parse(chunk, format_.time, _hour_and_day, "YYMMDDHH")
    return [*columns, [hour for hour, _ in times], [day for _, day in times]]


def _parse(chunk: Chunk, name: str, convert: Callable[[str], T], wanted: str) -> list[T]:
    """A column after `convert`; the first cell that it refuses is reported."""
    column = chunk.columns[name]
    done: list[T] = []
    try:
        for text in column:
            done.append(convert(text))  # noqa: PERF401 - its length says which row failed
    except ValueError:
        row = len(done)
        chunk.fail(row, f"column {name}: expected {wanted}, found {column[row]!r}")
    return done


def _whole(text: str) -> float:
    return int(text) if text else np.nan


@cache
def _hour_and_day(text: str) -> tuple[str, str]:
    if len(text) != 8 or not text.isdigit():
        raise ValueError(text)
    moment = datetime.strptime(text, "%y%m%d%H")
    return str(moment.hour), str(moment.weekday())


def part_of(rows: NDArray[np.uint64]) -> NDArray[np.int64]:
    """0 (train, 80 %), 1 (validation) or 2 (test) by row number, the same in every pass.

    A mixed row number (splitmix64) rather than a stored permutation: nothing to keep in memory.
    """
    z = rows * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    tenth = (z ^ (z >> np.uint64(31))) % np.uint64(10)
    parts: NDArray[np.int64] = np.maximum(tenth.astype(np.int64) - 7, 0)
    return parts


class ValueCounter:
    """Counts of a field's values in bounded memory.

    When more than `max_values` are held, the rarest go. A value may then come back with a count
    that is too low by at most `undercount`, as in Manku and Motwani 2002 (lossy counting).
    """

    def __init__(self, max_values: int) -> None:
        self.max_values = max_values
        self.counts: Counter[str] = Counter()
        self.undercount = 0

    def update(self, values: Sequence[str]) -> None:
        self.counts.update(values)
        if len(self.counts) > self.max_values:
            # Half go, so that the cost of looking for them is spread over many chunks.
            cut = sorted(self.counts.values())[len(self.counts) - self.max_values // 2 - 1]
            self.counts = Counter({v: n for v, n in self.counts.items() if n > cut})
            self.undercount += cut

    def vocabulary(self, min_count: int) -> dict[str, int]:
        """Ids from 1 by falling frequency, ties by text; empty text is missing and has none."""
        kept = [(-n, value) for value, n in self.counts.items() if n >= min_count and value]
        return {value: place for place, (_, value) in enumerate(sorted(kept), start=1)}


@dataclasses.dataclass(frozen=True, slots=True)
class Stream:
    """A log after its first pass: everything needed to turn rows into model inputs.

    Id 0 of a field stands for missing, unseen in the training rows, or too rare there.
    """

    path: Path
    format: Format
    vocabularies: tuple[dict[str, int], ...]
    mean: Floats  # (numbers,) over known training values, on the log scale
    deviation: Floats
    train_rows: int
    undercount: dict[str, int]  # fields whose counts may be too low, and by how much

    @property
    def fields(self) -> tuple[str, ...]:
        return self.format.fields

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(len(vocabulary) + 1 for vocabulary in self.vocabularies)

    @property
    def dense_names(self) -> tuple[str, ...]:
        return self.format.numbers

    def encode(self, chunk: Chunk) -> Rows:
        """Model inputs and labels of a chunk."""
        columns = categories_of(chunk, self.format)
        ids = np.empty((len(columns[0]), len(columns)), dtype=np.int64)
        for place, (vocabulary, column) in enumerate(zip(self.vocabularies, columns, strict=True)):
            ids[:, place] = [vocabulary.get(value, 0) for value in column]
        scaled = (numbers_of(chunk, self.format) - self.mean) / self.deviation
        dense = np.nan_to_num(scaled, nan=0.0).astype(np.float32)
        return Rows(ids, dense, labels_of(chunk, self.format))

    def windows(self, part: Part) -> Iterator[Rows]:
        """The rows of one part in the order of the file, at most WINDOW at a time."""
        wanted = ("train", "validation", "test").index(part)
        for chunk in read_chunks(self.path, self.format):
            rows = self.encode(chunk)
            chosen = parts_in(chunk, len(rows.label)) == wanted
            if chosen.any():
                yield rows.take(chosen)

    def train_batches(self, batch_size: int, seed: int) -> Iterator[Rows]:
        """All training rows once, shuffled within each window; the last batch may be short."""
        generator = np.random.default_rng(seed)
        rest: Rows | None = None
        for window in self.windows("train"):
            order = generator.permutation(len(window.label))
            rows = window.take(order)
            if rest is not None:
                rows = Rows.join([rest, rows])
            full = len(rows.label) // batch_size * batch_size
            yield from rows.take(slice(full)).batches(batch_size)
            rest = rows.take(slice(full, None))
        if rest is not None and len(rest.label):
            yield rest

    def head(self, part: Part, rows: int) -> Rows:
        """The first `rows` rows of a part, or all of them if there are fewer."""
        windows: list[Rows] = []
        missing = rows
        for window in self.windows(part):
            windows.append(window.take(slice(missing)))
            missing -= len(windows[-1].label)
            if missing == 0:
                break
        if not windows:
            raise FormatError(f"{self.path}: too few rows, none fell into the {part} part")
        return Rows.join(windows)


def parts_in(chunk: Chunk, rows: int) -> NDArray[np.int64]:
    """The part of each row of a chunk, (rows,); see `part_of`."""
    return part_of(np.arange(chunk.first_row, chunk.first_row + rows, dtype=np.uint64))


def open_folder(
    folder: str | Path,
    name: str,
    *,
    min_count: int = 10,
    max_values: int = 1_000_000,
    progress: Progress | None = None,
) -> Stream:
    """The first pass: count the values and sum the numbers of the training rows.

    Args:
        folder: Where the log lies.
        name: "criteo" or "avazu".
        min_count: Values seen fewer times in the training rows get id 0.
        max_values: Counters held per field, about 100 bytes each.
        progress: Told how many rows have been read.

    Raises:
        FormatError: An unknown format, no log in the folder, or a malformed row.
    """
    if name not in FORMATS:
        raise FormatError(f"unknown format {name!r}; choose from {', '.join(FORMATS)}")
    format_ = FORMATS[name]
    path = find_file(Path(folder), format_)
    counters = [ValueCounter(max_values) for _ in format_.fields]
    sums = np.zeros((3, len(format_.numbers)))  # count, sum, sum of squares
    train_rows = 0
    for chunk in read_chunks(path, format_):
        train = parts_in(chunk, len(labels_of(chunk, format_))) == 0
        for counter, column in zip(counters, categories_of(chunk, format_), strict=True):
            counter.update([v for v, chosen in zip(column, train, strict=True) if chosen])
        numbers = numbers_of(chunk, format_)[train]
        known = ~np.isnan(numbers)
        filled = np.where(known, numbers, 0.0)
        sums += np.stack([known.sum(0), filled.sum(0), (filled**2).sum(0)])
        train_rows += int(train.sum())
        if progress is not None:
            progress(chunk.first_row + len(train))
    if train_rows == 0:
        raise FormatError(f"{path}: too few rows, none fell into the train part")
    mean, deviation = _moments(sums)
    return Stream(
        path=path,
        format=format_,
        vocabularies=tuple(counter.vocabulary(min_count) for counter in counters),
        mean=mean,
        deviation=deviation,
        train_rows=train_rows,
        undercount={
            field: counter.undercount
            for field, counter in zip(format_.fields, counters, strict=True)
            if counter.undercount
        },
    )


def _moments(sums: Floats) -> tuple[Floats, Floats]:
    """Mean and deviation from counts and sums; a constant or empty column keeps its scale."""
    count = np.maximum(sums[0], 1.0)
    mean = sums[1] / count
    deviation = np.sqrt(np.maximum(sums[2] / count - mean**2, 0.0))
    return mean, np.where(deviation > 0, deviation, 1.0)
