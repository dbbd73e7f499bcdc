"""What is minimised over some rows: the task's loss, and how far answers are from the original's.

  label * (-log likelihood of the labels)
+ distill * T^2 KL(original | net)  at temperature T, or the squared difference
+ sum over matched inner values of weight * mean (net - original)^2 / variance of the original
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Literal

import torch

from rankc.errors import ModelError, RecipeError
from rankc.graph import matches
from rankc.recipe_training import Objective
from rankc.train.interpreter import Interpreter
from rankc.train.losses import distance, ensemble_loss, task_loss
from rankc.train.minibatches import Minibatch
from rankc.train.readings import reading_of
from rankc.train.teacher import Remembered, Teacher

Tensor = torch.Tensor
REMEMBERED = 1 << 26  # bytes that the original's answers may take, rather than be asked for again


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """The parts of the loss, row by row, weights included."""

    parts: Mapping[str, Tensor]  # by name, (rows,) each, to be averaged
    logits: Tensor  # of the net, as `Reading.logits`
    targets: Tensor | None  # as `Reading.targets`

    @property
    def rows(self) -> Tensor:
        """The loss of every row, (rows,)."""
        return torch.stack(list(self.parts.values())).sum(dim=0)

    @property
    def loss(self) -> Tensor:
        """Its mean."""
        return torch.stack([part.mean() for part in self.parts.values()]).sum()


class Criterion:
    """The loss of one net, with everything in it that can be told before the first step."""

    def __init__(
        self,
        net: Interpreter,
        objective: Objective,
        teacher: Teacher | None,
        batch: Minibatch,
        where: str,
        precision: Literal["fp32", "bf16"] = "fp32",
    ) -> None:
        """Find out what answers are, and check that the objective can be had.

        Args:
            net: what is trained, on its device.
            objective: the recipe's.
            teacher: the original, on the same device; needed unless only labels count.
            batch: a few rows.
            where: the data, for messages.
            precision: of what flows through both, while the net is in training.

        Raises:
            RecipeError: labels are asked for and there are none, a glob of `match` fits nothing.
            ModelError: there is no answer to train on.
        """
        self.objective, self.where = objective, where
        self._half = precision == "bf16"
        self._net, self._teacher = net, teacher
        self.reading = reading_of(net if teacher is None else teacher.net, objective, batch)
        self._logit = self.reading.value_of(net)
        self._original_logit = "" if teacher is None else self.reading.value_of(teacher.net)
        self._matched = self._find_matched()
        self._require_possible(batch)

    def remembered(self, batches: Iterable[Minibatch], count: int) -> Remembered | None:
        """The original's answers, if they are all that is asked of it, and short.

        Args:
            batches: rows in their order, to be asked about again and again.
            count: how many rows.
        """
        short = self.reading.task != "tokens" and 4 * count * self.reading.classes <= REMEMBERED
        if self._teacher is None or self._matched or not self.objective.distill or not short:
            return None
        return Remembered(self._teacher, self._original_logit, batches)

    def terms(
        self,
        batch: Minibatch,
        draw: tuple[int, int] | None = None,
        where: str = "",
        remembered: Remembered | None = None,
    ) -> Terms:
        """The loss of some rows on the net's device.

        Args:
            batch: rows.
            draw: seed and step, for a loss that is drawn; None: the one of likelihood.
            where: they are from, if not from the data named before; for messages.
            remembered: the original's answers to these rows, if it is not to be asked.

        Raises:
            DataError: labels that do not fit the answer.
        """
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=self._lowered):
            # first: what the net computes is then still in the cache
            original = self._original(batch, remembered)
            with self._net.capture(self._logit, *self._matched) as seen:
                self._net.run(batch.feeds)
        logits, targets = self.reading.logits(seen[self._logit].float()), None
        if batch.labels is not None:
            targets = self.reading.targets(batch, logits, where or self.where)
        parts = dict[str, Tensor]()
        if self.objective.label and targets is not None:
            parts["label"] = self.objective.label * self._of_task(logits, targets, draw)
        if self.objective.distill:
            before = self.reading.logits(original[self._original_logit].float())
            apart = distance(self.reading.family, before, logits, self.objective.temperature)
            parts["distill"] = self.objective.distill * _by_row(apart, self._counted(targets))
        for name, weight in self._matched.items():
            apart = _apart(name, original[name], seen[name], batch.size)
            parts[f"match {name}"] = weight * apart
        return Terms(parts, logits, targets)

    @property
    def _lowered(self) -> bool:
        return self._half and self._net.training

    def _original(self, batch: Minibatch, remembered: Remembered | None) -> Mapping[str, Tensor]:
        if remembered is not None:
            return {self._original_logit: remembered.of(batch)}
        names = [*self._matched, *([self._original_logit] if self.objective.distill else [])]
        if self._teacher is None or not names:
            return {}
        return self._teacher.values_of(batch.feeds, dict.fromkeys(names))

    def _of_task(self, logits: Tensor, targets: Tensor, draw: tuple[int, int] | None) -> Tensor:
        if draw is not None and self.objective.ensemble:
            return _by_row(ensemble_loss(logits, targets, *draw), None)
        return _by_row(task_loss(self.reading.family, logits, targets), self._counted(targets))

    def _counted(self, targets: Tensor | None) -> Tensor | None:
        """Which places count: all, but in a text those without a label."""
        return targets >= 0 if targets is not None and self.reading.task == "tokens" else None

    def _find_matched(self) -> dict[str, float]:
        """Weights of inner values that both graphs have, by name."""
        wanted = {glob: weight for glob, weight in self.objective.match.items() if weight}
        if not wanted:
            return {}
        assert self._teacher is not None, "matching needs the original"
        original = self._teacher.values
        own = {str(v.name): v for node in self._net.graph for v in node.outputs if v.name}
        both = [name for name in own if name in original and _is_float(own[name])]
        found = dict[str, float]()
        for glob, weight in wanted.items():
            fitting = [name for name in both if matches(name, glob)]
            if not fitting:
                raise RecipeError(
                    f"objective.match: {glob!r} fits no value that both the original and the "
                    f"model to be trained compute; they have {', '.join(both[:20]) or 'none'}"
                )
            found = dict.fromkeys(fitting, weight) | found
        return found

    def _require_possible(self, batch: Minibatch) -> None:
        goal = self.objective
        if goal.label and batch.labels is None:
            raise RecipeError(
                f"{self.where}: objective.label is {goal.label}, and the rows have no label; name "
                "its column in data.training.label (and data.holdout.label), or set "
                "objective.label to 0 to learn from the original's answers alone"
            )
        if goal.ensemble and (self.reading.task != "binary" or not goal.label):
            raise RecipeError(
                f"objective.ensemble draws losses of binary labels; the answer is "
                f"{self.reading.task} and objective.label {goal.label:g}"
            )
        assert self._teacher is not None or not goal.distill, "distilling needs the original"


def _is_float(value: object) -> bool:
    dtype = getattr(value, "dtype", None)
    return dtype is None or bool(dtype.is_floating_point())


def _by_row(places: Tensor, counted: Tensor | None) -> Tensor:
    """The loss of every row, whose mean is that over all places that count, (rows,)."""
    if counted is None:
        return places.reshape(len(places), -1).mean(dim=1)
    weights = counted.to(places.dtype)
    total = weights.sum().clamp(min=1.0)
    return (places * weights).sum(dim=1) * (len(places) / total)


def _apart(name: str, original: Tensor, net: Tensor, rows: int) -> Tensor:
    """Mean squared difference of every row, relative to the original's variance, (rows,).

    Of a value without rows the mean of all, for each of them.
    """
    if original.shape != net.shape:
        raise ModelError(
            f"objective.match: value {name!r} of shape {tuple(original.shape)} in the original "
            f"has {tuple(net.shape)} in the model to be trained"
        )
    original = original.float()
    variance = original.var(correction=0)
    scale = torch.where(variance > 0, variance, torch.ones_like(variance))
    # Summed and then divided, and no power: both keep their gradients small and in their layout.
    entries = net.float() - original
    entries = entries * entries
    if entries.dim() and len(entries) == rows:
        of_row = entries[:, None].sum(dim=tuple(range(1, entries.dim() + 1)))
        return of_row / (scale * (entries.numel() / rows))
    return (entries.sum() / (scale * entries.numel())).expand(rows)
