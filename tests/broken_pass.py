"""A pass that keeps none of its promises: the contract suite has to catch it."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from rankc.passbase import Curve, Site
from rankc.passes.lowrank import LowRank, Solution


@dataclasses.dataclass(frozen=True, slots=True)
class BrokenPass(LowRank):
    """Low rank that promises half the error, miscounts, and keeps a rank less than it says."""

    name: ClassVar[str] = "broken"
    min_size: int = 64
    round_to: int = 1

    def cost(self, site: Site, solution: Solution) -> Curve:
        honest = LowRank.cost(self, site, solution)
        return dataclasses.replace(honest, error=honest.error / 2, parameters=honest.parameters - 1)

    def rewrite(
        self, model: ir.Model, site: Site, rank: int, solution: Solution, form: str = ""
    ) -> None:
        LowRank.rewrite(self, model, site, max(rank - 1, 1), solution, form)
