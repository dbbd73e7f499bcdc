"""How far two outputs are apart, and whether they say the same of who is close to whom."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import mean_absolute_error, mean_squared_error
from sklearn.metrics.pairwise import cosine_similarity, paired_cosine_distances

from judging import Array, cuts, judged, parts, seeds
from rankc.validate.distances import EQUAL_DB, Distances
from rankc.validate.judgement import Judgement
from rankc.validate.similarity import Similarities


def distances(x: Array, y: Array, cuts: list[int] | tuple[int, ...] = ()) -> Judgement:
    so_far = Distances()
    for part in parts(len(x), cuts):
        so_far.add(x[part], y[part])
    return so_far.judge()


def embeddings() -> Similarities:
    return Similarities("e")


@given(seed=seeds, rows=st.integers(1, 40), cuts=cuts)
def test_distances_over_batches_are_those_over_everything(
    seed: int, rows: int, cuts: list[int]
) -> None:
    rng = np.random.default_rng(seed)
    x, noise = rng.normal(size=(2, rows, 3, 2)) + 0.1
    y = x + noise / 10
    found, flat = distances(x, y, cuts).pairs, (x.reshape(rows, -1), y.reshape(rows, -1))
    assert found["max_abs_err"] == (0.0, np.abs(x - y).max())
    assert found["mean_abs_err"] == pytest.approx((0.0, mean_absolute_error(*flat)))
    angle = cosine_similarity(x.reshape(1, -1), y.reshape(1, -1))[0, 0]
    assert found["cosine"] == pytest.approx((1.0, angle), abs=1e-14)
    mse = mean_squared_error(*flat)
    signal = 10 * np.log10(np.mean(x**2) / mse)
    assert found["sqnr_db"] == pytest.approx((EQUAL_DB, signal))
    peak = 20 * np.log10(np.ptp(x)) - 10 * np.log10(mse)
    assert found["psnr"] == pytest.approx((EQUAL_DB, peak))


@given(seed=seeds, rows=st.integers(2, 40))
def test_draws_of_distances(seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, rows, 4))
    x[0, 0] = 9.0  # so that a draw without this row has another range
    found = distances(x, y)
    counts = np.bincount(rng.integers(0, rows, rows), minlength=rows)
    drawn = np.repeat(np.arange(rows), counts)
    again = distances(x[drawn], y[drawn]).pairs
    for name in ("mean_abs_err", "cosine", "sqnr_db"):
        before, after = again[name]
        assert found.differences[name](counts) == pytest.approx(after - before)
    peak = 20 * np.log10(np.ptp(x)) - 10 * np.log10(np.mean((x - y)[drawn] ** 2))
    assert found.differences["psnr"](counts) == pytest.approx(peak - EQUAL_DB)  # peak of all rows
    assert "max_abs_err" not in found.differences


def test_equal_and_zero_outputs() -> None:
    same = distances(np.ones((2, 1)), np.ones((2, 1)))
    assert same.pairs["sqnr_db"] == (EQUAL_DB, EQUAL_DB)
    assert same.unavailable == {"psnr": "the original's output is the same number everywhere"}
    zero = distances(np.zeros((2, 1)), np.zeros((2, 1)))
    assert zero.pairs["cosine"] == (1.0, 1.0)
    assert zero.unavailable["sqnr_db"] == "the original's output is zero in all rows"
    assert distances(np.zeros((2, 1)), np.ones((2, 1))).pairs["cosine"] == (1.0, 0.0)


def test_huge_outputs_do_not_overflow() -> None:
    x = np.array([[1e150, -1e150]])
    found = distances(x, x * (1 - 1e-3)).pairs
    assert found["cosine"][1] == pytest.approx(1.0)
    assert found["sqnr_db"][1] == pytest.approx(60.0)


@given(seed=seeds, rows=st.integers(6, 41), cuts=cuts)
def test_similarities_of_neighbours(seed: int, rows: int, cuts: list[int]) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 5))
    y = x + rng.normal(size=x.shape)
    found = judged(embeddings, x, y, cuts=cuts)
    even = rows // 2 * 2
    before, after = (1 - paired_cosine_distances(e[0:even:2], e[1:even:2]) for e in (x, y))
    assert found.pairs["pearson"] == pytest.approx((1.0, pearsonr(before, after)[0]))
    assert found.pairs["spearman"] == pytest.approx((1.0, spearmanr(before, after)[0]))
    counts = np.zeros(rows, np.int64)
    counts[:6:2] = 1, 2, 3  # a pair counts as often as its first row
    drawn = np.repeat([0, 1, 2], [1, 2, 3])
    expected = np.corrcoef(before[drawn], after[drawn])[0, 1] - 1
    assert found.differences["pearson"](counts) == pytest.approx(expected)


def test_too_few_neighbours() -> None:
    x = np.eye(5)
    assert (
        "a correlation needs 3 numbers, and there are 2"
        in (judged(embeddings, x, x).unavailable["pearson"])
    )
    assert (
        "the original model gives the same number"
        in (judged(embeddings, np.ones((8, 2)), np.ones((8, 2))).unavailable["spearman"])
    )
