"""What the cost of every rank says of a site: its spectrum, and what a share of it would keep.

Nothing here knows a pass. The energy of direction i is the error that rank i takes away from rank
i - 1; where a pass considers every kth rank only, its k directions are taken to be equal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from rankc.passbase import Curve, Dense, Floats

KEEP = {"1/2": 1 / 2, "1/3": 1 / 3, "1/4": 1 / 4}  # of the site's parameters
ENERGIES = (0.9, 0.99)


@dataclasses.dataclass(frozen=True, slots=True)
class Spectrum:
    """How the variance of a site's output spreads over directions."""

    form: str  # of the curve that it was read from; empty for the only one
    energies: tuple[float, ...]  # share of each direction, falling; they add up to 1
    effective_rank: float
    ranks: tuple[int, int]  # the fewest directions with 90 and with 99 % of the energy


@dataclasses.dataclass(frozen=True, slots=True)
class Offer:
    """The best that a site can be within a share of its parameters."""

    keep: str  # a key of KEEP
    rank: int
    form: str
    error: float  # share of the variance of the site's output that is lost


def spectrum(curve: Curve, full_rank: int) -> Spectrum:
    """Of the form whose last rank is the site's own, or else of that with the most ranks.

    The effective rank is RankMe's: e to the entropy of the singular values over their sum (Garrido
    et al., ICML 2023). The energies are their squares.
    """
    name, chosen = max(
        _forms(curve), key=lambda f: (curve.ranks[f[1][-1]] == full_rank, curve.ranks[f[1][-1]])
    )
    energies = _energies(curve.ranks[chosen], curve.error[chosen])
    kept = np.cumsum(energies)
    few, most = (int(np.searchsorted(kept, share - 1e-12)) + 1 for share in ENERGIES)
    return Spectrum(name, tuple(map(float, energies)), _effective_rank(energies), (few, most))


def _forms(curve: Curve) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Each form with the entries of the curve that are of it."""
    names = np.array(curve.forms or ("",) * len(curve.ranks))
    for name in dict.fromkeys(names.tolist()):
        yield name, np.flatnonzero(names == name)


def _energies(ranks: NDArray[np.int64], error: Floats) -> Floats:
    """Share of each direction, (ranks[-1],), from the error of ranks, the last of them exact."""
    steps = np.diff(ranks, prepend=0)
    gained = -np.diff(np.append(error[:-1], 0.0), prepend=max(1.0, float(error[0])))
    each = np.repeat(np.maximum(gained, 0.0) / steps, steps)
    falling: Floats = np.sort(each)[::-1] / each.sum()
    return falling


def _effective_rank(energies: Floats) -> float:
    singular = np.sqrt(energies)
    share = singular[singular > 0] / singular.sum()
    return float(np.exp(-np.sum(share * np.log(share))))


def offers(curve: Curve, dense: Dense) -> tuple[Offer, ...]:
    """The form and rank of least error for each share in KEEP; none where nothing is so small."""
    found = []
    for keep, share in KEEP.items():
        fits = np.flatnonzero(curve.parameters <= share * dense.parameters)
        if len(fits):
            best = int(fits[np.argmin(curve.error[fits])])
            found.append(Offer(keep, int(curve.ranks[best]), curve.form(best), _error(curve, best)))
    return tuple(found)


def _error(curve: Curve, at: int) -> float:
    return max(float(curve.error[at]), 0.0)  # of a difference of large numbers, rounded


def paying(curve: Curve, dense: Dense) -> dict[str, int]:
    """The highest rank of each form that takes fewer parameters and no more arithmetic than dense.

    Forms that never do are left out. A table does no arithmetic: there only parameters count.
    """
    cheaper = curve.parameters < dense.parameters
    if dense.macs:
        cheaper &= curve.macs <= dense.macs
    ranks = {name: curve.ranks[at[cheaper[at]]] for name, at in _forms(curve)}
    return {name: int(found.max()) for name, found in ranks.items() if len(found)}
