"""Passes that learn, each with the hook that trains for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import onnx_ir as ir

from rankc.passbase import Pass
from rankc.train.hooks import Hook


def _nothing(model: ir.Model) -> None:
    """Of a method that leaves all it learnt in the weights."""


@dataclasses.dataclass(frozen=True, slots=True)
class Method:
    """A hook, and what it puts on the trained model."""

    hook: Hook
    attach: Callable[[ir.Model], None] = _nothing


def methods_of(model: ir.Model, passes: Sequence[Pass]) -> list[Method]:
    """A method for every pass that learns and has a site in the model."""
    return []
