"""One number a row: scores of two classes, numbers to meet, and numbers without labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss, mean_squared_error, roc_auc_score

from judging import Array, check_draws, cuts, judged, seeds
from rankc.errors import DataError
from rankc.validate.calibration_error import BINS
from rankc.validate.scores import Scores

Columns = tuple[Array, Array, Array, Array]


def some() -> Scores:
    return Scores("p", "y", "user")


def rows_of(seed: int, rows: int, ties: bool) -> Columns:
    """Labels, scores of both models, and groups; scores with many ties, if asked for."""
    rng = np.random.default_rng(seed)
    labels, groups = rng.integers(0, 2, rows), rng.integers(0, 4, rows)
    labels[:2] = 0, 1
    x = rng.random(rows)
    y = np.clip(x + rng.normal(size=rows) / 5, 0, 1)
    if ties:
        x, y = np.round(5 * x) / 5, np.round(5 * y) / 5
    return labels, x, y, groups


def expected_ece(labels: Array, p: Array) -> float:
    true, stated = calibration_curve(labels, p, n_bins=BINS)
    edges = np.linspace(0, 1, BINS + 1)
    sizes = np.bincount(np.searchsorted(edges[1:-1], p), minlength=BINS)
    return float((sizes[sizes > 0] * np.abs(true - stated)).sum() / len(p))


def expected_grouped(labels: Array, scores: Array, groups: Array) -> float | None:
    total = weight = 0.0
    for group in np.unique(groups):
        mine = groups == group
        if len(set(labels[mine])) == 2:
            total += mine.sum() * roc_auc_score(labels[mine], scores[mine])
            weight += mine.sum()
    return total / weight if weight else None


@settings(deadline=None)  # scikit-learn's first call takes longer
@given(seed=seeds, rows=st.integers(2, 60), cuts=cuts, ties=st.booleans())
def test_scores_are_judged_as_by_scikit_learn(
    seed: int, rows: int, cuts: list[int], ties: bool
) -> None:
    labels, x, y, groups = rows_of(seed, rows, ties)
    found = judged(some, x, y, labels, groups, cuts)
    for column, scores in enumerate((x, y)):
        assert found.pairs["auc"][column] == roc_auc_score(labels, scores)
        loss = log_loss(labels, scores, labels=[0, 1])
        assert found.pairs["logloss"][column] == pytest.approx(loss, rel=1e-12)
        calibration = expected_ece(labels, scores)
        assert found.pairs["ece"][column] == pytest.approx(calibration, abs=1e-12)
        grouped = expected_grouped(labels, scores, groups)
        if grouped is None:
            assert "has rows of one class only" in found.unavailable["grouped_auc"]
        else:
            assert found.pairs["grouped_auc"][column] == pytest.approx(grouped, abs=1e-12)


@settings(deadline=None)
@given(seed=seeds, rows=st.integers(4, 40), ties=st.booleans())
def test_draws_of_scores(seed: int, rows: int, ties: bool) -> None:
    labels, x, y, groups = rows_of(seed, rows, ties)
    drawn = np.random.default_rng(seed).integers(0, rows, rows)  # as check_draws does
    assume(len(set(labels[drawn])) == 2)
    check_draws(some, seed, x, y, labels, groups)


def test_bins_of_calibration_are_closed_above() -> None:
    labels, p = np.array([0, 1, 1, 0]), np.array([0.0, 1 / 15, 1.0, 2 / 15])
    # (0, 1/15]: stated 1/30, true 1/2, two rows; (1/15, 2/15]: 2/15, 0; the last bin is exact.
    assert judged(some, p, p, labels).pairs["ece"][0] == pytest.approx(14 / 60 + 2 / 60)


def test_groups_of_one_class_are_told() -> None:
    labels = np.array([0, 1, 0, 1, 1, 1])
    groups = np.array(["a", "a", "a", "b", "b", "c"])
    x = np.array([0.1, 0.9, 0.2, 0.3, 0.4, 0.5])
    found = judged(some, x, 1 - x, labels, groups, [1, 4])
    assert found.pairs["grouped_auc"] == (1.0, 0.0)
    assert found.notes["grouped_auc"] == (
        "2 of 3 groups of column 'user', with 3 of 6 rows, have one class only and are left out"
    )


def test_grouped_auc_is_blind_to_what_differs_between_groups() -> None:
    labels, groups = np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])
    found = judged(some, np.array([0.1, 0.2, 0.8, 0.9]), np.array([0.2, 0.1, 0.9, 0.8]), labels)
    assert "grouped_auc" not in found.pairs
    found = judged(
        some, np.array([0.1, 0.2, 0.8, 0.9]), np.array([0.2, 0.1, 0.9, 0.8]), labels, groups
    )
    assert found.pairs["grouped_auc"] == (1.0, 0.0)
    assert found.pairs["auc"] == (0.75, 0.25)


@settings(deadline=None)
@given(seed=seeds, rows=st.integers(3, 50), cuts=cuts, ties=st.booleans())
def test_numbers_are_judged_as_by_scipy(seed: int, rows: int, cuts: list[int], ties: bool) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.normal(size=rows) * 10 + 1000
    x, y = labels + rng.normal(size=(2, rows)) * 5
    if ties:
        labels, x, y = (np.round(column / 4) * 4 for column in (labels, x, y))
    assume(all(len(set(column)) > 1 for column in (labels, x, y)))
    found = judged(some, x, y, labels, None, cuts)
    for column, numbers in enumerate((x, y)):
        assert found.pairs["pearson"][column] == pytest.approx(pearsonr(labels, numbers)[0])
        assert found.pairs["spearman"][column] == pytest.approx(spearmanr(labels, numbers)[0])
        assert found.pairs["mse"][column] == pytest.approx(mean_squared_error(labels, numbers))
    assert "no classes" in found.unavailable["auc"]
    drawn = np.random.default_rng(seed).integers(0, rows, rows)  # as check_draws does
    assume(all(len(set(column[drawn])) > 1 for column in (labels, x, y)))
    check_draws(some, seed, x, y, labels)


@settings(deadline=None)
@given(seed=seeds, rows=st.integers(3, 50), cuts=cuts)
def test_numbers_without_labels(seed: int, rows: int, cuts: list[int]) -> None:
    x, y = np.random.default_rng(seed).normal(size=(2, rows))
    found = judged(some, x, y, cuts=cuts)
    assert found.pairs["pearson"] == pytest.approx((1.0, pearsonr(x, y)[0]))
    assert found.pairs["spearman"] == pytest.approx((1.0, spearmanr(x, y)[0]))
    assert set(found.unavailable) == {"auc", "logloss", "ece"}
    assume(len(set(np.random.default_rng(seed).integers(0, rows, rows))) > 1)
    check_draws(some, seed, x, y)


def test_what_has_no_correlation() -> None:
    two = judged(some, np.array([1.0, 2.0]), np.array([1.0, 2.0]))
    assert two.unavailable["pearson"] == "a correlation needs 3 numbers, and there are 2"
    flat = judged(some, np.arange(4.0), np.ones(4))
    assert (
        "output 'p': the compressed model gives the same number for all rows"
        in (flat.unavailable["spearman"])
    )


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (np.ones(4), "'y': all 4 labels are 1; auc needs rows of both classes"),
        (np.full(4, 2.5), r"'y': all 4 labels are 2\.5; numbers that differ are needed"),
        (np.array([0, 1, np.nan, 3]), "'y', row 2: nan; every label must be finite"),
        (np.ones((4, 2)), r"'y': shape \(4, 2\); one number a row"),
    ],
)
def test_labels_that_tell_nothing(labels: Array, says: str) -> None:
    with pytest.raises(DataError, match=says):
        judged(some, np.arange(4.0), np.arange(4.0), labels)


def test_labels_of_any_dtype_and_of_one_column() -> None:
    x = np.array([0.1, 0.9, 0.4])
    for kind in (np.int64, np.float32, np.bool_, np.uint8):
        assert judged(some, x, x, np.array([[0], [1], [1]], kind)).pairs["auc"] == (1.0, 1.0)
