"""The parts of the EfficientNet benchmark that can be wrong without anybody seeing it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from benchmarks.cnn import cost, efficientnet, efficientnet_table, table
from PIL import Image

from conv_builders import convnet
from rankc.recipe_load import build_passes, load_recipe
from rankc.report.text import DASH, TIMES


def row(name: str, cosine: float, agree: float, macs: float) -> dict[str, Any]:
    """A row as efficientnet.json holds it, with what the table reads."""
    return {
        "variant": name,
        "label": f"label of {name}",
        "fewer": 0.1,
        "ratios": {"macs": macs},
        "latency": {"1": {"ratio": 0.94}, "8": {"ratio": 0.95}},
        "metrics": {
            "cosine": {"compressed": cosine},
            "top1_agreement": {"compressed": agree, "interval": [agree - 1.02, agree - 0.98]},
        },
    }


def test_every_variant_is_a_recipe_at_its_size(tmp_path: Path) -> None:
    jobs = efficientnet.jobs(tmp_path, quick=False)
    assert len({job.title for job in jobs}) == len(jobs)
    assert len(jobs) == len(efficientnet.FEWER) * len(efficientnet.VARIANTS)
    for job in jobs:
        recipe, judge = job.recipe, job.judge
        assert recipe.data.calibration.path == str(tmp_path / "calibration")
        assert judge.data.validation is not None
        assert judge.data.validation.path == str(tmp_path / "validation")
        (budget,) = recipe.budget
        assert budget.unit == "macs" and budget.keep_ratio == pytest.approx(1 - job.fewer)
        (pass_,) = build_passes(recipe)
        assert job.variant.baseline == (getattr(pass_, "method") == "svd")  # noqa: B009
        assert recipe.refit is None or not job.variant.baseline
    quick = efficientnet.jobs(tmp_path, quick=True)
    assert {job.fewer for job in quick} == {0.1} and len(quick) < len(efficientnet.VARIANTS)
    for _, options in cost.VARIANTS:
        load_recipe(cost.RECIPE, options)


def test_the_table_says_what_the_images_were_and_what_was_refused() -> None:
    raw = {
        "environment": {"cpu": "a cpu"},
        "images": {
            "about": "pictures of ants",
            "calibration": {"images": 240},
            "validation": {"images": 1300},
        },
        "rows": [
            row("ours", 0.93, 0.85, 1.25),
            {"label": "spatial", "fewer": 0.1, "refused": "budget: 1 MACs cannot be met"},
        ],
    }
    text = table.render({"efficientnet": raw})
    words = " ".join(text.split())
    assert "Images: pictures of ants; 240 to calibrate on, 1,300 others to compare on." in words
    assert "### 10 % fewer multiply-accumulates" in text
    assert "| label of ours | 20.0 % | 0.930 | 85.0 % [83.0, 87.0] | 0.94 | 0.95 |" in text
    assert f"| spatial | refused: no plan is so small | {DASH} |" in text
    assert "Measured on: cpu a cpu." in text


def test_costs_are_told_beside_what_they_may_be() -> None:
    one = {
        "label": "the recipe",
        "images": 480,
        "plain_seconds": [2.0, 4.0, 2.0],
        "calibration_seconds": [3.0, 6.4, 4.0],
        "planning_seconds": [1.0, 2.0, 1.2],
        "model_bytes": 10 << 20,
        "peak_memory_bytes": 500 << 20,
    }
    text = "\n".join(efficientnet_table.cost({"variants": [one]}))
    assert f"| at most | 1.6{TIMES} | 2{TIMES} | 1,064 MiB |" in text
    assert f"| the recipe | 1.60{TIMES} (1.50 to 2.00) | 0.50{TIMES} (0.50 to 0.60) |" in text
    assert "480 calibration images" in text and "median of 3 " in text


def test_a_row_is_measured_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a small net and small images, in the place of the large ones."""
    folder, rng = tmp_path / "model", np.random.default_rng(0)
    folder.mkdir()
    ir.save(convnet(), folder / "model.onnx")
    text = (
        "name: small\nmodel: model/model.onnx\n"
        "data: {calibration: {path: x.npz}, validation: {path: y.npz}}\n"
        "passes: [conv: {min_size: 64, round_to: 1}]\n"
    )
    (tmp_path / "small.yaml").write_text(text, encoding="utf-8")
    for part in efficientnet.PARTS:
        rows = rng.normal(size=(32, 4, 9, 11)).astype(np.float32)
        np.savez(tmp_path / f"{part}.npz", x=rows)
    monkeypatch.setattr(efficientnet, "RECIPE", tmp_path / "small.yaml")
    monkeypatch.setattr(efficientnet, "MODEL", folder)
    monkeypatch.setattr(efficientnet, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(efficientnet, "BATCH_SIZES", (1,))
    monkeypatch.setattr(
        efficientnet, "_path", lambda part, job: f"data.{part}.path={job.images / part}.npz"
    )
    ours = efficientnet.Variant("ours", "ours", ("timing={revert: false}",))
    found = efficientnet.measured(efficientnet.Job(ours, 0.2, tmp_path, repeats=1))
    assert found["ratios"]["macs"] >= 1.25 and found["layers"] and found["rows"] == 32
    assert 0.5 < found["metrics"]["cosine"]["compressed"] < 1
    assert "% agree" in efficientnet.line(found) and json.dumps(found)
    tiny = efficientnet.measured(efficientnet.Job(ours, 0.99, tmp_path, repeats=1))
    assert "cannot be met" in tiny["refused"] == efficientnet.line(tiny)


def test_what_is_missing_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "calibration").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "calibration" / "a.png")
    assert efficientnet.main(["--images", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "is not there" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
