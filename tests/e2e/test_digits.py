"""The digits recipe through the command line: a convolutional net at half its arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rankc.__main__ import main
from rankc.errors import Exit

RECIPE = Path(__file__).parents[2] / "recipes" / "digits-lowrank.yaml"
QUICK = (
    "--set", "latency.repeats=5", "--set", "refit.rows=256",
    "--set", "timing.revert=false",  # what pays here and now would decide on the bytes
)  # fmt: skip


def test_digits_keep_their_accuracy_at_half_the_macs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = []
    for name in ("first", "second"):
        out = tmp_path / name
        assert main(["compile", str(RECIPE), *QUICK, "--out", str(out)]) == Exit.OK
        models.append((out / "model.onnx").read_bytes())
    assert models[0] == models[1]  # refitting draws patches, from the recipe's seed
    assert "  refit " in capsys.readouterr().out
    metrics = json.loads((out / "metrics.json").read_text("utf-8"))
    assert metrics["ratios"]["macs"] >= 2
    plan = json.loads((out / "plan.json").read_text("utf-8"))
    assert len({choice["form"] for choice in plan["choices"]}) > 1
    assert {limit["unit"] for limit in plan["limits"]} == {"macs"}


def test_too_few_images_are_told_with_the_number_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("--set", "data.calibration.rows=20", "--out", str(tmp_path / "out"))
    assert main(["compile", str(RECIPE), *few]) == Exit.USAGE
    told = capsys.readouterr().err
    assert "20 images are too few" in told
    assert "needs the most: at least 145" in told  # 64 x 3 x 3 pixels in a patch, 4 places
    assert not (tmp_path / "out").exists()
