"""Metrics that a recipe brings along, from the recipe to the table."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from rankc.errors import DataError, RecipeError
from rankc.recipe import Data, DataSpec, Gate, OwnMetric, Recipe
from rankc.recipe_load import load_recipe
from rankc.recipe_lock import resolved
from rankc.validate.own import Own, OwnSoFar, open_metrics

CODE = """
import numpy as np

def miss(labels, outputs):
    return np.abs(outputs[:, 0] - labels)

def mean(labels, outputs):
    return np.abs(outputs[:, 0] - labels).mean()

def column(labels, outputs):
    return outputs[:, :1] * 0 + (labels is None)

def text(labels, outputs):
    return ["a"] * len(outputs)

def ragged(labels, outputs):
    return [[1], [2, 3]]

def nothing(labels, outputs):
    pass

def nan(labels, outputs):
    return np.where(np.arange(len(outputs)) == 2, np.nan, 1.0)

def fails(labels, outputs):
    raise KeyError("weights")
"""
TEXT = """\
name: own
model: m.onnx
data:
  calibration: {path: c.npz}
  validation: {path: v.npz, label: y}
passes: [gather_fusion]
metrics:
  miss: {code: "scoring.py:miss", better: lower}
gates:
  - {metric: miss, goal: max-degradation, value: 0.01}
"""


def recipe(folder: Path, **metrics: str) -> Recipe:
    (folder / "scoring.py").write_text(CODE, "utf-8")
    own = {name: OwnMetric(f"scoring.py:{code}", "lower") for name, code in metrics.items()}
    data = Data(DataSpec("c.npz"), DataSpec("v.npz", label="y"))
    return Recipe("own", "m.onnx", data, (), metrics=own, folder=folder)


def opened(folder: Path, code: str) -> Own:
    (one,) = open_metrics(recipe(folder, mine=code), trust_code=True)
    return one


def test_it_streams_and_is_the_mean(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 9, 3)).astype(np.float32)
    labels = np.arange(9.0)
    for step in (2, 9):
        so_far = OwnSoFar((opened(tmp_path, "miss"),))
        for at in range(0, 9, step):
            part = slice(at, at + step)
            so_far.add(x[part], y[part], labels[part], at)
        found = so_far.judge()
        expected = tuple(np.abs(one[:, 0] - labels).mean() for one in (x, y))
        assert found.pairs["mine"] == pytest.approx(expected)
        once = np.ones(9, np.int64)
        assert found.values["mine"](once) == pytest.approx(expected[1])
        assert found.differences["mine"](once) == pytest.approx(expected[1] - expected[0])


def test_without_labels_it_is_told_so(tmp_path: Path) -> None:
    assert opened(tmp_path, "column").of(None, np.zeros((2, 3)), 0).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("mean", r"returned shape \(\) for 4 rows; it must return one number a row, \(4,\), not"),
        ("text", "returned an array of <U1; it must return an array, a number a row"),
        ("ragged", "returned list; it must return an array"),
        ("nothing", "returned an array of object; it must return an array"),
        ("nan", "returned nan for row 12; every number must be finite"),
        ("fails", "raised KeyError: 'weights'"),
    ],
)
def test_what_it_must_not_return(tmp_path: Path, code: str, says: str) -> None:
    with pytest.raises(RecipeError, match=rf"metrics\.mine: scoring\.py:{code} {says}"):
        opened(tmp_path, code).of(np.zeros(4), np.zeros((4, 3)), 10)


def test_code_runs_only_where_it_is_trusted(tmp_path: Path) -> None:
    made = recipe(tmp_path, mine="miss")
    (tmp_path / "scoring.py").write_text("raise SystemExit('ran')", "utf-8")
    with pytest.raises(RecipeError, match=r"metrics\.mine: .*allow it with --trust-recipe-code"):
        open_metrics(made)
    assert open_metrics(dataclasses.replace(made, metrics={})) == ()


def test_missing_code(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no function 'absent'"):
        opened(tmp_path, "absent")
    made = recipe(tmp_path, mine="miss")
    (tmp_path / "scoring.py").unlink()
    with pytest.raises(DataError, match=r"scoring\.py: no such file"):
        open_metrics(made, trust_code=True)


def test_recipe_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(TEXT, "utf-8")
    found = load_recipe(path)
    assert found.metrics == {"miss": OwnMetric("scoring.py:miss", "lower")}
    assert found.gates == (Gate("miss", "max-degradation", 0.01),)
    path.write_text(resolved(found), "utf-8")
    assert load_recipe(path).metrics == found.metrics


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("metric: miss", "metric: mis", 10, "did you mean 'miss'? one of: auc, "),
        ("better: lower", "better: less", 8, "one of: higher, lower"),
        (", better: lower", "", 8, "metrics.miss.better: required"),
        ("better: lower", "better: lower, size: 3", 8, "miss takes: code, better"),
        ("scoring.py:miss", "scoring.py", 8, "code is written like 'scoring.py:function'"),
        ("  miss: {", "  auc: {", 8, "metrics.auc: the name 'auc' is a metric already"),
        ("  miss: {", "  My Score: {", 8, "must be lower case letters and _"),
        ('{code: "scoring.py:miss", better: lower}', "scoring.py:miss", 8, "a mapping of options"),
    ],
)
def test_mistakes(tmp_path: Path, old: str, new: str, line: int, says: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(TEXT.replace(old, new, 1), "utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert f"recipe.yaml:{line}: " in str(caught.value)
    assert says in str(caught.value)
