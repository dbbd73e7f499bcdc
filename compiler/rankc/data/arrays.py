"""Rows out of NumPy's own files: a folder of .npy, or an .npz.

Images are best stored as uint8. A model that takes floating numbers gets them converted, a batch at
a time, with the values that they have: 0 to 255.
"""

from __future__ import annotations

import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from rankc.data.source import (
    Array,
    Batch,
    Source,
    Wanted,
    check_dtype,
    check_shape,
    checked,
    limited,
    require,
    sha256_of,
)
from rankc.errors import DataError

# What zipfile raises on damage; NotImplementedError where a flipped bit asks for a later version.
DAMAGED = (OSError, ValueError, zipfile.BadZipFile, NotImplementedError)


@dataclass(frozen=True, slots=True)
class _Member:
    """One array in NumPy's format. Read from front to back, so a compressed one streams too."""

    where: str
    open: Callable[[], IO[bytes]]
    stored: int  # bytes, header included
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool  # column by column: has to be read whole
    offset: int  # of the data

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape[1:], dtype=object)) * self.dtype.itemsize

    def blocks(self, file: IO[bytes], rows: int) -> Iterator[Array]:
        """Blocks of at most `rows` rows from an open file, (rows, ...)."""
        self._read(file, self.offset)
        if self.fortran:
            data = self._read(file, self.shape[0] * self.row_bytes)
            whole = np.frombuffer(data, self.dtype).reshape(self.shape[::-1]).T
            yield from (whole[at : at + rows] for at in range(0, len(whole), rows))
            return
        for at in range(0, self.shape[0], rows):
            count = min(rows, self.shape[0] - at)
            block = np.frombuffer(self._read(file, count * self.row_bytes), self.dtype)
            yield block.reshape(count, *self.shape[1:])
        if file.read(1):  # also makes zipfile compare the checksum
            raise DataError(f"{self.where}: longer than its header says")

    def _read(self, file: IO[bytes], size: int) -> bytes:
        try:
            data = file.read(size)
        except (*DAMAGED, EOFError, zlib.error) as error:
            raise DataError(f"{self.where}: corrupt or truncated: {error}") from error
        if len(data) != size:
            raise DataError(f"{self.where}: truncated")
        return data


def _member(where: str, open_: Callable[[], IO[bytes]], stored: int) -> _Member:
    try:
        with open_() as file:
            version = np.lib.format.read_magic(file)
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, fortran, dtype = read(file)
            offset = file.tell()
    except KeyError as error:
        raise DataError(f"{where}: NumPy format {error} is not supported; save it again") from error
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{where}: not a NumPy array, or corrupt: {error}") from error
    except RuntimeError as error:  # zipfile: encrypted
        raise DataError(f"{where}: cannot be read: {error}") from error
    if dtype.hasobject:
        raise DataError(
            f"{where}: holds Python objects (a pickle), which could run code; save plain numbers"
        )
    member = _Member(where, open_, stored, shape, dtype, fortran and len(shape) > 1, offset)
    if not shape or min(shape) < 0:
        raise DataError(f"{where}: shape {shape}; the first axis must be the rows")
    if stored < offset + shape[0] * member.row_bytes:
        raise DataError(f"{where}: truncated: {stored:,} bytes are too few for {dtype} {shape}")
    return member


class _Arrays(Source):
    def __init__(self, path: Path, wanted: Wanted, limit: int | None) -> None:
        self.path, self._wanted, self._limit = path, wanted, limit
        self._members = self._find(wanted.names)
        for spec in wanted.inputs:
            check_shape(path, spec, self._members[spec.name].shape)
            check_dtype(path, spec, self._members[spec.name].dtype)
        counts = {name: member.shape[0] for name, member in self._members.items()}
        if len(set(counts.values())) > 1:
            told = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise DataError(f"{path}: the arrays differ in rows: {told}")
        available = next(iter(counts.values()))
        if not available:
            raise DataError(f"{path}: there are no rows in it")
        self.rows = limited(available, limit)

    @abstractmethod
    def _find(self, names: tuple[str, ...]) -> dict[str, _Member]: ...

    def batches(self) -> Iterator[Batch]:
        return checked(self.path, self._wanted, self._blocks(), self._limit)

    def _blocks(self) -> Iterator[Mapping[str, Array]]:
        with ExitStack() as stack:
            streams = [
                member.blocks(stack.enter_context(member.open()), self._wanted.batch_size)
                for member in self._members.values()
            ]
            for blocks in zip(*streams, strict=True):
                yield dict(zip(self._members, blocks, strict=True))


def _open(path: Path) -> IO[bytes]:
    return path.open("rb")


def _size(path: Path) -> int:
    return path.stat().st_size


class NpyFolder(_Arrays):
    """A folder with `<input>.npy` for every input."""

    def _find(self, names: tuple[str, ...]) -> dict[str, _Member]:
        files = {file.stem: file for file in self.path.glob("*.npy") if file.is_file()}
        require(self.path, names, files, "array")
        return {
            name: _member(str(files[name]), partial(_open, files[name]), _size(files[name]))
            for name in names
        }

    def digest(self) -> str:
        return sha256_of(self.path / f"{name}.npy" for name in sorted(self._members))


class NpzFile(_Arrays):
    """An archive made by `numpy.savez` or `savez_compressed`; members are streamed, not loaded."""

    def _find(self, names: tuple[str, ...]) -> dict[str, _Member]:
        try:
            self._archive = zipfile.ZipFile(self.path)
        except DAMAGED as error:
            raise DataError(f"{self.path}: not an .npz, or truncated: {error}") from error
        infos = {info.filename.removesuffix(".npy"): info for info in self._archive.infolist()}
        require(self.path, names, infos, "array")
        return {
            name: _member(
                f"{self.path}: {name}",
                partial(self._archive.open, infos[name]),
                infos[name].file_size,
            )
            for name in names
        }

    def digest(self) -> str:
        return sha256_of([self.path])
