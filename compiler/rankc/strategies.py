"""How others choose ranks: the baselines that the optimal plan is held against.

* uniform: every site keeps the same share of what it costs, the largest that fits.
* greedy: AIMET's greedy selection of compression ratios. Each site is scored at ten shares of its
  cost; one level of the score is then lowered for all sites together until the target is met, each
  site keeping the least share that holds the level, interpolated between the ten. The original
  scores the whole model with one site compressed; here the score is the predicted loss.

In both, a site takes the point of least loss among those that keep no more than its share, and its
cheapest point where none does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rankc.knapsack_points import Floats, Offer

SHARES = np.linspace(0.1, 1.0, 10)
HALVINGS = 80  # of the level of the score


def uniform(offers: Sequence[Offer], dense: Floats, limits: Floats) -> tuple[int, ...] | None:
    """The same share of its cost for every site.

    Args:
        offers: what every site can become.
        dense: what every site costs if it is left alone, (sites, limits).
        limits: the most that all may cost, (limits,).

    Returns:
        The point of each site; None if even the smallest share is too much.
    """
    shares = [_shares(offer, own) for offer, own in zip(offers, dense, strict=True)]
    steps = np.unique(np.concatenate([[0.0], *shares]))

    def at(step: int) -> list[int]:
        share = steps[step]
        return [_within(o, kept, share) for o, kept in zip(offers, shares, strict=True)]

    return _last_that_fits(at, len(steps), offers, limits)


def greedy(offers: Sequence[Offer], dense: Floats, limits: Floats) -> tuple[int, ...] | None:
    """The same predicted loss for every site; arguments and result as of `uniform`."""
    shares = [_shares(offer, own) for offer, own in zip(offers, dense, strict=True)]
    pairs = list(zip(offers, shares, strict=True))
    # The best within a share never gets worse with a larger one: the fit is monotone as it is.
    scores = [np.array([o.loss[_within(o, kept, s)] for s in SHARES]) for o, kept in pairs]

    def at(level: float) -> list[int]:
        return [
            _within(offer, kept, _least_share(score, level))
            for (offer, kept), score in zip(pairs, scores, strict=True)
        ]

    low, high = 0.0, max((float(score.max()) for score in scores), default=0.0)
    if _fits(offers, at(low), limits):
        return tuple(at(low))
    if not _fits(offers, at(high), limits):  # below the least of the ten shares
        return uniform(offers, dense, limits)
    for _ in range(HALVINGS):
        level = (low + high) / 2
        low, high = (low, level) if _fits(offers, at(level), limits) else (level, high)
    return tuple(at(high))


def _shares(offer: Offer, dense: Floats) -> Floats:
    """Of each point, what it keeps of the site's cost: the largest share over the limits."""
    kept = offer.costs / np.where(dense > 0, dense, 1.0)
    shares: Floats = kept.max(axis=1)
    return shares


def _within(offer: Offer, shares: Floats, share: float) -> int:
    """The point of least loss that keeps no more than the share, or else the one that keeps least.

    Of equal losses the one that keeps less.
    """
    inside = np.flatnonzero(shares <= share)
    if not len(inside):
        return int(np.lexsort((offer.loss, shares))[0])
    return int(inside[np.lexsort((shares[inside], offer.loss[inside]))[0]])


def _least_share(score: Floats, level: float) -> float:
    """The least share whose loss is the level at most, on straight lines between the ten."""
    held = int(np.argmax(score <= level)) if (score <= level).any() else len(score) - 1
    if held == 0 or score[held] > level:
        return float(SHARES[held])
    over = (score[held - 1] - level) / (score[held - 1] - score[held])
    return float(SHARES[held - 1] + over * (SHARES[held] - SHARES[held - 1]))


def _fits(offers: Sequence[Offer], picked: Sequence[int], limits: Floats) -> bool:
    spent = np.sum([o.costs[k] for o, k in zip(offers, picked, strict=True)], axis=0)
    return bool((spent <= limits).all())


def _last_that_fits(
    at: Callable[[int], list[int]], steps: int, offers: Sequence[Offer], limits: Floats
) -> tuple[int, ...] | None:
    """By halving: the farthest of the steps that fits, each costing no less than the one before."""
    low, high = 0, steps  # the first is taken if it fits, the last is out of reach
    if not _fits(offers, at(0), limits):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _fits(offers, at(middle), limits) else (low, middle)
    return tuple(at(low))
