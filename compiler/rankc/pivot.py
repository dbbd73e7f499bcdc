"""Pivot form: of a layer of low rank, r outputs are computed, and the others from those.

The rows of y = z B, with B (r, m) of rank r, lie in r dimensions, so r of the outputs say it all.
With q the columns of B that are kept:
    y_q = z B_q        y_rest = y_q C        C = B_q^-1 B_rest
so a pair (n, r), (r, m) is also one (n, r), (r, m - r) and a change of order: r (n + m - r) weights
instead of r (n + m), fewer than n m at every r below n and m. Any q would do in exact arithmetic.
In floating point the entries of C are what rounding is multiplied by, so columns are exchanged
until none is above `LARGEST`: each exchange makes |det B_q| that much larger, so they end. PIFA,
ICML 2025; exchanges as in strong rank-revealing factorisations, Gu and Eisenstat, 1996.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from rankc.graph import new_initializer

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

LARGEST = 2.0  # of the entries of C
BLOCK = 32  # rows that are eliminated one by one before the others see them, as a matrix product
REPEATED = 1e-11  # of a row's length: what is left of it when it only repeats others


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Pivoted:
    """Which outputs are kept, and how the others follow from them."""

    kept: Indices  # rising, (r,)
    others: Indices  # rising, (m - r,)
    mix: Floats  # C, (r, m - r)

    @property
    def order(self) -> Indices | None:
        """Where output i is in [kept, others], (m,); None: they are in order as they are."""
        found = np.argsort(np.concatenate([self.kept, self.others]))
        return None if np.array_equal(found, np.arange(len(found))) else found

    def whole(self, kept: Floats, mix: Floats) -> Floats:
        """W' (n, m) of the first factor (n, r) and of C as it was rounded."""
        found = np.empty((len(kept), len(self.kept) + len(self.others)))
        found[:, self.kept], found[:, self.others] = kept, kept @ mix
        return found

    def biases(self, bias: Floats | None) -> tuple[Floats | None, Floats | None]:
        """What to add to the kept outputs, (r,), and to the others, (m - r,), for `bias` (m,)."""
        if bias is None:
            return None, None
        first = bias[self.kept].astype(np.float32).astype(np.float64)  # as it is stored
        return first, bias[self.others] - first @ self.mix.astype(np.float32)


def index_bytes(rank: int, outputs: int) -> int:
    """Of the index that brings the outputs into order; none where all of them are kept."""
    return 8 * outputs if rank < outputs else 0


def pivoted(second: Floats) -> Pivoted:
    """Choose outputs to keep.

    Args:
        second: B, (r, m) with r at most m; its rows may depend on each other. Then fewer columns
            than r span all of them, and those kept beside these have nothing but zeros in C.

    Returns:
        B_rest = B_q C, with no entry of C above `LARGEST`.
    """
    rank, outputs = second.shape
    if rank == outputs:
        return Pivoted(np.arange(rank), np.arange(0), np.empty((rank, 0)))
    length = np.linalg.norm(second, axis=1, keepdims=True)
    table = np.ascontiguousarray(second / np.where(length > 0, length, 1.0))
    columns = _reduce(table)
    _exchange(table, columns)
    free = np.setdiff1d(np.arange(outputs), columns)
    idle = np.flatnonzero(columns < 0)
    columns[idle] = free[: len(idle)]
    rows = np.argsort(columns)
    others = free[len(idle) :]
    return Pivoted(columns[rows], others, table[np.ix_(rows, others)])


def _reduce(table: Floats) -> Indices:
    """Gauss and Jordan: the table (r, m), in place, becomes the identity on the columns returned.

    A row that repeats others becomes zero, and its column is -1.
    """
    columns = np.full(len(table), -1)
    for start in range(0, len(table), BLOCK):
        mine = slice(start, start + BLOCK)
        columns[mine] = _reduce_block(table[mine])
        used = mine.start + np.flatnonzero(columns[mine] >= 0)
        for rest in (slice(0, start), slice(start + BLOCK, None)):
            table[rest] -= table[rest][:, columns[used]] @ table[used]
    return columns


def _reduce_block(rows: Floats) -> Indices:
    """The same for a few rows; the largest entry of all that are left comes next."""
    columns = np.full(len(rows), -1)
    for _ in range(len(rows)):
        left = np.where((columns < 0)[:, None], np.abs(rows), 0.0)
        row, column = divmod(int(left.argmax()), rows.shape[1])
        if left[row, column] <= REPEATED:
            break
        _pivot(rows, row, column)
        columns[row] = column
    rows[columns < 0] = 0.0
    return columns


def _exchange(table: Floats, columns: Indices) -> None:
    """Keep another column in the place of one, in place, as long as C has an entry too large."""
    while True:
        row, column = divmod(int(np.abs(table).argmax()), table.shape[1])
        if not abs(table[row, column]) > LARGEST:
            return
        _pivot(table, row, column)
        columns[row] = column


def _pivot(table: Floats, row: int, column: int) -> None:
    """Make a column of the table a unit vector, by its entry in that row."""
    table[row] /= table[row, column]
    factors = table[:, column].copy()
    factors[row] = 0.0
    table -= np.outer(factors, table[row])


def in_order(
    model: ir.Model,
    tape: ir.tape.Tape,
    name: str,
    parts: Sequence[ir.Value],
    found: Pivoted,
    axis: int,
) -> ir.Value:
    """The kept outputs and the others as one value, each where it was before."""
    joined = tape.op("Concat", parts, {"axis": axis}, name=f"{name}.joined")
    if found.order is None:
        return joined
    index = new_initializer(model, f"{name}.order", found.order)
    return tape.op("Gather", [joined, index], {"axis": axis}, name=f"{name}.order")
