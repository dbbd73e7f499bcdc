from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from rankc.errors import DataError, ModelError
from rankc.validate.metrics import (
    Distance,
    auc,
    binary_labels,
    log_losses,
    require_both_classes,
    require_finite,
)

# Few distinct scores, so that ties are the rule.
rows = st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=60).filter(
    lambda pairs: len({label for label, _ in pairs}) == 2
)


@given(rows)
def test_auc_equals_the_share_of_ordered_pairs(pairs: list[tuple[bool, int]]) -> None:
    positives = [score for label, score in pairs if label]
    negatives = [score for label, score in pairs if not label]
    wins = sum((p > n) + (p == n) / 2 for p in positives for n in negatives)
    labels, scores = (np.array(column) for column in zip(*pairs, strict=True))
    expected = wins / (len(positives) * len(negatives))
    assert auc(labels, scores.astype(np.float64)) == pytest.approx(expected, abs=1e-12)
    assert roc_auc_score(labels, scores) == pytest.approx(expected, abs=1e-12)


@given(
    st.lists(
        st.tuples(st.booleans(), st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0]))),
        min_size=2,
        max_size=40,
    )
)
def test_logloss_is_scikit_learns(pairs: list[tuple[bool, float]]) -> None:
    labels = np.array([label for label, _ in pairs])
    scores = np.array([score for _, score in pairs])
    ours = float(log_losses(labels, scores).mean())
    assert ours == pytest.approx(log_loss(labels, scores, labels=[False, True]), rel=1e-12)
    assert np.isfinite(ours)


@pytest.mark.parametrize("kind", [np.int64, np.float32, np.bool_, np.uint8])
def test_labels_of_any_dtype_and_of_one_column(kind: type[np.generic]) -> None:
    column = np.array([[0], [1], [1]], dtype=kind)
    assert binary_labels(column, "late").tolist() == [False, True, True]


@pytest.mark.parametrize("wrong", [2, -1, 0.5, np.nan])
def test_labels_that_are_not_binary(wrong: float) -> None:
    with pytest.raises(DataError, match=r"'late': 1 of 3 labels are neither 0 nor 1 \(the first"):
        binary_labels(np.array([0, wrong, 1]), "late")


def test_several_labels_a_row() -> None:
    with pytest.raises(DataError, match=r"'late': shape \(2, 3\); one number a row"):
        binary_labels(np.zeros((2, 3)), "late")


@pytest.mark.parametrize("value", [0, 1])
def test_labels_of_one_class(value: int) -> None:
    with pytest.raises(
        DataError, match=f"'late': all 5 labels are {value}; auc needs rows of both"
    ):
        require_both_classes(np.full(5, bool(value)), "late")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("model", ["original", "compressed"])
def test_outputs_that_are_not_finite(model: str, bad: float) -> None:
    output = np.array([[0.1, 0.2], [bad, 0.3], [bad, bad]], np.float32)
    expected = f"{model} model, output 'p': 3 of 6 values are NaN or infinite, the first in row 101"
    with pytest.raises(ModelError, match=expected):
        require_finite(output, model, "p", first_row=100)


def test_distance_over_batches_is_the_distance_over_everything() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 50, 3, 2))
    distance = Distance()
    errors = np.concatenate([distance.add(x[i : i + 7], y[i : i + 7]) for i in range(0, 50, 7)])
    assert distance.max_abs_err == np.abs(x - y).max()
    assert errors == pytest.approx(np.abs(x - y).mean(axis=(1, 2)))
    expected = (x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum())
    assert distance.cosine == pytest.approx(expected, abs=1e-14)


def test_cosine_of_zero_outputs() -> None:
    same, other = Distance(), Distance()
    same.add(np.zeros((2, 1)), np.zeros((2, 1)))
    other.add(np.zeros((2, 1)), np.ones((2, 1)))
    assert (same.cosine, other.cosine) == (1.0, 0.0)
