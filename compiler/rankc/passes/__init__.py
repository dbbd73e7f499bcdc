"""Every pass, in the order the pipeline runs them. To add one: write its file, add it here."""

from __future__ import annotations

from collections.abc import Iterable

from rankc.passbase import ExactPass, Pass
from rankc.passes.conv import Conv
from rankc.passes.embedding import Embedding
from rankc.passes.gather_fusion import GatherFusion
from rankc.passes.lowrank import LowRank
from rankc.passes.maestro import Maestro
from rankc.passes.trp import Trp

EXACT_PASSES: tuple[type[ExactPass], ...] = (GatherFusion,)
PASSES: tuple[type[Pass], ...] = (Embedding, Conv, LowRank, Maestro, Trp)


def split(
    passes: Iterable[Pass | ExactPass],
) -> tuple[tuple[ExactPass, ...], tuple[Pass, ...]]:
    """The exact passes and the closed-form ones, each in the given order."""
    given = tuple(passes)
    exact = tuple(p for p in given if isinstance(p, EXACT_PASSES))
    closed = tuple(p for p in given if isinstance(p, PASSES))
    return exact, closed
