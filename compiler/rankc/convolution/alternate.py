"""Alternating least squares: make the first factor fit the second one, and back, at one rank.

The closed form of `split` ignores that taps of the second factor see correlated patches. With B
fixed, the first factors V minimise  tr((W - B P(V)) G (W - B P(V))T),  P linear in V: a least
squares problem solved by conjugate gradients, whose operator is two products with G. Then B is
refitted. The error can only fall, and a few rounds take most of what there is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from rankc.convolution.refit import damp, refit
from rankc.convolution.split import Split, axes_of, map_of
from rankc.linalg import Floats

ITERATIONS = 20  # of conjugate gradients a round
CLOSE = 1e-14  # squared residual, of that of zero, at which they stop


def alternate(chain: Split, rank: int, moments: Floats, rounds: int) -> Split:
    """The chain at `rank`, its first factors improved; its error there is not larger.

    Args:
        chain: In any form of `split`.
        rank: Kept by the result, which has no higher ones.
        moments: Of the patches, (groups, n, n).
        rounds: Each improves the first factor, then the second.
    """
    axes, taps = axes_of(chain.name, chain.kernel), chain.kernel.window.kernel
    firsts, fits, maps = [], [], []
    for g, weight in enumerate(chain.kernel.matrix):
        block = chain.second[1][g].block
        v = chain.first[1][g][:rank]
        for _ in range(rounds):
            second = refit(weight, moments[g], map_of(v, taps, axes), block).second(rank)
            v = _normal(_first(weight, damp(moments[g]), second, v, taps, axes))
        p = map_of(v, taps, axes)
        firsts.append(v)
        maps.append(p)
        fits.append(refit(weight, moments[g], p, block))
    found = dataclasses.replace(
        chain,
        first=(chain.first[0], tuple(firsts)),
        second=(chain.second[0], tuple(fits)),
        maps=tuple(maps),
    )
    return found if found.lost[-1] < chain.lost[rank] else chain


def _first(
    weight: Floats,
    moment: Floats,
    second: Floats,
    start: Floats,
    taps: tuple[int, ...],
    axes: tuple[int, ...],
) -> Floats:
    """V (r, C, a) that suits B (m, r b) best, from `start`."""
    inner = second.T @ second

    def operator(v: Floats) -> Floats:
        return _gather(inner @ (map_of(v, taps, axes) @ moment), v.shape, taps, axes)

    wanted = _gather(second.T @ (weight @ moment), start.shape, taps, axes)
    return _conjugate_gradients(operator, wanted, start)


def _gather(
    gradient: Floats, shape: tuple[int, ...], taps: tuple[int, ...], axes: tuple[int, ...]
) -> Floats:
    """What of a gradient at P (r b, C taps) falls on V (r, C, a): the transpose of `map_of`."""
    rest = [axis for axis in range(len(taps)) if axis not in axes]
    b = math.prod(taps[axis] for axis in rest)
    order = (0, 1, 2, *(3 + axis for axis in (*axes, *rest)))
    whole = gradient.reshape(shape[0], b, shape[1], *taps).transpose(order)
    return np.asarray(np.einsum("rbcab->rca", whole.reshape(*whole.shape[:3], -1, b)), np.float64)


def _conjugate_gradients(
    operator: Callable[[Floats], Floats], wanted: Floats, start: Floats
) -> Floats:
    """Solve operator(v) = wanted, the operator symmetric and not negative (Hestenes, 1952)."""
    v = start
    residual = wanted - operator(v)
    direction, size = residual, float(np.sum(residual**2))
    enough = CLOSE * float(np.sum(wanted**2))
    for _ in range(ITERATIONS):
        if size <= enough:
            break
        along = operator(direction)
        step = size / float(np.sum(direction * along))
        v, residual = v + step * direction, residual - step * along
        before, size = size, float(np.sum(residual**2))
        direction = residual + size / before * direction
    return v


def _normal(first: Floats) -> Floats:
    """Each row of length one: the second factor takes the scale."""
    size = np.linalg.norm(first, axis=(1, 2), keepdims=True)
    return np.asarray(first / np.where(size > 0, size, 1.0), np.float64)
