"""What a source of rows is, and the checks that every source shares."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankc.errors import DataError
from rankrt.errors import FeedError
from rankrt.session import TensorSpec

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows: what the model takes and, where asked for, the targets."""

    feeds: dict[str, Array]  # by input name; dtype and shape are the input's
    labels: Array | None  # (rows,), or (rows, ...) with a label at each of many places; real
    groups: Array | None = None  # (rows,), numbers or text

    @property
    def rows(self) -> int:
        return len(next(iter(self.feeds.values())))


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be read out of a source."""

    inputs: tuple[TensorSpec, ...]
    label: str | None
    batch_size: int
    group: str | None = None

    def __post_init__(self) -> None:
        if not self.inputs:
            raise DataError("the model takes no inputs, so no data can be fed to it")
        for spec in self.inputs:
            if not spec.shape:
                raise DataError(f"input {spec} has no batch axis, so rows cannot be fed to it")
            if spec.dtype == "object":
                raise DataError(f"input {spec} takes text, which no data source supports yet")

    @property
    def names(self) -> tuple[str, ...]:
        names = (*(spec.name for spec in self.inputs), self.label, self.group)
        return tuple(dict.fromkeys(name for name in names if name is not None))


class Source(ABC):
    """Rows on disk. Every call of `batches` starts over, and yields the same."""

    path: Path
    rows: int | None  # that `batches` yields in all; None where only reading can tell

    @abstractmethod
    def batches(self) -> Iterator[Batch]:
        """Batches of at most the recipe's `batch_size` rows, checked against the model's inputs.

        Raises:
            DataError: rows that do not fit, NaN or Inf, a truncated file, no rows at all.
        """

    @abstractmethod
    def digest(self) -> str:
        """sha256 over the files that are read, in hex."""


class InRange(Source):
    """The rows of another source, with ids that the finished model can look up.

    In tables that share one array an id beyond its own table reads another table's row, where the
    original would have failed, or counted a negative one from the end.
    """

    def __init__(self, source: Source, most: Mapping[str, Sequence[int]]) -> None:
        """Args: the rows; for each input with ids the largest one of each column."""
        self._source, self._most = source, {name: np.asarray(ids) for name, ids in most.items()}
        self.path, self.rows = source.path, source.rows

    def batches(self) -> Iterator[Batch]:
        start = 0
        for batch in self._source.batches():
            for name, most in self._most.items():
                _refuse_out_of_range(self.path, name, batch.feeds[name], most, start)
            yield batch
            start += batch.rows

    def digest(self) -> str:
        return self._source.digest()


def _refuse_out_of_range(where: object, name: str, ids: Array, most: Array, start: int) -> None:
    wrong = (ids < 0) | (ids > most)
    if wrong.any():
        index = tuple(int(i) for i in np.argwhere(wrong)[0])
        row, *column = index
        at = f"row {start + row}" + (f", column {', '.join(map(str, column))}" if column else "")
        raise DataError(
            f"{where}: {name}, {at}: no table row for id {ids[index]}; "
            f"valid are 0 to {np.broadcast_to(most, ids.shape)[index]}"
        )


@contextmanager
def refused_rows(source: Source, start: int, count: int) -> Iterator[None]:
    """Rows that a session does not take are an error of the data, told with where they are.

    Raises:
        DataError: in the place of the session's FeedError, e.g. for an id outside its table.
    """
    try:
        yield
    except FeedError as error:
        rows = f"rows {start} to {start + count - 1}"
        raise DataError(f"{source.path}: {rows}: {error}") from error


def sha256_of(paths: Iterable[Path], root: Path | None = None) -> str:
    """sha256 over names and contents of files, in the given order; never whole in memory.

    A name is the path from `root`, where there is one.
    """
    digest = hashlib.sha256()
    for path in paths:
        name = path.name if root is None else path.relative_to(root).as_posix()
        digest.update(name.encode() + b"\0" + path.stat().st_size.to_bytes(8, "little"))
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def limited(available: int | None, limit: int | None) -> int | None:
    """How many rows come out of `available` (None: unknown) with the recipe's limit."""
    return available if limit is None or available is None else min(available, limit)


def require(where: object, names: Iterable[str], present: Iterable[str], what: str) -> None:
    """Raise unless all names are present; says which are."""
    have = sorted(present)
    if missing := [name for name in names if name not in have]:
        shown = ", ".join(have[:40]) + (", ..." if len(have) > 40 else "")
        raise DataError(f"{where}: no {what} {', '.join(missing)}; it has: {shown or 'none'}")


def checked(
    where: object, wanted: Wanted, arrays: Iterator[Mapping[str, Array]], limit: int | None
) -> Iterator[Batch]:
    """Turn raw arrays into batches, counting rows from `where`'s first; at most `limit` rows."""
    start = 0
    for raw in arrays:
        rows = _rows(where, wanted, raw)
        rows = rows if limit is None else min(rows, limit - start)
        if rows:
            feeds = {
                spec.name: fit(where, spec, raw[spec.name][:rows], start) for spec in wanted.inputs
            }
            labels = groups = None
            if wanted.label is not None:
                labels = _fit_labels(where, wanted.label, raw[wanted.label][:rows], start)
            if wanted.group is not None:
                groups = _fit_groups(where, wanted.group, raw[wanted.group][:rows], start)
            yield Batch(feeds, labels, groups)
        start += rows
        if start == limit:
            return
    if not start:
        raise DataError(f"{where}: there are no rows in it")


def _rows(where: object, wanted: Wanted, raw: Mapping[str, Array]) -> int:
    counts = {name: (len(raw[name]) if raw[name].ndim else None) for name in wanted.names}
    if None in counts.values():
        scalars = ", ".join(name for name, count in counts.items() if count is None)
        raise DataError(f"{where}: {scalars}: a single number; the first axis must be the rows")
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise DataError(f"{where}: the arrays differ in rows: {told}")
    return int(next(iter(counts.values())) or 0)


def fit(where: object, spec: TensorSpec, array: Array, start: int) -> Array:
    """The array as the input takes it.

    Args:
        where: for messages.
        spec: the input.
        array: (rows, ...), any dtype.
        start: number of the first row, for messages.

    Raises:
        DataError: the shape differs, a value would change by the conversion, NaN or Inf.
    """
    check_shape(where, spec, array.shape)
    if isinstance(spec.shape[0], int) and spec.shape[0] != len(array):
        raise DataError(
            f"{where}: the model takes exactly {spec.shape[0]} rows ({spec}) and a batch has "
            f"{len(array)}; export it with a dynamic batch, or set batch_size and rows to fit"
        )
    check_dtype(where, spec, array.dtype)
    if array.dtype.kind == "f":
        _refuse_not_finite(where, spec.name, array, start)
    cast = _cast(array, np.dtype(spec.dtype))
    if array.dtype.kind != "f" or cast.dtype.kind != "f":
        _refuse_changed(where, spec, array, cast, start)
    else:
        _refuse_not_finite(where, f"{spec.name} as {spec.dtype}", cast, start)
    return np.ascontiguousarray(cast)


def _cast(array: Array, dtype: np.dtype[Any]) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):  # told below, with the row
        return array.astype(dtype, copy=False)


def check_shape(where: object, spec: TensorSpec, shape: tuple[int, ...]) -> None:
    """Refuse another number of axes, or another size of an axis that the model fixes."""
    same = len(shape) == len(spec.shape) and all(
        not isinstance(want, int) or want == got
        for want, got in zip(spec.shape[1:], shape[1:], strict=True)
    )
    if not same:
        raise DataError(f"{where}: {spec.name} has shape {shape}, the model takes {spec}")


def check_dtype(where: object, spec: TensorSpec, dtype: np.dtype[Any]) -> None:
    """Refuse what no value-preserving conversion exists for."""
    target = np.dtype(spec.dtype)
    kinds = {"f": "fiub", "i": "iub", "u": "iub", "b": "b"}
    if dtype.kind not in kinds.get(target.kind, ""):
        raise DataError(
            f"{where}: {spec.name} is {dtype}, the model takes {spec}; "
            "only conversions that keep every value are made"
        )


def _refuse_not_finite(where: object, name: str, array: Array, start: int) -> None:
    if not np.isfinite(array).all():
        index = np.argwhere(~np.isfinite(array))[0]
        row, *rest = (int(i) for i in index)
        at = f"row {start + row}" + (f", column {', '.join(map(str, rest))}" if rest else "")
        raise DataError(f"{where}: {name}, {at}: {array[tuple(index)]}; every value must be finite")


def _refuse_changed(where: object, spec: TensorSpec, array: Array, cast: Array, start: int) -> None:
    changed = cast.astype(array.dtype) != array
    if array.dtype.kind in "iu" and cast.dtype.kind in "iu":
        changed |= (cast < 0) != (array < 0)  # -1 as uint64 comes back as -1
    if changed.any():
        index = tuple(np.argwhere(changed)[0])
        raise DataError(
            f"{where}: {spec.name}, row {start + int(index[0])}: {array[index]} ({array.dtype}) "
            f"cannot be kept exactly as {spec.dtype}, which the model takes"
        )


def _fit_labels(where: object, name: str, array: Array, start: int) -> Array:
    """(rows,) where there is one number a row, else (rows, ...)."""
    if array.dtype.kind not in "fiub":
        raise DataError(
            f"{where}: label {name} is {array.dtype} of shape {array.shape}; it must hold numbers: "
            "write classes as whole numbers from 0"
        )
    if array.dtype.kind == "f":
        _refuse_not_finite(where, f"label {name}", array, start)
    return array.reshape(len(array)) if array.size == len(array) else array


def _fit_groups(where: object, name: str, array: Array, start: int) -> Array:
    """(rows,)."""
    if array.dtype.kind not in "fiubU" or array.size != len(array):
        raise DataError(
            f"{where}: group {name} is {array.dtype} of shape {array.shape}; it must hold one "
            "number or text a row"
        )
    if array.dtype.kind == "f":
        _refuse_not_finite(where, f"group {name}", array, start)
    return array.reshape(len(array))
