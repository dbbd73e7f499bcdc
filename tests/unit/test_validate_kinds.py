"""Models of every kind of output, measured as `rankc compile` does, from ONNX files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import jaccard_score, log_loss, roc_auc_score

from builders import Array, model_of, weight
from rankc.errors import DataError, ModelError, RecipeError
from rankc.recipe import Data, DataSpec, Gate, Latency, OwnMetric, Recipe
from rankc.report import report_markdown
from rankc.report.rows import table_rows
from rankc.validate import check_metrics, validate
from rankc.validate.own import Own, open_metrics
from rankc.validate.schema import Metrics
from rankrt.session import open_model
from sources import Rows

RNG = np.random.default_rng(0)
PLACES: dict[str, tuple[int, ...]] = {"row": (), "token": (5,), "pixel": (4, 3)}


def linear(
    weights: Array, places: tuple[int, ...] = (), *, swap: bool = False, last: str = "Identity"
) -> ir.Model:
    """y = x w at each place: (batch, *places, in) to (batch, *places, out), or classes first."""
    x = ir.val("x", ir.DataType.FLOAT, ["batch", *places, weights.shape[0]])
    shape = [weights.shape[1], *places] if swap else [*places, weights.shape[1]]
    y = ir.val("y", ir.DataType.FLOAT, ["batch", *shape])
    tape = ir.tape.Tape()
    score = tape.op("MatMul", [x, weight(tape, "w", weights)], name="mm")
    if swap:
        score = tape.op("Transpose", [score], {"perm": [0, 3, 1, 2]}, name="swap")
    tape.op(last, [score], name="head", output=y)
    return model_of(tape, [x], [y])


def inputs(places: tuple[int, ...], rows: int = 60) -> Array:
    return RNG.normal(size=(rows, *places, 4)).astype(np.float32)


def weights(out: int) -> tuple[Array, Array]:
    """Of the original and of a model that is a little worse."""
    found = RNG.normal(size=(4, out)).astype(np.float32)
    return found, found + RNG.normal(size=found.shape).astype(np.float32) / 5


def measure(
    folder: Path,
    models: tuple[ir.Model, ir.Model],
    rows: Rows,
    *gates: Gate,
    own: tuple[Own, ...] = (),
    **recipe: Any,
) -> tuple[Metrics, list[Array]]:
    """What metrics.json says, and the two models' outputs."""
    paths = [folder / "before.onnx", folder / "after.onnx"]
    for path, model in zip(paths, models, strict=True):
        ir.save(model, path)
    spec = DataSpec("v.npz", label=None if rows.labels is None else "late", group="user")
    made = Recipe(
        "some",
        "m.onnx",
        Data(DataSpec("c.npz"), spec),
        (),
        gates=gates,
        latency=Latency((1,), repeats=5),
        **recipe,
    )
    found = check_metrics(validate(paths[0], paths[1], rows, made, own=own))
    return found, [open_model(path).run(rows.feeds)["y"].astype(np.float64) for path in paths]


def pair(metrics: Metrics, name: str) -> tuple[float, float]:
    return metrics["metrics"][name]["original"], metrics["metrics"][name]["compressed"]


def test_tokens(tmp_path: Path) -> None:
    w, worse = weights(9)
    x, labels = inputs((5,)), RNG.integers(0, 9, (60, 5))
    labels[::7, 2:] = -100
    rows = Rows({"x": x}, batch_size=13, labels=labels)
    gate = Gate("perplexity", "percent-max-degradation", 500)
    found, outputs = measure(tmp_path, (linear(w, (5,)), linear(worse, (5,))), rows, gate)
    counts = labels != -100
    for ours, scores in zip(pair(found, "perplexity"), outputs, strict=True):
        p = np.exp(scores) / np.exp(scores).sum(axis=2, keepdims=True)
        assert ours == pytest.approx(np.exp(log_loss(labels[counts], p[counts], labels=range(9))))
    measured = found["metrics"]["perplexity"]
    assert measured["interval"] is not None
    assert measured["interval"][0] < measured["difference"] < measured["interval"][1]
    low, high = measured.get("value_interval", (0.0, 0.0))
    assert low < measured["compressed"] < high
    assert {"accuracy_top1", "accuracy_top5", "kl_div", "top1_agreement"} <= set(found["metrics"])
    assert found["unavailable"] == {}
    assert found["passed"]


@pytest.mark.parametrize("swap", [True, False])
def test_pixels(tmp_path: Path, swap: bool) -> None:
    w, worse = weights(3)
    x, labels = inputs((4, 3)), RNG.integers(0, 3, (60, 4, 3)).astype(np.uint8)
    labels[0] = 255
    rows = Rows({"x": x}, batch_size=13, labels=labels)
    models = linear(w, (4, 3), swap=swap), linear(worse, (4, 3), swap=swap)
    found, outputs = measure(tmp_path, models, rows, Gate("mean_iou", "max-degradation", 1.0))
    counts = labels != 255
    for ours, scores in zip(pair(found, "mean_iou"), outputs, strict=True):
        answers = scores.argmax(axis=1 if swap else 3)[counts]
        assert ours == pytest.approx(jaccard_score(labels[counts], answers, average="macro"))
    cells = {row.label: row for row in table_rows(found)}
    assert cells["mean IoU"].original == f"{100 * pair(found, 'mean_iou')[0]:.2f} %"
    assert cells["mean IoU"].gate == "drop ≤ 100 points"


def test_numbers_to_meet(tmp_path: Path) -> None:
    w, worse = weights(1)
    x = inputs(())
    labels = (x @ w)[:, 0] + RNG.normal(size=60)
    rows = Rows({"x": x}, batch_size=13, labels=labels)
    gates = Gate("spearman", "max-degradation", 1), Gate("mse", "threshold", 100)
    found, outputs = measure(tmp_path, (linear(w), linear(worse)), rows, *gates)
    expected = tuple(spearmanr(labels, one[:, 0])[0] for one in outputs)
    assert pair(found, "spearman") == pytest.approx(expected)
    assert "neither 0 nor 1" in found["unavailable"]["auc"]
    assert {"Pearson", "Spearman", "squared error"} <= {row.label for row in table_rows(found)}
    with pytest.raises(RecipeError, match=r"gate on auc: .*60 of 60 labels in column 'late' are"):
        measure(tmp_path, (linear(w), linear(worse)), rows, Gate("auc", "threshold", 0.5))


def test_embeddings(tmp_path: Path) -> None:
    w, worse = weights(8)
    rows = Rows({"x": inputs(())}, batch_size=13)
    gates = (
        Gate("spearman", "max-degradation", 0.9),
        Gate("sqnr_db", "threshold", 1.0),
        Gate("psnr", "threshold", 1.0),
        Gate("cosine", "threshold", 0.5),
    )
    found, _ = measure(tmp_path, (linear(w), linear(worse)), rows, *gates)
    assert found["passed"]
    assert found["metrics"]["sqnr_db"]["compressed"] > 5
    assert found["metrics"]["cosine"]["interval"] is not None
    cells = {row.label: row for row in table_rows(found)}
    assert cells["SQNR"].compressed == f"{found['metrics']['sqnr_db']['compressed']:.2f} dB"
    assert cells["Spearman"].original == "\N{EM DASH}"
    same, _ = measure(tmp_path, (linear(w), linear(w)), rows, *gates)
    assert pair(same, "sqnr_db") == (320.0, 320.0)
    assert pair(same, "spearman") == pytest.approx((1.0, 1.0))


def scores_with_groups(groups: Array) -> tuple[Rows, tuple[ir.Model, ir.Model]]:
    w, worse = weights(1)
    x = inputs(())
    late = (x.sum(axis=1) + RNG.normal(size=60) > 0).astype(np.int64)
    rows = Rows({"x": x}, batch_size=13, labels=late, groups=groups)
    return rows, (linear(w, last="Sigmoid"), linear(worse, last="Sigmoid"))


def test_groups(tmp_path: Path) -> None:
    groups = np.array([f"user {i % 3}" for i in range(60)])
    groups[7] = "once"
    rows, models = scores_with_groups(groups)
    found, outputs = measure(tmp_path, models, rows, Gate("grouped_auc", "max-degradation", 1))
    labels, (p, _) = rows.labels, outputs
    assert labels is not None
    sizes, areas = [], []
    for name in ("user 0", "user 1", "user 2"):
        mine = groups == name
        sizes.append(mine.sum())
        areas.append(roc_auc_score(labels[mine], p[mine, 0]))
    assert pair(found, "grouped_auc")[0] == pytest.approx(np.average(areas, weights=sizes))
    note = "1 of 4 groups of column 'user', with 1 of 60 rows, have one class only and are left out"
    assert found.get("notes") == {"grouped_auc": note}
    assert f"- grouped_auc: {note}" in report_markdown(found)
    short, _ = scores_with_groups(groups[:50])
    with pytest.raises(DataError, match="group column 'user': 11 values for a batch of 13 rows"):
        measure(tmp_path, models, short)


def test_gates_that_do_not_fit_are_told_before_anything_is_timed(tmp_path: Path) -> None:
    rows, models = scores_with_groups(np.arange(60) % 2)
    gates = Gate("perplexity", "threshold", 9), Gate("mean_iou", "threshold", 0.5)
    with pytest.raises(RecipeError) as caught:
        measure(tmp_path, models, rows, *gates, Gate("latency_ms", "threshold", 9, batch=1))
    perplexity, iou = str(caught.value).split("\n")
    assert perplexity.startswith(
        "gate on perplexity: it was not measured: the output has to be (rows, tokens, vocabulary) "
        "and the labels (rows, tokens); measured: auc, grouped_auc, logloss, ece, "
    )
    assert iou.startswith("gate on mean_iou: it was not measured: the output has to be (rows, cl")


def test_own_metrics(tmp_path: Path) -> None:
    code = "def miss(labels, outputs):\n    return abs(outputs[:, 0] - labels)\n"
    (tmp_path / "scoring.py").write_text(code, "utf-8")
    rows, models = scores_with_groups(np.arange(60) % 2)
    metrics = {"miss": OwnMetric("scoring.py:miss", "lower")}
    data = Data(DataSpec("c.npz"))
    own = open_metrics(
        Recipe("some", "m.onnx", data, (), metrics=metrics, folder=tmp_path), trust_code=True
    )
    gates = Gate("miss", "max-degradation", 0.5), Gate("miss", "threshold", 0.01)
    found, outputs = measure(tmp_path, models, rows, *gates, own=own, metrics=metrics)
    assert rows.labels is not None
    expected = [np.abs(one[:, 0] - rows.labels).mean() for one in outputs]
    assert pair(found, "miss") == pytest.approx(expected, rel=1e-6)
    assert found.get("own") == {"miss": "lower"}
    assert [gate["passed"] for gate in found["gates"]] == [True, False]
    assert found["gates"][1]["kind"] == "accuracy"
    (row,) = (row for row in table_rows(found) if row.label == "miss")
    assert row.original == f"{expected[0]:.5g}"
    with pytest.raises(RecipeError, match=r"gate on miss: it was not measured: .*not allowed to"):
        measure(tmp_path, models, rows, *gates, metrics=metrics)


def test_no_rows(tmp_path: Path) -> None:
    w, worse = weights(1)
    rows = Rows({"x": inputs((), rows=0)}, labels=np.zeros(0))
    with pytest.raises(DataError, match="the validation data has no rows; at least one is needed"):
        measure(tmp_path, (linear(w), linear(worse)), rows)


def test_nan_at_one_place(tmp_path: Path) -> None:
    w, _ = weights(9)
    broken = np.where(np.arange(9) == 4, np.nan, w).astype(np.float32)
    rows = Rows({"x": inputs((5,))}, batch_size=13, labels=np.zeros((60, 5), np.int64))
    with pytest.raises(ModelError, match="compressed model, output 'y': 65 of 585 values are NaN"):
        measure(tmp_path, (linear(w, (5,)), linear(broken, (5,))), rows)


def test_large_outputs_are_judged_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    w, worse = weights(9)
    rows = Rows({"x": inputs((5,))}, batch_size=60, labels=RNG.integers(0, 9, (60, 5)))
    models = linear(w, (5,)), linear(worse, (5,))
    whole, _ = measure(tmp_path, models, rows)
    monkeypatch.setattr("rankc.validate.scoring._ENTRIES", 100)  # two rows at a time
    again, _ = measure(tmp_path, models, rows)
    for name in ("perplexity", "accuracy_top1", "sqnr_db", "mean_abs_err"):
        assert again["metrics"][name] == whole["metrics"][name]
