"""What benchmarks.validation compares is the same, computed in two ways."""

from __future__ import annotations

import pytest
from benchmarks.validation import overhead
from sklearn.metrics import log_loss, roc_auc_score


def test_both_ways_give_the_same_numbers() -> None:
    labels, x, y = overhead.columns(10_000)
    found = overhead.streaming(labels, x, y)
    for column, p in enumerate((x.astype(float), y.astype(float))):
        assert found.pairs["auc"][column] == roc_auc_score(labels, p)
        assert found.pairs["logloss"][column] == pytest.approx(log_loss(labels, p), rel=1e-12)
    assert 0 < found.pairs["ece"][0] < 0.05  # the labels are drawn by the original's probabilities


def test_the_table_says_what_was_missed() -> None:
    seconds = {"streaming": [0.3], "roc_auc_score + log_loss": [0.2], "roc_auc_score": [0.1]}
    peaks = dict.fromkeys(seconds, 10_000_000)
    raw = {"rows": 1000, "batch": 10, "seconds": seconds, "peak_bytes": peaks}
    text = overhead.table(raw)
    assert "| streaming | 300 | 1.00× | 10 |" in text  # noqa: RUF001
    assert "two calls (missed), less than 200 MB (met)" in text
