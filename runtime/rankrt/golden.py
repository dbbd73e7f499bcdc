"""Golden rows: inputs, and the outputs that the compiler saw for them."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rankrt.errors import BundleError
from rankrt.session import Array

IN, OUT, REF = "in:", "out:", "ref:"
MAX_BYTES = 256 << 20  # of all arrays together


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far outputs are from the golden ones."""

    rows: int  # compared; 1 where the arrays share no leading dimension
    passed: int  # rows in which every output is within the bound
    max_abs_err: float  # over all outputs; infinite if one is NaN where the golden is not
    bound: float

    @property
    def ok(self) -> bool:
        return self.passed == self.rows


def read(path: Path) -> tuple[dict[str, Array], dict[str, Array]]:
    """Inputs and outputs by name.

    Raises:
        BundleError: as `read_all`.
    """
    return read_all(path)[:2]


def read_all(path: Path) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array]]:
    """Inputs, outputs, and what the original model put out; that may be nothing.

    Pickled data is refused, for it could run code.

    Raises:
        BundleError: it is not such a file, or unpacks to more than MAX_BYTES.
    """
    try:
        _check_size(path)
        with np.load(path, allow_pickle=False) as arrays:
            every = {str(key): np.asarray(arrays[key]) for key in arrays.files}
    except BundleError:
        raise
    except Exception as error:  # zipfile and numpy raise a dozen classes on hostile files
        raise BundleError(f"{path} does not hold plain arrays: {error}") from error
    inputs = {key.removeprefix(IN): a for key, a in every.items() if key.startswith(IN)}
    outputs = {key.removeprefix(OUT): a for key, a in every.items() if key.startswith(OUT)}
    references = {key.removeprefix(REF): a for key, a in every.items() if key.startswith(REF)}
    known = len(inputs) + len(outputs) + len(references) == len(every)
    if not inputs or not outputs or not known or not references.keys() <= outputs.keys():
        raise BundleError(
            f"{path} must hold {IN}<name>, {OUT}<name> and {REF}<name> arrays and nothing else"
        )
    return inputs, outputs, references


def _check_size(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        size = sum(info.file_size for info in archive.infolist())
    if size > MAX_BYTES:
        raise BundleError(f"{path} unpacks to {size} bytes, more than {MAX_BYTES}; refused")


def compare(want: Mapping[str, Array], got: Mapping[str, Array], bound: float) -> Comparison:
    """Compare outputs of equal names.

    Raises:
        BundleError: an output is missing, or has another shape than its golden one.
    """
    errors: list[Array] = []
    for name, expected in want.items():
        if name not in got:
            raise BundleError(f"the golden output {name!r} is none of {', '.join(got)}")
        if got[name].shape != expected.shape:
            raise BundleError(
                f"output {name} has shape {got[name].shape}, the golden one has {expected.shape}"
            )
        errors.append(_abs_err(expected, got[name]))
    rows = _common_rows(errors)
    by_row = np.max([error.reshape(rows, -1).max(axis=1, initial=0) for error in errors], axis=0)
    return Comparison(rows, int((by_row <= bound).sum()), float(by_row.max(initial=0)), bound)


def _abs_err(want: Array, got: Array) -> Array:
    """|want - got| in float64; 0 where both are NaN or both the same infinity or text."""
    if want.dtype.kind not in "fiub":
        return np.where(want == got, 0.0, np.inf)
    exact, other = want.astype(np.float64), got.astype(np.float64)
    same = (exact == other) | (np.isnan(exact) & np.isnan(other))
    with np.errstate(invalid="ignore"):  # infinity less infinity, replaced below
        difference = np.abs(exact - other)
    error: Array = np.where(same, 0.0, np.where(np.isnan(difference), np.inf, difference))
    return error


def _common_rows(arrays: list[Array]) -> int:
    """The leading dimension that all arrays share, else 1."""
    leading = {array.shape[0] if array.ndim else 1 for array in arrays}
    return leading.pop() if len(leading) == 1 and 0 not in leading else 1
