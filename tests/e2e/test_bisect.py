"""A fault is planted, and `rankc bisect` has to name it. All of them: benchmarks/validation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from benchmarks.validation.faults import Planted, faulty_pass, project, spoil_file

from projects import Done, command
from rankc.bisecting import measuring
from rankc.errors import Exit


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """Compiled without a fault; not to be changed."""
    made = project(tmp_path_factory.mktemp("clean") / "project")
    assert compiled(made).code == Exit.OK
    return made


@pytest.fixture
def copy(clean: Planted, tmp_path: Path) -> Planted:
    return Planted(Path(shutil.copytree(clean.folder, tmp_path / "project")))


def compiled(made: Planted, *options: str) -> Done:
    return command("compile", str(made.recipe), "--out", str(made.bundle), *options)


def bisected(made: Planted, *options: str) -> Done:
    return command("bisect", str(made.bundle), "--recipe", str(made.recipe), *options)


def finding(made: Planted) -> dict[str, Any]:
    """The only one."""
    done = bisected(made, "--json")
    assert done.code == Exit.OK, done.err
    (only,) = json.loads(done.out)["findings"]
    return dict(only)


@pytest.mark.parametrize(
    ("layer", "fault", "tensor"),
    [("up0", "bias", "up0.b"), ("down9", "transposed", "down9.A"), ("up6", "bias", "up6.b")],
)
def test_a_layer_that_differs_in_the_file_is_named(
    copy: Planted, layer: str, fault: str, tensor: str
) -> None:
    spoil_file(copy.bundle, layer, fault)
    found = finding(copy)
    assert (found["level"], found["pass"], found["layer"]) == ("file", "lowrank", layer)
    assert found["what"] == tensor
    assert found["without"] < found["with"] / 10


def test_two_faults_are_named_the_worse_first(copy: Planted) -> None:
    spoil_file(copy.bundle, "up0", "transposed")  # 0.004 by itself
    spoil_file(copy.bundle, "down7", "bias")  # 1.3
    done = bisected(copy, "--json")
    assert [one["layer"] for one in json.loads(done.out)["findings"]] == ["down7", "up0"]


def test_a_pass_that_makes_a_mistake_is_told_from_a_low_rank(tmp_path: Path) -> None:
    made = project(tmp_path / "project")
    with faulty_pass("down3", "bias"):
        assert compiled(made, "--quiet").code == Exit.ACCURACY
        found = finding(made)
    assert (found["level"], found["layer"], found["cause"]) == ("graph", "down3", "pass")
    assert "report" in found["advice"]


def test_a_rank_that_is_too_low_is_named_and_the_recipe_mended(tmp_path: Path) -> None:
    made = project(tmp_path / "project")
    with faulty_pass("up5", "rank"):
        assert compiled(made, "--quiet").code == Exit.ACCURACY
        found = finding(made)
        assert (found["level"], found["layer"], found["cause"]) == ("graph", "up5", "rank too low")
        assert found["what"] == "rank 1 of 32"
        ignore, floor = found["changes"]
        assert ignore == {"key": "passes[0].lowrank.ignore", "value": ["logit", "up5"]}
        assert floor["key"] == "planning.floor"
        assert 1 / 32 < floor["value"] < 0.5


def test_a_layer_that_overflows_in_float16_is_named(tmp_path: Path) -> None:
    layer = "down8"
    made = project(tmp_path / "project", overflow=layer)
    assert compiled(made, "--quiet").code == Exit.OK  # ONNX Runtime on a CPU does not overflow
    found = finding(made)
    assert (found["level"], found["layer"], found["cause"]) == ("precision", layer, "overflow")
    assert found["changes"] == [{"key": "lower[0].precision", "value": "fp32"}]
    assert found["with"] is None  # no number: NaN


def test_factors_that_overflow_where_the_original_does_not_are_named(tmp_path: Path) -> None:
    made = project(tmp_path / "project", half=True)
    with faulty_pass("up6", "scaled"):
        assert compiled(made, "--quiet").code == Exit.OK
        found = finding(made)
    assert (found["level"], found["layer"], found["cause"]) == ("precision", "up6", "overflow")
    assert found["pass"] == "lowrank"
    assert found["what"] == "up6.A in float16"
    assert "the original does well in float16" in found["why"]


def test_it_is_told_in_words(copy: Planted) -> None:
    spoil_file(copy.bundle, "down2", "bias")
    done = bisected(copy)
    assert done.code == Exit.OK
    assert "kl_div on 1,024 validation rows, from the original's" in done.out
    assert "the gate allows 0.0002" in done.out
    assert "file: all of it comes from lowrank:down2 (down2.b): swapping it back leaves" in done.out
    assert "down2.b differs from what the plan makes in 32 of 32 numbers" in done.out
    assert done.last.startswith("PASSED | ")
    assert "file: lowrank:down2, file" in done.last


def test_without_a_drop_there_is_nothing_to_bisect(clean: Planted) -> None:
    done = bisected(clean, "--metric", "accuracy_top1")
    assert done.code == Exit.OK
    assert "nothing to bisect: accuracy_top1 is no worse than before" in done.out


def test_fewer_rows_are_said(copy: Planted) -> None:
    spoil_file(copy.bundle, "down2", "bias")
    done = bisected(copy, "--rows", "100")
    assert "on 100 validation rows" in done.out


def test_an_interruption_leaves_what_is_known(
    copy: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_file(copy.bundle, "down2", "bias")
    measured = measuring.Bench.model

    def interrupted(self: measuring.Bench, *arguments: Any, **options: Any) -> measuring.Seen:
        if self.runs == 4:
            raise KeyboardInterrupt
        return measured(self, *arguments, **options)

    monkeypatch.setattr(measuring.Bench, "model", interrupted)
    done = bisected(copy)
    assert done.code == Exit.INTERRUPTED
    assert "the gate allows" in done.out
    assert done.last == "FAILED | interrupted; above is what was known by then"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--metric", "auc"), "--metric auc: measured here are "),
        (("--rows", "0"), "--rows 0"),
        (("--recipe", "nowhere.yaml"), "nowhere.yaml"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    clean: Planted, options: tuple[str, ...], words: str
) -> None:
    done = bisected(clean, *options)
    assert done.code == Exit.USAGE
    assert words in done.err
    assert done.last.startswith("FAILED | ")


def test_a_damaged_bundle_is_refused(copy: Planted) -> None:
    path = copy.bundle / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    done = bisected(copy)
    assert done.code == Exit.MODEL
    assert "model.onnx" in done.err


def test_without_validation_data_nothing_can_be_compared(copy: Planted) -> None:
    recipe = yaml.safe_load(copy.recipe.read_text("utf-8"))
    del recipe["data"]["validation"], recipe["gates"]
    copy.recipe.write_text(yaml.safe_dump(recipe), "utf-8")
    done = bisected(copy)
    assert done.code == Exit.USAGE
    assert "data.validation" in done.err
