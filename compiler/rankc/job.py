"""A recipe with everything that it names opened and checked."""

from __future__ import annotations

import dataclasses
import json

import onnx_ir as ir

from rankc.data import InRange, Learning, Source
from rankc.intake import Intake
from rankc.passbase import ExactPass, Pass
from rankc.passes.gather_fusion import ID_RANGES
from rankc.recipe import Recipe
from rankc.timing import Origin

ANY_ID = 2**63 - 1  # of a column that no stacked table reads: ONNX Runtime checks it by itself


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """A recipe and what it names."""

    recipe: Recipe
    taken: Intake
    calibration: Source
    validation: Source | None
    times: Origin | None
    exact: tuple[ExactPass, ...]
    passes: tuple[Pass, ...]
    learning: Learning | None = None


def id_ranges(model: ir.Model) -> dict[str, tuple[int, ...]]:
    """What `gather_fusion` noted: the largest valid id of each column of an input."""
    noted = json.loads(model.metadata_props.get(ID_RANGES, "{}"))
    return {
        name: tuple(ANY_ID if one is None else one for one in most) for name, most in noted.items()
    }


def in_range(job: Job, model: ir.Model) -> Job:
    """The job with rows that are checked for ids which the finished model will refuse."""
    most = id_ranges(model)
    return dataclasses.replace(
        job,
        calibration=InRange(job.calibration, most),
        validation=None if job.validation is None else InRange(job.validation, most),
    )
