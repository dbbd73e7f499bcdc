"""Training as a stage of the compiler: before the plan, and after the rewrite.

What imports torch is imported here, and only when a recipe trains.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
from collections.abc import Sequence

import onnx_ir as ir

from rankc.data import InRange, Learning
from rankc.errors import MachineError
from rankc.job import Job, id_ranges
from rankc.planning import Plan
from rankc.progress import Progress
from rankc.validate.schema import Lesson


@dataclasses.dataclass(frozen=True, slots=True)
class Learnt:
    """A model and what came of training it."""

    model: ir.Model
    told: Sequence[Lesson]  # empty where the recipe trains nothing


def learn(job: Job, model: ir.Model, tell: Progress) -> Learnt:
    """Train the model as the recipe's `train` says, with the passes that learn.

    Args:
        job: the recipe with its rows opened.
        model: after clean-up; left as it is.
        tell: where the stage is announced.

    Raises:
        MachineError: torch is missing.
        DataError, ModelError, RecipeError: see `rankc.train.stages`.
    """
    settings, learning = job.recipe.train, _of(job, model)
    if settings is None or learning is None:
        return Learnt(model, ())
    _require_torch()
    from rankc.train.stages import train_model

    with tell.stage("train") as stage:
        trained, lesson = train_model(
            model,
            job.taken.model,
            job.passes,
            settings,
            learning,
            seed=job.recipe.seed,
            stage=stage,
        )
    return Learnt(trained, (lesson,))


def recover(
    job: Job, model: ir.Model, plan: Plan, tell: Progress, *, one_of_many: bool = False
) -> Learnt:
    """Train the compressed model as the recipe's `recover` says, and keep what helps.

    Args:
        job: the recipe with its rows opened.
        model: finished; left as it is.
        plan: what was done to it, which names the checkpoint.
        tell: where the stage is announced.
        one_of_many: of the plans of a search or a family some may leave all layers dense, and have
            no factors to train; alone that is an error.

    Raises:
        MachineError: torch is missing.
        DataError, ModelError, RecipeError: see `rankc.train.stages`.
    """
    settings, learning = job.recipe.recover, _of(job, model)
    if settings is None or learning is None:
        return Learnt(model, ())
    _require_torch()
    from rankc.train.recovery import NothingToRecoverError
    from rankc.train.stages import recover_model

    with tell.stage("recover") as stage:
        try:
            trained, lesson = recover_model(
                model, job.taken.model, settings, learning,
                seed=job.recipe.seed, stage=stage, of=_short(plan),
            )  # fmt: skip
        except NothingToRecoverError:
            if not one_of_many:
                raise
            stage.note("no low-rank layer in this plan, so no factors to train")
            return Learnt(model, ())
    return Learnt(trained, (lesson,))


def _short(plan: Plan) -> str:
    return hashlib.sha256(plan.to_json().encode()).hexdigest()[:12]


def _of(job: Job, model: ir.Model) -> Learning | None:
    """The rows, with ids that the model can look up."""
    if job.learning is None:
        return None
    most, given = id_ranges(model), job.learning
    held = None if given.held_out is None else InRange(given.held_out, most)
    return dataclasses.replace(given, rows=InRange(given.rows, most), held_out=held)


def _require_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        raise MachineError('the recipe trains, which takes PyTorch: pip install "rankc[train]"')
