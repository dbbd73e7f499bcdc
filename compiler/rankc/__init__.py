"""Compile an ONNX model and a recipe to a smaller, faster bundle, and prove it.

import rankc
result = rankc.compile_recipe("recipes/ctr-lowrank.yaml", "build/ctr-lowrank")
assert result.passed
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rankc.pipeline import Result, compile_recipe, plan_recipe
    from rankc.recipe_load import load_recipe

__all__ = ["Result", "compile_recipe", "load_recipe", "plan_recipe"]


def __getattr__(name: str) -> Any:
    """Import the compiler when it is first used: `rankc --help` does without numpy and onnx."""
    if name not in __all__:
        raise AttributeError(f"module 'rankc' has no attribute {name!r}")
    import importlib

    module = "rankc.recipe_load" if name == "load_recipe" else "rankc.pipeline"
    return getattr(importlib.import_module(module), name)
