"""Rows out of tables: .csv and .parquet.

An input of shape (batch,) or (batch, 1) is the column of its name. An input of shape (batch, k) is
the columns `<name>_0` ... `<name>_{k-1}`, or in .parquet one column of lists of k numbers.
"""

from __future__ import annotations

import csv
import importlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from rankc.data.source import Array, Batch, Source, Wanted, checked, limited, require, sha256_of
from rankc.errors import DataError, MachineError
from rankrt.session import TensorSpec

csv.field_size_limit(1 << 20)


def columns_of(where: Path, spec: TensorSpec, present: Sequence[str]) -> tuple[str, ...]:
    """The columns that make up an input.

    Raises:
        DataError: they are not all there, or the input has more axes than a table.
    """
    if len(spec.shape) > 2:
        raise DataError(f"{where}: a table cannot hold input {spec}; use .npz or .npy files")
    width = spec.shape[1] if len(spec.shape) == 2 else 1
    if width == 1 and spec.name in present:
        return (spec.name,)
    if isinstance(width, int):
        names = tuple(f"{spec.name}_{index}" for index in range(width))
    else:  # as many as there are
        names = tuple(name for name in present if name == f"{spec.name}_0")
        while f"{spec.name}_{len(names)}" in present:
            names = (*names, f"{spec.name}_{len(names)}")
        names = names or (f"{spec.name}_0",)
    require(where, [spec.name] if len(spec.shape) == 1 else names, present, "column")
    return names


class _Table(Source):
    _columns: dict[str, tuple[str, ...]]  # by input or label

    def __init__(self, path: Path, wanted: Wanted, limit: int | None) -> None:
        self.path, self._wanted, self._limit = path, wanted, limit
        self._ndim = {spec.name: len(spec.shape) for spec in wanted.inputs}
        self._open()

    @abstractmethod
    def _open(self) -> None:
        """Read what names the columns, and call `_choose`."""

    @abstractmethod
    def _blocks(self) -> Iterator[Mapping[str, Array]]:
        """Rows, a batch at a time."""

    def _choose(self, present: Sequence[str], single: Sequence[str] = ()) -> None:
        """Pick the columns; `single`: columns that are a whole input by themselves."""
        if twice := sorted({name for name in present if present.count(name) > 1}):
            raise DataError(f"{self.path}: the header names {', '.join(twice)} twice")
        self._columns = {
            spec.name: (spec.name,) if spec.name in single else columns_of(self.path, spec, present)
            for spec in self._wanted.inputs
        }
        if self._wanted.label is not None:
            require(self.path, [self._wanted.label], present, "column")
            self._columns[self._wanted.label] = (self._wanted.label,)
        if (group := self._wanted.group) is not None:
            require(self.path, [group], present, "column")
            self._columns.setdefault(group, (group,))

    def _joined(self, columns: Mapping[str, Array]) -> dict[str, Array]:
        """Columns put together to inputs, (rows,) or (rows, k)."""
        arrays = {}
        for name, parts in self._columns.items():
            first = columns[parts[0]]
            if self._ndim.get(name, 1) == 1 or first.ndim > 1:
                arrays[name] = first
            else:
                arrays[name] = np.stack([columns[part] for part in parts], axis=1)
        return arrays

    def batches(self) -> Iterator[Batch]:
        return checked(self.path, self._wanted, self._blocks(), self._limit)

    def digest(self) -> str:
        return sha256_of([self.path])


class CsvFile(_Table):
    """Comma-separated, UTF-8, with a header; read line by line."""

    def _open(self) -> None:
        self.rows = None
        header = next(self._lines(), None)
        if header is None:
            raise DataError(f"{self.path}: empty; the first line must name the columns")
        self._header = header
        self._choose(header)
        if next(islice(self._lines(), 1, None), None) is None:
            raise DataError(f"{self.path}: there are no rows in it")
        floats = {spec.name for spec in self._wanted.inputs if np.dtype(spec.dtype).kind == "f"}
        self._floats = {*floats, self._wanted.label}
        # Whose values a column has; those of a group that are another's, too, are numbers.
        self._first: dict[str, str] = {}
        for name, parts in self._columns.items():
            for part in parts:
                self._first.setdefault(part, name)
        named = {*(spec.name for spec in self._wanted.inputs), self._wanted.label}
        self._text = {self._wanted.group} - named

    def _lines(self) -> Iterator[list[str]]:
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                yield from (line for line in csv.reader(file, strict=True) if line)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{self.path}: cannot be read as CSV: {error}") from error

    def _blocks(self) -> Iterator[Mapping[str, Array]]:
        lines = islice(self._lines(), 1, None)
        start = 0
        while block := list(islice(lines, self._wanted.batch_size)):
            for row, line in enumerate(block, start):
                if len(line) != len(self._header):
                    raise DataError(
                        f"{self.path}: row {row} has {len(line)} values, "
                        f"the header names {len(self._header)}"
                    )
            text = dict(zip(self._header, zip(*block, strict=True), strict=True))
            yield self._joined(
                {
                    part: np.array(text[part])
                    if name in self._text
                    else self._numbers(part, text[part], name in self._floats, start)
                    for part, name in self._first.items()
                }
            )
            start += len(block)

    def _numbers(self, column: str, texts: Sequence[str], real: bool, start: int) -> Array:
        kind = float if real else int
        try:
            return np.array([kind(text) for text in texts], np.float64 if real else np.int64)
        except (ValueError, OverflowError) as error:
            row, text = next((r, t) for r, t in enumerate(texts, start) if not _reads_as(kind, t))
            what = "a number" if real else "a whole number of 64 bits"
            raise DataError(f"{self.path}: {column}, row {row}: {text!r} is not {what}") from error


def _reads_as(kind: type[int | float], text: str) -> bool:
    try:
        value = kind(text)
    except ValueError:
        return False
    return isinstance(value, float) or -(2**63) <= value < 2**63


class ParquetFile(_Table):
    """Read row group by row group; needs pyarrow."""

    def _open(self) -> None:
        try:
            self._parquet = importlib.import_module("pyarrow.parquet")
            self._arrow = arrow = importlib.import_module("pyarrow")
            self._compute = importlib.import_module("pyarrow.compute")
        except ImportError as error:
            raise MachineError(
                f"{self.path}: needs pyarrow: pip install 'rankc[parquet]'"
            ) from error
        self._broken: tuple[type[Exception], ...] = (arrow.ArrowException, OSError)
        try:
            with self._parquet.ParquetFile(self.path) as file:
                schema, available = file.schema_arrow, file.metadata.num_rows
        except self._broken as error:
            raise DataError(f"{self.path}: not a Parquet file, or truncated: {error}") from error
        lists = [field.name for field in schema if _is_list(arrow, field.type)]
        self._choose(schema.names, lists)
        if not available:
            raise DataError(f"{self.path}: there are no rows in it")
        self.rows = limited(available, self._limit)

    def _blocks(self) -> Iterator[Mapping[str, Array]]:
        names = [part for parts in self._columns.values() for part in parts]
        start = 0
        try:
            with self._parquet.ParquetFile(self.path) as file:
                for block in file.iter_batches(self._wanted.batch_size, columns=names):
                    yield self._joined(
                        {name: self._column(name, block.column(name), start) for name in names}
                    )
                    start += block.num_rows
        except self._broken as error:
            raise DataError(f"{self.path}: cannot be read: {error}") from error

    def _column(self, name: str, column: Any, start: int, width: int = 1) -> Array:
        """(rows,), or (rows, k) from lists of k; `width`: how many values make one row."""
        if column.null_count:
            row = start + column.is_null().to_pylist().index(True) // width
            raise DataError(f"{self.path}: {name}, row {row}: no value")
        if not _is_list(self._arrow, column.type):
            array: Array = np.asarray(column.to_numpy(zero_copy_only=False))
            return array.astype(str) if self._arrow.types.is_string(column.type) else array
        lengths = sorted(self._compute.unique(self._compute.list_value_length(column)).to_pylist())
        if len(lengths) > 1:
            raise DataError(f"{self.path}: {name}: lists of different lengths {lengths[:5]}")
        return self._column(name, column.flatten(), start, lengths[0]).reshape(len(column), -1)


def _is_list(arrow: Any, kind: Any) -> bool:
    types = arrow.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))
