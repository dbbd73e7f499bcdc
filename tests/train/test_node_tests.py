"""Every operator that is claimed, held against the node tests of the `onnx` package."""

from __future__ import annotations

import fnmatch
from pathlib import Path

import pytest

from rankc.train.operators import OPERATORS
from train.node_suite import EXCLUDED, failure, names, page, reason

ELSEWHERE = {"Loop"}  # its node tests need sequences; held against ONNX Runtime in test_control.py
PAGE = Path(__file__).parents[2] / "docs" / "operators.md"


@pytest.mark.parametrize("operator", sorted(OPERATORS.keys() - ELSEWHERE))
def test_operator_passes_its_node_tests(operator: str) -> None:
    held = [name for name in names()[operator] if reason(name) is None]
    assert held, "an operator that nothing is held against"
    assert [failed for name in held if (failed := failure(name))] == []


def test_functions_pass_as_the_nodes_they_stand_for() -> None:
    held = [n for operator in names() if operator not in OPERATORS for n in names()[operator]]
    assert [f for name in held if reason(name) is None and (f := failure(name))] == []


@pytest.mark.parametrize("glob", EXCLUDED)
def test_what_is_left_out_exists_and_does_fail(glob: str) -> None:
    every = [name for found in names().values() for name in found]
    matching = fnmatch.filter(every, glob)
    assert matching
    assert [name for name in matching if failure(name) is None] == []


def test_published_page_is_current() -> None:
    text = PAGE.read_text("utf-8")
    assert text == page(text), "run `make docs`"
