"""The smallest plan that passes: found, measured once, gone on with; and where there is none."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from projects import Project, command, read_json
from rankc.compression import compress
from rankc.data import Batch, EveryOther, Source
from rankc.errors import Exit
from rankc.pipeline import take_in
from rankc.progress import SilentProgress
from rankc.recipe_load import load_recipe
from rankc.search_state import State
from rankc.searching import of_trials, search
from rankc.validate import validate
from sources import Rows

ERROR = {"metric": "max_abs_err", "goal": "threshold"}


@pytest.fixture
def searching(small: Project) -> Project:
    """A project whose smallest plan lies somewhere in the middle."""
    return small.set(gates=[{**ERROR, "value": 0.02}], search={"tolerance": 0.1, "low": 0.05})


def state_of(project: Project) -> Path:
    return project.out.with_name("bundle.search.json")


def test_the_smallest_that_passes_is_shipped(searching: Project) -> None:
    done = searching.rankc("compile")
    assert done.code == Exit.OK, done.out + done.err
    metrics, plan = searching.metrics, read_json(searching.out / "plan.json")
    front, how = metrics["front"], metrics["search"]
    assert how["stopped"] == "found"
    (chosen,) = [point for point in front if point["chosen"]]
    passing = [point for point in front if point["passed"]]
    assert chosen == min(passing, key=lambda point: float(point["budget"]))
    assert chosen["values"]["size_bytes"] == (searching.out / "model.onnx").stat().st_size
    assert chosen["values"]["max_abs_err"] <= 0.02
    assert plan["limits"][0]["budget"] == chosen["budget"]
    smaller = [point for point in front if point["budget"] < chosen["budget"]]
    assert smaller
    for point in smaller:
        assert point["failed"][0].startswith("max_abs_err is")
        assert point["values"]["max_abs_err"] > 0.02
    assert [p["budget"] for p in front] == sorted(p["budget"] for p in front)
    report = (searching.out / "report.md").read_text("utf-8")
    assert "## Search" in report
    assert "on the rows that decide the gates" in report
    assert f"search: {len(front)} plans measured" in done.out
    assert searching.leftovers() == []


def test_the_verb_searches_where_the_recipe_does_not(small: Project) -> None:
    small.set(gates=[{**ERROR, "value": 1.0}])
    options = ("--out", str(small.out), "--set", "search={low: 0.5, steps: 4}")
    done = command("search", str(small.recipe), *options)
    assert done.code == Exit.OK, done.out + done.err
    assert [point["passed"] for point in small.metrics["front"]] == [True, True]
    assert small.metrics["front"][0]["chosen"] is True  # everything passes, so the smallest of all
    whole = (small.folder / "model.onnx").stat().st_size
    assert (small.out / "model.onnx").stat().st_size <= 0.5 * whole


def test_where_none_passes_the_gates_decide(searching: Project) -> None:
    """An error of nothing at all, and a size that even no rewrite would have."""
    gates = [{**ERROR, "value": 0}, {"metric": "size_ratio", "goal": "threshold", "value": 1.0001}]
    done = searching.set(gates=gates, search={"steps": 4}).rankc("compile")
    assert done.code in (Exit.ACCURACY, Exit.PERFORMANCE)
    assert done.last.startswith("FAILED | ")
    assert searching.metrics["passed"] is False
    assert not any(point["passed"] for point in searching.metrics["front"])
    assert "closest" in done.out


def test_without_time_one_plan_is_measured(searching: Project) -> None:
    done = searching.edit(lambda tree: tree["search"].update(minutes=0)).rankc("compile")
    assert len(searching.metrics["front"]) == 1
    assert searching.metrics["search"]["stopped"] == "time"
    assert "minutes" in done.out


def test_rows_that_are_held_out_decide(searching: Project) -> None:
    searching.edit(lambda tree: tree["search"].update(holdout=True, steps=2)).rankc("compile")
    metrics = searching.metrics
    assert metrics["search"]["holdout"] is True
    assert metrics["rows"] == 512
    (chosen,) = [point for point in metrics["front"] if point["chosen"]]
    found = metrics["metrics"]["max_abs_err"]["compressed"]
    assert found != chosen["values"]["max_abs_err"]


def test_a_search_that_was_killed_goes_on(searching: Project) -> None:
    """What was measured before is in the result to the last digit, times included."""
    gate = {"metric": "latency_ratio", "goal": "threshold", "value": 50, "batch": 1}
    searching.edit(lambda tree: tree["gates"].append(gate))
    searching.edit(lambda tree: tree["search"].update(tolerance=0.5))
    state = state_of(searching)
    process = searching.process(env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if state.exists() and len(read_json(state)["trials"]) >= 2:
            break
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    before: list[dict[str, Any]] = read_json(state)["trials"]
    measured = [trial for trial in before if trial["verdict"] != "impossible"]
    done = searching.rankc("compile")
    assert done.code == Exit.OK, done.out + done.err
    assert f"{len(measured)} plans measured by an earlier run" in done.out
    values = [point["values"] for point in searching.metrics["front"]]
    assert all(trial["values"] in values for trial in measured)
    assert searching.leftovers() == []


@pytest.mark.parametrize("spoilt", ["{", '{"format": 1, "key": "another", "trials": []}'])
def test_a_state_that_is_not_ours_is_told_of(searching: Project, spoilt: str) -> None:
    state_of(searching).parent.mkdir(parents=True)
    state_of(searching).write_text(spoilt, "utf-8")
    done = searching.edit(lambda tree: tree["search"].update(minutes=0)).rankc("compile")
    assert "anew" in done.out


def test_ctrl_c_tells_how_to_go_on(searching: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    real = State.write

    def write(self: State, trials: Any) -> None:
        real(self, trials)
        raise KeyboardInterrupt

    monkeypatch.setattr(State, "write", write)
    done = searching.rankc("compile")
    assert done.code == Exit.INTERRUPTED
    assert "run it again to go on" in done.last
    assert not searching.out.exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"gates": []}, "without gates every plan passes"),
        ({"search": {"low": 0.5, "high": 0.4}}, "low must be below high"),
        ({"search": {"objective": "smalest"}}, "smallest"),
        ({"search": {"unit": "ms"}}, "rankc profile"),
    ],
)
def test_a_search_for_nothing_is_refused(
    searching: Project, changes: dict[str, Any], says: str
) -> None:
    done = searching.set(**changes).rankc("compile")
    assert done.code == Exit.USAGE
    assert says in done.out + done.err


class Counting(Source):
    """Counts how often its rows are read."""

    def __init__(self, source: Source) -> None:
        self._source, self.read = source, 0
        self.path, self.rows = source.path, source.rows

    def batches(self) -> Iterator[Batch]:
        for batch in self._source.batches():
            self.read += 1
            yield batch

    def digest(self) -> str:
        return self._source.digest()


def test_a_search_calibrates_once(searching: Project, tmp_path: Path) -> None:
    """However many plans it tries, the calibration rows are read as often as for one."""
    recipe = load_recipe(searching.recipe)
    job = take_in(recipe, SilentProgress(), False)
    once, often = Counting(job.calibration), Counting(job.calibration)
    compress(dataclasses.replace(job, calibration=once), SilentProgress())

    def measure(path: Path, rows: Source | None, stage: Any) -> Any:
        return validate(job.taken.path, path, rows, of_trials(recipe), stage)

    state = State(tmp_path / "state.json", "key")
    counted = dataclasses.replace(job, calibration=often)
    found = search(counted, measure, state, SilentProgress())
    assert len(found.points) >= 3
    assert often.read == once.read > 0


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 100])
def test_halves_are_disjoint_and_whole(batch: int) -> None:
    source = Rows({"x": np.arange(21).reshape(-1, 1)}, batch, np.arange(21))
    halves = [EveryOther(source, first) for first in (0, 1)]
    rows = [[int(x) for b in half.batches() for x in b.feeds["x"][:, 0]] for half in halves]
    assert rows == [list(range(0, 21, 2)), list(range(1, 21, 2))]
    assert [half.rows for half in halves] == [11, 10]
    for half in halves:
        for one in half.batches():
            assert one.labels is not None
            assert one.labels.tolist() == one.feeds["x"][:, 0].tolist()
