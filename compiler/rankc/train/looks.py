"""Looks at the rows held out: their losses, and what people judge a model by."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from rankc.errors import RecipeError
from rankc.train.criterion import Criterion, Terms
from rankc.train.diagnosis import diverged
from rankc.train.interpreter import Interpreter
from rankc.train.losses import task_loss
from rankc.train.minibatches import Minibatch
from rankc.train.readings import Reading, Task, device_of
from rankc.train.teacher import Remembered

Floats = NDArray[np.float64]
HIGHER = frozenset({"accuracy_top1", "auc"})  # is better
_METRICS: Mapping[Task, tuple[str, ...]] = {
    "binary": ("logloss", "auc"),
    "multiclass": ("logloss", "accuracy_top1"),
    "tokens": ("logloss", "accuracy_top1"),
    "regression": ("mse",),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Look:
    """What the rows held out said at one moment."""

    step: int  # how many steps had been made
    epoch: float
    loss: float  # mean of the objective; of a drawn loss, that of likelihood
    metrics: Mapping[str, float]  # of labels, where there are any

    def value(self, metric: str) -> float:
        """Of `Training.metric`; the lower, the better.

        Raises:
            RecipeError: the rows held out do not tell it.
        """
        if metric == "loss":
            return self.loss
        if metric not in self.metrics:
            raise RecipeError(
                f"metric {metric!r} cannot be told of rows held out without labels of two kinds; "
                "hold out more rows, or go by loss"
            )
        return -self.metrics[metric] if metric in HIGHER else self.metrics[metric]

    def told(self) -> str:
        """In a few words."""
        also = "".join(f", {name} {value:.4f}" for name, value in self.metrics.items())
        return f"held-out loss {self.loss:.5g}{also}"


def require_metric(metric: str, reading: Reading, labelled: bool) -> None:
    """Refuse a metric that cannot be had.

    Raises:
        RecipeError: the rows held out have no labels, or it is none of such answers.
    """
    known = _METRICS[reading.task] if labelled else ()
    if metric != "loss" and metric not in known:
        why = f"of a {reading.task} answer" if labelled else "without labels of the rows held out"
        raise RecipeError(f"metric {metric!r} {why}: there is {', '.join(('loss', *known))}")


@torch.no_grad()
def losses_of(
    net: Interpreter,
    criterion: Criterion,
    batches: Iterable[Minibatch],
    where: str,
    remembered: Remembered | None = None,
) -> tuple[Floats, dict[str, float]]:
    """The loss of every row, in their order, and metrics; the net stays in evaluation.

    Args:
        net: on its device.
        criterion: of the loss.
        batches: of rows held out.
        where: they are from, for messages.
        remembered: the original's answers to them, if it is not to be asked.

    Raises:
        DataError: labels that do not fit.
    """
    device = device_of(net)
    net.eval()
    losses, judged = list[Floats](), _Judged(criterion.reading)
    for batch in batches:
        terms = criterion.terms(batch.to(device), where=where, remembered=remembered)
        losses.append(terms.rows.double().cpu().numpy())
        judged.add(terms)
    return np.concatenate(losses), judged.metrics()


def unlike_a_number(
    net: Interpreter, batches: Iterable[Minibatch], losses: Floats, when: str, *, trained: bool
) -> RecipeError:
    """The error to raise for rows held out that have a loss which is not finite.

    Args:
        net: as it is.
        batches: that the losses are of.
        losses: (rows,).
        when: of the training, for the message.
        trained: whether a step has been made.
    """
    row, batch = int(np.flatnonzero(~np.isfinite(losses))[0]), None
    for batch in batches:
        row -= batch.size
        if row < 0:
            break
    assert batch is not None
    told = {"mean of the rows held out": float(losses.mean())}
    return diverged(net, batch, told, when, trained=trained)


class _Judged:
    """What metrics are made of, over batches."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._losses = list[Floats]()  # at every place that counts
        self._right = list[NDArray[np.bool_]]()
        self._scores, self._labels = list[Floats](), list[Floats]()

    def add(self, terms: Terms) -> None:
        if terms.targets is None:
            return
        family, targets = self._reading.family, terms.targets
        counted = targets >= 0 if family == "categorical" else torch.ones_like(targets) > 0
        lost = task_loss(family, terms.logits, targets)
        self._losses.append(lost[counted].double().cpu().numpy())
        if family == "categorical":
            chosen = terms.logits[counted].cpu().numpy().argmax(axis=-1)  # the lower of equals
            self._right.append(chosen == targets[counted].cpu().numpy())
        elif family == "bernoulli":
            self._scores.append(terms.logits.double().cpu().numpy().reshape(-1))
            self._labels.append(targets.cpu().numpy().reshape(-1))

    def metrics(self) -> dict[str, float]:
        if not sum(map(len, self._losses)):
            return {}
        mean = float(np.concatenate(self._losses).mean())
        if self._reading.task == "regression":
            return {"mse": mean}
        if self._right:
            return {"logloss": mean, "accuracy_top1": float(np.concatenate(self._right).mean())}
        return {"logloss": mean} | self._auc()

    def _auc(self) -> dict[str, float]:
        from sklearn.metrics import roc_auc_score

        labels, scores = np.concatenate(self._labels), np.concatenate(self._scores)
        if not np.isfinite(scores).all() or labels.min() == labels.max():
            return {}  # of rows of one class there is none
        return {"auc": float(roc_auc_score(labels, scores))}
