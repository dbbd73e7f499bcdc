from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

import pytest

from rankc.errors import Exit, RecipeError
from rankc.recipe import Data, DataSpec, Gate, Goal, Latency, Metric, Recipe
from rankc.validate.gates import check, check_gates_possible, exit_code, finish
from rankc.validate.quantities import QUANTITIES
from rankc.validate.schema import Metrics
from sample_metrics import some_metrics


def exact_metrics() -> Metrics:
    """The same without intervals: the values decide."""
    metrics = some_metrics()
    for one in metrics["metrics"].values():
        one["interval"] = None
    return metrics


@pytest.mark.parametrize(
    ("metric", "goal", "passing", "failing", "observed"),
    [
        # auc fell from 0.8 to 0.775: higher is better
        ("auc", "threshold", 0.775, 0.776, 0.775),
        ("auc", "max-degradation", 0.026, 0.024, 0.025),
        ("auc", "percent-max-degradation", 3.2, 3.1, 3.125),
        ("auc", "min-improvement", None, 0.0, -0.025),
        # logloss rose from 0.4 to 0.5: lower is better
        ("logloss", "threshold", 0.5, 0.49, 0.5),
        ("logloss", "max-degradation", 0.11, 0.09, 0.1),
        ("logloss", "percent-max-degradation", 26, 24, 25.0),
        ("logloss", "percent-min-improvement", None, 0.0, -25.0),
        # shares: 0.86 - 0.845 is not 0.015 in floating point, and 15 rows of 1000 all the same
        ("accuracy_top1", "max-degradation", 0.015, 0.0149, 0.015),
        ("accuracy_top1", "threshold", 0.845, 0.846, 0.845),
        ("accuracy_top1", "percent-max-degradation", 1.75, 1.74, 100 * 0.015 / 0.86),
        # distances: of the original from itself they are 0
        ("mean_abs_err", "threshold", 0.125, 0.12, 0.125),
        ("mean_abs_err", "max-degradation", 0.125, 0.12, 0.125),
        # costs
        ("size_bytes", "threshold", 100, 99, 100),
        ("size_bytes", "min-improvement", 1100, 1101, 1100),
        ("size_bytes", "percent-min-improvement", 91, 92, 100 * 1100 / 1200),
        ("size_bytes", "max-degradation", 0, None, -1100),
        ("size_ratio", "threshold", 12, 12.1, 12.0),
    ],
)
def test_goals(
    metric: Metric, goal: Goal, passing: float | None, failing: float | None, observed: float
) -> None:
    for value, expected in ((passing, True), (failing, False)):
        if value is not None:
            (result,) = check([Gate(metric, goal, value)], exact_metrics())
            assert result.passed is expected
            assert result.ruling.verdict == ("pass" if expected else "fail")
            assert result.observed == pytest.approx(observed)


@pytest.mark.parametrize(
    ("metric", "value", "expected"),
    [
        ("latency_ratio", 0.41, True),
        ("latency_ratio", 0.38, False),
        ("latency_ms", 0.05, True),
        ("latency_ms", 0.03, False),
        ("throughput", 25_000, True),
        ("throughput", 25_001, False),
    ],
)
def test_latency_and_throughput_gates(metric: Metric, value: float, expected: bool) -> None:
    (result,) = check([Gate(metric, "threshold", value, batch=1)], some_metrics())
    assert result.passed is expected


@pytest.mark.parametrize(("percentile", "observed"), [(None, 0.04), (50, 0.04), (99, 0.1)])
def test_a_gate_on_a_percentile(percentile: Literal[50, 99] | None, observed: float) -> None:
    gate = Gate("latency_ms", "threshold", 1.0, batch=1, percentile=percentile)
    (result,) = check([gate], some_metrics())
    assert result.observed == observed
    assert result.row().get("percentile") == (percentile or 50)


@pytest.mark.parametrize(
    ("gate", "text", "message"),
    [
        (
            Gate("auc", "max-degradation", 0.001),
            "drop ≤ 0.001",
            "auc fell by 0.025 (0.02 to 0.03), the gate allows 0.001",
        ),
        (
            Gate("auc", "min-improvement", 0.01),
            "rise ≥ 0.01",
            "auc fell by 0.025 (0.02 to 0.03), the gate asks for a rise of 0.01",
        ),
        (
            Gate("logloss", "percent-max-degradation", 1),
            "rise ≤ 1 %",
            "logloss rose by 25 %, the gate allows 1 %",
        ),
        (
            Gate("accuracy_top1", "max-degradation", 0.01),
            "drop ≤ 1 point",
            "undecided: accuracy_top1 fell by 1.5 points (0.88 to 2.1), the gate allows 1 point; "
            "about 160 rows would decide; or `undecided: warn`",
        ),
        (
            Gate("accuracy_top1", "threshold", 0.8595),
            "≥ 85.95 %",
            "accuracy_top1 is 84.5 %, the gate asks for 85.95 %",
        ),
        (
            Gate("accuracy_top1", "percent-max-degradation", 1),
            "drop ≤ 1 %",
            "accuracy_top1 fell by 1.74 % (1.02 to 2.44), the gate allows 1 %",
        ),
        (
            Gate("size_bytes", "max-degradation", 0),
            "rise ≤ 0 bytes",
            "size_bytes fell by 1,100 bytes, the gate allows a rise of 0 bytes",
        ),
        (
            Gate("size_ratio", "threshold", 12.5),
            "≥ 12.5\N{MULTIPLICATION SIGN}",
            "size_ratio is 12\N{MULTIPLICATION SIGN}, the gate asks for "
            "12.5\N{MULTIPLICATION SIGN}",
        ),
        (
            Gate("latency_ms", "threshold", 0.03, batch=1),
            "≤ 0.03 ms",
            "latency_ms at batch 1 is 0.04 ms on some processor, the gate allows 0.03 ms",
        ),
        (
            Gate("latency_ms", "threshold", 0.03, batch=1, percentile=95),
            "≤ 0.03 ms",
            "p95 of latency_ms at batch 1 is 0.1 ms on some processor, the gate allows 0.03 ms",
        ),
        (
            Gate("throughput", "min-improvement", 20_000, batch=1),
            "rise ≥ 20,000 rows/s",
            "throughput at batch 1 rose by 15,000 rows/s on some processor, the gate asks for "
            "20,000 rows/s",
        ),
        (
            Gate("cold_start_ms", "percent-max-degradation", 5),
            "rise ≤ 5 %",
            "cold_start_ms rose by 10 %, the gate allows 5 %",
        ),
    ],
)
def test_words(gate: Gate, text: str, message: str) -> None:
    (result,) = check([gate], some_metrics())
    assert (result.text, result.message) == (text, message)


def gate_on_auc(limit: float, **more: Any) -> Gate:
    return Gate("auc", "max-degradation", limit, **more)


@pytest.mark.parametrize(
    ("gate", "verdict", "interval"),
    [  # auc fell by 0.025 (0.02 to 0.03)
        (gate_on_auc(0.03), "pass", (0.02, 0.03)),
        (gate_on_auc(0.029), "undecided", (0.02, 0.03)),
        (gate_on_auc(0.02), "undecided", (0.02, 0.03)),
        (gate_on_auc(0.0199), "fail", (0.02, 0.03)),
        (Gate("auc", "min-improvement", 0.0), "fail", (-0.03, -0.02)),
        (Gate("auc", "percent-max-degradation", 3.0), "undecided", (2.5, 3.75)),
        (Gate("auc", "percent-max-degradation", 3.8), "pass", (2.5, 3.75)),
        (Gate("latency_ratio", "threshold", 0.4, batch=1), "undecided", (0.39, 0.41)),
        (Gate("latency_ratio", "threshold", 0.41, batch=1), "pass", (0.39, 0.41)),
        # what has no interval is exact
        (Gate("logloss", "max-degradation", 0.1000001), "pass", None),
        (Gate("size_ratio", "threshold", 12), "pass", None),
        (Gate("latency_ms", "threshold", 0.04, batch=1), "pass", None),
    ],
)
def test_an_interval_decides(
    gate: Gate, verdict: str, interval: tuple[float, float] | None
) -> None:
    (result,) = check([gate], some_metrics())
    row = result.row()
    assert row["verdict"] == verdict
    assert row["interval"] == (None if interval is None else pytest.approx(interval))


def test_a_threshold_is_held_against_the_models_own_value() -> None:
    metrics = some_metrics()
    metrics["metrics"]["accuracy_top1"]["value_interval"] = (0.83, 0.86)
    verdicts = [
        check([Gate("accuracy_top1", "threshold", value)], metrics)[0]
        for value in (0.83, 0.845, 0.87)
    ]
    assert [one.ruling.verdict for one in verdicts] == ["pass", "undecided", "fail"]
    assert verdicts[2].message == ("accuracy_top1 is 84.5 % (83 to 86), the gate asks for 87 %")


def test_undecided_fails_unless_the_gate_only_warns() -> None:
    strict, lenient = gate_on_auc(0.026), gate_on_auc(0.026, undecided="warn")
    failed, warned = finish(some_metrics(), [strict]), finish(some_metrics(), [lenient])
    assert (failed["passed"], warned["passed"]) == (False, True)
    assert (exit_code(failed), exit_code(warned)) == (Exit.ACCURACY, Exit.OK)
    assert [m["gates"][0]["verdict"] for m in (failed, warned)] == ["undecided"] * 2
    assert failed["gates"][0]["message"] == (
        "undecided: auc fell by 0.025 (0.02 to 0.03), the gate allows 0.026; about 2,500 rows "
        "would decide; or `undecided: warn`"
    )
    assert warned["gates"][0]["message"].endswith("; let pass by `undecided: warn`")
    assert failed["gates"][0]["rows_needed"] == 2500
    (bad,) = finish(some_metrics(), [gate_on_auc(0.01, undecided="warn")])["gates"]
    assert not bad["passed"]


def test_undecided_times_ask_for_more_pairs() -> None:
    gate = Gate("latency_ratio", "threshold", 0.405, batch=1)
    (row,) = finish(some_metrics(), [gate])["gates"]
    assert "about 240 latency.repeats would decide" in row["message"]
    assert row["rows_needed"] is None
    assert exit_code(finish(some_metrics(), [gate])) == Exit.PERFORMANCE


def test_every_failure_is_listed_and_accuracy_decides_the_exit_code() -> None:
    accuracy = Gate("auc", "max-degradation", 0.001)
    performance = Gate("size_ratio", "threshold", 20)
    held = Gate("logloss", "threshold", 1.0)
    both = finish(some_metrics(), [performance, held, accuracy])
    assert [gate["passed"] for gate in both["gates"]] == [False, True, False]
    assert not both["passed"]
    assert exit_code(both) == Exit.ACCURACY
    assert exit_code(finish(some_metrics(), [performance, held])) == Exit.PERFORMANCE
    fine = finish(some_metrics(), [held])
    assert fine["passed"]
    assert exit_code(fine) == Exit.OK


def test_finish_leaves_its_argument_alone_and_can_be_repeated() -> None:
    before = some_metrics()
    once = finish(before, [Gate("auc", "threshold", 0.9)])
    assert before == some_metrics()
    assert finish(once, [Gate("auc", "threshold", 0.9)]) == once


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        (Gate("cosine", "threshold", 0.9), "cosine: it was not measured; measured: auc, logloss"),
        (Gate("macs", "threshold", 1), "not measured: node 'conv'"),
        (Gate("macs_ratio", "threshold", 1), "not measured: node 'conv'"),
        (Gate("latency_ms", "threshold", 1, batch=2), r"at batch 2: .* latency_ms \(batch 1\)"),
        (Gate("mean_abs_err", "percent-max-degradation", 1), "use 'max-degradation'"),
        (Gate("kl_div", "threshold", 1), "not measured: the output has to have one number a class"),
    ],
)
def test_gates_on_what_was_not_measured(gate: Gate, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check([gate], some_metrics())


def recipe(*gates: Gate, validation: DataSpec | None = None) -> Recipe:
    rows = DataSpec("rows.npz")
    data = Data(rows, validation)
    return Recipe("some", "m.onnx", data, (), gates=gates, latency=Latency((1, 32)))


LABELLED = DataSpec("rows.npz", label="late")
UNKNOWN: Any = "acu"  # a recipe made in Python is checked by no parser


@pytest.mark.parametrize(
    ("gate", "validation", "message"),
    [
        (Gate(UNKNOWN, "threshold", 1), LABELLED, "unknown metric 'acu'; known: auc, grouped_auc"),
        (Gate("auc", "threshold", 1), None, "needs validation data; add data.validation"),
        (Gate("auc", "threshold", 1), DataSpec("rows.npz"), "data.validation.label"),
        (Gate("accuracy_top1", "threshold", 1), DataSpec("rows.npz"), "data.validation.label"),
        (Gate("grouped_auc", "threshold", 1), LABELLED, "needs groups.*data.validation.group"),
        (Gate("kl_div", "threshold", 1), None, "needs validation data; add data.validation"),
        (Gate("latency_ms", "threshold", 1), LABELLED, r"\(1, 32\); none is given"),
        (Gate("latency_ms", "threshold", 1, batch=7), LABELLED, "7 is not measured"),
        (Gate("auc", "threshold", 1, batch=1), LABELLED, "leave `batch` out"),
        (Gate("throughput", "threshold", 1), LABELLED, r"\(1, 32\); none is given"),
        (Gate("throughput", "threshold", 1, 1, 95), LABELLED, "leave `percentile` out"),
        (Gate("energy_mj", "threshold", 1, batch=1), LABELLED, r"compiling.*`rankrt bench`"),
        (Gate("size_ratio", "max-degradation", 1), None, "use 'threshold'"),
        (Gate("auc", "threshold", float("nan")), LABELLED, "not a finite number"),
        (Gate("auc", "max-degradation", -0.1), LABELLED, "the other way is min-improvement"),
    ],
)
def test_impossible_gates_are_refused_up_front(
    gate: Gate, validation: DataSpec | None, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        check_gates_possible(recipe(gate, validation=validation))


def test_all_impossible_gates_are_told_at_once() -> None:
    bad = recipe(
        Gate(UNKNOWN, "threshold", 1), Gate("params", "threshold", 1), Gate(UNKNOWN, "threshold", 1)
    )
    with pytest.raises(RecipeError, match=r"(?s)gates\[0\]: .*gates\[2\]: ") as caught:
        check_gates_possible(bad)
    assert "gates[1]" not in str(caught.value)


def test_possible_gates_pass_the_check() -> None:
    names: tuple[Metric, ...] = get_args(Metric)
    gates = [
        Gate(name, "threshold", 1.0, batch=32 if QUANTITIES[name].per_batch else None)
        for name in names
        if name != "energy_mj"
    ]
    grouped = DataSpec("rows.npz", label="y", group="user")
    check_gates_possible(recipe(*gates, validation=grouped))
    without = [gate for gate in gates if not QUANTITIES[gate.metric].needs]
    check_gates_possible(recipe(*without))
    check_gates_possible(dataclasses.replace(recipe(), gates=()))


def test_the_table_has_what_recipes_may_name() -> None:
    assert tuple(QUANTITIES) == get_args(Metric)
