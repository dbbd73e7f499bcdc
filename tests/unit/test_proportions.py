from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from rankc.validate.proportions import (
    bonett_price,
    compare_accuracies,
    mcnemar,
    share_estimate,
    wilson,
)

tables = st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 400)).filter(any)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipys(counts: tuple[int, int]) -> None:
    count, rows = counts
    naive = binomtest(count, rows).proportion_ci(0.95, method="wilson")
    assert wilson(count, rows) == pytest.approx((naive.low, naive.high), abs=1e-12)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_binomial_test_less_half_of_what_was_seen(lost: int, won: int) -> None:
    n, k = lost + won, min(lost, won)

    def share(outcomes: range) -> float:
        return float(sum(math.comb(n, i) for i in outcomes) / 2**n)

    expected = 2 * (share(range(k)) + share(range(k, k + 1)) / 2) if lost != won else 1.0
    assert mcnemar(lost, won) == pytest.approx(expected, abs=1e-12)
    assert mcnemar(lost, won) == mcnemar(won, lost)


@given(tables)
def test_bonett_price_holds_the_estimate_and_swaps(table: tuple[int, int, int]) -> None:
    lost, won, same = table
    rows = lost + won + same
    low, high = bonett_price(lost, won, rows)
    assert -1 <= low <= (won - lost) / rows <= high <= 1
    assert bonett_price(won, lost, rows) == pytest.approx((-high, -low), abs=1e-12)
    assert high > low


def test_bonett_price_worked_by_hand() -> None:
    """Of 21 rows 7 lost and 1 won: 2/23 - 8/23 -/+ 1.96 sqrt((10/23 - 36/529) / 23)."""
    assert bonett_price(7, 1, 21) == pytest.approx((-0.508, -0.013), abs=5e-4)


def test_no_row_that_changed_sides_is_not_proof_that_none_will() -> None:
    """About the rule of three: 3 of n rows may change without one of them being seen."""
    low, high = bonett_price(0, 0, 1000)
    assert high == -low == pytest.approx(0.0028, abs=1e-4)
    assert mcnemar(0, 0) == 1.0


def test_accuracies_of_two_models() -> None:
    before = np.array([True] * 90 + [False] * 10)
    after = before.copy()
    after[:8], after[-1] = False, True  # eight lost, one won
    found = compare_accuracies(before, after)
    assert found.method == "Bonett-Price"
    assert found.interval == bonett_price(8, 1, 100)
    assert found.value_interval == wilson(83, 100)
    assert found.p_value == mcnemar(8, 1)


def test_a_share_has_one_interval_in_two_ways() -> None:
    found = share_estimate(np.array([True] * 97 + [False] * 3))
    assert found.value_interval == wilson(97, 100)
    assert found.interval is not None
    assert found.interval == pytest.approx(tuple(end - 1 for end in wilson(97, 100)))
    assert found.p_value is None


@pytest.mark.parametrize("rates", [(0.02, 0.01), (0.002, 0.002), (0.0005, 0.0)])
def test_bonett_price_covers_few_changes(rates: tuple[float, float]) -> None:
    rng, rows = np.random.default_rng(0), 300
    lost, won = rates
    draws = rng.multinomial(rows, [lost, won, 1 - lost - won], 4000)
    hits = [
        low <= won - lost <= high for b, c, _ in draws for low, high in [bonett_price(b, c, rows)]
    ]
    assert np.mean(hits) > 0.94
