"""A training that is killed goes on to the bytes it would have come to."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rankc.errors import MachineError, RecipeError
from rankc.progress import SilentProgress, Stage
from rankc.train.checkpoint import Checkpoint
from rankc.train.history import History
from rankc.train.interpreter import Interpreter
from rankc.train.loop import train
from rankc.train.rows import Rows
from rankc.train.teacher import Teacher
from train import training_job
from train.nets import Noisy, convnet, digest, image_rows

TESTS = Path(training_job.__file__).parents[1]
ROOT = TESTS.parent


def _job(folder: Path, optimizer: str) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    found = [ROOT / "compiler", ROOT / "runtime", TESTS]
    return subprocess.Popen(
        [sys.executable, training_job.__file__, str(folder), optimizer],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, found))},
    )


def _kill_after(folder: Path, optimizer: str, step: int) -> None:
    job = _job(folder, optimizer)
    assert job.stdout is not None
    for line in job.stdout:
        if int(line) >= step:
            job.send_signal(signal.SIGKILL)
            break
    assert job.wait() == -signal.SIGKILL
    job.stdout.close()


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_killed_and_resumed_is_as_never_killed(optimizer: str, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    _kill_after(cut, optimizer, 7)
    _kill_after(cut, optimizer, 19)
    for folder in (whole, cut):
        job = _job(folder, optimizer)
        job.communicate()
        assert job.returncode == 0
    assert (cut / "resumed").read_text().startswith("gone on from step")
    assert not (whole / "resumed").read_text()
    assert (cut / "final").read_text() == (whole / "final").read_text()


class _StopsError(Exception):
    pass


class _Stops:
    """A stage that ends the training after a step."""

    def __init__(self, step: int, stop: Callable[[], None]) -> None:
        self._step, self._stop = step, stop

    def advance(self, done: int, total: int | None = None) -> None:
        if done == self._step:
            self._stop()

    def note(self, text: str) -> None: ...


def _raise() -> None:
    raise _StopsError


def _train(net: Interpreter, rows: Rows, path: Path | None, **changes: Any) -> History:
    settings = dataclasses.replace(training_job.settings("sgd"), **changes.pop("settings", {}))
    with SilentProgress().stage("train") as silent:
        stage: Stage = changes.pop("stage", silent)
        return train(
            net, rows, settings, seed=changes.pop("seed", 3), teacher=Teacher(convnet(1)),
            hooks=[Noisy()], stage=stage, checkpoint=path, resume=path is not None, **changes,
        )  # fmt: skip


def _cut_off(path: Path, step: int, rows: Rows) -> None:
    with pytest.raises(_StopsError):
        _train(Interpreter(convnet()), rows, path, stage=_Stops(step, _raise))
    assert path.exists()


@pytest.mark.parametrize("step", [2, 12, 13, 30])
@pytest.mark.parametrize("memory", ["whole", "stream"])
def test_goes_on_from_any_step_of_any_source(step: int, memory: str, tmp_path: Path) -> None:
    """The second epoch begins after step 11 or 12; a stream is read again up to where it was."""
    rows = image_rows() if memory == "whole" else image_rows(6000, 450, memory_mb=1)
    assert bool(list(rows.in_memory())) == (memory == "whole")
    whole, cut = Interpreter(convnet()), Interpreter(convnet())
    expected = _train(whole, rows, None)
    _cut_off(tmp_path / "state", step, rows)
    found = _train(cut, rows, tmp_path / "state")
    assert found.resumed == f"gone on from step {step - 1}"
    assert digest(cut) == digest(whole)
    assert (found.looks, found.best, found.hooks) == (
        expected.looks, expected.best, expected.hooks,
    )  # fmt: skip


def test_goes_on_with_remembered_answers_of_the_original(tmp_path: Path) -> None:
    """Without crops the original is asked once, before the first step of either run."""
    rows, plain = image_rows(), {"augment": None, "optimizer": "adamw"}
    whole, cut = Interpreter(convnet()), Interpreter(convnet())
    expected = _train(whole, rows, None, settings=plain)
    with pytest.raises(_StopsError):
        stop = _Stops(17, _raise)
        _train(Interpreter(convnet()), rows, tmp_path / "state", stage=stop, settings=plain)
    found = _train(cut, rows, tmp_path / "state", settings=plain)
    assert found.resumed == "gone on from step 16"
    assert digest(cut) == digest(whole)
    assert found.looks == expected.looks


def test_a_finished_training_is_not_made_again(tmp_path: Path) -> None:
    rows, once, again = image_rows(), Interpreter(convnet()), Interpreter(convnet())
    first = _train(once, rows, tmp_path / "state")
    second = _train(again, rows, tmp_path / "state", stage=_Stops(1, _raise))
    assert digest(once) == digest(again)
    assert second.steps == first.steps
    assert second.looks == first.looks


def test_ctrl_c_leaves_a_checkpoint_of_a_whole_step(tmp_path: Path) -> None:
    rows, path, whole = image_rows(), tmp_path / "state", Interpreter(convnet())
    _train(whole, rows, None)
    cut, changes = Interpreter(convnet()), {"checkpoint": 60.0}
    ask = _Stops(5, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        _train(cut, rows, path, stage=ask, settings=changes)
    resumed = Interpreter(convnet())
    assert _train(resumed, rows, path).resumed == "gone on from step 5"
    assert digest(resumed) == digest(whole)


@pytest.mark.parametrize(
    "change", [{"seed": 4}, {"settings": {"lr": 0.01}}, {"settings": {"threads": 2}}]
)
def test_another_training_starts_anew_and_says_so(change: dict[str, Any], tmp_path: Path) -> None:
    rows, path = image_rows(), tmp_path / "state"
    _cut_off(path, 9, rows)
    fresh, net = Interpreter(convnet()), Interpreter(convnet())
    _train(fresh, rows, None, **change)
    found = _train(net, rows, path, **change)
    assert "is of another recipe" in found.resumed
    assert digest(net) == digest(fresh)


def test_other_weights_or_rows_start_anew(tmp_path: Path) -> None:
    rows, path = image_rows(), tmp_path / "state"
    for net, others in ((convnet(5), rows), (convnet(), image_rows(180))):
        _cut_off(path, 9, rows)
        assert "is of another recipe" in _train(Interpreter(net), others, path).resumed


@pytest.mark.parametrize("damage", ["cut", "flip", "text", "empty"])
def test_a_damaged_file_starts_anew_and_says_so(damage: str, tmp_path: Path) -> None:
    rows, path = image_rows(), tmp_path / "state"
    _cut_off(path, 9, rows)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    changed = {"cut": raw[:-1], "flip": raw, "text": b"no checkpoint", "empty": b""}
    path.write_bytes(bytes(changed[damage]))
    whole, net = Interpreter(convnet()), Interpreter(convnet())
    _train(whole, rows, None)
    assert "is damaged" in _train(net, rows, path).resumed
    assert digest(net) == digest(whole)


def test_nothing_in_the_file_can_run(tmp_path: Path) -> None:
    """A pickle with code in it is refused by torch's restricted reader, even under a valid hash."""

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    kept = Checkpoint(tmp_path / "state", "00" * 32)
    kept.write({"step": Evil()})
    with pytest.raises(Exception, match="weights_only"):
        kept.read()
    assert not (tmp_path / "ran").exists()


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    kept = Checkpoint(tmp_path / "file" / "state", "00" * 32)
    with pytest.raises(MachineError, match="cannot be written: "):
        kept.write({"step": 1})


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    kept = Checkpoint(tmp_path / "state", "ab" * 32)
    assert kept.read() == (None, "")
    kept.write({"w": torch.arange(3.0), "nested": [{"a": 1.5, "b": None}]})
    state, why = kept.read()
    assert state is not None
    assert not why
    torch.testing.assert_close(state["w"], torch.arange(3.0))
    assert state["nested"] == [{"a": 1.5, "b": None}]
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def test_a_training_that_ran_out_of_time_goes_on_with_more_of_it(tmp_path: Path) -> None:
    rows, path = image_rows(), tmp_path / "state"
    first = _train(Interpreter(convnet()), rows, path, settings={"minutes": 1e-6})
    assert (first.steps, first.stopped) == (1, "1e-06 minutes")
    same = _train(Interpreter(convnet()), rows, path, settings={"minutes": 1e-6})
    assert (same.steps, same.stopped) == (1, "1e-06 minutes")
    more = _train(Interpreter(convnet()), rows, path, settings={"checkpoint": 3.0})
    assert (more.resumed, more.stopped) == ("gone on from step 1", "all steps made")
    assert more.steps == 3 * rows.steps


def test_what_cannot_be_gone_on_from_is_refused_where_it_has_to_be(tmp_path: Path) -> None:
    rows, path = image_rows(), tmp_path / "state"
    _train(Interpreter(convnet()), rows, path, required=True)  # none is there
    with pytest.raises(RecipeError, match=r"nothing to resume: .* is of another recipe"):
        _train(Interpreter(convnet()), rows, path, required=True, seed=4)
    path.write_bytes(b"no checkpoint")
    with pytest.raises(RecipeError, match="is damaged or no checkpoint; --fresh deletes it"):
        _train(Interpreter(convnet()), rows, path, required=True)
