from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import rich.console

import rankc.pipeline
from builders import mlp, mlp_rows
from rankc.__main__ import main
from rankc.console import Console
from rankc.errors import DataError, Exit, MachineError, ModelError, RecipeError
from rankc.pipeline import Result
from rankc.planning import Limit, Plan
from rankc.recipe_load import ALL_PASSES

RECIPE = """\
name: tiny
model: model.onnx
data: {calibration: {path: rows.npz}}
passes: [{lowrank: {min_size: 64}}]
budget: {unit: parameters, keep_ratio: 0.95}
"""
PLAN = Plan(choices=(), skips=(), limits=(Limit("bytes", None, 10),), loss=0.0, bound=0.0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a recipe, its model and its data."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "tiny.yaml").write_text(RECIPE, "utf-8")
    ir.save(mlp(rank=4), tmp_path / "recipes" / "model.onnx")
    np.savez(tmp_path / "recipes" / "rows.npz", x=mlp_rows())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException | Result], None]:
    """Let the pipeline end in a given way, however it would get there."""

    def end(outcome: BaseException | Result) -> None:
        def compile_recipe(*_: Any, **__: Any) -> Result:
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        monkeypatch.setattr(rankc.pipeline, "compile_recipe", compile_recipe)

    return end


End = Callable[[BaseException | Result], None]
Capture = pytest.CaptureFixture[str]


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )


def test_help_needs_none_of_the_packages() -> None:
    done = python(
        "import sys\n"
        "for name in ('numpy', 'onnx', 'onnx_ir', 'pydantic', 'yaml', 'rich', 'onnxruntime'):\n"
        "    sys.modules[name] = None\n"  # importing it raises
        "from rankc.__main__ import main\n"
        "main(['compile', '--help'])\n"
    )
    assert done.returncode == 0, done.stderr
    assert "--trust-recipe-code" in done.stdout


def test_a_missing_package_is_told_with_the_command_that_gets_it() -> None:
    done = python(
        "import sys\n"
        "sys.modules['onnx_ir'] = None\n"
        "from rankc.__main__ import main\n"
        "sys.exit(main(['passes']))\n"
    )
    assert done.returncode == Exit.ENVIRONMENT
    assert "pip install 'rankc[compiler,cpu]'" in done.stderr


ENDS: list[tuple[BaseException, Exit, str]] = [
    (RecipeError("a.yaml:3: b: unknown option\n  did you mean 'c'?"), Exit.USAGE, "a.yaml:3"),
    (DataError("x.npz: nothing"), Exit.USAGE, "x.npz: nothing"),
    (ModelError("m.onnx: corrupt"), Exit.MODEL, "m.onnx: corrupt"),
    (MachineError("no disk"), Exit.ENVIRONMENT, "no disk"),
    (KeyboardInterrupt(), Exit.INTERRUPTED, "interrupted; nothing was written"),
    (MemoryError(), Exit.ENVIRONMENT, "out of memory"),
    (OSError(errno.ENOSPC, "No space left on device", "build/x"), Exit.ENVIRONMENT, "No space"),
    (PermissionError(errno.EACCES, "Permission denied", "out"), Exit.ENVIRONMENT, "denied: out"),
    (ZeroDivisionError("division by zero"), Exit.INTERNAL, "ZeroDivisionError: division"),
    (ModuleNotFoundError("x", name="tensorrt_rtx"), Exit.ENVIRONMENT, "'tensorrt_rtx' is not inst"),
]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(("error", "code", "says"), ENDS)
def test_every_error_has_its_exit_code_and_last_line(
    stages: End, capsys: Capture, error: BaseException, code: Exit, says: str
) -> None:
    stages(error)
    assert main(["compile", "tiny"]) == code
    out, err = capsys.readouterr()
    assert out.splitlines()[-1].startswith("FAILED | ")
    assert says in out
    assert "Traceback" not in err
    if code != Exit.INTERRUPTED:
        assert err.startswith("error: ")
    assert ("did you mean" in err) == isinstance(error, RecipeError)
    assert ("--debug" in err) == (code == Exit.INTERNAL)


@pytest.mark.usefixtures("folder")
def test_debug_shows_the_traceback(stages: End, capsys: Capture) -> None:
    stages(ZeroDivisionError("division by zero"))
    assert main(["compile", "tiny", "--debug"]) == Exit.INTERNAL
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.usefixtures("folder")
def test_with_json_an_error_leaves_standard_output_empty(stages: End, capsys: Capture) -> None:
    stages(ModelError("corrupt"))
    assert main(["compile", "tiny", "--json"]) == Exit.MODEL
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("error: corrupt\nFAILED | corrupt\n")


def test_failed_gates_decide_the_exit_code(folder: Path, stages: End, capsys: Capture) -> None:
    result = Result(Exit.ACCURACY, "auc fell by 0.0031", None, PLAN, folder / "out", 2.34)
    stages(result)
    assert main(["compile", "tiny", "--quiet"]) == Exit.ACCURACY
    assert capsys.readouterr().out == "FAILED | auc fell by 0.0031\n"
    stages(dataclasses.replace(result, exit_code=Exit.OK, summary=""))
    assert main(["compile", "tiny", "--quiet", "--set", "seed=3", "--out", "a b"]) == Exit.OK
    last = "PASSED | 2.3 s | rankc compile recipes/tiny.yaml --set seed=3 --out 'a b'\n"
    assert capsys.readouterr().out == last


def test_a_plan_end_to_end(folder: Path, capsys: Capture) -> None:
    assert main(["plan", "tiny"]) == Exit.OK
    text = capsys.readouterr().out
    assert re.search(r"lowrank +up +16 x 24 +\d+ of 16", text)
    assert text.splitlines()[-1].startswith("PASSED | ")
    assert main(["compile", "tiny", "--dry-run", "--json"]) == Exit.OK
    out, err = capsys.readouterr()
    assert json.loads(out)["format"] == 2
    assert err.splitlines()[-1].startswith("PASSED | ")
    assert not (folder / "build").exists()


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["compile", "tinny"], "no recipe 'tinny'\n  did you mean 'tiny'? recipes: tiny"),
        (["compile", "recipes/none.yaml"], "recipes/none.yaml: cannot read the recipe"),
        (["plan", "tiny", "--set", "sed=1"], "--set sed=1: sed: unknown option"),
        (["plan", "tiny", "--sett", "seed=1"], "unrecognized arguments: --sett"),
        (["compile"], "the following arguments are required: recipe"),
        (["compil", "tiny"], "invalid choice: 'compil'"),
        ([], "required: COMMAND"),
    ],
)
def test_wrong_usage_is_told(capsys: Capture, argv: list[str], says: str) -> None:
    assert main(argv) == Exit.USAGE
    out, err = capsys.readouterr()
    assert says in err
    assert out.startswith("FAILED | ")


def test_inspect_shows_sites_and_refusals(folder: Path, capsys: Capture) -> None:
    model = str(folder / "recipes" / "model.onnx")
    assert main(["inspect", model, "--json"]) == Exit.OK
    found = json.loads(capsys.readouterr().out)
    assert found["opset"] == 18
    assert found["nodes"]["MatMul"] == 1
    assert found["parameters"] == 16 * 24 + 24 * 8 + 8
    refused = {skip["name"]: skip["reason"] for skip in found["skips"]}
    assert "min_size" in refused["down"]
    assert main(["inspect", model]) == Exit.OK
    text = capsys.readouterr().out
    assert "opset 18" in text
    assert "left alone: down (lowrank:" in text


def test_inspect_tells_what_is_wrong_with_a_model(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "model.onnx").write_bytes(b"hello")
    assert main(["inspect", str(tmp_path / "model.onnx")]) == Exit.MODEL
    assert capsys.readouterr().err.startswith("error: ")


def test_passes_lists_every_pass_with_its_options(capsys: Capture) -> None:
    assert main(["passes", "--json"]) == Exit.OK
    found = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert set(found) == {kind.name for kind in ALL_PASSES}
    options = {option["name"]: option for option in found["embedding"]["options"]}
    assert options["int8"]["default"] == "false"
    assert main(["passes"]) == Exit.OK
    assert "embedding: " in capsys.readouterr().out


def test_schema_goes_to_a_file_or_standard_output(tmp_path: Path, capsys: Capture) -> None:
    assert main(["schema"]) == Exit.OK
    text = capsys.readouterr().out
    assert json.loads(text)["title"] == "A rankc recipe"
    assert main(["schema", "--out", str(tmp_path / "s.json")]) == Exit.OK
    assert (tmp_path / "s.json").read_text("utf-8") == text
    (tmp_path / "r.md").write_text("Mine.\n", "utf-8")
    for _ in range(2):
        assert main(["schema", "--docs", "--out", str(tmp_path / "r.md")]) == Exit.OK
    page = (tmp_path / "r.md").read_text("utf-8")
    assert page.startswith("Mine.\n<!--")
    assert page.count("## Top level") == 1


def drawn(terminal: bool, *, quiet: bool = False, fail: bool = False) -> str:
    file = io.StringIO()
    screen = rich.console.Console(file=file, force_terminal=terminal, width=100, highlight=False)
    console = Console(quiet=quiet, console=screen)
    with contextlib.suppress(ZeroDivisionError), console.stage("calibrate") as stage:
        stage.advance(1, 2)
        stage.note("32,000 rows [one pass] " + 90 * "x")
        assert 1 / (0 if fail else 1)
    return file.getvalue()


def test_a_stage_is_one_plain_line_when_piped() -> None:
    line = r"  calibrate +0\.0 s   32,000 rows \[one pass\] x{90}\n"
    assert re.fullmatch(line, drawn(terminal=False))


def test_a_long_stage_tells_a_line_a_minute_when_piped(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a step every 25 seconds; a training that goes on from step 10 tells its own pace."""
    now = [0.0]
    monkeypatch.setattr("rankc.console.time.monotonic", lambda: now[0])
    file = io.StringIO()
    console = Console(console=rich.console.Console(file=file, width=100, highlight=False))
    with console.stage("recover") as stage:
        for done in range(10, 20):
            now[0] += 25
            stage.advance(done, 40)
            stage.note(f"epoch {done}")
        stage.note("done")
    assert file.getvalue().splitlines() == [
        "  recover      30 %, 0:11:40 left   epoch 11",
        "  recover      37 %, 0:10:25 left   epoch 14",
        "  recover      45 %, 0:09:10 left   epoch 17",
        "  recover      250.0 s   done",
    ]


def test_a_stage_that_fails_says_so() -> None:
    assert re.fullmatch(r"  calibrate +0\.0 s   stopped\n", drawn(terminal=False, fail=True))


def test_a_terminal_shows_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "50%" in drawn(terminal=True)


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", drawn(terminal=True, fail=True))


def test_quiet_shows_no_stages() -> None:
    assert drawn(terminal=False, quiet=True) == ""
    assert drawn(terminal=True, quiet=True) == ""
