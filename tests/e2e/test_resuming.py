"""A compile that trains and was cut off: gone on from by itself, insisted on, or started anew."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from projects import Done, Project, command
from rankc.errors import Exit
from training_projects import CONV, MAESTRO, STEPS, TRP, model_bytes, trained, training

LONG: dict[str, Any] = {"epochs": 12, "lr": 0.01, "evaluate": 0.4, "checkpoint": 0}
SMALLER = {"metric": "macs_ratio", "goal": "threshold", "value": 1.2}
ANEW = "the training starts anew"


def compiled(made: Project, *options: str) -> Done:
    done = made.rankc("compile", *options)
    assert done.code == Exit.OK, done.out + done.err
    return done


def stage_line(done: Done, stage: str) -> str:
    (line,) = [one for one in done.out.splitlines() if one.startswith(f"  {stage} ")]
    return line


def cut_off(made: Project, how: int) -> tuple[int, str]:
    """End a compile by a signal, when some steps of its training are in a checkpoint."""
    process = made.process(env={**os.environ, "PYTHONUNBUFFERED": "1"})
    try:
        until(lambda: any(training(made).glob("*.checkpoint")) or process.poll() is not None)
        process.send_signal(how)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, out + err


def until(there: Callable[[], bool]) -> None:
    ends = time.monotonic() + 60
    while not there() and time.monotonic() < ends:
        time.sleep(0.002)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of another kind")
@pytest.mark.parametrize(
    ("key", "how"),
    [
        pytest.param("train", TRP, id="trp"),
        pytest.param("train", MAESTRO, id="maestro", marks=pytest.mark.slow),
        pytest.param("recover", CONV, id="recover", marks=pytest.mark.slow),
    ],
)
def test_killed_in_the_midst_of_training_and_gone_on(tmp_path: Path, key: str, how: Any) -> None:
    """kill -9, then the same command: the bytes of a compile that was never killed."""
    whole, cut = (trained(tmp_path / name, how).set(**{key: LONG}) for name in ("whole", "cut"))
    compiled(whole)
    code, told = cut_off(cut, signal.SIGKILL)
    assert code == -signal.SIGKILL, told
    assert not cut.out.exists()
    (training(cut) / f".{key}.checkpoint-0a1b2c3d").write_bytes(b"killed while it was written")
    done = compiled(cut, "--resume")
    assert not list(training(cut).glob(".*")), "nobody would ever read it"
    assert "gone on from step" in stage_line(done, key)
    assert f"gone on from step {12 * STEPS // 2}" not in done.out, "it was killed at the end"
    assert model_bytes(cut) == model_bytes(whole)
    assert cut.metrics["training"][0]["looks"] == whole.metrics["training"][0]["looks"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals of another kind")
def test_ctrl_c_says_where_what_was_trained_lies(tmp_path: Path) -> None:
    made = trained(tmp_path / "project", TRP, train=LONG)
    code, told = cut_off(made, signal.SIGINT)
    assert code in (Exit.INTERRUPTED, -signal.SIGINT), told
    last = f"FAILED | interrupted; {training(made)} has what was trained, run it again to go on"
    assert told.splitlines()[-1] == last
    assert "gone on from step" in stage_line(compiled(made), "train")


def test_a_compile_goes_on_from_a_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both verbs that only plan train, keep it, and recover nothing."""
    made = trained(tmp_path / "project", TRP, recover={"epochs": 1, "lr": 0.01})
    monkeypatch.chdir(tmp_path)
    first = made.rankc("compile", "--dry-run")
    assert first.code == Exit.OK, first.out + first.err
    assert "  train " in first.out
    assert "  recover " not in first.out
    assert not made.out.exists()
    line = stage_line(compiled(made), "train")
    assert f"gone on from step {STEPS}" in line
    planned = command("plan", str(made.recipe))
    assert "gone on" not in planned.out, "it looks beside build/<recipe>"
    assert f"gone on from step {STEPS}" in command("plan", str(made.recipe)).out
    assert [p.name for p in (tmp_path / "build").iterdir()] == ["trained.training"]


def test_another_budget_trains_nothing(tmp_path: Path) -> None:
    """A finished training serves every budget: its checkpoint stays, those of recoveries go."""
    made = trained(tmp_path / "project", TRP, recover={"epochs": 1, "lr": 0.01})
    compiled(made)
    first = model_bytes(made)
    assert [path.name for path in training(made).iterdir()] == ["train.checkpoint"]
    done = compiled(made, "--set", "budget.keep_ratio=0.5")
    assert f"gone on from step {STEPS}" in stage_line(done, "train")
    assert "gone on" not in stage_line(done, "recover")
    assert model_bytes(made) != first
    other = trained(tmp_path / "other", TRP, recover={"epochs": 1, "lr": 0.01})
    compiled(other, "--set", "budget.keep_ratio=0.5")
    assert model_bytes(made) == model_bytes(other), "as if it had been trained for this budget"


def test_another_training_starts_anew_or_is_refused(tmp_path: Path) -> None:
    made = trained(tmp_path / "project", TRP)
    compiled(made)
    kept = made.bundle()
    other = ("--set", "train.lr=0.02")
    done = made.rankc("compile", "--resume", *other)
    assert done.code == Exit.USAGE
    assert "nothing to resume: " in done.last
    assert "train.checkpoint is of another recipe" in done.last
    assert made.bundle() == kept
    assert ANEW in stage_line(compiled(made, *other), "train")
    assert f"gone on from step {STEPS}" in stage_line(compiled(made, "--resume", *other), "train")


def test_fresh_deletes_what_was_trained(tmp_path: Path) -> None:
    made = trained(tmp_path / "project", TRP)
    compiled(made)
    first = model_bytes(made)
    line = stage_line(compiled(made, "--fresh"), "train")
    assert "gone on" not in line
    assert ANEW not in line
    assert model_bytes(made) == first


@pytest.mark.parametrize(
    ("verb", "changes", "looked"),
    [
        ("compile", {}, "bundle.training"),
        ("search", {"search": {"steps": 1}, "gates": [SMALLER]}, "bundle.search.json and "),
        ("family", {}, "family.json and "),
    ],
)
def test_nothing_to_resume(tmp_path: Path, verb: str, changes: dict[str, Any], looked: str) -> None:
    made = trained(tmp_path / "project", TRP, **changes)
    keep = ("--keep", "0.6") if verb == "family" else ()
    done = command(verb, str(made.recipe), "--out", str(made.out), *keep, "--resume")
    assert done.code == Exit.USAGE
    assert done.last.startswith("FAILED | --resume: nothing to resume, looked for ")
    assert looked in done.last
    assert not made.out.exists()


def test_nothing_that_could_be_resumed(tmp_path: Path) -> None:
    made = trained(tmp_path / "project", CONV)
    made.edit(lambda tree: tree["data"].pop("training"))
    done = made.rankc("compile", "--resume")
    assert done.code == Exit.USAGE
    assert "the recipe trains and searches nothing" in done.last
    assert made.rankc("compile", "--resume", "--fresh").code == Exit.USAGE


def test_a_family_is_made_anew(tmp_path: Path) -> None:
    made = trained(tmp_path / "project", MAESTRO).without_validation()
    asked = ("family", str(made.recipe), "--out", str(made.out), "--keep", "0.7")
    assert command(*asked).code == Exit.OK
    again = command(*asked, "--resume")
    assert "is there, made from the same" in again.out
    fresh = command(*asked, "--fresh")
    assert fresh.code == Exit.OK
    assert "is there" not in fresh.out
    assert "gone on" not in stage_line(fresh, "train")


def test_a_search_of_another_recipe_is_not_resumed(small: Project) -> None:
    state = small.out.with_name("bundle.search.json")
    state.parent.mkdir(parents=True)
    state.write_text("{}")
    done = command("search", str(small.recipe), "--out", str(small.out), "--resume")
    assert done.code == Exit.USAGE
    assert f"nothing to resume: {state} is of another recipe" in done.last
    fresh = command("search", str(small.recipe), "--out", str(small.out), "--fresh", "--dry")
    assert fresh.code == Exit.USAGE, "no such option, and nothing deleted yet"
    assert state.exists()
