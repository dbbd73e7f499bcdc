"""Recipes that cannot mean anything: each mistake told with its line, its key and what would do."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from projects import Project, Refusal
from rankc.errors import Exit

Tree = dict[str, Any]


def in_pass(name: str, **options: Any) -> Callable[[Tree], object]:
    index = {"embedding": 1, "lowrank": 2}[name]
    return lambda tree: tree["passes"][index][name].update(options)


def gate(metric: str, goal: str = "threshold", value: float = 1, **more: Any) -> dict[str, Any]:
    return {"metric": metric, "goal": goal, "value": value, **more}


# What to change, the key whose line is told (None: another place), and what else is said.
MISTAKES: list[tuple[str, Callable[[Tree], object], str | None, tuple[str, ...]]] = [
    (
        "unknown key",
        lambda t: t.update(buget={"max": 9}),
        "buget:",
        ("buget: unknown option", "did you mean 'budget'? recipe takes: name, model"),
    ),
    (
        "unknown key below",
        lambda t: t["data"]["validation"].update(lable="y"),
        "lable:",
        ("data.validation.lable: unknown option", "did you mean 'label'?"),
    ),
    (
        "unknown pass",
        lambda t: t["passes"].append("lowrnk"),
        "- lowrnk",
        ("unknown pass", "did you mean 'lowrank'? passes: gather_fusion, embedding, conv, lowrank"),
    ),
    (
        "unknown option of a pass",
        in_pass("embedding", int9=True),
        "int9:",
        ("passes[1].embedding.int9", "did you mean 'int8'?"),
    ),
    ("text for a number", lambda t: t.update(seed="x"), "seed:", ("whole number", '"x"')),
    (
        "number for a list",
        lambda t: t["latency"].update(batch_sizes=1),
        "batch_sizes:",
        ("expected a list, got the number 1",),
    ),
    ("ratio of nothing", lambda t: t["budget"].update(keep_ratio=0), "keep_ratio:", ("than 0",)),
    ("two budgets", lambda t: t["budget"].update(max=5), "budget:", ("exactly one of keep_ratio",)),
    (
        "not a number",
        lambda t: t["budget"].update(keep_ratio=float("nan")),
        "keep_ratio:",
        ("nan",),
    ),
    ("no name", lambda t: t.pop("name"), None, ("name: required, and not given",)),
    ("a name that is a path", lambda t: t.update(name="../x"), None, ("folder name",)),
    ("a path with a NUL", lambda t: t.update(model="a\0b"), "model:", ("'a\\x00b'",)),
    ("bad pattern", in_pass("lowrank", targets=["re:("]), "- re:(", ("no regular expression",)),
    ("rank of nothing", in_pass("lowrank", rank=0), "rank:", ("greater than or equal to 1",)),
    ("steps of nothing", in_pass("lowrank", round_to=0), "round_to:", ("than or equal to 1",)),
    ("shrinkage", in_pass("lowrank", shrinkage=2), "shrinkage:", ("less than or equal to 1",)),
    ("smoothing", in_pass("embedding", smoothing=-1), "smoothing:", ("than or equal to 0",)),
    (
        "gate that is not measured",
        lambda t: t.update(gates=[gate("latency_ratio", batch=7)]),
        "- metric: latency_ratio",
        ("batch 7 is not measured", "latency.batch_sizes: 1"),
    ),
    (
        "gate without labels",
        lambda t: (t["data"]["validation"].pop("label"), t.update(gates=[gate("auc")]))[0],
        "- metric: auc",
        ("auc needs labels", "data.validation.label"),
    ),
    (
        "gate without rows",
        lambda t: (t["data"].pop("validation"), t.update(gates=[gate("max_abs_err")]))[0],
        "- metric: max_abs_err",
        ("max_abs_err needs validation data",),
    ),
    (
        "unknown metric",
        lambda t: t.update(gates=[gate("acc")]),
        "- metric: acc",
        ("did you mean 'auc'? one of: auc, grouped_auc",),
    ),
    (
        "ratio that degrades",
        lambda t: t.update(gates=[gate("size_ratio", "max-degradation")]),
        None,
        ("gates[0]: size_ratio already compares", "use 'threshold'"),
    ),
    (
        "unknown backend",
        lambda t: t.update(lower=[{"backend": "tensorrtx"}]),
        "- backend: tensorrtx",
        ("did you mean 'tensorrt'? one of: onnxruntime, tensorrt-rtx, tensorrt",),
    ),
]


@pytest.mark.parametrize(
    ("change", "line", "words"), [pytest.param(c, at, w, id=name) for name, c, at, w in MISTAKES]
)
def test_a_mistake_in_a_recipe(
    small: Project,
    refused: Refusal,
    change: Callable[[Tree], object],
    line: str | None,
    words: tuple[str, ...],
) -> None:
    lines = small.edit(change).recipe.read_text("utf-8").splitlines()
    done = refused(small, Exit.USAGE, *words)
    if line is not None:
        number = next(k for k, text in enumerate(lines, 1) if text.strip().startswith(line))
        assert f"recipe.yaml:{number}: " in done.last


def aliases() -> str:
    """Nine to the ninth values in nine lines."""
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    names = "abcdefghij"
    for old, new in itertools.pairwise(names):
        lines.append(f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("", ("the recipe is empty",), id="empty"),
        pytest.param("- a\n", ("does not hold keys with values",), id="list"),
        pytest.param(
            "name: a\nname: b\n", (":2: name: given twice (first in line 1)",), id="twice"
        ),
        pytest.param("name: a\n\tmodel: b\n", (":2: not valid YAML", "\\t"), id="tab"),
        pytest.param("a: [1\nb: 2\n", (":2: not valid YAML",), id="open bracket"),
        pytest.param(aliases(), ("more than 100,000 values (aliases are expanded)",), id="bomb"),
        pytest.param("a: &a [*a]\n", ("nested deeper than 50 levels",), id="holds itself"),
        pytest.param("a: " + "[" * 20_000, ("nested deeper than 50",), id="deep"),
        pytest.param("#" * 1_000_001, ("larger than 1,000,000 bytes",), id="large"),
        pytest.param("a: !!python/object/apply:os.getcwd []\n", ("has no place here",), id="tag"),
        pytest.param("seed: " + "9" * 5000, ("not valid YAML",), id="long number"),
        pytest.param("a: 1\n---\nb: 2\n", ("another document",), id="two documents"),
    ],
)
def test_a_file_that_is_no_recipe(
    small: Project, refused: Refusal, text: str, words: tuple[str, ...]
) -> None:
    small.recipe.write_text(text, "utf-8")
    refused(small, Exit.USAGE, "recipe.yaml", *words)


def test_a_recipe_that_cannot_be_read(small: Project, refused: Refusal) -> None:
    small.recipe.write_bytes(b"name: \xff\n")
    refused(small, Exit.USAGE, "recipe.yaml: not UTF-8 text (byte 6)")
    small.recipe.unlink()
    refused(small, Exit.USAGE, "recipe.yaml: cannot read the recipe: No such file")
    small.recipe.mkdir()
    refused(small, Exit.USAGE, "recipe.yaml: cannot read the recipe: Is a directory")


@pytest.mark.parametrize(
    ("budget", "unit"),
    [
        ({"max": 1000}, "bytes"),
        ({"keep_ratio": 0.01}, "bytes"),
        ({"max": 100, "unit": "parameters"}, "parameters"),
    ],
)
def test_an_impossible_budget_says_the_smallest(
    small: Project, refused: Refusal, budget: dict[str, Any], unit: str
) -> None:
    done = refused(
        small.set(budget=budget), Exit.USAGE, f"{unit} cannot be met", "raise the budget"
    )
    smallest = int(done.last.split("takes ")[1].split(";")[0].replace(",", ""))
    roomy = {"max": int(1.1 * smallest), "unit": unit}
    plan = small.set(budget=roomy).rankc("plan", "--quiet")
    assert plan.code == Exit.OK, "the smallest that was named is possible, give or take"


@pytest.mark.parametrize("name", ["embedding", "lowrank"])
@pytest.mark.parametrize("options", [{"targets": ["nope*"]}, {"ignore": ["re:."]}], ids=str)
def test_patterns_that_match_nothing(
    small: Project, refused: Refusal, name: str, options: dict[str, Any]
) -> None:
    small.edit(in_pass(name, **options))
    pattern = repr(next(iter(options.values()))[0])
    refused(small, Exit.USAGE, f"passes.{name}", pattern, "match nothing", "rankc inspect")


def test_passes_that_need_a_budget(small: Project, refused: Refusal) -> None:
    refused(small.set(budget=None), Exit.USAGE, "budget: none is given", "keep_ratio", "rank: 16")
