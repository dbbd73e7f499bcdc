"""What a recipe's budgets allow, and what a model takes of each unit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from rankc.errors import RecipeError
from rankc.graph import parameters
from rankc.intake import Intake
from rankc.macs import count_macs
from rankc.offers import Candidate
from rankc.recipe import Budget, Recipe, Unit
from rankc.serialize import save


def resolved_budgets(
    recipe: Recipe, taken: Intake, offers: Sequence[Candidate]
) -> tuple[Budget, ...]:
    """How much of each unit the finished model may take; a share only of the milliseconds.

    Raises:
        RecipeError: sites that need a budget have none.
    """
    if not recipe.budget and any(o.forced is None and o.curve.own is None for o in offers):
        raise RecipeError(
            "budget: none is given, and a pass has no rank of its own; add for example "
            "`budget: {keep_ratio: 0.25}`, or `rank: 16` to the pass"
        )
    return tuple(
        budget
        if budget.keep_ratio is None or budget.unit == "ms"
        else Budget(
            budget.unit, max=max(int(budget.keep_ratio * original_of(taken, budget.unit)), 1)
        )
        for budget in recipe.budget
    )


def original_of(taken: Intake, unit: Unit) -> int:
    """What the model takes as it came; raises as `weight_of`."""
    return taken.size_bytes if unit == "bytes" else weight_of(taken.model, unit, Path())


def weight_of(model: ir.Model, unit: Unit, folder: Path) -> int:
    """What a model takes of a unit; for bytes a file is written to the folder and measured.

    Raises:
        RecipeError: MACs are wanted, and shapes are not known.
    """
    if unit == "parameters":
        return parameters(model)
    if unit == "macs":
        macs, unknown = count_macs(model.clone())
        if macs is None:
            raise RecipeError(f"budget: macs of the model cannot be counted: {unknown}")
        return macs
    save(model, folder / "model.onnx")
    return sum(file.stat().st_size for file in folder.iterdir())
