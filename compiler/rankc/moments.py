"""Moments of rows that come in batches: nothing is kept of a row but its share of two sums.

Products are taken in the rows' own precision, about the mean of the first batch so that no digits
are lost to a large mean, and added up in float64. Rows wait until they are as many as they are
long: adding up costs as much for one row as for many.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankc.passbase import Floats, Moments

Array = NDArray[Any]


class RunningMoments:
    """First and second moment of rows (n), or of one such set for every group."""

    def __init__(self, centred: bool) -> None:
        self.centred, self.count = centred, 0
        self.shift: Array | None = None
        self.sum: Floats | None = None
        self.products: Floats | None = None
        self.waiting: list[Array] = []

    @np.errstate(over="ignore", invalid="ignore")  # told at the end, with the layer
    def add(self, rows: Array, count: int | None = None) -> None:
        """Take in rows (N, n) or (groups, N, n); `count` replaces N in the averages."""
        if self.shift is None or self.sum is None or self.products is None:
            whole = (*rows.shape[:-2], rows.shape[-1])
            self.shift = rows.mean(axis=-2) if self.centred else np.zeros(whole, rows.dtype)
            self.sum, self.products = np.zeros(whole), np.zeros((*whole, rows.shape[-1]))
        assert self.shift is not None
        shifted = rows - self.shift[..., None, :] if self.centred else rows
        self.sum += np.ones(shifted.shape[-2], shifted.dtype) @ shifted
        self.count += rows.shape[-2] if count is None else count
        self.waiting.append(shifted)
        if sum(each.shape[-2] for each in self.waiting) >= rows.shape[-1]:
            self._add_up()

    @np.errstate(over="ignore", invalid="ignore")
    def result(self) -> Moments:
        """Of all rows so far; there was at least one."""
        assert self.shift is not None and self.sum is not None and self.products is not None
        self._add_up()
        shift, mean = self.shift.astype(np.float64), self.sum / self.count
        whole, second = shift + mean, self.products / self.count
        second -= mean[..., :, None] * mean[..., None, :]
        second += whole[..., :, None] * whole[..., None, :]
        return Moments(self.count, whole, second)

    def _add_up(self) -> None:
        if self.waiting and self.products is not None:
            one = len(self.waiting) == 1
            rows = self.waiting[0] if one else np.concatenate(self.waiting, axis=-2)
            self.products += np.swapaxes(rows, -1, -2) @ rows
            self.waiting = []
