"""The parts of the benchmarks of convolutional nets that can be wrong without anybody seeing it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.cnn import (
    predictions,
    resnet20,
    resnet20_targets,
    slow,
    slow_models,
    slow_table,
    table,
)
from benchmarks.cnn.common import Kept, latency_text

from conv_builders import convnet, images
from rankc.calibrate import calibrate
from rankc.macs import count_macs
from rankc.passbase import Curve, Site
from rankc.passes.conv import Conv
from rankc.progress import SilentProgress
from rankc.report.text import MINUS, TIMES
from rankc.serialize import save
from rankrt.session import open_model
from sources import Rows


def timed(ratio: float, low: float, high: float) -> dict[str, Any]:
    return {"ratio": ratio, "interval": [low, high]}


def row(variant: str, ratio: float, points: float, macs: float, time: float) -> dict[str, Any]:
    """A row as resnet20.json holds it, with what the table reads."""
    both = {"1": timed(time, time, time), "32": timed(time, time, time)}
    layer = {"site": "conv1", "form": "vertical", "rank": 8, "verdict": "kept", "latency": both}
    return {
        "variant": variant,
        "label": f"label of {variant}",
        "ratio": ratio,
        "rows": 5000,
        "metrics": {
            "accuracy_top1": {
                "original": 0.86,
                "difference": points / 100,
                "interval": [points / 100 - 0.01, points / 100 + 0.01],
            }
        },
        "ratios": {"macs": macs, "size_bytes": 1.5},
        "latency": both,
        "stages": {"plan": {}},
        "seconds": {"wall": 12.4},
        "baseline": variant.startswith("svd"),
        "floats": variant != "dense",
        "layers": [layer | {"macs": 500, "dense_macs": 1000}],
    }


def raw(*rows: dict[str, Any]) -> dict[str, Any]:
    exact = [{"form": f, "deviation": d} for f, d in (("channel", 1e-7), ("tucker-8", 3e-7))]
    sampled = [{"form": f, "deviation": d} for f, d in (("channel", 0.02), ("tucker-8", 0.005))]
    return {
        "environment": {"cpu": "a cpu"},
        "rows": list(rows),
        "predictions": {"exact": exact, "sampled": sampled},
    }


# --- what is measured -------------------------------------------------------------------------


def test_every_variant_is_a_recipe_of_its_own() -> None:
    jobs = resnet20.jobs(quick=False)
    assert len({job.title for job in jobs}) == len(jobs)
    for job in jobs:
        recipe = job.recipe
        assert [spec.name for spec in recipe.passes] == ["conv"]
        if job.ratio > 1:
            limits = {budget.unit: budget.keep_ratio for budget in recipe.budget}
            assert limits.pop("macs", None) in (None, 1 / job.ratio)
            assert bool(limits) == (recipe.timing.table is not None)
            assert list(limits.values()) in ([], [1 / job.ratio], [1 / job.ratio / 0.8])
    assert {job.variant.name for job in resnet20.jobs(quick=True)} < {j.variant.name for j in jobs}


def test_baselines_know_nothing_and_ours_is_the_shipped_recipe() -> None:
    for variant in resnet20.baselines():
        recipe = resnet20.Job(variant, 2.0, 1).recipe
        assert recipe.passes[0].options["method"] == "svd"
        assert recipe.refit is None
        assert not recipe.timing.revert
        assert recipe.planning.strategy in ("uniform", "greedy")
    (ours,) = [v for v in resnet20.VARIANTS if v.name == "ours"]
    assert ours.options == ()
    assert not any(o.startswith(("passes", "budget", "planning", "refit")) for o in resnet20.BARE)


def test_slow_cases_have_names_of_their_own_and_options_that_mean_something(tmp_path: Path) -> None:
    names = [case.name for case in slow.cases()]
    assert len(set(names)) == len(names)
    assert [slow.multiple(rank) for rank in (13, 16, 27, 61)] == [16, 16, 32, 64]
    path = tmp_path / "recipe.yaml"
    path.write_text("name: a\nmodel: m.onnx\ndata: {calibration: {path: rows.npz}}\npasses: []\n")
    options = [slow.passes("conv", "forms: [channel]"), slow.budget(0.5, 1.0), slow.TABLE]
    recipe = slow.Bench(tmp_path, 1).recipe(*options)
    assert [(b.unit, b.keep_ratio) for b in recipe.budget] == [("macs", 0.5), ("ms", 1.0)]
    assert recipe.passes[0].options["forms"] == ["channel"]
    assert recipe.timing.table == "table.json"
    (only,) = slow.Bench(tmp_path, 1).recipe(slow.budget(ms=0.3)).budget
    assert (only.unit, only.keep_ratio) == ("ms", 0.3)


def test_a_tensor_train_is_the_matrix_of_its_cores(tmp_path: Path) -> None:
    model = slow_models.tensor_train((2, 3, 4), 5)
    cores = [model.graph.initializers[f"core{k}"].const_value for k in range(3)]
    a, b, c = (core.numpy() for core in cores if core is not None)
    first, second, third = a.reshape(2, 2, 5), b.reshape(5, 3, 3, 5), c.reshape(5, 4, 4)
    whole = np.einsum("iar,rjbs,skc->ijkabc", first, second, third).reshape(24, 24)
    save(model, tmp_path / "m.onnx")
    x = np.random.default_rng(0).standard_normal((7, 24)).astype(np.float32)
    got = open_model(tmp_path / "m.onnx").run({"x": x})["y"]
    np.testing.assert_allclose(got, x @ whole, rtol=1e-4, atol=1e-5)


def test_slow_models_take_their_rows_and_have_the_layers_they_name(tmp_path: Path) -> None:
    for model, macs in (
        (slow_models.layers([64, 32, 16]), 64 * 32 + 32 * 16),
        (slow_models.images([4, 8, 8], 6), 36 * 9 * (32 + 64) + 80),
        (slow_models.tensor_train((8, 8, 8), 3), 4096 * (3 + 9 + 3)),
    ):
        save(model, tmp_path / "m.onnx")
        rows = slow_models.rows_for(model, 5)
        assert len(open_model(tmp_path / "m.onnx").run({"x": rows})["y"]) == 5
        assert count_macs(model)[0] == macs


# --- predictions ------------------------------------------------------------------------------


def test_measured_errors_are_the_predicted_ones_where_all_positions_are_seen(
    tmp_path: Path,
) -> None:
    model, pass_ = convnet(), Conv(min_size=1, round_to=1, positions=predictions.EVERY)
    source = Rows({"x": images()})
    sites = [s for s in pass_.match(model) if isinstance(s, Site) and s.name in ("same", "down")]
    probes = {site: pass_.probe(model, site) for site in sites}
    with SilentProgress().stage("calibrate") as stage:
        stats = calibrate(model, probes, source, stage).stats
    for site in sites:
        solution = pass_.solve(model, site, stats[site])
        trials = list(predictions.trials_of(model, pass_, site, solution, batch=source.rows or 0))
        assert {trial.form for trial in trials} > {"channel", "vertical", "input"}
        lost = predictions.lost_shares(model, pass_, site, trials, source, tmp_path)
        assert lost == pytest.approx([trial.predicted for trial in trials], rel=1e-3)


def test_the_nearest_rank_is_taken_of_every_form() -> None:
    curve = Curve(
        ranks=np.array([1, 2, 3, 1, 2]),
        error=np.array([0.5, 0.2, 0.0, 0.4, 0.3]),
        loss=np.zeros(5),
        parameters=np.zeros(5, np.int64),
        macs=np.array([10, 20, 30, 70, 90]),
        size_bytes=np.zeros(5, np.int64),
        forms=("a", "a", "a", "b", "b"),
    )
    assert predictions.nearest(curve, 40) == {"a": 1, "b": 3}  # the exact rank 3 says nothing
    assert predictions.nearest(curve, 100) == {"a": 1, "b": 4}


# --- the table --------------------------------------------------------------------------------


def test_a_share_is_what_the_clock_gives_of_what_operations_promise() -> None:
    share = resnet20_targets.share
    assert (share(2.0, 0.5), share(2.0, 1.0)) == (1.0, 0.5)
    assert share(2.0, 0.625) == pytest.approx(0.8)


def test_only_what_is_slower_beyond_noise_is_bold() -> None:
    assert table.interval(timed(1.2, 1.1, 1.3)) == "**1.20 [1.10, 1.30]**"
    assert table.interval(timed(1.2, 0.99, 1.3)) == "1.20 [0.99, 1.30]"


def test_layers_that_pay_are_counted() -> None:
    one = row("ours", 2.0, -1.5, 2.0, 0.6)
    slow_layer = one["layers"][0] | {"latency": {"1": timed(1.0, 0.9, 1.1)}}
    back = {k: v for k, v in slow_layer.items() if k not in ("macs", "dense_macs")}
    one["layers"] += [slow_layer, back | {"verdict": "put back"}]
    one["layers"][0]["latency"] = {"1": timed(0.6, 0.55, 0.65)}
    said = table.pays(one)
    assert "1 of 2 are faster beyond noise, and 1 give 80 %" in said
    lines = table.layer_table(one["layers"]).splitlines()
    assert lines[2].startswith("| conv1 | 8 as vertical | 2.00" + TIMES)
    assert "| 83 % |" in lines[2]
    assert "**put back**" in lines[-1]


def test_targets_name_what_does_not_hold() -> None:
    rows = [row("ours", 2.0, -1.4, 2.0, 0.6), row("svd-a", 2.0, -4.0, 2.0, 0.6)]
    found = resnet20_targets.targets(raw(*rows))
    assert [target.verdict for target in found] == ["yes"] * 5
    rows = [row("ours", 2.8, -5.1, 2.8, 0.6), row("svd-a", 2.8, -6.0, 2.8, 0.6)]
    rows[0]["seconds"] = {"wall": 91.0}
    rows[0]["layers"][0]["latency"] = {"1": timed(0.7, 0.7, 0.7)}
    content = raw(*rows)
    content["predictions"]["exact"][0]["deviation"] = 0.011
    verdicts = [target.verdict for target in resnet20_targets.targets(content)]
    at = f"2.8{TIMES}"
    missed = [f"**no**: {at}, seed 0", *[f"**no**: {at}"] * 2]
    assert verdicts == [*missed, f"**no**: {at} at batch 1", "**no**"]


def test_the_table_is_written_from_raw_data_alone(tmp_path: Path) -> None:
    refused = {"variant": "steps-16", "label": "steps", "ratio": 2.0, "refused": "budget: no; more"}
    rows = [row("dense", 1, 0, 1, 1), row("ours", 2.0, -1.52, 2.01, 0.74), refused]
    (tmp_path / "resnet20.json").write_text(json.dumps(raw(*rows)))
    first = table.write(tmp_path).read_bytes()
    assert table.write(tmp_path).read_bytes() == first
    text = first.decode()
    assert (
        f"| label of ours | 2.01{TIMES} | 1.50{TIMES} | {MINUS}1.52 [{MINUS}2.52, {MINUS}0.52] | "
        "0.74 / 0.74 | 67 % / 67 % | 12 s |"
    ) in text
    assert "| steps | \N{EM DASH} | \N{EM DASH} | refused: no |" in text
    assert "| channel | 1 | 1.0e-07 | 2.0e-02 | 2.0e-02 | 0 of 1 |" in text
    assert "| all | 2 | 3.0e-07 | 2.0e-02 | 2.0e-02 | 1 of 2 |" in text
    assert "Rewrites that lose time" not in text


def test_slow_cases_are_told_by_complaint(tmp_path: Path) -> None:
    naive = {"how": "naive", "macs_ratio": 2.0, "latency": {"1": timed(1.4, 1.3, 1.5)}}
    no = {"how": "ours", "exit_code": 2, "refused": "budget: x cannot be met: least 3; raise it"}
    case = {"complaint": "10: factored layers slower", "text": "a case", "answers": [naive, no]}
    content = {"environment": {"cpu": "a cpu"}, "cases": [case]}
    (tmp_path / "slow.json").write_text(json.dumps(content))
    text = table.write(tmp_path).read_text(encoding="utf-8")
    assert "### Factored layers slower" in text
    assert f"| a case | naive | 2.00{TIMES} | **1.40 [1.30, 1.50]** |  |" in text
    assert "refused, exit code 2: least 3 |" in text


def test_decisions_in_words() -> None:
    answer = {
        "ranks": [["a", 8, "vertical"], ["b", 16, "vertical"], ["c", 8, "vertical"]],
        "dense": ["d"],
        "layers": [{"verdict": "kept"}, {"verdict": "put back"}, {"verdict": "put back"}],
    }
    assert slow_table.decision(answer) == (
        "2 at rank 8 as vertical; 1 at rank 16 as vertical; 1 dense; 2 put back"
    )
    assert slow_table.decision({"exit_code": 5}) == "exit code 5"


# --- what is kept -----------------------------------------------------------------------------


def test_an_answer_is_kept_until_something_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = []

    def measure() -> dict[str, int]:
        measured.append(1)
        return {"a": len(measured)}

    def run(*told: str, code: str = "x") -> Any:
        return Kept(2, code, tmp_path)("step", told, measure, lambda answer: f"a {answer['a']}")

    assert run("1") == {"a": 1} == run("1")
    assert run("2") == {"a": 2}
    assert run("1", code="y") == {"a": 3}
    out = capsys.readouterr().out
    assert out.count("kept") == 1
    assert "[1/2] step" in out


def test_ratios_are_told_from_the_smallest_batch_on() -> None:
    assert latency_text({"32": {"ratio": 0.5}, "4": {"ratio": 0.456}}) == "0.46 / 0.50"
