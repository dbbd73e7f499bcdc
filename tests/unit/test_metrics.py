from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, log_loss, top_k_accuracy_score

from rankc.errors import DataError, ModelError
from rankc.validate.classes import Classifier, class_labels, classes_of, ranks_of
from rankc.validate.judgement import Judgement
from rankc.validate.metrics import log_losses, require_both_classes, require_finite


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


# --- classifiers ----------------------------------------------------------------------------

Floats = NDArray[np.float64]


def logits(rows: int = 40, classes: int = 8, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(size=(rows, classes)) * 3


def some_labels(rows: int = 40, classes: int = 8, seed: int = 1) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, classes, rows)


def softmax(values: Floats) -> Floats:
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    result: Floats = powers / powers.sum(axis=1, keepdims=True)
    return result


def judged(x: Floats, y: Floats, labels: NDArray[np.int64] | None, step: int = 7) -> Judgement:
    so_far = Classifier("p", "y", x.shape[1])
    for at in range(0, len(x), step):
        part = slice(at, at + step)
        so_far.add(x[part], y[part], None if labels is None else labels[part])
    return so_far.judge()


@pytest.mark.parametrize(
    ("shape", "classes"),
    [((5, 10), 10), ((5, 10, 1, 1), 10), ((5, 2), 2), ((5, 1), 0), ((5,), 0), ((5, 10, 7, 7), 0)],
)
def test_which_outputs_are_of_classifiers(shape: tuple[int, ...], classes: int) -> None:
    assert classes_of(shape) == classes


@settings(deadline=None)  # scikit-learn's first call takes longer
@given(
    rows=st.integers(2, 30),
    classes=st.integers(6, 9),
    seed=st.integers(0, 2**32 - 1),
    sure=st.booleans(),
)
def test_classifiers_are_judged_as_by_scikit_learn(
    rows: int, classes: int, seed: int, sure: bool
) -> None:
    x, labels = logits(rows, classes, seed), some_labels(rows, classes, seed)
    y = x + logits(rows, classes, seed + 1) / 3
    p, q = softmax(x), softmax(y)
    found = judged(p, q, labels) if sure else judged(x, y, labels)
    names = range(classes)
    assert set(found.unavailable) == {"auc"}
    for column, scores in enumerate((p, q)):
        first = found.pairs["accuracy_top1"][column]
        assert first == pytest.approx(accuracy_score(labels, scores.argmax(axis=1)), abs=1e-12)
        fifth = top_k_accuracy_score(labels, scores, k=5, labels=names)
        assert found.pairs["accuracy_top5"][column] == pytest.approx(fifth, abs=1e-12)
        loss = log_loss(labels, scores, labels=names)
        assert found.pairs["logloss"][column] == pytest.approx(loss, rel=1e-9)
    same = (p.argmax(axis=1) == q.argmax(axis=1)).mean()
    assert found.pairs["top1_agreement"] == pytest.approx((1, same))
    divergence = (p * np.log(p / q)).sum(axis=1).mean()
    assert found.pairs["kl_div"] == pytest.approx((0, divergence))
    counts = np.bincount(np.random.default_rng(seed).integers(0, rows, rows), minlength=rows)
    drawn = np.repeat(np.arange(rows), counts)
    for name, statistic in found.differences.items():
        again = judged(x[drawn], y[drawn], labels[drawn]).pairs[name]
        assert statistic(counts) == pytest.approx(again[1] - again[0], abs=1e-9)
        if again[0]:  # a distance has one statistic
            assert found.values[name](counts) == pytest.approx(again[1], abs=1e-9)


def test_a_classifier_against_itself_differs_in_nothing() -> None:
    for x in (logits(), softmax(logits()), np.eye(8)[some_labels()]):
        found = judged(x, x, some_labels(seed=3))
        assert found.pairs["kl_div"] == (0.0, 0.0)
        assert found.pairs["top1_agreement"] == (1.0, 1.0)
        for name in ("accuracy_top1", "accuracy_top5", "logloss"):
            assert found.pairs[name][0] == found.pairs[name][1]


def test_sure_mistakes_and_large_logits_stay_finite() -> None:
    x, y = np.eye(6), np.eye(6)[::-1]
    found = judged(x, y, np.arange(6))
    assert found.pairs["accuracy_top1"] == (1.0, 0.0)
    assert found.pairs["logloss"] == pytest.approx((0, 36.04), abs=0.01)
    assert found.pairs["kl_div"][1] == pytest.approx(36.04, abs=0.01)
    large = judged(1e6 * x, 1e6 * y, np.arange(6))
    assert large.pairs["logloss"] == (0.0, 1e6)
    assert large.pairs["kl_div"][1] == 1e6


def test_of_equal_scores_the_lower_class_comes_first() -> None:
    scores = np.array([[1.0, 2.0, 2.0], [0.0, 0.0, 0.0]])
    assert [ranks_of(scores, np.full(2, k)).tolist() for k in range(3)] == [[2, 0], [0, 1], [1, 2]]


def test_rows_that_happen_to_add_up_to_one_are_not_taken_for_probabilities() -> None:
    x = logits()
    x[0] = 0.125  # a batch of one row that says nothing
    y = x * 0.9
    want = (softmax(x) * np.log(softmax(x) / softmax(y))).sum(axis=1).mean()
    assert judged(x, y, None, step=1).pairs["kl_div"][1] == pytest.approx(want)


def test_one_model_of_probabilities_and_one_of_logits() -> None:
    found = judged(softmax(logits()), logits(), some_labels())
    assert set(found.pairs) == {"top1_agreement", "accuracy_top1", "accuracy_top5"}
    assert set(found.unavailable) == {"auc", "kl_div", "logloss", "ece"}
    assert "of one model all rows of output 'p' add up to one" in found.unavailable["kl_div"]


def test_few_classes_and_no_labels() -> None:
    few = judged(logits(classes=5), logits(classes=5), some_labels(classes=5))
    assert few.unavailable["accuracy_top5"] == "it needs 6 classes or more"
    none = judged(logits(), logits(), None)
    assert set(none.pairs) == {"top1_agreement", "kl_div"}
    assert set(none.unavailable) == {"auc", "accuracy_top1", "accuracy_top5", "logloss", "ece"}


@pytest.mark.parametrize("kind", [np.int64, np.float32, np.uint8])
def test_class_labels_of_any_dtype_and_of_one_column(kind: type[np.generic]) -> None:
    assert class_labels(np.array([[0], [9], [3]], dtype=kind), 10, "y").tolist() == [0, 9, 3]


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([0, 1.5, 2], r"1 of 3 labels are no whole numbers \(the first is 1\.5\).*0 to 9"),
        (
            [1, 10, 11],
            r"2 of 3 labels are outside 0 to 9 \(the first is 10\).*Count classes from 0",
        ),
        ([-1, 1, 1], r"outside 0 to 9 \(the first is -1\)"),
        ([[0, 1]], r"shape \(1, 2\); one number a row"),
        ([np.nan], "no whole numbers"),
        ([np.inf], "outside 0 to 9"),
    ],
)
def test_labels_that_are_no_classes(labels: list[float], says: str) -> None:
    with pytest.raises(DataError, match=f"'late': .*{says}"):
        class_labels(np.array(labels), 10, "late")
