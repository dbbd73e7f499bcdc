from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

from builders import Array, mlp, mlp_rows, model_of, weight
from rankc.errors import DataError, Exit, ModelError, RecipeError
from rankc.recipe import Data, DataSpec, Gate, Latency, Recipe
from rankc.report.rows import Row, table_rows
from rankc.validate import check_metrics, exit_code, validate
from rankc.validate.quantities import MINUS
from rankc.validate.schema import Measured
from rankrt.session import open_model
from sources import Rows

X = np.random.default_rng(0).normal(size=(301, 4)).astype(np.float32)
LATE = (X.sum(axis=1) + np.random.default_rng(1).normal(size=301) > 0).astype(np.int64)
W = np.array([[1.0], [0.8], [1.2], [0.9]], np.float32)


def classifier(
    weights: Array, batch: int | str = "batch", output: str = "p", logit: bool = False
) -> ir.Model:
    """p = sigmoid(x w), (batch, columns of w); or the logit itself."""
    x = ir.val("x", ir.DataType.FLOAT, [batch, 4])
    y = ir.val(output, ir.DataType.FLOAT, [batch, weights.shape[1]])
    tape = ir.tape.Tape()
    score = tape.op("MatMul", [x, weight(tape, "w", weights)], name="mm")
    tape.op("Identity" if logit else "Sigmoid", [score], name="head", output=y)
    return model_of(tape, [x], [y])


def saved(folder: Path, **models: ir.Model) -> list[Path]:
    paths = [folder / f"{name}.onnx" for name in models]
    for path, model in zip(paths, models.values(), strict=True):
        ir.save(model, path)
    return paths


def recipe(*gates: Gate, sizes: tuple[int, ...] = (1,), label: str | None = "late") -> Recipe:
    data = Data(DataSpec("c.npz"), DataSpec("v.npz", label=label))
    return Recipe("some", "m.onnx", data, (), gates=gates, latency=Latency(sizes, repeats=5))


def source(labels: Array | None = LATE) -> Rows:
    return Rows({"x": X}, batch_size=64, labels=labels)


def test_everything_is_measured_and_matches_scikit_learn(tmp_path: Path) -> None:
    worse = W * np.array([[1], [1], [0], [1]], np.float32)
    before, after = saved(tmp_path, before=classifier(W), after=classifier(worse))
    gate = Gate("auc", "max-degradation", 0.0)
    found = check_metrics(validate(before, after, source(), recipe(gate, sizes=(1, 8))))
    p, q = (open_model(path).run({"x": X})["p"][:, 0] for path in (before, after))
    auc, loss = found["metrics"]["auc"], found["metrics"]["logloss"]
    assert auc["original"] == pytest.approx(roc_auc_score(LATE, p), abs=1e-12)
    assert auc["compressed"] == pytest.approx(roc_auc_score(LATE, q), abs=1e-12)
    assert loss["original"] == pytest.approx(log_loss(LATE, p.astype(np.float64)), abs=1e-9)
    assert auc["interval"] is not None
    assert auc["interval"][0] < auc["difference"] < auc["interval"][1] < 0
    error = np.abs(p.astype(np.float64) - q)
    assert found["metrics"]["mean_abs_err"]["compressed"] == pytest.approx(error.mean())
    assert found["metrics"]["max_abs_err"]["compressed"] == pytest.approx(error.max())
    assert found["metrics"]["cosine"]["original"] == 1.0 > found["metrics"]["cosine"]["compressed"]
    assert list(found["latency"]) == ["1", "8"]
    assert found["memory_batch"] == 8
    assert (found["rows"], found["output"], found["unavailable"]) == (301, "p", {})
    assert not found["passed"]
    assert exit_code(found) == Exit.ACCURACY


def test_the_model_against_itself(tmp_path: Path) -> None:
    before, after = saved(tmp_path, before=classifier(W), after=classifier(W))
    gates = Gate("auc", "max-degradation", 0.0), Gate("max_abs_err", "threshold", 0.0)
    found = validate(before, after, source(), recipe(*gates))
    assert found["passed"]
    assert found["metrics"]["auc"]["interval"] == (0.0, 0.0)
    assert found["metrics"]["cosine"]["compressed"] == pytest.approx(1.0, abs=1e-15)
    assert found["ratios"] == {"size_bytes": 1.0, "params": 1.0, "macs": 1.0}


def test_same_seed_same_metrics_apart_from_times(tmp_path: Path) -> None:
    before, after = saved(tmp_path, before=classifier(W), after=classifier(W.round()))
    first, again = (validate(before, after, source(), recipe()) for _ in range(2))
    for name in ("auc", "logloss", "mean_abs_err", "max_abs_err", "cosine", "size_bytes"):
        assert first["metrics"][name] == again["metrics"][name]


def test_without_labels_auc_is_not_made_up(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, model=classifier(W))
    with pytest.raises(RecipeError, match="gate on auc: it was not measured: there are no labels"):
        validate(path, path, source(None), recipe(Gate("auc", "threshold", 0.5), label=None))


def test_wide_outputs_are_compared_without_labels(tmp_path: Path) -> None:
    (wide,) = saved(tmp_path, wide=mlp())
    rows = Rows({"x": mlp_rows()}, labels=np.arange(256) % 2)
    found = validate(wide, wide, rows, recipe())
    assert found["unavailable"]["auc"] == "output 'y' has more than one number a row"
    assert found["metrics"]["mean_abs_err"]["compressed"] == 0.0


def test_logits_have_an_auc_and_no_logloss(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, model=classifier(W, logit=True))
    found = validate(path, path, source(), recipe())
    assert "auc" in found["metrics"]
    why = "output 'p' leaves [0, 1], so it is no probability"
    assert found["unavailable"] == {"logloss": why, "ece": why}


def test_without_rows_only_what_needs_none(tmp_path: Path) -> None:
    before, after = saved(tmp_path, before=classifier(W), after=classifier(W))
    found = check_metrics(validate(before, after, None, recipe(Gate("size_ratio", "threshold", 1))))
    assert found["passed"]
    assert set(found["metrics"]) == {"size_bytes", "params", "macs", "nodes"}
    assert found["unavailable"]["latency_ratio"] == "there is no validation data"
    with pytest.raises(RecipeError, match=r"latency_ratio at batch 1: .*no validation data"):
        validate(before, after, None, recipe(Gate("latency_ratio", "threshold", 1, batch=1)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_compressed_model_that_overflows_is_named(tmp_path: Path, value: float) -> None:
    broken = classifier(np.full((4, 1), value, np.float32), logit=True)
    before, after = saved(tmp_path, before=classifier(W, logit=True), after=broken)
    with pytest.raises(ModelError, match="compressed model, output 'p': 64 of 64 values are NaN"):
        validate(before, after, source(), recipe())
    with pytest.raises(ModelError, match="original model, output 'p'"):
        validate(after, before, source(), recipe())


def test_labels_of_one_class(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, model=classifier(W))
    with pytest.raises(DataError, match="'late': all 301 labels are 1"):
        validate(path, path, source(np.ones(301)), recipe())


def test_outputs_that_cannot_be_compared(tmp_path: Path) -> None:
    paths = saved(
        tmp_path,
        one=classifier(W),
        other=classifier(W, output="q"),
        wide=classifier(W.repeat(2, 1)),
    )
    with pytest.raises(ModelError, match="compressed model: it has no output 'p'"):
        validate(paths[0], paths[1], source(), recipe())
    with pytest.raises(ModelError, match=r"shape \(64, 2\), the original's is \(64, 1\)"):
        validate(paths[0], paths[2], source(), recipe())


def test_batch_sizes_that_fixed_shapes_cannot_take(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, model=classifier(W, batch=7))
    rows = Rows({"x": X[:294]}, batch_size=7, labels=LATE[:294])
    with pytest.raises(RecipeError, match=r"batch_sizes: 1 cannot be run"):
        validate(path, path, rows, recipe(sizes=(1, 7)))
    found = validate(path, path, rows, recipe(sizes=(7,)))
    assert list(found["latency"]) == ["7"]


def test_progress_only_rises_and_ends_near_the_end(tmp_path: Path) -> None:
    class Told:
        def __init__(self) -> None:
            self.shares: list[float] = []
            self.text = ""

        def advance(self, done: int, total: int | None = None) -> None:
            assert total is not None
            self.shares.append(done / total)

        def note(self, text: str) -> None:
            self.text = text

    (path,) = saved(tmp_path, model=classifier(W))
    told = Told()
    validate(path, path, source(), recipe(), told)
    assert told.shares == sorted(told.shares)
    assert told.shares[-1] > 0.8
    assert told.text == "301 rows"


# --- classifiers ----------------------------------------------------------------------------

WIDE = np.random.default_rng(2).normal(size=(4, 7)).astype(np.float32)
CLASS = (X @ WIDE + np.random.default_rng(3).normal(size=(301, 7))).argmax(axis=1)


def test_classifiers_are_measured_and_match_scikit_learn(tmp_path: Path) -> None:
    worse = WIDE * np.array([[1], [1], [0], [1]], np.float32)
    before, after = saved(
        tmp_path, before=classifier(WIDE, logit=True), after=classifier(worse, logit=True)
    )
    gates = (
        Gate("accuracy_top1", "max-degradation", 0.01),
        Gate("top1_agreement", "threshold", 0.2),
        Gate("kl_div", "threshold", 100.0),
    )
    found = check_metrics(validate(before, after, source(CLASS), recipe(*gates)))
    x, y = (open_model(path).run({"x": X})["p"].astype(np.float64) for path in (before, after))
    top1, same = found["metrics"]["accuracy_top1"], found["metrics"]["top1_agreement"]
    assert top1["original"] == pytest.approx(accuracy_score(CLASS, x.argmax(axis=1)))
    assert top1["compressed"] == pytest.approx(accuracy_score(CLASS, y.argmax(axis=1)))
    assert top1["interval"] is not None
    assert top1["interval"][0] < top1["difference"] < top1["interval"][1] < 0
    assert same["compressed"] == pytest.approx((x.argmax(axis=1) == y.argmax(axis=1)).mean())
    p = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
    loss = found["metrics"]["logloss"]
    assert loss["original"] == pytest.approx(log_loss(CLASS, p))
    assert found["metrics"]["kl_div"]["interval"] is not None
    assert found["unavailable"] == {"auc": "output 'p' has more than one number a row"}
    assert [gate["passed"] for gate in found["gates"]] == [False, True, True]
    assert exit_code(found) == Exit.ACCURACY


def test_classifiers_without_labels(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, model=classifier(WIDE, logit=True))
    found = validate(path, path, source(None), recipe(label=None))
    assert found["metrics"]["top1_agreement"]["compressed"] == 1.0
    assert found["metrics"]["kl_div"]["compressed"] == 0.0
    assert set(found["unavailable"]) == {
        *("auc", "logloss", "ece", "accuracy_top1", "accuracy_top5")
    }


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (np.where(CLASS == 6, 7, CLASS), r"labels are outside 0 to 6 \(the first is 7\)"),
        (CLASS + 0.25, "64 of 64 labels are no whole numbers"),
        (CLASS[:300], "44 labels for a batch of 45 rows"),
    ],
)
def test_labels_that_do_not_fit_a_classifier(tmp_path: Path, labels: Array, says: str) -> None:
    (path,) = saved(tmp_path, model=classifier(WIDE, logit=True))
    with pytest.raises(DataError, match=f"label column 'late': .*{says}"):
        validate(path, path, source(labels), recipe())


def test_a_gate_on_classes_of_a_model_that_has_none(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, model=classifier(W))
    with pytest.raises(RecipeError, match=r"accuracy_top1: .*one number a class in each row"):
        validate(path, path, source(), recipe(Gate("accuracy_top1", "threshold", 0.5)))


def test_classifiers_in_the_table(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, model=classifier(WIDE, logit=True))
    gate = Gate("accuracy_top1", "max-degradation", 0.02)
    found = validate(path, path, source(CLASS), recipe(gate))

    def rows() -> dict[str, Row]:
        return {row.label: row for row in table_rows(found)}

    found["metrics"]["accuracy_top1"] = Measured(
        original=0.8602, compressed=0.841, difference=-0.0192, interval=(-0.025, -0.013)
    )
    found["metrics"]["top1_agreement"] = Measured(
        original=1.0, compressed=0.97, difference=-0.03, interval=(-0.04, -0.025)
    )
    top1, same = rows()["top-1"], rows()["same top-1"]
    assert (top1.original, top1.compressed) == ("86.02 %", "84.10 %")
    assert top1.change == f"{MINUS}1.92 points ({MINUS}2.50 to {MINUS}1.30)"
    assert top1.brief == f"{MINUS}1.92 points ±0.60"
    assert (top1.gate, top1.passed) == ("drop ≤ 2 points", True)
    assert (same.compressed, same.change) == ("97.00 %", "(96.00 to 97.50 %)")
    essential = {name for name, row in rows().items() if row.essential}
    assert essential == {"size", "top-1", "logloss", "same top-1", "latency b1", "peak memory"}
    del found["metrics"]["accuracy_top1"]
    assert rows()["KL divergence"].essential
