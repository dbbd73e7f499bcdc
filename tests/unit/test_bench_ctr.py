"""The parts of the CTR benchmark that can be wrong without anybody seeing it."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from benchmarks.ctr import checks, measure, run, table, targets
from benchmarks.ctr.measure import Job
from benchmarks.ctr.references import GRID, SHIPPED, Training, Zoo
from benchmarks.ctr.variants import BARE, RECIPE, SAME_BYTES, VARIANTS, recipe_for

from builders import mlp, mlp_rows
from rankc.data import Batch
from rankc.passes.lowrank import LowRank
from rankc.recipe_load import load_recipe


def row(variant: str, seed: int, auc: float, size: float, **more: Any) -> dict[str, Any]:
    """A row as raw.json holds it, with what tables and targets read."""
    timed = {"1": {"ratio": 0.4}, "32": {"ratio": 0.3}, "256": {"ratio": 0.6}}
    return {
        "arch": "deepfm",
        "seed": seed,
        "variant": variant,
        "label": f"label of {variant}",
        "rows": 100,
        "ratios": {"size_bytes": size},
        "latency": timed if seed == 0 else {},
        "metrics": {
            "auc": {"original": 0.8, "difference": auc, "interval": [auc - 1e-4, auc + 1e-4]},
            "logloss": {"original": 0.4, "difference": 1e-5},
            "size_bytes": {"original": 1000},
            "max_abs_err": {"compressed": 2e-7},
        },
    } | more


def raw(*rows: dict[str, Any]) -> dict[str, Any]:
    site = {"site": "a", "deviation": 1e-4}
    cost = {"ratio": 1.4}
    one = {
        "blas_threads": None,
        "stages": {stage: {"wall_seconds": 1.5} for stage in table.STAGES},
        "seconds": 9.0,
        "model_bytes": 1_000_000,
        "peak_memory_bytes": 400_000_000,
        "children_peak_memory_bytes": 300_000_000,
        "sha256": {"model.onnx": "a", "plan.json": "b"},
    }
    return {
        "environment": {"cpu": "a cpu"},
        "rows": list(rows),
        "retraining": [],
        "checks": {
            "errors": {"deepfm": [site]},
            "calibration": {"deepfm": cost},
            "compiles": [one, copy.deepcopy(one), copy.deepcopy(one) | {"blas_threads": 1}],
        },
    }


def verdicts(found: dict[str, Any]) -> list[str]:
    return [target.verdict for target in targets.targets(found)]


def test_every_variant_is_a_recipe() -> None:
    names = [(variant.arch, variant.name) for variant in VARIANTS]
    assert len(set(names)) == len(names)
    for variant in VARIANTS:
        recipe = recipe_for(SHIPPED, variant.options)
        assert recipe.model == str(SHIPPED)
        assert variant.tool == "rankc" or not variant.options


def test_the_shipped_setting_is_the_recipe_itself() -> None:
    (shipped,) = [v for v in VARIANTS if (v.arch, v.name) == ("deepfm", "int8-12x")]
    assert recipe_for(SHIPPED, shipped.options).passes == load_recipe(RECIPE).passes
    assert shipped.options == ()
    assert not any(option.startswith(("passes", "budget", "seed")) for option in BARE)


def test_same_bytes_is_what_the_recipe_allows() -> None:
    (budget,) = load_recipe(RECIPE).budget
    assert budget.keep_ratio is not None
    allowed = int(budget.keep_ratio * SHIPPED.stat().st_size)
    assert f"budget={{max: {allowed}}}" == SAME_BYTES


def test_the_chosen_setting_is_the_best_on_held_out_rows(tmp_path: Path) -> None:
    for k, training in enumerate(GRID):
        scores = {"auc": 0.8 + (0.01 if k == 2 else 0.0), "logloss": 0.4}
        (tmp_path / f"{training.name}.json").write_text(json.dumps(scores))
    assert Zoo(tmp_path).choose(GRID) == GRID[2]
    assert len({training.name for training in GRID}) == len(GRID)


def test_the_shipped_model_is_not_trained_again(tmp_path: Path) -> None:
    assert Zoo(tmp_path).model(Training("deepfm", 0)) == SHIPPED


def job(**changes: Any) -> Job:
    (variant,) = [v for v in VARIANTS if (v.arch, v.name) == ("deepfm", "int8-12x")]
    return dataclasses.replace(Job(variant, 0, SHIPPED, SHIPPED, 60), **changes)


def test_a_row_is_kept_until_something_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def fake(job: Job, folder: Path) -> dict[str, Any]:
        measured.append(job.title)
        return {"variant": job.variant.name}

    monkeypatch.setattr(measure, "_measure", fake)
    assert measure.run(job(), tmp_path) == ({"variant": "int8-12x"}, True)
    assert measure.run(job(), tmp_path) == ({"variant": "int8-12x"}, False)
    assert measure.run(job(repeats=0), tmp_path)[1]
    other = dataclasses.replace(job().variant, options=("budget.keep_ratio=0.5",))
    assert measure.run(job(variant=other), tmp_path)[1]
    monkeypatch.setattr(measure, "sources", lambda: "changed")
    assert measure.run(job(), tmp_path)[1]
    assert len(measured) == 4


def test_a_target_names_what_does_not_hold() -> None:
    good = [row("float-5x", seed, -1e-4, 5.01) for seed in range(3)]
    assert verdicts(raw(*good))[0] == "yes"
    assert verdicts(raw(*good[:2], row("float-5x", 2, -4e-4, 5.0)))[0] == "**no**: seed 2"
    assert verdicts(raw(*good[:2], row("float-5x", 2, 4e-4, 4.9)))[0] == "**no**: size, seed 2"


def test_times_and_intervals_are_targets_too() -> None:
    found = raw(row("float-3x", 0, 4.5e-4, 3.1))
    assert verdicts(found)[0] == "**no**: seed 0, time at 256"


def test_checks_can_fail() -> None:
    assert verdicts(raw()) == ["yes"] * 5
    found = raw()
    found["checks"]["errors"]["deepfm"][0]["deviation"] = 0.011
    found["checks"]["calibration"]["deepfm"]["ratio"] = 1.51
    one = found["checks"]["compiles"][1]
    one["stages"]["plan"]["wall_seconds"] = 4.5
    one["peak_memory_bytes"] = 600_000_000
    one["sha256"]["plan.json"] = "c"
    assert verdicts(found) == ["**no**: deepfm"] * 2 + ["**no**"] * 3


def test_the_table_is_written_from_raw_data_alone(tmp_path: Path) -> None:
    rows = [row("int8-12x", 0, -1.4e-4, 12.05), row("int8-12x", 2, 2e-5, 12.01)]
    (tmp_path / "raw.json").write_text(json.dumps(raw(*rows)))
    first = table.write(tmp_path).read_bytes()
    assert table.write(tmp_path).read_bytes() == first
    text = first.decode()
    assert (
        "| label of int8-12x | 12.01\N{MULTIPLICATION SIGN} | "
        "\N{MINUS SIGN}0.00014 [\N{MINUS SIGN}0.00024, \N{MINUS SIGN}0.00004] | "
        "+0.00002 [\N{MINUS SIGN}0.00008, +0.00012] | \N{MINUS SIGN}0.00006 | +0.00001 | "
        "0.40 / 0.30 / 0.60 |"
    ) in text


def test_lost_share_is_the_share_of_variance() -> None:
    model, rows = mlp(), mlp_rows()
    site = next(s for s in LowRank(min_size=64, round_to=1).match(model) if hasattr(s, "shape"))
    names = (str(next(n for n in model.graph if n.name == site.name).outputs[0].name),)
    batches = [Batch({"x": rows[:100]}, None), Batch({"x": rows[100:]}, None)]
    assert checks.lost_share(model, model, names, batches) == 0.0
    halved = model.clone()
    for value in halved.graph.initializers.values():
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy() * np.float32(0.5))
    first = checks.lost_share(model, halved, names, batches)
    assert 0.2 < first < 10  # a quarter of the energy, which is at least a quarter of the variance


def test_deviation_is_relative() -> None:
    assert checks.deviation(0.2, 0.202) == pytest.approx(0.01)
    assert checks.deviation(0.0, 0.0) == 0.0
    assert checks.deviation(0.0, 1e-9) > 1


def test_wrong_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for argv, said in ((["--arch", "bert"], "choose from"), (["--seeds", "a"], "whole numbers")):
        with pytest.raises(SystemExit):
            run.options(argv)
        assert said in capsys.readouterr().err
    assert run.options(["--quick"]).out != table.RESULTS
    assert run.options([]).out == table.RESULTS
