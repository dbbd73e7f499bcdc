"""Random planning problems: small ones that brute force can solve, and whole networks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rankc.knapsack_points import Floats, Offer
from rankc.passbase import Curve, Dense, Site
from rankc.planning import Candidate

FORMS = ("channel", "vertical", "horizontal", "tucker")
POSITIONS = (1, 49, 196, 784, 3136)  # at which a layer's weights are used, as in a vision net


def instance(seed: int, limits: int) -> tuple[list[Offer], Floats]:
    """At most six sites, and limits anywhere between the smallest and the largest."""
    rng = np.random.default_rng(seed)
    sites = int(rng.integers(1, 7))
    offers = [_offer(rng, limits, forms=1 if sites == 6 else 2) for _ in range(sites)]
    low, high = span(offers)
    return offers, np.floor(low + (high - low) * rng.uniform(0, 1, size=limits) ** 1.5)


def _offer(rng: np.random.Generator, limits: int, forms: int) -> Offer:
    """A site: dense, and one or more forms at every rank, convex or not; or one forced rank."""
    full, costs, losses = int(rng.integers(1, 7)), [], []
    for _ in range(int(rng.integers(1, forms + 1))):
        gains = rng.exponential(size=full) * rng.uniform(0.1, 10)
        loss = np.append(np.cumsum(np.sort(gains) if rng.random() < 0.5 else gains)[::-1][1:], 0.0)
        losses.append(rng.permutation(loss) if rng.random() < 0.2 else loss)
        each = np.outer(np.arange(1, full + 1), rng.integers(3, 40, size=limits))
        costs.append(rng.integers(1, 200, size=each.shape) if rng.random() < 0.2 else each)
    cost, loss = np.concatenate(costs).astype(np.float64), np.concatenate(losses)
    dense: Floats = np.floor(cost.max(axis=0) * rng.uniform(0.4, 1.2)) + 1.0
    if rng.random() < 0.1:
        forced = int(rng.integers(len(loss)))
        return Offer(cost[[forced]], loss[[forced]])
    return Offer(np.vstack([dense, cost]), np.append(0.0, loss))


def span(offers: Sequence[Offer]) -> tuple[Floats, Floats]:
    """The least and the most that all can cost, limit by limit."""
    low = np.sum([offer.costs.min(axis=0) for offer in offers], axis=0)
    return low, np.sum([offer.costs.max(axis=0) for offer in offers], axis=0)


def optimum(offers: Sequence[Offer], limits: Floats) -> float | None:
    """Brute force over every choice there is; None: nothing fits."""
    cost, loss = np.zeros((1, len(limits))), np.zeros(1)
    for offer in offers:
        cost = (cost[:, None] + offer.costs).reshape(-1, len(limits))
        loss = (loss[:, None] + offer.loss).ravel()
    fits = (cost <= limits).all(axis=1)
    return float(loss[fits].min()) if fits.any() else None


def network(
    seed: int, sites: int, ranks: int, forms: int = 1, noise: float = 0.0
) -> list[Candidate]:
    """Sites with decaying spectra, as of a vision net; losses measured with some noise.

    Args:
        seed: of everything.
        sites: how many.
        ranks: the most that a site has in each form; exactly so many with one form.
        forms: that every site offers.
        noise: standard deviation of the logarithm of a loss; 0 is what a spectrum gives.
    """
    rng = np.random.default_rng(seed)
    return [_site(rng, f"site{k}", ranks, forms, noise) for k in range(sites)]


def _site(rng: np.random.Generator, name: str, most: int, forms: int, noise: float) -> Candidate:
    full = most if forms == 1 else max(int(most * rng.uniform(0.3, 1)), 2)
    positions, width = int(rng.choice(POSITIONS)), int(rng.integers(32, 1024))
    scale, ranks = 10 ** rng.uniform(-3, 1), np.arange(1, full + 1)
    losses, counts = [], []
    for _ in range(forms):
        gains = np.exp(-ranks / full * rng.uniform(1, 12)) * rng.uniform(0.5, 1.5, size=full)
        tail = np.append(np.cumsum(np.sort(gains))[::-1][1:], 0.0) / gains.sum()
        losses.append(scale * tail * np.exp(noise * rng.standard_normal(full)))
        counts.append(ranks * int(width * rng.uniform(0.6, 1.4)) + int(rng.integers(64)))
    loss, count = np.concatenate(losses), np.concatenate(counts)
    curve = Curve(
        np.tile(ranks, forms),
        loss / (scale + loss),
        loss,
        count,
        positions * count,
        4 * count,
        forms=tuple(np.repeat(FORMS[:forms], full).tolist()) if forms > 1 else (),
    )
    dense = int(min(each[-1] for each in counts) * rng.uniform(0.5, 0.9))
    return Candidate(
        Site("lowrank", name, (full, full)), Dense(dense, positions * dense, 4 * dense), curve
    )
