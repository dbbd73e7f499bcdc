"""Time in a recipe: a table that was measured, a data sheet, and layers timed after the plan."""

from __future__ import annotations

import pytest

from projects import Project, Refusal, command, read_json
from rankc.errors import Exit


def test_a_plan_by_a_table_that_was_measured(small: Project) -> None:
    table = small.folder / "times.json"
    model = str(small.folder / "model.onnx")
    options = ("--target", "cpu", "--pass", "lowrank", "--out", str(table), "--batch", "8")
    profiled = command("profile", model, *options)
    assert profiled.code == Exit.OK, profiled.out + profiled.err
    small.set(
        timing={"table": "times.json"},
        budget=[{"keep_ratio": 0.9}, {"unit": "ms", "keep_ratio": 1.0}],
        gates=[],
    )
    done = small.rankc("compile")
    assert done.code == Exit.OK, done.out + done.err
    plan = read_json(small.out / "plan.json")
    assert plan["times"].startswith("measured on ")
    assert {limit["unit"] for limit in plan["limits"]} == {"bytes", "ms"}
    assert all(limit["planned"] <= limit["budget"] for limit in plan["limits"])
    assert "times of layers measured on" in (small.out / "report.md").read_text("utf-8")


def test_a_plan_by_a_data_sheet_is_called_an_estimate(small: Project) -> None:
    small.set(timing={"device": "x86-avx2-core", "batch": 8}, gates=[])
    done = small.rankc("compile")
    assert done.code == Exit.OK, done.out + done.err
    assert "not measured" in read_json(small.out / "plan.json")["times"]
    assert small.metrics["layers"] == []  # this machine's times say nothing about that device


def test_layers_are_timed_and_told(small: Project) -> None:
    passes = ["gather_fusion", {"lowrank": {"round_to": 4, "min_size": 256, "rank": 4}}]
    done = small.set(timing={}, budget=None, passes=passes, gates=[]).rankc("compile")
    assert done.code == Exit.OK, done.out + done.err
    layers = small.metrics["layers"]
    assert [one["site"] for one in layers] == [
        c["site"] for c in read_json(small.out / "plan.json")["choices"]
    ]
    assert all(set(one["latency"]) == {"1"} for one in layers)
    assert {one["verdict"] for one in layers} <= {"kept", "too slow, but as asked"}
    assert "## Layers timed" in (small.out / "report.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("timing", "says"),
    [
        ({"table": "none.json"}, "none.json: there is no such file"),
        ({"device": "abacus"}, "'abacus' is not known; choose one of"),
        ({"device": "t4", "table": "t.json"}, "not both"),
        ({"device": "x86-avx2-core", "precision": "fp16"}, "does not compute in fp16"),
        ({"revert": "no way"}, "expected true or false"),
    ],
)
def test_no_such_times(
    small: Project, refused: Refusal, timing: dict[str, object], says: str
) -> None:
    refused(small.set(timing=timing), Exit.USAGE, says)


def test_milliseconds_without_times(small: Project, refused: Refusal) -> None:
    refused(small.set(budget={"unit": "ms", "max": 1}), Exit.USAGE, "timing.table")
