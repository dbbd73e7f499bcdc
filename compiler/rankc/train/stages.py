"""A model in, a trained model out: the two trainings of the pipeline."""

from __future__ import annotations

import dataclasses
import glob
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from rankc.answers import answers_of
from rankc.data import Learning
from rankc.errors import RecipeError
from rankc.graph import matches
from rankc.passbase import Pass
from rankc.progress import Stage
from rankc.recipe_training import Objective, Recovery, Training
from rankc.train.batch_norm import fold_batch_norms, insert_batch_norms
from rankc.train.gradients import require_trainable
from rankc.train.history import History
from rankc.train.interpreter import Interpreter
from rankc.train.loop import held_out_losses, train
from rankc.train.methods import Method, methods_of
from rankc.train.recovery import Recovering, frozen_but, prepared
from rankc.train.rows import Rows
from rankc.train.teacher import Teacher
from rankc.train.unshare import unshare
from rankc.validate.schema import Lesson

Losses = NDArray[np.float64]

STATISTICS_ROWS = 1024  # that the first statistics of a new BatchNormalization are taken on
# What lies between an input and the first weight of a net where pixels or columns are normalised.
_ELEMENTWISE = ("Add", "Sub", "Mul", "Div", "Cast", "Identity", "Clip", "Reshape", "Transpose")


def train_model(
    model: ir.Model,
    original: ir.Model,
    passes: Sequence[Pass],
    settings: Training,
    learning: Learning,
    *,
    seed: int,
    stage: Stage,
) -> tuple[ir.Model, Lesson]:
    """Train a model with the passes that learn, before they rewrite it.

    Args:
        model: after clean-up; left as it is.
        original: the teacher.
        passes: of the recipe; those that learn take part, each at its sites.
        settings: the recipe's `train`.
        learning: rows to train on, rows that decide when to stop, and where `train.checkpoint` is
            written and gone on from.
        seed: of all that is drawn.
        stage: told the steps.

    Returns:
        The model with trained weights, what the passes learnt attached, and what is told of it.

    Raises:
        DataError, ModelError, RecipeError, MachineError: see `rankc.train.loop.train`.
    """
    student = model.clone()
    _unshare("train", settings.unshare, student)
    _require_known("train", settings.freeze, student, original)
    rows = _rows(learning, settings, seed)
    _put_batch_norms(student, settings, rows)
    methods = methods_of(student, passes, settings, seed)
    net = _net(student, settings, rows, ())
    history = train(
        net, rows, settings, seed=seed, teacher=Teacher(original),
        hooks=[method.hook for method in methods], stage=stage,
        checkpoint=learning.folder / "train.checkpoint", resume=True, required=learning.required,
    )  # fmt: skip
    trained = _finished(net)
    for method in methods:
        method.attach(trained)
    why = f"the held-out loss went from {_loss(history, 0)} to {_loss(history, history.best)}"
    why += _unheard(original, settings.objective)
    return trained, _lesson("train", history, True, why, _ranks(methods))


def recover_model(
    model: ir.Model,
    original: ir.Model,
    settings: Recovery,
    learning: Learning,
    *,
    seed: int,
    stage: Stage,
    of: str,
) -> tuple[ir.Model, Lesson]:
    """Train a compressed model; it is kept where the rows held out say that it helps.

    The guard: half of the rows held out choose the best look, the rest of them judge it. Their
    objective is taken before and after, and the trained weights are kept if it falls by more than
    `settings.margin` standard errors of its mean fall.

    Args:
        model: finished; left as it is.
        original: the teacher.
        settings: the recipe's `recover`.
        learning: rows to train on, rows that decide when to stop and what is kept, and the folder
            of checkpoints.
        seed: of all that is drawn.
        stage: told the steps.
        of: names the plan; `recover-<of>.checkpoint` is written and gone on from.

    Returns:
        The model with trained weights, or else `model`, and what is told of it.

    Raises:
        DataError, ModelError, RecipeError, MachineError: see `rankc.train.loop.train`.
    """
    student = model.clone()
    _require_known("recover", settings.freeze, student, original)
    pairs = prepared(student, settings.parameters, settings.orthogonality)
    rows = _rows(learning, settings, seed, judged=settings.guard)
    teacher = Teacher(original)
    before = held_out_losses(Interpreter(model), rows, settings, teacher, trained=False)
    frozen = frozen_but(student, pairs, settings.parameters)
    if settings.parameters != "singular":  # what it folds into would change by more than a scale
        _put_batch_norms(student, settings, rows, frozen)
    net = _net(student, settings, rows, frozen)
    hook = Recovering(pairs, settings.parameters, settings.orthogonality, settings.freeze)
    history = train(
        net, rows, settings, seed=seed, teacher=teacher, hooks=[hook], stage=stage,
        checkpoint=learning.folder / f"recover-{of}.checkpoint", resume=True,
        required=learning.required,
    )  # fmt: skip
    trained = _finished(net)
    after = held_out_losses(Interpreter(trained), rows, settings, teacher, trained=True)
    fall = Fall.of(before, after)
    kept, why = _kept(settings, fall, history)
    why += _unheard(original, settings.objective)
    stage.note(f"{history.told()}; {'kept' if kept else 'not kept'}")
    lesson = _lesson("recover", history, kept, why)
    lesson["fall"] = fall.mean
    if np.isfinite(fall.error):
        lesson["standard_error"] = fall.error
    return (trained if kept else model), lesson


@dataclasses.dataclass(frozen=True, slots=True)
class Fall:
    """By how much the loss of rows held out fell."""

    rows: int
    start: float  # mean loss before
    mean: float
    error: float  # standard error of the mean; infinite of a single row

    @classmethod
    def of(cls, before: Losses, after: Losses) -> Fall:
        """Of the losses of the same rows, (rows,) each."""
        falls = before - after
        rows = len(falls)
        error = float(falls.std(ddof=1) / np.sqrt(rows)) if rows > 1 else float("inf")
        return cls(rows, float(before.mean()), float(falls.mean()), error)

    def exceeds(self, margin: float) -> bool:
        """Whether it is more than that many standard errors."""
        return self.mean > margin * self.error

    def told(self, which: str) -> str:
        """In words, of rows of which more is said."""
        return (
            f"on {self.rows:,} rows held out{which} the loss fell by {self.mean:.3g} "
            f"± {self.error:.2g} (standard error) from {self.start:.5g}"
        )


def _kept(settings: Recovery, fall: Fall, history: History) -> tuple[bool, str]:
    """Whether the trained weights go on, and why."""
    if not settings.guard:
        return True, f"{fall.told('')}; the recipe keeps them whatever it says"
    if history.best == 0:
        return False, "no look at the rows held out was better than the one before any step"
    kept = fall.exceeds(settings.margin)
    word = "more" if kept else "not more"
    told = fall.told(" that chose nothing,")
    return kept, f"{told}: {word} than {settings.margin:g} of them"


def _unheard(original: ir.Model, objective: Objective) -> str:
    """Answers that the objective says nothing of, in words; empty where there are none."""
    left = []
    for answer in answers_of(original.graph)[1:]:
        behind = [str(v.name) for node in answer.logit.consumers() for v in node.outputs]
        weights = [
            w
            for glob, w in objective.match.items()
            for n in (answer.name, *behind)
            if matches(n, glob)
        ]
        left += [] if any(weights) else [answer.name]
    if not left:
        return ""
    return (
        f"; nothing of it is about the output {', '.join(left)}, which objective.match could name"
    )


def preprocessing(model: ir.Model) -> list[str]:
    """Float initializers that meet an input before any layer does: means and scales of pixels."""
    found: dict[str, None] = {}
    todo = [value for value in model.graph.inputs if not value.is_initializer()]
    while todo:
        for node, _ in todo.pop().uses():
            if node.op_type in _ELEMENTWISE:
                others = [v for v in node.inputs if v is not None and v.is_initializer()]
                found |= {str(v.name): None for v in others}
                todo += node.outputs
    return list(found)


def _require_known(key: str, patterns: Sequence[str], *models: ir.Model) -> None:
    """Refuse a pattern of `freeze` that fits no weight, of what is trained or of the original."""
    names = dict.fromkeys(str(name) for model in models for name in model.graph.initializers)
    _require_fit(f"{key}.freeze", patterns, list(names), "weight")


def _unshare(key: str, patterns: Sequence[str], model: ir.Model) -> None:
    """Give each node its own copy of the weights meant, in place."""
    floats = [v for v in model.graph.initializers.values() if v.dtype == ir.DataType.FLOAT]
    shared = [str(v.name) for v in floats if len({node for node, _ in v.uses()}) > 1]
    _require_fit(f"{key}.unshare", patterns, shared, "weight that several nodes read")
    unshare(model, [name for name in shared if any(matches(name, p) for p in patterns)])


def _require_fit(key: str, patterns: Sequence[str], names: Sequence[str], kind: str) -> None:
    for pattern in patterns:
        if not any(matches(name, pattern) for name in names):
            known = ", ".join(names[:20]) or "none"
            more = f" and {len(names) - 20} more" if len(names) > 20 else ""
            raise RecipeError(f"{key}: {pattern!r} fits no {kind}; there are {known}{more}")


def _rows(learning: Learning, settings: Training, seed: int, *, judged: bool = False) -> Rows:
    return Rows(
        learning.rows,
        learning.held_out,
        batch_size=learning.batch_size,
        share=settings.holdout,
        seed=seed,
        memory_mb=settings.memory_mb,
        judged=judged,
    )


def _put_batch_norms(
    model: ir.Model, settings: Training, rows: Rows, frozen: Collection[str] = ()
) -> None:
    """Behind convolutions that are trained, for the training alone."""
    if settings.batch_norm and any(node.op_type == "Conv" for node in model.graph):
        insert_batch_norms(model, _some(rows), frozen=(*settings.freeze, *frozen))


def _some(rows: Rows) -> Iterator[Mapping[str, Any]]:
    """Batches of the first rows, as arrays."""
    count = -(-STATISTICS_ROWS // rows.batch_size)
    for batch in itertools.islice(rows.batches(0), count):
        yield {name: tensor.numpy() for name, tensor in batch.feeds.items()}


def _net(model: ir.Model, settings: Training, rows: Rows, frozen: Collection[str]) -> Interpreter:
    constants = [glob.escape(name) for name in preprocessing(model)]
    net = Interpreter(model, (*settings.freeze, *constants, *frozen))
    require_trainable(net, rows.first().feeds)
    return net


def _finished(net: Interpreter) -> ir.Model:
    trained = net.to_onnx()
    fold_batch_norms(trained)
    return trained


def _loss(history: History, look: int) -> str:
    return f"{history.looks[look].loss:.5g}"


def _ranks(methods: Sequence[Method]) -> dict[str, list[tuple[int, int]]]:
    """Of every layer that a method trains, from which step on it had which rank."""
    reports = [method.hook.report().get("ranks", {}) for method in methods]
    pairs = [(layer, over) for report in reports for layer, over in report.items() if over]
    return {layer: [(step, rank) for step, rank in over] for layer, over in pairs}


def _lesson(
    stage: Literal["train", "recover"],
    history: History,
    kept: bool,
    why: str,
    ranks: Mapping[str, list[tuple[int, int]]] | None = None,
) -> Lesson:
    lesson = Lesson(
        stage=stage,
        epochs=history.epochs,
        steps=history.steps,
        seconds=history.seconds,
        stopped=history.stopped,
        looks=[
            {"epoch": look.epoch, "loss": look.loss, "metrics": dict(look.metrics)}
            for look in history.looks
        ],
        best=history.looks[history.best].epoch,
        kept=kept,
        why=why,
    )
    if ranks:
        lesson["ranks"] = dict(ranks)
    return lesson
