from __future__ import annotations

import numpy as np
import pytest
from benchmarks.validation.coverage import Setting, draw, run, table, truth

from rankc.validate.delong import Placements
from rankc.validate.metrics import log_losses


def test_the_truth_is_what_many_rows_show() -> None:
    known = truth(0.4)
    rng = np.random.default_rng(0)
    labels, _, after = draw(Setting(400_000, (0.0, 0.4)), rng)
    assert Placements.of(labels, after).auc == pytest.approx(known["auc"], abs=0.003)
    assert np.mean(labels == (after > 0.5)) == pytest.approx(known["accuracy_top1"], abs=0.003)
    assert log_losses(labels, after).mean() == pytest.approx(known["logloss"], abs=0.003)


def test_intervals_hold_the_truth_and_gates_are_wrong_as_often_as_they_say() -> None:
    """A small one of benchmarks/validation/coverage.py: bounds are at four standard deviations."""
    rows = run(Setting(400, (0.0, 0.4), bootstrap=True), 100, resamples=200)
    assert [row["metric"] for row in rows] == ["accuracy", "auc", "auc, bootstrap", "logloss"]
    for row in rows:
        assert 86 <= row["covered"] <= 100
        assert row["verdicts"].get("pass", 0) <= 9
        assert row["verdicts"].get("fail", 0) <= 9
        assert row["verdicts"]["undecided"] >= 86
    assert table(rows).count("\n") == 5
