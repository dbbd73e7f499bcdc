from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from rankc.validate.bootstrap import (
    WeightedAuc,
    auc_difference,
    intervals,
    mean_of,
    median_interval,
    percentile_interval,
)
from rankc.validate.metrics import log_losses

weighted = st.lists(
    st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 4)), min_size=2, max_size=50
)


@given(weighted)
def test_weighted_auc_is_the_auc_of_the_repeated_rows(
    rows: list[tuple[bool, int, int]],
) -> None:
    labels, scores, counts = (np.array(column) for column in zip(*rows, strict=True))
    drawn = np.repeat(labels, counts)
    ours = WeightedAuc.of(labels, scores.astype(np.float64))(counts)
    if drawn.size == 0 or drawn.all() or not drawn.any():
        assert np.isnan(ours)
    else:
        naive = roc_auc_score(drawn, np.repeat(scores, counts))
        assert ours == pytest.approx(naive, abs=1e-12)


def test_same_interval_as_resampling_rows_one_by_one() -> None:
    rng = np.random.default_rng(3)
    labels = rng.random(200) < 0.3
    before = np.round(rng.random(200), 2)  # ties
    after = np.clip(before + rng.normal(scale=0.1, size=200), 0, 1)
    loss = log_losses(labels, after) - log_losses(labels, before)
    found = intervals(
        {"auc": auc_difference(labels, before, after), "logloss": mean_of(loss)},
        200,
        resamples=40,
        seed=11,
    )
    naive = []
    draws = np.random.default_rng(11)
    for _ in range(40):
        pick = draws.integers(0, 200, 200)
        y, a, b = labels[pick], before[pick], after[pick]
        naive.append((roc_auc_score(y, b) - roc_auc_score(y, a), log_loss(y, b) - log_loss(y, a)))
    low, high = np.quantile(naive, [0.025, 0.975], axis=0)
    assert found["auc"] == pytest.approx((low[0], high[0]), abs=1e-12)
    assert found["logloss"] == pytest.approx((low[1], high[1]), abs=1e-12)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(60):
        values = rng.normal(loc=1.0, size=80)
        interval = intervals({"mean": mean_of(values)}, 80, resamples=200)["mean"]
        assert interval is not None
        covered += interval[0] <= 1.0 <= interval[1]
    assert 50 <= covered < 60  # 57 expected; all 60 would mean that they are too wide


def test_equal_models_differ_by_exactly_nothing() -> None:
    rng = np.random.default_rng(0)
    labels, scores = rng.random(100) < 0.5, rng.random(100)
    found = intervals({"auc": auc_difference(labels, scores, scores.copy())}, 100, resamples=50)
    assert found["auc"] == (0.0, 0.0)


def test_every_row_once_gives_the_plain_auc() -> None:
    rng = np.random.default_rng(0)
    labels, scores = rng.random(500) < 0.2, np.round(rng.random(500), 1)
    once = np.ones(500, np.int64)
    assert WeightedAuc.of(labels, scores)(once) == pytest.approx(
        roc_auc_score(labels, scores), abs=1e-15
    )


def test_same_seed_same_interval_other_seed_another() -> None:
    values = np.random.default_rng(0).normal(size=50)
    first, again, other = (
        intervals({"mean": mean_of(values)}, 50, resamples=50, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again != other


def test_draws_without_both_classes_are_left_out() -> None:
    nan = float("nan")
    assert percentile_interval(np.array([1.0, nan, 1.0])) == (1.0, 1.0)
    assert percentile_interval(np.array([1.0, nan])) is None


def test_progress_is_told_after_every_draw() -> None:
    told: list[int] = []
    intervals({"mean": mean_of(np.ones(3))}, 3, resamples=4, tick=told.append)
    assert told == [1, 2, 3, 4]


def test_interval_of_a_median_holds_it_and_narrows_with_more_pairs() -> None:
    rng = np.random.default_rng(0)
    few, many = rng.normal(1.0, 0.1, 10), rng.normal(1.0, 0.1, 1000)
    low, high = median_interval(few)
    assert few.min() <= low <= float(np.median(few)) <= high <= few.max()
    narrow = median_interval(many)
    assert narrow[1] - narrow[0] < (high - low) / 3
