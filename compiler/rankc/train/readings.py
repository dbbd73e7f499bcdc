"""What a net's answer is, where its logit is read, and what labels it can be held against."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from rankc.answers import Family, answers_of
from rankc.errors import DataError, ModelError, RecipeError
from rankc.recipe_training import Objective
from rankc.train.interpreter import Interpreter
from rankc.train.losses import logit_of
from rankc.train.minibatches import Minibatch

Tensor = torch.Tensor
Task = Literal["binary", "multiclass", "tokens", "regression"]
_FAMILIES: dict[Task, Family] = {
    "binary": "bernoulli",
    "multiclass": "categorical",
    "tokens": "categorical",
    "regression": "normal",
}
_SUM = 1e-4  # how far from 1 probabilities of classes may sum up to


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """How the first float answer of a net, and of others with the same outputs, is to be read."""

    output: str
    task: Task
    classes: int  # of a choice; else numbers a row
    probability: bool  # it is one, and the net says nowhere what of

    @property
    def family(self) -> Family:
        """Of its distribution."""
        return _FAMILIES[self.task]

    def value_of(self, net: Interpreter) -> str:
        """The value of a net's graph that is its logit."""
        answers = {a.name: a for a in answers_of(net.graph)}
        first = next(iter(answers.values()))
        return self.output if self.task == "regression" else first.name

    def logits(self, raw: Tensor) -> Tensor:
        """In the shape that losses take: of binary answers (rows, numbers), of others as it is."""
        found = logit_of(self.family, raw.float()) if self.probability else raw.float()
        if self.task in ("binary", "regression"):
            return found.reshape(len(found), -1)
        return found.reshape(len(found), -1) if self.task == "multiclass" else found

    def targets(self, batch: Minibatch, logits: Tensor, where: str) -> Tensor:
        """Labels as losses take them, on the logits' device.

        Raises:
            DataError: they do not fit the answer: in shape, or a class that there is not.
        """
        assert batch.labels is not None, where
        labels = batch.labels
        shape = logits.shape if self.family != "categorical" else logits.shape[:-1]
        if labels.numel() != shape.numel() or len(labels) != shape[0]:
            raise DataError(
                f"{where}: labels of shape {tuple(labels.shape)} for an answer '{self.output}' "
                f"that takes {tuple(shape)}: {_ASKED[self.task]}"
            )
        self.require_valid(labels.cpu().numpy(), batch.rows, where)
        kind = torch.int64 if self.family == "categorical" else torch.float32
        return labels.reshape(shape).to(logits.device, kind)

    def require_valid(
        self, labels: NDArray[np.generic], rows: NDArray[np.int64], where: str
    ) -> None:
        """Refuse a class that there is not. Args: labels, (rows, ...); their rows' numbers."""
        if self.task == "regression":
            return
        if self.task == "binary":
            wrong, valid = (labels != 0) & (labels != 1), "0 and 1"
        else:
            wrong = (labels >= self.classes) | (labels != np.floor(labels))  # type: ignore[operator]
            valid = f"whole numbers from 0 to {self.classes - 1}"
            if self.task == "multiclass":
                wrong |= labels < 0  # type: ignore[operator]
            else:
                valid += ", and below 0, such as -100, where no token is to be learned"
        if wrong.any():
            index = [int(k) for k in np.argwhere(wrong)[0]]
            row, place = index[0], index[1:]
            at = f", place {', '.join(map(str, place))}" if place else ""
            raise DataError(
                f"{where}: row {rows[row]}{at}: label {labels[tuple(index)].item()} is none of "
                f"the {self.task} answer '{self.output}'; valid are {valid}"
            )


_ASKED: dict[Task, str] = {
    "binary": "0 or 1 for every number of the answer",
    "multiclass": "one class a row",
    "tokens": "a class at every place, -100 where there is none",
    "regression": "a number for every number of the answer",
}


def reading_of(net: Interpreter, objective: Objective, batch: Minibatch) -> Reading:
    """How to read a net's answer.

    Args:
        net: the original, or the net to be trained.
        objective: what the recipe says of it.
        batch: a few rows, with labels if there are any.

    Raises:
        ModelError: there is no answer of floats.
        RecipeError: the answer has no such shape, or what labels are cannot be told.
    """
    answers = answers_of(net.graph)
    if not answers:
        raise ModelError(f"no float output to train on; outputs are {', '.join(net.output_names)}")
    output = next(
        str(v.name) for v in net.graph.outputs if v.dtype is None or v.dtype.is_floating_point()
    )
    with torch.no_grad(), net.capture(answers[0].name) as seen:
        found = net.run(batch.to(device_of(net)).feeds)[output]
    logit = seen[answers[0].name]
    task = objective.task
    if task == "auto":
        task = _task_of(answers[0].head, logit, found, batch.labels)
        _require_no_one_hot(task, output, batch.labels)
    _require_shape(task, output, tuple(logit.shape))
    probability = not answers[0].head and task != "regression" and _is_probability(task, found)
    classes = found.shape[-1] if task == "tokens" else found[0].numel()
    return Reading(output, task, classes, probability)


def device_of(net: Interpreter) -> torch.device:
    """Where a net is."""
    return next(iter((*net.parameters(), *net.buffers()))).device


def _task_of(head: str, logit: Tensor, output: Tensor, labels: Tensor | None) -> Task:
    """By shape, by the labels where there are some, else by the values."""
    if output[0].numel() > 1 and head != "Sigmoid":
        if logit.dim() == 3:
            return "tokens"
        alike = labels is not None and labels.shape == output.shape
        classes = logit.dim() == 2 or logit[0].numel() == logit.shape[1]
        return "regression" if alike or not classes else "multiclass"
    if labels is not None and not head:
        return "binary" if bool(((labels == 0) | (labels == 1)).all()) else "regression"
    return "binary" if head or _is_probability("binary", output) else "regression"


def _require_no_one_hot(task: Task, output: str, labels: Tensor | None) -> None:
    """Numbers to meet and classes cannot be told apart there."""
    if task != "regression" or labels is None or labels.dim() < 2 or labels[0].numel() < 2:
        return
    rows = labels.reshape(len(labels), -1)
    if bool((((rows == 0) | (rows == 1)).all(dim=1) & (rows.sum(dim=1) == 1)).all()):
        raise RecipeError(
            f"the labels of '{output}' look like classes, one-hot; give the class of a row as a "
            "whole number, or set objective.task to regression if they are numbers to be met"
        )


def _is_probability(task: Task, output: Tensor) -> bool:
    within = bool(((output >= 0) & (output <= 1)).all())
    if task == "binary" or not within:
        return within
    axis = -1 if task == "tokens" else 1
    return bool((output.float().sum(dim=axis) - 1).abs().max() < _SUM)


def _require_shape(task: Task, output: str, shape: tuple[int, ...]) -> None:
    wide = int(np.prod(shape[1:]))
    fits = {
        "binary": True,
        "multiclass": len(shape) >= 2 and wide == shape[1] and wide > 1,
        "tokens": len(shape) == 3,
        "regression": True,
    }
    if not fits[task]:
        asked = "(rows, classes)" if task == "multiclass" else "(rows, places, classes)"
        raise RecipeError(
            f"objective.task is {task}, which takes an answer of shape {asked}; "
            f"'{output}' has {shape}"
        )
