"""What is kept of a recipe with the bundle: all of it, and what the bytes were made from."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

import yaml

from rankc.recipe import NOT_KEYS, Recipe
from rankc.recipe_load import ALL_PASSES, PassTypes, instances

LOCKED = ("numpy", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "onnxruntime-gpu", "pillow")


def resolved(recipe: Recipe, *, pass_types: PassTypes = ALL_PASSES) -> str:
    """The recipe with every default filled in, as YAML: the same recipe, the same bytes.

    Paths stay as written, relative to the recipe that was read.
    """
    tree = {k: v for k, v in dataclasses.asdict(recipe).items() if k not in NOT_KEYS}
    if len(recipe.budget) == 1:
        (tree["budget"],) = tree["budget"]
    tree["passes"] = [
        {spec.name: _options(built)}
        for spec, built in zip(recipe.passes, instances(recipe, pass_types), strict=True)
    ]
    return yaml.safe_dump(_plain(tree), sort_keys=False, allow_unicode=True, width=100)


def _options(built: Any) -> dict[str, Any]:
    return dataclasses.asdict(built)


def _plain(value: Any) -> Any:
    """Lists for tuples, and no keys without a value: not given and null mean the same."""
    if isinstance(value, Mapping):
        return {key: _plain(below) for key, below in value.items() if below is not None}
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    return value


def lock(
    recipe: Recipe, digests: Mapping[str, str], *, pass_types: PassTypes = ALL_PASSES
) -> dict[str, Any]:
    """What has to be equal for the same bytes to come out: recipe.lock.json.

    Args:
        recipe: the recipe as loaded.
        digests: sha256 of each input, e.g. {"model": ..., "calibration": ..., "validation": ...}.
        pass_types: as for `load_recipe`.
    """
    text = resolved(recipe, pass_types=pass_types)
    return {
        "format": 1,
        "python": platform.python_version(),
        "packages": {name: found for name in ("rankc", *LOCKED) if (found := version_of(name))},
        "seed": recipe.seed,
        "sha256": {
            "recipe": hashlib.sha256(text.encode()).hexdigest(),
            **dict(sorted(digests.items())),
        },
    }


def version_of(package: str) -> str | None:
    """The installed version of a distribution; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
