from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from rankc.validate.bootstrap import auc_difference, intervals
from rankc.validate.delong import Placements, auc_interval, compare_aucs
from rankc.validate.estimates import Z
from rankc.validate.metrics import Floats, Labels

rows = st.lists(
    st.tuples(st.booleans(), st.integers(0, 6), st.integers(0, 6)), min_size=4, max_size=40
)


def columns(values: list[tuple[bool, int, int]]) -> tuple[Labels, Floats, Floats]:
    labels, x, y = (np.array(column) for column in zip(*values, strict=True))
    assume(2 <= labels.sum() <= len(labels) - 2)
    return labels, x.astype(np.float64), y.astype(np.float64)


def psi(labels: Labels, scores: Floats) -> Floats:
    """The definition: 1, 1/2 or 0 for each positive and negative, (P, N)."""
    difference = scores[labels][:, np.newaxis] - scores[~labels][np.newaxis]
    return (np.sign(difference) + 1) / 2


@given(rows)
def test_placements_are_those_of_the_definition(values: list[tuple[bool, int, int]]) -> None:
    labels, x, _ = columns(values)
    found, wins = Placements.of(labels, x), psi(labels, x)
    np.testing.assert_allclose(found.positives, wins.mean(axis=1), atol=1e-14)
    np.testing.assert_allclose(found.negatives, wins.mean(axis=0), atol=1e-14)
    assert found.auc == pytest.approx(roc_auc_score(labels, x), abs=1e-12)
    assert found.negatives.mean() == pytest.approx(found.auc, abs=1e-12)


@given(rows)
def test_variance_of_the_difference_is_that_of_the_covariances(
    values: list[tuple[bool, int, int]],
) -> None:
    """var_1 + var_2 - 2 cov, with DeLong's S10 and S01 in their sums of products."""
    labels, x, y = columns(values)
    tables = [psi(labels, x), psi(labels, y)]
    areas = [table.mean() for table in tables]
    positives, negatives = tables[0].shape

    def covariance(a: int, b: int) -> float:
        over = [
            sum(
                (tables[a].mean(axis=axis)[k] - areas[a])
                * (tables[b].mean(axis=axis)[k] - areas[b])
                for k in range(count)
            )
            / (count - 1)
            / count
            for axis, count in ((1, positives), (0, negatives))
        ]
        return float(sum(over))

    expected = covariance(0, 0) + covariance(1, 1) - 2 * covariance(0, 1)
    before, after = Placements.of(labels, x), Placements.of(labels, y)
    assert (after - before).variance == pytest.approx(expected, abs=1e-12)
    assert before.variance == pytest.approx(covariance(0, 0), abs=1e-12)


def two_models(n: int, seed: int) -> tuple[Labels, Floats, Floats]:
    rng = np.random.default_rng(seed)
    labels = rng.random(n) < 0.3
    signal = rng.normal(size=n) + labels
    return labels, signal, np.round(signal + rng.normal(scale=0.4, size=n), 1)


def test_same_interval_as_a_bootstrap_of_many_rows() -> None:
    labels, x, y = two_models(3000, 4)
    slow = intervals({"auc": auc_difference(labels, x, y)}, 3000, resamples=1500)["auc"]
    fast = compare_aucs(labels, x, y).interval
    assert slow is not None
    assert fast is not None
    width = slow[1] - slow[0]
    assert fast == pytest.approx(slow, abs=0.1 * width)


@given(rows)
def test_an_interval_holds_its_estimate_and_swapping_turns_it_round(
    values: list[tuple[bool, int, int]],
) -> None:
    labels, x, y = columns(values)
    there, back = compare_aucs(labels, x, y), compare_aucs(labels, y, x)
    difference = Placements.of(labels, y).auc - Placements.of(labels, x).auc
    assert there.interval is not None
    assert back.interval is not None
    assert there.value_interval is not None
    low, high = there.interval
    assert low - 1e-12 <= difference <= high + 1e-12
    assert back.interval == pytest.approx((-high, -low), abs=1e-12)
    assert there.p_value == pytest.approx(back.p_value, abs=1e-9)
    assert 0 <= there.value_interval[0] <= there.value_interval[1] <= 1


def test_p_value_is_that_of_the_normal_distribution() -> None:
    labels, x, y = two_models(400, 1)
    found = compare_aucs(labels, x, y)
    assert found.interval is not None
    low, high = found.interval
    z = (low + high) / (high - low) * Z
    assert found.p_value == pytest.approx(math.erfc(abs(z) / math.sqrt(2)), abs=1e-9)


def test_order_of_scores_is_all_that_counts() -> None:
    labels, x, y = two_models(300, 2)
    assert compare_aucs(labels, np.exp(x), y**3) == compare_aucs(labels, x, y)


def test_equal_models_differ_by_exactly_nothing() -> None:
    labels, x, _ = two_models(300, 2)
    found = compare_aucs(labels, x, x.copy())
    assert (found.interval, found.p_value) == ((0.0, 0.0), 1.0)


def test_a_single_positive_row_says_nothing() -> None:
    labels = np.array([True, False, False, False])
    found = compare_aucs(labels, np.arange(4.0), np.arange(4.0)[::-1].copy())
    assert found.interval == (-1.0, 1.0)
    assert found.value_interval == (0.0, 1.0)
    assert found.p_value == 1.0


def test_an_area_of_one_is_not_known_to_be_one() -> None:
    labels = np.arange(200) >= 150
    low, high = auc_interval(Placements.of(labels, np.arange(200.0)))
    assert high == 1.0
    assert low == pytest.approx(1 - 3.84 / 53.84, abs=1e-3)  # Wilson of 50 of 50


def test_a_million_rows_take_moments_of_memory_only_for_vectors() -> None:
    labels, x, y = two_models(200_000, 0)
    found = compare_aucs(labels, x, y).interval  # (P, N) pairs would be 8.4e9
    assert found is not None
    assert found[1] - found[0] < 0.002
