from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from rankc.recipe import Data, DataSpec, Gate, PassSpec, Recipe
from rankc.report.files import write_reports
from rankc.report.github import MAX_SUMMARY, append_summary, workflow_commands
from rankc.report.junit import junit_xml
from rankc.report.markdown import report_markdown
from rankc.report.place import Place, place_of
from rankc.report.sarif import sarif_json
from rankc.validate.gates import finish
from rankc.validate.schema import Metrics
from sample_metrics import some_metrics

PLACE = Place(
    "recipes/so me.yaml",
    {"gates[0]": 14, "gates[1]": 15, "gates[2]": 16, "passes[1]": 9},
    ("embedding", "lowrank"),
)
HELD = Gate("size_ratio", "threshold", 10)
FAILED = Gate("auc", "max-degradation", 0.001)
UNSURE = Gate("accuracy_top1", "max-degradation", 0.015)
PLAN: Any = {
    "skips": [{"name": "head", "pass_name": "lowrank", "reason": "100 % of it, too small, that is"}]
}


def metrics(*gates: Gate) -> Metrics:
    return finish(some_metrics(), gates, None, PLACE.lines)


def sarif(*gates: Gate, plan: Any = None) -> Any:
    return json.loads(sarif_json(metrics(*gates), plan, PLACE))


def warn(gate: Gate) -> Gate:
    return dataclasses.replace(gate, undecided="warn")


def test_the_gates_have_the_lines_of_the_recipe() -> None:
    rows = metrics(HELD, FAILED)["gates"]
    assert [row.get("line") for row in rows] == [14, 15]


def test_sarif_points_at_the_gate_in_the_recipe() -> None:
    (result,) = sarif(HELD, FAILED)["runs"][0]["results"]
    assert result["level"] == "error"
    assert result["ruleId"] == "auc/max-degradation"
    assert result["message"]["text"].startswith("auc fell by 0.025")
    place = result["locations"][0]["physicalLocation"]
    assert place["artifactLocation"] == {"uri": "recipes/so%20me.yaml", "uriBaseId": "%SRCROOT%"}
    assert place["region"] == {"startLine": 15}


@pytest.mark.parametrize(
    ("gate", "level"), [(FAILED, "error"), (UNSURE, "error"), (warn(UNSURE), "warning")]
)
def test_sarif_tells_what_stops_a_merge_from_what_warns(gate: Gate, level: str) -> None:
    (result,) = sarif(gate)["runs"][0]["results"]
    assert result["level"] == level


def test_sarif_notes_layers_that_were_left_at_the_line_of_their_pass() -> None:
    run = sarif(FAILED, plan=PLAN)["runs"][0]
    note = run["results"][1]
    assert (note["ruleId"], note["level"]) == ("layer-left-alone", "note")
    assert note["message"]["text"].startswith("lowrank: head: skipped, 100 %")
    assert note["locations"][0]["physicalLocation"]["region"] == {"startLine": 9}


def test_sarif_has_what_the_standard_asks_for() -> None:
    """SARIF 2.1.0, sections 3.13 (log), 3.14 (run), 3.18-3.19 (tool), 3.27 (result)."""
    log = sarif(HELD, FAILED, UNSURE, plan=PLAN)
    assert log["version"] == "2.1.0"
    assert log["$schema"].endswith("sarif-2.1.0.json")
    (run,) = log["runs"]
    rules = run["tool"]["driver"]["rules"]
    ids = [rule["id"] for rule in rules]
    assert len(set(ids)) == len(ids)
    assert run["tool"]["driver"]["name"] == "rankc"
    for result in run["results"]:
        assert ids[result["ruleIndex"]] == result["ruleId"]
        assert result["level"] in ("error", "warning", "note")
        assert result["message"]["text"]
        assert all(isinstance(v, str) for v in result["partialFingerprints"].values())
        (location,) = result["locations"]
        assert location["physicalLocation"]["region"]["startLine"] >= 1
    assert sarif_json(metrics(HELD, FAILED), PLAN, PLACE) == sarif_json(
        metrics(HELD, FAILED), PLAN, PLACE
    )


def test_what_set_says_is_told_at_the_first_line() -> None:
    nowhere = dataclasses.replace(PLACE, lines={})
    text = sarif_json(finish(some_metrics(), [FAILED]), None, nowhere)
    (result,) = json.loads(text)["runs"][0]["results"]
    assert result["locations"][0]["physicalLocation"]["region"] == {"startLine": 1}


def test_github_commands_escape_what_would_end_them() -> None:
    odd = Place("a,b:100%.yaml", {"gates[0]": 3})
    found = metrics(FAILED)
    found["gates"][0]["message"] = "50 % worse\n::error::injected, really: yes"
    (line,) = workflow_commands(found, None, odd)
    assert line == (
        "::error file=a%2Cb%3A100%25.yaml,line=3,title=rankc%3A auc fail::"
        "50 %25 worse%0A::error::injected, really: yes"
    )


def test_github_is_told_of_failures_warnings_and_layers() -> None:
    lines = list(workflow_commands(metrics(HELD, FAILED, warn(UNSURE)), PLAN, PLACE))
    assert [line.split(" ")[0] for line in lines] == ["::error", "::warning", "::notice"]
    assert "line=16,title=rankc%3A accuracy_top1 undecided" in lines[1]
    assert "line=9,title=rankc%3A lowrank" in lines[2]


def test_a_summary_is_appended_and_no_longer_than_github_takes(tmp_path: Path) -> None:
    summary = tmp_path / "summary.md"
    append_summary("one\n", summary)
    append_summary("zwei ß\n" * 200_000, summary)
    text = summary.read_text("utf-8")
    assert text.startswith("one\n\nzwei ß\n")
    assert text.endswith("The rest is in report.md.\n\n")
    assert len(text.encode()) < MAX_SUMMARY + 100


def test_junit_has_file_line_and_what_is_undecided() -> None:
    found = metrics(HELD, UNSURE, warn(UNSURE))
    (suite,) = ElementTree.fromstring(junit_xml(found, PLACE))
    assert [case.get("line") for case in suite] == ["14", "15", "16"]
    assert {case.get("file") for case in suite} == {"recipes/so me.yaml"}
    assert [case[0].tag for case in suite] == ["system-out", "failure", "system-out"]
    assert suite[1][0].get("type") == "accuracy gate, undecided"
    assert (suite[2][0].text or "").startswith("warning, undecided:")


def test_the_summary_has_a_line_a_gate_failures_first() -> None:
    report = report_markdown(metrics(HELD, UNSURE, FAILED))
    gates = report.partition("## Gates")[2].partition("## Before")[0]
    verdicts = [line.split(" | ")[2] for line in gates.strip().splitlines()[2:]]
    assert verdicts == ["**FAIL**", "**undecided**", "pass"]
    assert report.index("## Gates") < report.index("## Before and after")
    assert "| 16 |" in gates


def test_a_place_is_relative_to_where_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Data(DataSpec("c.npz"))
    recipe = Recipe(
        "some", "m.onnx", data, (PassSpec("lowrank", {}),),
        file=tmp_path / "recipes" / "some.yaml", lines={"passes[0]": 7},
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert place_of(recipe).uri == "recipes/some.yaml"
    assert place_of(recipe).pass_("lowrank") == 7
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    assert place_of(recipe).uri == "some.yaml"


def test_sarif_is_written_where_the_recipe_is_known(tmp_path: Path) -> None:
    written = write_reports(metrics(FAILED), None, tmp_path, place=PLACE)
    assert written[-1].name == "report.sarif"
    assert json.loads(written[-1].read_text("utf-8"))["version"] == "2.1.0"
