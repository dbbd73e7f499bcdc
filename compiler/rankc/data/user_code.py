"""Rows out of the user's own Python generator; runs only where the user allows it."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rankc.data.source import Array, Batch, Source, Wanted, checked, require, sha256_of
from rankc.errors import DataError

CODE_PATH = re.compile(r"(?P<file>.+\.py):(?P<function>[A-Za-z_]\w*)")


class UserCode(Source):
    """`function()` of a Python file yields dicts of arrays, one dict a batch, of any batch size."""

    def __init__(self, path: Path, function: str, wanted: Wanted, limit: int | None) -> None:
        self.path, self.rows = path, None
        self._where = f"{path}:{function}"
        self._wanted, self._limit = wanted, limit
        self._function = load_function(path, function)

    def batches(self) -> Iterator[Batch]:
        return checked(self._where, self._wanted, self._blocks(), self._limit)

    def digest(self) -> str:
        """Of the file with the code; what the code reads is not covered."""
        return sha256_of([self.path])

    def _blocks(self) -> Iterator[Mapping[str, Array]]:
        size = self._wanted.batch_size
        for raw in self._dicts():
            if not isinstance(raw, Mapping):
                raise DataError(
                    f"{self._where} yielded a {type(raw).__name__}, not a dict of arrays"
                )
            require(self._where, self._wanted.names, map(str, raw), "array")
            arrays = {name: np.asarray(raw[name]) for name in self._wanted.names}
            longest = max((len(array) for array in arrays.values() if array.ndim), default=1)
            for at in range(0, longest, size):
                yield {
                    name: array[at : at + size] if array.ndim else array
                    for name, array in arrays.items()
                }

    def _dicts(self) -> Iterator[Any]:
        try:
            yield from self._function()
        except Exception as error:
            raise DataError(f"{self._where} raised {type(error).__name__}: {error}") from error


def load_function(path: Path, function: str) -> Callable[..., Any]:
    """A function of a Python file; running the file is what gives it.

    Raises:
        DataError: There is no such file or function, or the file fails.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    spec = importlib.util.spec_from_file_location(f"rankc_user_{path.stem}", path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise DataError(f"{path} raised {type(error).__name__}: {error}") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise DataError(f"{path}: has no function {function!r}")
    return found  # type: ignore[no-any-return]
