"""One training: steps, looks at rows held out, checkpoints, and the best weights at the end."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rankc.errors import RecipeError
from rankc.progress import Stage
from rankc.recipe_lock import version_of
from rankc.recipe_training import Training
from rankc.train.augment import augmented
from rankc.train.batch_norm import reestimate_batch_norms
from rankc.train.checkpoint import CODE, Checkpoint, digest_of, key_of
from rankc.train.criterion import Criterion
from rankc.train.diagnosis import diverged
from rankc.train.history import History
from rankc.train.hooks import Hook
from rankc.train.interpreter import Interpreter
from rankc.train.looks import Look, losses_of, require_metric, unlike_a_number
from rankc.train.machine import Interrupts
from rankc.train.minibatches import Minibatch
from rankc.train.rows import Rows
from rankc.train.schedule import Average, optimizer_of, rate_at
from rankc.train.teacher import Remembered, Teacher

Tensor = torch.Tensor
REESTIMATED = 32  # batches that statistics are taken from before a look, where a hook asks for it
# What a checkpoint may differ in: none of it changes a step.
_FREE = ("checkpoint", "minutes")
_MINUTES = " minutes"


@dataclasses.dataclass(slots=True)
class _Best:
    """The best look so far, and the net at it."""

    look: int
    value: float
    net: dict[str, Tensor]


class Run:
    """One training: all that changes from step to step."""

    def __init__(
        self,
        net: Interpreter,
        rows: Rows,
        settings: Training,
        seed: int,
        teacher: Teacher | None,
        hooks: Sequence[Hook],
        stage: Stage,
        device: torch.device,
    ) -> None:
        self.net, self.rows, self.settings, self.seed = net, rows, settings, seed
        self.hooks, self.stage, self.device = hooks, stage, device
        self.teacher = teacher
        self.criterion = Criterion(
            net, settings.objective, teacher, rows.first(), rows.where, settings.precision
        )
        self._check_labels()
        self.answers, self.held_out_answers = self._remember()
        self.steps = max(1, round(settings.epochs * rows.steps))
        self.checkpoint: Checkpoint | None = None
        self.start = self._key()
        for hook in hooks:
            hook.start(net, self.steps)
        self.optimizer = optimizer_of(net, settings)
        self.average = Average(net, settings.average) if settings.average else None
        self.step, self.spent, self.stopped, self.resumed = 0, 0.0, "", ""
        self.looks: list[Look] = []
        self.best: _Best | None = None
        self.began = self.saved = time.monotonic()

    def _remember(self) -> tuple[Remembered | None, Remembered | None]:
        """The original's answers to the rows to train on, and to those held out."""
        rows, remembered = self.rows, self.criterion.remembered
        again = self.settings.augment is None and self.settings.epochs > 1
        seen = next(iter(rows.in_memory()), None) is not None
        looked_at = next(iter(rows.held_out_in_memory()), None) is not None
        return (
            remembered(rows.in_memory(), rows.count) if again and seen else None,
            remembered(rows.held_out_in_memory(), rows.held_out_count) if looked_at else None,
        )

    def _check_labels(self) -> None:
        labelled = next(iter(self.rows.held_out())).labels is not None
        if self.settings.objective.label and not labelled:
            raise RecipeError(
                f"{self.rows.where_held_out}: the rows held out have no label, and objective.label "
                f"is {self.settings.objective.label:g}; name its column in data.holdout.label"
            )
        require_metric(self.settings.metric, self.criterion.reading, labelled)
        for batch in self.rows.in_memory():
            if batch.labels is not None:
                reading, labels = self.criterion.reading, batch.labels.numpy()
                reading.require_valid(labels, batch.rows, self.rows.where)

    def _key(self) -> str:
        settings = dataclasses.asdict(self.settings)
        for name in _FREE:
            del settings[name]
        methods = [(type(hook).__name__, hook.name, hook.key()) for hook in self.hooks]
        original = "" if self.teacher is None else digest_of(self.teacher.net)
        versions = version_of("rankc"), CODE, torch.__version__, np.__version__, self.device.type
        return key_of(
            settings, self.seed, methods, self.rows.digest, digest_of(self.net), original, versions
        )

    def keep_in(self, path: Path, resume: bool, required: bool) -> None:
        """Write checkpoints there, and go on from one that is there.

        Raises:
            RecipeError: one is there that is not of this training, and it is required.
        """
        self.checkpoint = Checkpoint(path, self.start)
        state, why = self.checkpoint.read() if resume else (None, "")
        if why and required:
            raise RecipeError(f"nothing to resume: {why}; --fresh deletes it")
        self.resumed = f"{why}; the training starts anew" if why else ""
        if state is not None:
            self._load(state)
            self.resumed = f"gone on from step {self.step}"

    def train(self) -> History:
        """All steps that are left."""
        with Interrupts().held() as interrupts:
            if not self.looks:
                self._look()
            while not self.stopped:
                epoch, skip = divmod(self.step, self.rows.steps)
                for batch in self.rows.batches(epoch, skip):
                    self._advance(batch)
                    self._keep(interrupts)
                    if self.stopped:
                        break
        return self._finish()

    def _advance(self, batch: Minibatch) -> None:
        """One step and what is due after it."""
        self._one_step(batch)
        self.step += 1
        self.stage.advance(self.step, self.steps)
        over = self.step == self.steps or self._late()
        if over or self.step % self.rows.steps == 0:
            self._end_epoch()
        every = self.settings.evaluate * self.rows.steps
        if over or math.floor(self.step / every) > math.floor((self.step - 1) / every):
            self._look()
            if self._without_better():
                self.stopped = f"no better look in {self.settings.patience}"
                if not over and self.step % self.rows.steps:
                    self._end_epoch()
        if over:
            done = self.step == self.steps
            self.stopped = "all steps made" if done else f"{self.settings.minutes:g}{_MINUTES}"

    def _end_epoch(self) -> None:
        for hook in self.hooks:
            hook.after_epoch((self.step - 1) // self.rows.steps)

    def _late(self) -> bool:
        """Whether the time is up."""
        minutes = self.settings.minutes
        return minutes is not None and self._seconds() > 60 * minutes

    def _one_step(self, batch: Minibatch) -> None:
        rate = rate_at(self.settings, self.step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        for hook in self.hooks:
            hook.before_step(self.step)
        self.net.train()
        batch = self._prepared(batch, self.step)
        parts, loss = self._loss(batch)
        if not math.isfinite(loss.item()):
            told = {name: part.item() for name, part in parts.items()}
            when = f"step {self.step + 1} (epoch {self._epoch():.3g}, learning rate {rate:.3g})"
            raise diverged(self.net, batch, told, when, trained=self.step > 0)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        for hook in self.hooks:
            hook.after_backward(self.step)
        if self.settings.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.settings.clip)
        self.optimizer.step()
        for hook in self.hooks:
            hook.after_step(self.step)
        if self.average is not None:
            self.average.update()

    def _prepared(self, batch: Minibatch, step: int) -> Minibatch:
        batch, how = batch.to(self.device), self.settings.augment
        if how is None:
            return batch
        feeds = augmented(batch.feeds, how, self.seed, step)
        return dataclasses.replace(batch, feeds=feeds)

    def _loss(self, batch: Minibatch) -> tuple[dict[str, Tensor], Tensor]:
        """Its terms by name, and their sum."""
        terms = self.criterion.terms(batch, (self.seed, self.step), remembered=self.answers)
        parts = {name: part.mean() for name, part in terms.parts.items()}
        for hook in self.hooks:
            if (penalty := hook.penalty()) is not None:
                parts[f"penalty of {hook.name}"] = penalty
        return parts, torch.stack([*parts.values()]).sum()

    @torch.no_grad()
    def _look(self) -> None:
        """See what would be deployed now; the net and the draws are as before afterwards."""
        before = {name: tensor.clone() for name, tensor in self.net.state_dict().items()}
        drawn = self._drawn()
        if self.average is not None and self.average.steps:
            self.average.put()
        for hook in self.hooks:
            hook.evaluating()
        if any(hook.reestimates for hook in self.hooks):
            # Of rows as they are trained on: those of blended images are far from those of images.
            some = enumerate(self.rows.some(REESTIMATED))
            reestimate_batch_norms(self.net, (self._prepared(b, k).feeds for k, b in some))
        rows, known = self.rows, self.held_out_answers
        held_out, where = rows.held_out(), rows.where_held_out
        losses, metrics = losses_of(self.net, self.criterion, held_out, where, known)
        look = Look(self.step, self._epoch(), float(losses.mean()), metrics)
        if not np.isfinite(losses).all():
            batches, when = rows.held_out(), f"epoch {look.epoch:.3g}"
            raise unlike_a_number(self.net, batches, losses, when, trained=self.step > 0)
        self.looks.append(look)
        self._compare(look)
        self.net.load_state_dict(before)
        self._draw_from(drawn)
        self.stage.note(f"epoch {look.epoch:.3g} of {self.settings.epochs:g}, {look.told()}")

    def _compare(self, look: Look) -> None:
        value = look.value(self.settings.metric)
        last = any(hook.keeps_last for hook in self.hooks)
        if self.best is None or last or value < self.best.value:
            net = {name: tensor.clone() for name, tensor in self.net.state_dict().items()}
            self.best = _Best(len(self.looks) - 1, value, net)

    def _without_better(self) -> bool:
        patience = self.settings.patience
        assert self.best is not None
        return patience is not None and len(self.looks) - 1 - self.best.look >= patience

    def _finish(self) -> History:
        assert self.best is not None
        self.net.load_state_dict(self.best.net)
        for hook in self.hooks:
            hook.finish(self.net)
        history = History(
            self.step,
            self._epoch(),
            self._seconds(),
            tuple(self.looks),
            self.best.look,
            self.stopped,
            self.resumed,
            {hook.name: hook.report() for hook in self.hooks},
        )
        self.stage.note(history.told())
        return history

    def _epoch(self) -> float:
        return self.step / self.rows.steps

    def _seconds(self) -> float:
        return self.spent + time.monotonic() - self.began

    def _keep(self, interrupts: Interrupts) -> None:
        """Write a checkpoint where one is due.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed in the meantime.
        """
        if self.checkpoint is not None:
            due = time.monotonic() - self.saved >= 60 * self.settings.checkpoint
            if due or interrupts.asked or self.stopped:
                self.checkpoint.write(self._state())
                self.saved = time.monotonic()
        if interrupts.asked:
            raise KeyboardInterrupt

    def _drawn(self) -> list[Tensor]:
        """Where torch's generators are: that of the CPU, and that of the device."""
        cuda = self.device.type == "cuda"
        return [torch.get_rng_state(), *([torch.cuda.get_rng_state(self.device)] if cuda else [])]

    def _draw_from(self, states: Sequence[Tensor]) -> None:
        torch.set_rng_state(states[0])
        for one in states[1:]:
            torch.cuda.set_rng_state(one, self.device)

    def _state(self) -> dict[str, Any]:
        assert self.best is not None
        return {
            "step": self.step,
            "seconds": self._seconds(),
            "stopped": self.stopped,
            "net": dict(self.net.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "drawn": self._drawn(),
            "hooks": [hook.state_dict() for hook in self.hooks],
            "looks": [dataclasses.asdict(look) for look in self.looks],
            "best": {"look": self.best.look, "value": self.best.value, "net": self.best.net},
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        for hook, kept in zip(self.hooks, state["hooks"], strict=True):
            hook.load_state_dict(kept)
        self._draw_from(state["drawn"])
        self.looks = [Look(**look) for look in state["looks"]]
        self.best = _Best(**state["best"])
        self.step, self.spent, self.stopped = state["step"], state["seconds"], state["stopped"]
        if self.stopped.endswith(_MINUTES) and not self._late():
            self.stopped = ""  # there is more time now
