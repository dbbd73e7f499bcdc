"""The recipe of a bundle: the file that it was compiled from, found again and checked.

A bundle keeps its recipe with all defaults, but paths as they were written, relative to the file
that was read. So whoever works on a bundle needs that file, and it must still say the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from rankc.errors import RecipeError
from rankc.recipe import Recipe
from rankc.recipe_load import load_recipe
from rankc.recipe_lock import resolved
from rankc.recipe_yaml import Steps, dotted
from rankrt.files import inside

KEPT = "recipe.yaml"  # of a bundle
# What may differ: it asks something of the result and has no part in making it.
ASKING = ("gates", "latency", "metrics", "search", "data.validation")
_SHOWN = 5


def find_recipe(bundle: Path, asked: Path | None = None) -> Path:
    """Where the bundle's recipe lies: the file that was asked for, or `recipes/<name>.yaml`.

    Raises:
        RecipeError: it was not asked for, and is not there.
        rankrt.BundleError: the bundle has no recipe.
    """
    if asked is not None:
        return asked  # a missing file is told by whoever reads it
    path = Path("recipes") / f"{load_kept(bundle).name}.yaml"
    if path.is_file():
        return path
    raise RecipeError(
        f"the recipe of {bundle} is not at {path}, seen from this folder\n"
        "  pass --recipe FILE, the one that it was compiled from: its paths to model and data are "
        "relative to that file"
    )


def load_kept(bundle: Path) -> Recipe:
    """The recipe as the bundle keeps it; its relative paths lead nowhere.

    Raises:
        RecipeError: another version of rankc wrote it, with keys that this one does not know.
        rankrt.BundleError: the bundle has no recipe.
    """
    path = inside(bundle, KEPT)
    try:
        return load_recipe(path)
    except RecipeError as error:
        raise RecipeError(f"{error}\n  this version cannot read it: recompile the recipe") from None


def load_of_bundle(
    bundle: Path, file: Path, overrides: Sequence[str] = ()
) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe in `file`, if it is the one that the bundle was compiled from.

    Args:
        bundle: the bundle's folder.
        file: the recipe.
        overrides: `--set` options.

    Returns:
        The recipe, and which of ASKING differ from what the bundle was compiled with.

    Raises:
        RecipeError: it says something else about how the model is made; lists the keys.
        rankrt.BundleError: the bundle has no recipe.
    """
    recipe, kept = load_recipe(file, overrides), load_kept(bundle)
    differing = tuple(_differences(kept, recipe))
    asking = {part for part in ASKING for key, *_ in differing if _below(key, part)}
    wrong = [d for d in differing if not any(_below(d[0], part) for part in ASKING)]
    if not wrong:
        return recipe, tuple(sorted(asking))
    lines = [f"  {key}: {was} in the bundle, {now} in the recipe" for key, was, now in wrong]
    if len(lines) > _SHOWN:
        lines[_SHOWN:] = [f"  and {len(lines) - _SHOWN} more"]
    told = "\n".join(lines)
    raise RecipeError(
        f"{file} is not what {bundle} was compiled from; it differs in {len(wrong)} "
        f"{'key' if len(wrong) == 1 else 'keys'}\n{told}\n"
        "  give the recipe it was compiled from with --recipe, with the same --set, or recompile"
    )


def _below(key: str, part: str) -> bool:
    return key == part or key.startswith((f"{part}.", f"{part}["))


def _differences(kept: Recipe, now: Recipe) -> Iterator[tuple[str, str, str]]:
    """Every key that says something else, with both values as JSON."""
    if (was := resolved(kept)) == (text := resolved(now)):
        return
    old, new = (dict(_leaves(yaml.safe_load(one), ())) for one in (was, text))
    for key in dict.fromkeys((*old, *new)):
        if (before := old.get(key, "nothing")) != (after := new.get(key, "nothing")):
            yield key, before, after


def _leaves(value: Any, steps: Steps) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from _leaves(below, (*steps, key))
    elif isinstance(value, list) and value:
        for index, below in enumerate(value):
            yield from _leaves(below, (*steps, index))
    else:
        yield dotted(steps), json.dumps(value, ensure_ascii=False)
