"""Passes that learn, each with the hook that trains for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import onnx_ir as ir

from rankc.errors import ModelError
from rankc.factors import attach_factors
from rankc.passbase import Pass
from rankc.passes.maestro import Maestro
from rankc.passes.trp import Trp
from rankc.recipe_training import Training
from rankc.rewriting import Sites
from rankc.train.hooks import Hook
from rankc.train.maestro import MaestroHook
from rankc.train.trp import TrpHook


def _nothing(model: ir.Model) -> None:
    """Of a method that leaves all it learnt in the weights."""


@dataclasses.dataclass(frozen=True, slots=True)
class Method:
    """A hook, and what it puts on the trained model."""

    hook: Hook
    attach: Callable[[ir.Model], None] = _nothing


def methods_of(
    model: ir.Model, passes: Sequence[Pass], settings: Training, seed: int
) -> list[Method]:
    """A method for every pass that learns, at those sites that no other pass has.

    Args:
        model: as it will be trained.
        passes: of the recipe.
        settings: of the training.
        seed: of draws.

    Raises:
        ModelError: there is no layer for trp; maestro says so when it starts.
    """
    owned = {(site.pass_name, site.name) for site in Sites.of(model, passes).owners}
    found: list[Method] = []
    for one in passes:
        if isinstance(one, Trp):
            cut = [t for t in one.trained(model) if (one.name, t.site) in owned]
            if not cut:
                raise ModelError(
                    "trp: no layer is left to be trained towards low rank: its targets match none "
                    "that can be, or another pass has them"
                )
            found.append(Method(TrpHook(one, cut, settings)))
        elif isinstance(one, Maestro):
            factored = [t for t in one.trained(model) if (one.name, t.site) in owned]
            hook = MaestroHook(one, factored, seed)
            found.append(Method(hook, lambda m, h=hook: attach_factors(m, h.factors)))  # type: ignore[misc]
    return found
