from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from projects import recipe_of
from rankc.errors import RecipeError
from rankc.recipe_bundle import find_recipe, load_of_bundle
from rankc.recipe_load import load_recipe
from rankc.recipe_lock import resolved
from rankrt.errors import BundleError

GATE = {"metric": "size_ratio", "goal": "threshold", "value": 2}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write(tmp_path / "here.yaml")


@pytest.fixture
def bundle(tmp_path: Path, recipe: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    return keep(folder, recipe)


def write(path: Path, **changes: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(recipe_of(**changes)), "utf-8")
    return path


def keep(folder: Path, recipe: Path, *overrides: str) -> Path:
    text = resolved(load_recipe(recipe, overrides))
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    return folder


def test_the_recipe_of_the_same_name_is_found_under_recipes(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=r"not at recipes.small\.yaml.*\n  pass --recipe FILE"):
        find_recipe(bundle)
    write(tmp_path / "recipes" / "small.yaml")
    assert find_recipe(bundle) == Path("recipes", "small.yaml")
    assert find_recipe(bundle, Path("other.yaml")) == Path("other.yaml")


def test_a_folder_without_a_recipe_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"recipe\.yaml is missing"):
        find_recipe(tmp_path)


def test_the_same_recipe_is_taken_with_its_own_folder_and_lines(bundle: Path, recipe: Path) -> None:
    found, differing = load_of_bundle(bundle, recipe)
    assert (found.file, found.folder, differing) == (recipe, recipe.parent, ())
    assert found.lines["passes"] == load_recipe(recipe).lines["passes"]


def test_what_is_asked_of_the_result_may_have_changed(bundle: Path, recipe: Path) -> None:
    data = recipe_of()["data"]
    data["validation"]["rows"] = 7
    write(recipe, gates=[GATE], data=data, latency={"batch_sizes": [2]})
    found, differing = load_of_bundle(bundle, recipe)
    assert differing == ("data.validation", "gates", "latency")
    assert found.latency.batch_sizes == (2,)


def test_another_way_to_make_the_model_is_refused_by_key_and_value(
    bundle: Path, recipe: Path
) -> None:
    passes = recipe_of()["passes"]
    passes[1]["embedding"]["int8"] = False
    write(recipe, budget={"keep_ratio": 0.5}, passes=passes)
    with pytest.raises(RecipeError) as caught:
        load_of_bundle(bundle, recipe)
    told = str(caught.value)
    assert "budget.keep_ratio: 0.6 in the bundle, 0.5 in the recipe" in told
    assert "passes[1].embedding.int8: true in the bundle, false in" in told
    assert "with the same --set, or recompile" in told


def test_overrides_count_on_both_sides(bundle: Path, recipe: Path) -> None:
    keep(bundle, recipe, "budget.keep_ratio=0.2")
    with pytest.raises(RecipeError, match=r"keep_ratio: 0\.2 in the bundle, 0\.6 in the recipe"):
        load_of_bundle(bundle, recipe)
    assert load_of_bundle(bundle, recipe, ("budget.keep_ratio=0.2",))[1] == ()


def test_a_recipe_kept_by_another_version_is_told(bundle: Path, recipe: Path) -> None:
    with (bundle / "recipe.yaml").open("a", encoding="utf-8") as file:
        file.write("moods: []\n")
    with pytest.raises(RecipeError, match=r"moods: unknown option[^$]*recompile the recipe"):
        load_of_bundle(bundle, recipe)
