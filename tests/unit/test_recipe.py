# ruff: noqa: E501  # the table of mistakes reads best with one a line
from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Literal, get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rankc.errors import RecipeError
from rankc.recipe import Budget, Metric, Planning, Profile, Recipe
from rankc.recipe_load import build_passes, load_recipe
from rankc.recipe_lock import lock, resolved
from rankc.recipe_schema import docs_page, options, schema_text
from rankc.validate.quantities import QUANTITIES

DOCS = Path(__file__).parents[2] / "docs"


@dataclasses.dataclass(frozen=True, slots=True)
class Shrink:
    """Make things small."""

    name: ClassVar[str] = "shrink"
    targets: tuple[str, ...] = ("*",)  # which ones
    method: Literal["pca", "svd"] = "pca"
    # How much
    # of it.
    share: float = 0.5
    min_size: int = 8
    fast: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be in (0, 1], not {self.share}")


@dataclasses.dataclass(frozen=True, slots=True)
class Fuse:
    """Join things."""

    name: ClassVar[str] = "fuse"


TYPES = (Fuse, Shrink)
RECIPE = """\
name: tiny
model: model.onnx
data:
  calibration: {path: rows.npz}
  validation: {path: rows.npz, label: y}
passes:
  - fuse
  - shrink:
      targets: ["mlp.*"]
      share: 1
budget:
  keep_ratio: 0.1
gates:
  - {metric: auc, goal: max-degradation, value: 1e-3}
  - metric: latency_ratio
    goal: threshold
    value: 0.6
    batch: 32
"""

Load = Callable[..., Recipe]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(text: str | bytes = RECIPE, *overrides: str) -> Recipe:
        path = tmp_path / "tiny.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_recipe(path, overrides, pass_types=TYPES)

    return load


def built(recipe: Recipe) -> list[object]:
    return list(build_passes(recipe, pass_types=TYPES))


def complaint(load: Load, text: str | bytes, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load(text, *overrides)
    assert caught.value.exit_code == 2
    return re.sub(r"^.*/tiny\.yaml", "tiny.yaml", str(caught.value), flags=re.M)


def test_a_recipe_is_read(load: Load, tmp_path: Path) -> None:
    recipe = load()
    assert recipe.name == "tiny"
    assert recipe.folder == tmp_path
    assert recipe.data.calibration.batch_size == 1024
    assert [budget.keep_ratio for budget in recipe.budget] == [0.1]
    assert [gate.value for gate in recipe.gates] == [0.001, 0.6]
    assert [target.name for target in recipe.lower] == ["onnxruntime-fp32"]
    assert built(recipe) == [Fuse(), Shrink(targets=("mlp.*",), share=1.0)]


def test_a_recipe_knows_its_file_and_the_line_of_every_key(load: Load, tmp_path: Path) -> None:
    recipe = load()
    assert recipe.file == tmp_path / "tiny.yaml"
    lines = RECIPE.splitlines()
    for key, word in {
        "name": "tiny",
        "data.validation.label": "label: y",
        "passes[0]": "- fuse",
        "passes[1].shrink": "- shrink",
        "passes[1].shrink.targets[0]": "mlp",
        "gates[0]": "auc",
        "gates[1]": "metric: latency_ratio",
        "gates[1].batch": "batch: 32",
    }.items():
        assert word in lines[recipe.lines[key] - 1]


def test_what_set_says_has_no_line(load: Load) -> None:
    overrides = ("budget.keep_ratio=0.2", "gates=[{metric: auc, goal: threshold, value: 0.5}]")
    lines = load(RECIPE, *overrides).lines
    assert "budget" in lines
    assert "passes[1].shrink" in lines
    assert [key for key in lines if key.startswith(("gates", "budget."))] == []


def test_where_a_recipe_was_read_is_no_part_of_it(load: Load) -> None:
    recipe = load()
    again = load("# moved down by one\n" + RECIPE)
    assert recipe.lines != again.lines
    assert recipe == again
    assert resolved(recipe, pass_types=TYPES) == resolved(again, pass_types=TYPES)
    for key in ("file", "lines", "folder"):
        assert f"{key}: unknown option" in complaint(load, f"{RECIPE}{key}: x\n")


# Each: what is replaced, by what, where, and what the message says. The lines matter.
MISTAKES = {
    "unknown key": ("model:", "modle:", 2, "modle: unknown option", "did you mean 'model'? recipe"),
    "unknown nested key": ("{path: rows.npz}", "{pth: r}", 4, "data.calibration.pth: unknown", "calibration takes: path, batch_size, rows, label"),
    "unknown pass": ("- fuse", "- fuze", 7, "passes[0].fuze: unknown pass", "did you mean 'fuse'? passes: fuse, shrink"),
    "unknown pass option": ("targets:", "taregts:", 9, "passes[1].shrink.taregts: unknown option", "did you mean 'targets'? shrink takes: targets, method, share, min_size, fast"),
    "option of a pass without any": ("- fuse", "- fuse: {a: 1}", 7, "passes[0].fuse.a: unknown option", "fuse takes: nothing"),
    "pass option of a wrong type": ("share: 1", "share: much", 10, "passes[1].shrink.share: expected a number", 'got the text "much"'),
    "pass option out of range": ("share: 1", "share: 2", 8, "passes[1].shrink: share must be in (0, 1]", ""),
    "a whole number for true": ("share: 1", "fast: 1", 10, "shrink.fast: expected true or false", "got the number 1"),
    "true for a whole number": ("share: 1", "min_size: true", 10, "min_size: expected a whole number", "got true"),
    "text for a whole number": ("share: 1", "min_size: '8'", 10, "min_size: expected a whole number", 'got the text "8"'),
    "a fraction for a whole number": ("share: 1", "min_size: 8.5", 10, "min_size: expected a whole number", "got the number 8.5"),
    "a choice that is none": ("share: 1", "method: pcs", 10, "shrink.method: unknown value", "did you mean 'pca'? one of: pca, svd"),
    "text for a list": ('["mlp.*"]', "mlp", 9, "shrink.targets: expected a list", 'got the text "mlp"'),
    "a repeated pass": ("- fuse", "- shrink", 8, "passes[1]: pass 'shrink' is listed twice", ""),
    "two passes in one entry": ("- fuse", "- {fuse: , b: }", 7, "passes[0]: expected a pass name", "got a mapping"),
    "a number for a pass": ("- fuse", "- 7", 7, "passes[0]: expected a pass name", "like `- embedding"),
    "keep_ratio too large": ("keep_ratio: 0.1", "keep_ratio: 1.5", 12, "budget.keep_ratio: must be less than or equal to 1", ""),
    "keep_ratio zero": ("keep_ratio: 0.1", "keep_ratio: 0", 12, "budget.keep_ratio: must be greater than 0", ""),
    "two budgets": ("keep_ratio: 0.1", "{keep_ratio: 0.1, max: 9}", 11, "budget: give exactly one of", "both"),
    "half a byte": ("keep_ratio: 0.1", "max: 1.5", 11, "budget: max must be a whole number of bytes, not 1.5", ""),
    "a budget of nothing": ("keep_ratio: 0.1", "max: 0", 12, "budget.max: must be greater than 0", ""),
    "a unit that is none": ("keep_ratio: 0.1", "unit: flops", 12, "budget.unit: unknown value", "one of: bytes, parameters, macs, ms"),
    "a budget that is no mapping": ("\n  keep_ratio: 0.1", " 5", 11, "budget: expected a mapping of options", "got the number 5"),
    "a unit twice": ("\n  keep_ratio: 0.1", "\n  - {max: 9}\n  - {max: 8}", 13, "budget[1]: bytes is listed twice", ""),
    "a mistake in a list of budgets": ("\n  keep_ratio: 0.1", "\n  - {max: 9}\n  - {unit: ms, keep_ratio: 2}", 13, "budget[1].keep_ratio: must be less", ""),
    "an unknown strategy": ("gates:", "planning: {strategy: best}\ngates:", 13, "planning.strategy: unknown value", "one of: optimal, greedy, uniform"),
    "no rank between floor and cap": ("gates:", "planning: {floor: 0.6, cap: 0.5}\ngates:", 13, "planning: floor 0.6 is above cap 0.5", ""),
    "no budget": ("keep_ratio: 0.1", "unit: bytes", 11, "budget: give exactly one of", "neither"),
    "unknown metric": ("metric: auc", "metric: acu", 14, "gates[0].metric: unknown value", "did you mean 'auc'? one of: auc, grouped_auc"),
    "unknown goal": ("max-degradation", "max-degradion", 14, "gates[0].goal: unknown value", "did you mean 'max-degradation'?"),
    "a gate without value": (", value: 1e-3", "", 14, "gates[0].value: required, and not given", ""),
    "a gate on a batch not measured": ("batch: 32", "batch: 33", 15, "gates[1]: batch 33 is not measured", "latency.batch_sizes: 1, 32, 256"),
    "a latency gate without batch": ("    batch: 32\n", "", 15, "gates[1]: batch is not given", ""),
    "a batch where there is none": ("value: 1e-3", "value: 1e-3, batch: 1", 14, "auc has no batch", "leave batch out"),
    "auc without labels": (", label: y", "", 14, "gates[0]: auc needs labels", "data.validation.label"),
    "gates without validation data": ("  validation: {path: rows.npz, label: y}\n", "", 13, "gates[0]: auc needs validation data", ""),
    "batch size zero": ("{path: rows.npz}", "{path: r, batch_size: 0}", 4, "calibration.batch_size: must be greater than or equal to 1", ""),
    "a required key": ("model: model.onnx\n", "", None, "model: required, and not given", ""),
    "a list for a mapping": ("{path: rows.npz}", "[1]", 4, "data.calibration: expected a mapping of options", "got a list"),
    "a name that is no folder": ("name: tiny", "name: ../x", None, "name must be usable as a folder name", ""),
    "a key given twice": ("model:", "name: b\nmodel:", 2, "name: given twice (first in line 1)", ""),
    "nothing to train on": ("gates:", "recover: {}\ngates:", 13, "recover: there are no rows to train on", "add data.training"),
    "training without a pass that learns": ("gates:", "train: {}\ngates:", 13, "train: no pass of this recipe learns", "add one of trp, maestro"),
    "labels to learn from without labels": ("gates:", "recover: {objective: {label: 1}}\ngates:", None, "recover: there are no rows", ""),
    "nothing to minimise": ("gates:", "recover: {objective: {distill: 0}}\ngates:", 13, "objective: nothing is minimised", ""),
    "a schedule that is none": ("gates:", "recover: {schedule: cosin}\ngates:", 13, "recover.schedule: unknown value", "did you mean 'cosine'?"),
    "rows to train on for nothing": ("  validation:", "  training: {path: a.npz}\n  validation:", 5, "data.training: nothing is trained", "add `recover: {}`"),
    "gate rows held out": ("  validation:", "  holdout: {path: rows.npz}\n  validation:", 5, "data.holdout: these rows decide the gates", "name others"),
    "not YAML": ("model: model.onnx", "model: [1", 3, "not valid YAML", ""),
    "a Python object": ("model.onnx", "!!python/object/apply:os.getcwd []", 2, "model: the YAML tag", "python"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(MISTAKES))
def test_mistakes_are_told_with_line_key_and_remedy(load: Load, case: str) -> None:
    old, new, line, says, hint = MISTAKES[case]
    assert RECIPE.count(old) >= 1
    text = complaint(load, RECIPE.replace(old, new, 1))
    assert text.startswith("tiny.yaml:" if line is None else f"tiny.yaml:{line}: "), text
    assert says in text
    assert hint in text


def test_all_mistakes_are_told_at_once(load: Load) -> None:
    text = complaint(load, RECIPE.replace("model:", "modle:").replace("targets:", "target:"))
    assert "modle: unknown option" in text
    assert "shrink.target: unknown option" in text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "is empty"),
        (b"- 1\n", "does not hold keys"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"a: \x00", "not valid YAML"),
        (b"a: 1\n---\nb: 2\n", "not valid YAML"),
        (b"a: *nobody\n", "not valid YAML"),
        (b"? [1]\n: 2\n", "a key must be a word"),
        (b"a: " + b"[" * 1000, "nested deeper"),
        (b"a: " + b"[" * 60 + b"]" * 60, "nested deeper"),
        (b"a: &a [*a]\n", "nested deeper"),
        (b"a: " + b"9" * 5000, "not valid YAML"),
        (b"#" * 1_000_001, "larger than"),
    ],
)
def test_hostile_files_are_refused(load: Load, text: bytes, says: str) -> None:
    assert says in complaint(load, text)


def test_an_alias_bomb_is_harmless(load: Load) -> None:
    levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    assert "aliases" in complaint(load, "\n".join(["a0: &a0 x", *levels]))


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no-such\.yaml: cannot read the recipe: No such file"):
        load_recipe(tmp_path / "no-such.yaml", pass_types=TYPES)


def test_numbers_are_read_as_yaml_1_2_does(load: Load) -> None:
    for text, value in {"1e-3": 1e-3, "1E+2": 100.0, ".5": 0.5, "2": 2.0, "-1.5e2": -150.0}.items():
        assert load(RECIPE.replace("1e-3", text)).gates[0].value == value


def test_overrides(load: Load) -> None:
    recipe = load(
        RECIPE,
        "seed=7",
        "gates.0.value=2e-3",
        "latency.batch_sizes=[1, 32]",
        "budget.keep_ratio=null",
        "budget.max=1000",
        "passes.shrink.share=0.25",
        "passes.1.shrink.method=svd",
        "passes.fuse={}",
        "lower=[{backend: tensorrt-rtx, precision: fp16, profile: {max: 256}}]",
    )
    assert (recipe.seed, recipe.gates[0].value) == (7, 0.002)
    assert recipe.latency.batch_sizes == (1, 32)
    assert [(budget.max, budget.keep_ratio) for budget in recipe.budget] == [(1000, None)]
    assert built(recipe) == [Fuse(), Shrink(("mlp.*",), "svd", share=0.25)]
    assert recipe.lower[0].profile == Profile(1, 256, 256)


def test_budgets(load: Load) -> None:
    several = "budget=[{keep_ratio: 0.5}, {unit: macs, max: 1000}, {unit: ms, max: 1.25}]"
    for option, found in (
        ("budget={unit: ms, max: 0.5}", (Budget("ms", max=0.5),)),
        (several, (Budget(keep_ratio=0.5), Budget("macs", max=1000), Budget("ms", max=1.25))),
        ("budget=null", ()),
        ("budget=[]", ()),
    ):
        recipe = load(RECIPE, option)
        assert recipe.budget == found
        assert [type(b.max) for b in recipe.budget if b.unit == "macs"] in ([], [int])
        again = resolved(recipe, pass_types=TYPES)
        assert load(again).budget == found, again
    planning = load(RECIPE, "planning={strategy: uniform, cap: 0.5, min_rank: 8}").planning
    assert planning == Planning("uniform", min_rank=8, cap=0.5)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("seed", "--set seed: expected key=value"),
        ("a..b=1", "expected key=value"),
        ("sede=1", "--set sede=1: sede: unknown option\n  did you mean 'seed'?"),
        ("budget.keep=1", "--set budget.keep=1: budget.keep: unknown option"),
        ("seed=x", '--set seed=x: seed: expected a whole number, got the text "x"'),
        ("seed=[", "--set seed=[: not valid YAML"),
        ("name.a=1", "name is a single value"),
        ("gates.2.value=1", "gates has 2 entries"),
        ("gates.auc.value=1", "gates is a list; write its index"),
        ("passes.embed.int8=true", "the recipe has no pass 'embed'; it has: fuse, shrink"),
        ("passes.shrink.shar=1", "passes[1].shrink.shar: unknown option\n  did you mean 'share'?"),
        ("passes.shrink.share=2", "passes[1].shrink: share must be in (0, 1]"),
        ("passes=3", "--set passes=3: passes: expected a list of passes, got the number 3"),
        ("folder=/etc", "folder: unknown option"),
    ],
)
def test_wrong_overrides_are_told_as_such(load: Load, option: str, says: str) -> None:
    assert says in complaint(load, RECIPE, option)


def test_resolved_recipe_is_complete_and_loads_as_the_same(load: Load) -> None:
    recipe = load()
    text = resolved(recipe, pass_types=TYPES)
    assert text == resolved(load(), pass_types=TYPES)
    assert yaml.safe_load(text)["passes"][1]["shrink"]["method"] == "pca"
    again = load(text)
    assert resolved(again, pass_types=TYPES) == text
    assert dataclasses.replace(again, passes=()) == dataclasses.replace(recipe, passes=())
    assert built(again) == built(recipe)


def test_lock_holds_what_decides_the_bytes_and_nothing_of_the_machine(load: Load) -> None:
    first = lock(load(), {"model": "aa", "calibration": "bb"}, pass_types=TYPES)
    assert first["seed"] == 0
    assert first["sha256"]["model"] == "aa"
    assert {"rankc", "numpy", "onnx", "onnx-ir"} <= set(first["packages"])
    assert first == lock(load(), {"calibration": "bb", "model": "aa"}, pass_types=TYPES)
    other = lock(load(RECIPE, "seed=1"), {}, pass_types=TYPES)
    assert other["sha256"]["recipe"] != first["sha256"]["recipe"]
    assert str(Path.cwd()) not in json.dumps(first)


def test_options_are_documented_from_comments() -> None:
    found = {option.name: option for option in options(Shrink)}
    assert found["targets"].text == "which ones"
    assert found["share"].text == "How much of it."
    assert found["method"].type == "pca, svd"
    assert found["targets"].default == '["*"]'
    assert "folder" not in {option.name for option in options(Recipe)}


def test_schema_knows_the_passes_and_is_closed() -> None:
    schema = json.loads(schema_text(pass_types=TYPES))
    assert schema["additionalProperties"] is False
    assert {"folder", "file", "lines"}.isdisjoint(schema["properties"])
    entries = schema["properties"]["passes"]["items"]["anyOf"]
    assert entries[0] == {"enum": ["fuse", "shrink"]}
    assert schema["$defs"]["Shrink"]["properties"]["targets"]["description"] == "which ones"
    assert schema["$defs"]["Shrink"]["additionalProperties"] is False


def test_published_schema_and_reference_are_current() -> None:
    hint = "run `make docs`"
    assert (DOCS / "recipe.schema.json").read_text("utf-8") == schema_text(), hint
    page = (DOCS / "recipe.md").read_text("utf-8")
    assert page == docs_page(page), hint


def test_metrics_that_a_recipe_may_name_are_those_that_gates_know() -> None:
    assert set(get_args(Metric)) == set(QUANTITIES)


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
values = st.recursive(leaves, lambda v: st.lists(v) | st.dictionaries(st.text(max_size=5), v))
keys = st.sampled_from(["name", "data", "passes", "budget", "gates", "latency", "lower", "seed"])


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(keys, values))
def test_nonsense_never_ends_in_anything_but_a_recipe_error(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, object]
) -> None:
    path = tmp_path_factory.mktemp("nonsense") / "r.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(RECIPE) | changes), "utf-8")
    try:
        load_recipe(path, pass_types=TYPES)
    except RecipeError as error:
        assert str(path) in str(error)
