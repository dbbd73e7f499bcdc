"""Which ranks of a layer to time, and what those say of the ranks between them. Numbers only.

Kernels work in blocks, so time is a staircase in the rank: a rank just above a multiple of 16 costs
what the next multiple does, and may cost more than that. One line through all measured ranks would
hide the steps. So multiples of 16 are read off a line through measured multiples of 16, odd
multiples of 8 off one through those, and other ranks cost no less than the next multiple of 8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from rankc.passbase import Curve, Floats

MOST = 8  # ranks of one form
_SHARES = {1: (4,), 2: (2, 2), 3: (2, 1, 1)}  # quarters of them, the largest multiples first


def grid(curve: Curve, dense_macs: int, most: int = MOST) -> list[int]:
    """Entries of the curve to time, at most `most` of every form.

    Those that take fewer multiply-accumulates than the dense layer, spread evenly in the logarithm
    of the rank, of each kind of multiple; where a form has none, its lowest rank.
    """
    chosen: list[int] = []
    for entries in _by_form(curve).values():
        paying = [i for i in entries if curve.macs[i] < dense_macs] or entries[:1]
        kinds: dict[int, list[int]] = {}
        for i in paying:
            kinds.setdefault(_step(int(curve.ranks[i])), []).append(i)
        shares = _SHARES[len(kinds)]
        for share, (_, alike) in zip(shares, sorted(kinds.items(), reverse=True), strict=True):
            count = max(most * share // 4, 1)
            chosen += [alike[k] for k in _spread(curve.ranks[alike], count)]
    return sorted(chosen)


def _by_form(curve: Curve) -> dict[str, list[int]]:
    forms: dict[str, list[int]] = {}
    for i in range(len(curve.ranks)):
        forms.setdefault(curve.form(i), []).append(i)
    return forms


def _spread(ranks: NDArray[np.int64], count: int) -> list[int]:
    """Positions of at most `count` of the rising ranks, the highest among them."""
    if len(ranks) <= count:
        return list(range(len(ranks)))
    wanted = np.geomspace(ranks[0], ranks[-1], count) if count > 1 else ranks[-1:]
    return sorted({int(np.abs(ranks - w).argmin()) for w in wanted})


def _step(rank: int) -> int:
    """16, 8 or 1: the largest of them that divides the rank."""
    return 16 if rank % 16 == 0 else 8 if rank % 8 == 0 else 1


def fill(curve: Curve, timed: Mapping[str, Mapping[int, float]]) -> Floats | None:
    """A time for every entry of the curve, from times of some ranks of its forms.

    Returns:
        Infinity for forms of which nothing was timed: nothing is guessed. None if none was.
    """
    if not any(timed.get(form) for form in _by_form(curve)):
        return None
    known = ((timed.get(curve.form(i)), int(rank)) for i, rank in enumerate(curve.ranks))
    return np.array([read(ranks, rank) if ranks else np.inf for ranks, rank in known])


def read(timed: Mapping[int, float], rank: int) -> float:
    """The time at a rank. Above the highest that was timed, in proportion to the rank.

    >>> read({16: 1.0, 24: 3.0, 32: 2.0}, 20)
    3.0
    """
    top = max(timed)
    if rank > top:
        return timed[top] * rank / top
    if rank in timed:
        return timed[rank]
    alike, following = sorted(r for r in timed if _step(r) == _step(rank)), -(-rank // 8) * 8
    among = bool(alike) and alike[0] <= rank <= alike[-1]
    if following == rank or following > top:
        return _line(timed, alike if among else sorted(timed), rank)
    least = read(timed, following)
    return max(least, _line(timed, alike, rank)) if among else least


def _line(timed: Mapping[int, float], ranks: Sequence[int], rank: int) -> float:
    """On straight lines between those ranks; below the lowest, what that costs."""
    return float(np.interp(rank, ranks, [timed[r] for r in ranks]))
