"""Ranks of several layers by one threshold: what training cuts to, before the planner plans."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rankc.linalg import Floats


def most_ranks(
    worth: Sequence[Floats], cost: Callable[[Sequence[int]], float], most: float
) -> list[int]:
    """The ranks that directions worth at least some threshold come to, the lowest that fits.

    Args:
        worth: of each layer's directions, (k,), never rising.
        cost: of ranks, one a layer; never falls where ranks rise.
        most: that it may be. Where not even one direction a layer fits, that is what they get.
    """

    def ranks(least: float) -> list[int]:
        return [max(int((one >= least).sum()), 1) for one in worth]

    levels = np.unique(np.concatenate(worth))
    low, high = 0, len(levels) - 1
    while low < high:
        middle = (low + high) // 2
        if cost(ranks(levels[middle])) <= most:
            high = middle
        else:
            low = middle + 1
    return ranks(levels[low])
