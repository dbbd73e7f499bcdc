"""Kinds of outputs fed in batches, for tests of metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from numpy.typing import NDArray

from rankc.validate.judgement import Judgement
from rankc.validate.kinds import Kind

Array = NDArray[Any]

seeds = st.integers(0, 2**32 - 1)
cuts = st.lists(st.integers(0, 40), max_size=5)  # where rows are cut into batches


def parts(rows: int, cuts: Sequence[int]) -> list[slice]:
    """Slices that cover all rows; none is empty."""
    ends = sorted({cut for cut in cuts if 0 < cut < rows})
    return [slice(a, b) for a, b in zip([0, *ends], [*ends, rows], strict=True)]


def judged(
    make: Callable[[], Kind],
    x: Array,
    y: Array,
    labels: Array | None = None,
    groups: Array | None = None,
    cuts: Sequence[int] = (),
) -> Judgement:
    """What a new kind says of these outputs, however they are cut into batches."""
    kind = make()
    for part in parts(len(x), cuts):
        columns = [None if column is None else column[part] for column in (labels, groups)]
        kind.add(x[part], y[part], *columns)
    return kind.judge()


def check_draws(
    make: Callable[[], Kind],
    seed: int,
    x: Array,
    y: Array,
    labels: Array | None = None,
    groups: Array | None = None,
) -> None:
    """Statistics on a draw are what the metrics are of the drawn rows, each as often as drawn."""
    found = judged(make, x, y, labels, groups)
    rng = np.random.default_rng(seed)
    counts = np.bincount(rng.integers(0, len(x), len(x)), minlength=len(x))
    drawn = np.repeat(np.arange(len(x)), counts)
    columns = [None if one is None else one[drawn] for one in (labels, groups)]
    again = judged(make, x[drawn], y[drawn], columns[0], columns[1])
    for name, statistic in found.differences.items():
        if name in again.pairs:
            before, after = again.pairs[name]
            assert statistic(counts) == pytest.approx(after - before, rel=1e-8, abs=1e-9), name
            if name in found.values:
                assert found.values[name](counts) == pytest.approx(after, rel=1e-8, abs=1e-9), name
