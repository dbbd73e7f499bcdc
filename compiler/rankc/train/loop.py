"""The loop that trains a net, and the losses by which trained nets are compared."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rankc.progress import Stage
from rankc.recipe_training import Training
from rankc.train.criterion import Criterion
from rankc.train.history import History
from rankc.train.hooks import Hook
from rankc.train.interpreter import Interpreter
from rankc.train.looks import losses_of, unlike_a_number
from rankc.train.machine import deterministic, device_of
from rankc.train.rows import Rows
from rankc.train.running import Run
from rankc.train.teacher import Teacher


def train(
    net: Interpreter,
    rows: Rows,
    settings: Training,
    *,
    seed: int,
    teacher: Teacher | None = None,
    hooks: Sequence[Hook] = (),
    stage: Stage,
    checkpoint: Path | None = None,
    resume: bool = False,
    required: bool = False,
) -> History:
    """Train a net in place; the weights of the best look are put back, and the net is evaluated.

    Args:
        net: on the CPU. Is left in between where an error is raised.
        rows: to train on, and held out.
        settings: the recipe's.
        seed: of everything that is drawn.
        teacher: the original; needed unless the labels alone are learned from.
        hooks: of trainable methods, called in this order.
        stage: told the steps.
        checkpoint: the file to write every `settings.checkpoint` minutes, and at Ctrl-C.
        resume: go on from that file, if it is of the same training.
        required: refuse a file that is there and cannot be gone on from.

    Raises:
        DataError: rows or labels that do not fit.
        RecipeError: settings that do not fit the model, a training that diverged, or a file that
            was to be gone on from.
        ModelError: nothing to train.
        MachineError: no such device, out of memory, no checkpoint could be written.
    """
    with _at_work(net, teacher, settings, seed) as device:
        run = Run(net, rows, settings, seed, teacher, hooks, stage, device)
        if checkpoint is not None:
            run.keep_in(checkpoint, resume, required)
        return run.train()


def held_out_losses(
    net: Interpreter, rows: Rows, settings: Training, teacher: Teacher | None, *, trained: bool
) -> NDArray[np.float64]:
    """The objective of every row that judges, `Rows.judging`, in their order, (rows,).

    Raises:
        DataError: labels that do not fit.
        RecipeError: settings that do not fit the model, a loss that is not finite.
    """
    with _at_work(net, teacher, settings, 0):
        criterion = Criterion(net, settings.objective, teacher, rows.first(), rows.where)
        losses = losses_of(net, criterion, rows.judging(), rows.where_held_out)[0]
        if not np.isfinite(losses).all():
            when = "the end" if trained else "epoch 0"
            raise unlike_a_number(net, rows.judging(), losses, when, trained=trained)
        return losses


@contextlib.contextmanager
def _at_work(
    net: Interpreter, teacher: Teacher | None, settings: Training, seed: int
) -> Iterator[torch.device]:
    """Both nets on the device, for as long as this lasts; on the CPU afterwards."""
    device = device_of(settings)
    try:
        with deterministic(settings.threads, seed, device):
            net.to(device).channels_last()
            if teacher is not None:
                teacher.to(device)
            yield device
    finally:
        net.to("cpu").eval()
        if teacher is not None:
            teacher.to(torch.device("cpu"))
