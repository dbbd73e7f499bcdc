"""Prices for several limits at once, and a choice within the limits made from them.

The dual value D(prices) = sum of each class's least (loss + prices · costs) - prices · slack is
concave, and what the least points cost beyond the slack is its slope. The ellipsoid method (Yudin
and Nemirovski, 1976; Shor, 1977) finds its largest value in few dimensions and needs no step size.
Where there are many points it sees some of each class, and those that its prices ask for.
"""

from __future__ import annotations

import numpy as np

from rankc.knapsack_points import Floats, Ints, Points

MANY = 50_000  # points; above, only some are priced at first
SAMPLE = 48  # of a class
ROUNDS = 4  # of adding what the prices ask for
WIDER = 16.0  # how far about the guess prices are looked for
CLOSE = 1e-8  # of the dual value that may be missing
REPAIRS = 2_000


def best_prices(points: Points, slack: Floats, guess: Floats) -> tuple[Floats, Ints, float]:
    """Prices of about the largest dual value, the points that they make least, and the value.

    Args:
        points: of all classes.
        slack: what may be spent above the cheapest point of every class, (limits,).
        guess: the right price of each limit if it were alone, (limits,).
    """
    seen = np.arange(len(points.loss))
    if len(seen) > MANY:
        seen = np.unique(np.linspace(points.starts[:-1], points.starts[1:] - 1, SAMPLE).astype(int))
    best: tuple[Floats, Ints, float] | None = None
    for _ in range(ROUNDS):
        prices, promised = _ellipsoid(points.only(seen), slack, guess)
        value, asked = _dual(points, slack, prices)
        if best is None or value > best[2]:
            best = prices, asked, value
        if promised - value <= CLOSE * abs(value):
            break
        near = np.unique(np.clip(asked[:, None] + np.arange(-1, 2), 0, len(points.loss) - 1))
        seen = np.union1d(seen, near)
    assert best is not None
    return best


def _dual(points: Points, slack: Floats, prices: Floats) -> tuple[float, Ints]:
    low, least = points.least(points.loss + points.costs @ prices)
    return float(low.sum() - prices @ slack), least


def _ellipsoid(points: Points, slack: Floats, guess: Floats) -> tuple[Floats, float]:
    n, losses = len(slack), float(np.ptp(points.loss))
    worth = losses / np.maximum(points.costs.max(axis=0), 1.0)
    unit = WIDER * np.maximum(guess, worth / 100) + (losses == 0)
    centre, shape = guess / unit, np.eye(n)
    prices, best = guess, -np.inf
    for _ in range(100 * n * n):
        if (centre < 0).any():
            slope = np.where(centre == centre.min(), 1.0, 0.0)  # no price is negative
        else:
            value, least = _dual(points, slack, centre * unit)
            if value > best:
                prices, best = centre * unit, value
            slope = (points.costs[least].sum(axis=0) - slack) * unit
        spread = float(slope @ shape @ slope)
        if spread <= (CLOSE * (abs(best) + CLOSE * losses)) ** 2:  # all that is left to gain
            break
        step = shape @ slope / np.sqrt(spread)
        centre = centre + step / (n + 1)
        shape = n * n / (n * n - 1) * (shape - 2 / (n + 1) * np.outer(step, step))
    return prices, best


def repair(points: Points, slack: Floats, prices: Floats, start: Ints) -> Ints | None:
    """A choice within the limits, from one that need not be; None if none was found.

    Swaps what takes most of what is too much for the least rise by the prices.
    """
    picked: Ints = start.copy()
    scale = np.maximum(slack, 1.0)
    value = points.loss + points.costs @ prices
    tiny = 1e-12 * float(np.abs(value).max(initial=0.0)) + 1e-200
    for _ in range(REPAIRS):
        over = points.costs[picked].sum(axis=0) - slack
        if (over <= 0).all():
            return picked
        change = points.costs - points.costs[picked][points.owner]
        excess = (np.maximum(over, 0.0) / scale).sum()
        relief = excess - (np.maximum(over + change, 0.0) / scale).sum(axis=1)
        rise = np.maximum(value - value[picked][points.owner], tiny)
        best = int(np.argmax(np.where(relief > 0, relief / rise, 0.0)))
        if relief[best] <= 0:
            break
        picked[points.owner[best]] = best
    cheapest = points.least((points.costs / scale).sum(axis=1))[1]
    fits = bool((points.costs[cheapest].sum(axis=0) <= slack).all())
    return cheapest if fits else None
