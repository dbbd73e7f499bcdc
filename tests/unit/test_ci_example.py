from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rankc.cli import _parser

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "github-actions.yml"
PAGE = (ROOT / "docs" / "ci.md").read_text("utf-8")


def workflow() -> Any:
    return yaml.safe_load(EXAMPLE.read_text("utf-8"))


def gitlab() -> Any:
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.S)
    return yaml.safe_load(block)


def commands() -> Iterator[str]:
    for step in workflow()["jobs"]["gates"]["steps"]:
        yield from step.get("run", "").splitlines()
    yield from gitlab()["gates"]["script"]
    yield from re.findall(r"`(rankc (?:gate|compare|baseline) [^`]+)`", PAGE)


def rankc_commands() -> list[str]:
    return [line for line in commands() if line.startswith("rankc ")]


@pytest.mark.parametrize("line", rankc_commands())
def test_every_command_is_one_that_rankc_takes(line: str) -> None:
    options = _parser().parse_args(shlex.split(line)[1:])
    assert callable(options.command)


def test_there_are_commands_to_test() -> None:
    assert len([line for line in rankc_commands() if "compile" in line]) == 2


def test_the_workflow_may_do_no_more_than_it_needs_and_pins_its_actions() -> None:
    found = workflow()
    assert found["permissions"] == {"contents": "read", "security-events": "write"}
    steps = found["jobs"]["gates"]["steps"]
    uses = [step["uses"] for step in steps if "uses" in step]
    assert all(re.fullmatch(r"[\w.-]+(/[\w.-]+)+@v\d+", name) for name in uses)
    assert steps[1]["with"]["cache"] == "pip"


def test_reports_are_kept_when_the_gates_fail() -> None:
    steps = workflow()["jobs"]["gates"]["steps"]
    after = steps[
        1 + next(i for i, s in enumerate(steps) if s.get("run", "").startswith("rankc compile")) :
    ]
    assert len(after) == 2
    assert all(step["if"].startswith("always()") for step in after)
    assert "build/bundle/junit.xml" in after[-1]["with"]["path"]
