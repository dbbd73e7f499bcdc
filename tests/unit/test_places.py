"""A class at each place of a row: tokens and pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, jaccard_score, log_loss, top_k_accuracy_score

from judging import Array, check_draws, cuts, judged, seeds
from rankc.errors import DataError
from rankc.validate.judgement import Judgement
from rankc.validate.kinds import Names, kinds_of
from rankc.validate.segmentation import Segmentation
from rankc.validate.tokens import Tokens

VOCABULARY, CLASSES = 7, 4


def words() -> Tokens:
    return Tokens.of("logits", "next", VOCABULARY)


def first() -> Segmentation:
    return Segmentation.of("mask", "truth", CLASSES, 1)


def last() -> Segmentation:
    return Segmentation.of("mask", "truth", CLASSES, 3)


def texts(seed: int, rows: int, sure: bool = False) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 5, VOCABULARY)) * 2
    y = x + rng.normal(size=x.shape)
    if sure:
        x, y = (np.exp(one) / np.exp(one).sum(axis=2, keepdims=True) for one in (x, y))
    labels = rng.integers(0, VOCABULARY, (rows, 5))
    labels[rng.random(labels.shape) < 0.3] = -100
    labels[0, 0] = 3
    return x, y, labels


def pictures(seed: int, rows: int) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, rows, CLASSES, 3, 5))
    labels = rng.integers(0, CLASSES - 1, (rows, 3, 5)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.2] = 255
    labels[0, 0, 0] = 1
    return x, y, labels


@settings(deadline=None)  # scikit-learn's first call takes longer
@given(seed=seeds, rows=st.integers(1, 12), cuts=cuts, sure=st.booleans())
def test_tokens_are_judged_as_by_scikit_learn(
    seed: int, rows: int, cuts: list[int], sure: bool
) -> None:
    x, y, labels = texts(seed, rows, sure)
    found = judged(words, x, y, labels, None, cuts)
    counts = labels != -100
    true, names = labels[counts], range(VOCABULARY)
    assert found.unavailable == {}
    for column, scores in enumerate((x, y)):
        powers = scores if sure else np.exp(scores)
        p = (powers / powers.sum(axis=2, keepdims=True))[counts]
        loss = log_loss(true, p, labels=names)
        assert found.pairs["perplexity"][column] == pytest.approx(np.exp(loss), rel=1e-9)
        assert found.pairs["logloss"][column] == pytest.approx(loss, rel=1e-9)
        top1 = accuracy_score(true, p.argmax(axis=1))
        assert found.pairs["accuracy_top1"][column] == pytest.approx(top1)
        top5 = top_k_accuracy_score(true, p, k=5, labels=names)
        assert found.pairs["accuracy_top5"][column] == pytest.approx(top5)
    same = (x.argmax(axis=2) == y.argmax(axis=2))[counts].mean()
    assert found.pairs["top1_agreement"] == pytest.approx((1.0, same))
    assert found.pairs["kl_div"][0] == 0.0 < found.pairs["kl_div"][1]


@settings(deadline=None, max_examples=20)  # jaccard_score takes 10 ms
@given(seed=seeds, rows=st.integers(1, 10), cuts=cuts)
def test_pixels_are_judged_as_by_scikit_learn(seed: int, rows: int, cuts: list[int]) -> None:
    x, y, labels = pictures(seed, rows)
    found = judged(first, x, y, labels, None, cuts)
    counts = labels != 255
    for column, scores in enumerate((x, y)):
        answers, true = scores.argmax(axis=1)[counts], labels[counts]
        expected = jaccard_score(true, answers, average="macro")  # of classes that occur
        assert found.pairs["mean_iou"][column] == pytest.approx(expected, abs=1e-12)
        top1 = accuracy_score(true, answers)
        assert found.pairs["accuracy_top1"][column] == pytest.approx(top1)
    again = judged(last, np.moveaxis(x, 1, 3), np.moveaxis(y, 1, 3), labels).pairs
    for name, pair in found.pairs.items():
        assert again[name] == pytest.approx(pair), name


@settings(deadline=None)
@given(seed=seeds, rows=st.integers(2, 10))
def test_draws_of_places(seed: int, rows: int) -> None:
    x, y, labels = texts(seed, rows)
    counts = np.random.default_rng(seed).integers(0, rows, rows)
    assume((labels[counts] != -100).any())
    check_draws(words, seed, x, y, labels)
    x, y, labels = pictures(seed, rows)
    assume((labels[counts] != 255).any())
    check_draws(first, seed, x, y, labels)


def test_a_row_without_labels_is_drawn_and_says_nothing() -> None:
    x, y, labels = texts(0, 2)
    labels[1] = -100
    found = judged(words, x, y, labels)
    assert found.differences["perplexity"](np.array([1, 1])) == found.differences["perplexity"](
        np.array([1, 0])
    )
    assert np.isnan(found.differences["perplexity"](np.array([0, 2])))


def test_perplexity_of_certain_mistakes_is_finite() -> None:
    x = np.zeros((1, 1, VOCABULARY))
    y = x.copy()
    y[0, 0, 1] = 1e6
    found = judged(words, x, y, np.array([[0]]))
    assert found.pairs["perplexity"] == pytest.approx((VOCABULARY, np.exp(700)))


def test_tokens_of_one_model_with_probabilities() -> None:
    x, _, labels = texts(0, 3, sure=True)
    found = judged(words, x, texts(0, 3)[1], labels)
    assert "add up to one" in found.unavailable["perplexity"]
    assert "accuracy_top1" in found.pairs


def test_255_is_a_class_where_there_are_so_many() -> None:
    x = np.zeros((1, 300, 1, 2))
    x[0, 255, 0] = 1.0
    many = Segmentation.of("mask", "truth", 300, 1)
    found = judged(lambda: many, x, x, np.array([[[255, -100]]]))
    assert found.pairs["mean_iou"] == (1.0, 1.0)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (np.full((2, 5), -100), "'next': every label is -100, so no position counts"),
        (np.full((2, 5), 7), r"labels are outside 0 to 6 or -100, which is left out \(the first"),
        (np.full((2, 5), 0.5), "10 of 10 labels are no whole numbers"),
        (np.zeros((2, 4), int), r"shape \(2, 4\) in a batch in which output 'logits' asks for"),
    ],
)
def test_labels_that_do_not_fit_tokens(labels: Array, says: str) -> None:
    x, y, _ = texts(0, 2)
    with pytest.raises(DataError, match=says):
        judged(words, x, y, labels)


NAMES = Names("out", "y")


def kinds(shape: tuple[int, ...], labels: tuple[int, ...] | None) -> list[str]:
    x = np.zeros(shape)
    given = None if labels is None else np.zeros(labels)
    return [type(kind).__name__ for kind in kinds_of(x, given, NAMES)]


@pytest.mark.parametrize(
    ("shape", "labels", "expected"),
    [
        ((8,), (8,), ["Scores"]),
        ((8, 1), None, ["Scores"]),
        ((8, 1, 1, 1), (8,), ["Scores"]),
        ((8, 10), (8,), ["Classifier"]),
        ((8, 10), None, ["Similarities", "Classifier"]),
        ((8, 10, 1, 1), (8,), ["Classifier"]),
        ((8, 5, 10), (8, 5), ["Tokens"]),
        ((8, 1, 10), (8,), ["Tokens"]),
        ((8, 5, 10), (8,), ["Unjudged"]),
        ((8, 5, 10), None, ["Similarities", "Unjudged"]),
        ((8, 4, 6, 7), (8, 6, 7), ["Segmentation"]),
        ((8, 6, 7, 4), (8, 6, 7), ["Segmentation"]),
        ((8, 4, 6, 7), None, ["Similarities", "Unjudged"]),
    ],
)
def test_which_kind_an_output_is(
    shape: tuple[int, ...], labels: tuple[int, ...] | None, expected: list[str]
) -> None:
    assert kinds(shape, labels) == expected


@pytest.mark.parametrize(
    ("shape", "labels", "says"),
    [
        ((8, 5, 10), (8, 4), r"\(rows, 4\) do not fit output 'out' of shape \(rows, 5, 10\)"),
        ((8, 5, 10), (8, 4), r"\(rows, 5\) would fit: the class of each token"),
        ((8, 4, 6, 7), (8, 3, 3), r"\(rows, 6, 7\) or \(rows, 4, 6\) would fit: the class of each"),
        ((8, 2, 2, 2, 2), (8, 2), "no labels fit it; leave data.validation.label out"),
    ],
)
def test_labels_of_another_shape(
    shape: tuple[int, ...], labels: tuple[int, ...], says: str
) -> None:
    with pytest.raises(DataError, match=says):
        kinds(shape, labels)


def test_one_label_a_row_says_nothing_of_a_picture() -> None:
    (kind,) = kinds_of(np.zeros((8, 4, 6, 7)), np.zeros(8), NAMES)
    found: Judgement = kind.judge()
    assert found.unavailable["accuracy_top1"].startswith(
        "one label a row says nothing of output 'out' of shape (rows, 4, 6, 7); "
    )
