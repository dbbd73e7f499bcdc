"""What an output is, told from its shape and that of the labels: which metrics fit it."""

from __future__ import annotations

import dataclasses
from typing import Protocol

from rankc.data import Array
from rankc.errors import DataError
from rankc.validate.classes import Classifier, classes_of
from rankc.validate.judgement import NO_LABELS, Judgement
from rankc.validate.metrics import Floats
from rankc.validate.scores import Scores
from rankc.validate.segmentation import Segmentation
from rankc.validate.similarity import Similarities
from rankc.validate.tokens import Tokens


class Kind(Protocol):
    """A kind of output. Takes in batches; says what can be said of it when all are in."""

    def add(self, x: Floats, y: Floats, labels: Array | None, groups: Array | None) -> None:
        """Outputs of some rows by the original and by the compressed model, (rows, ...) each.

        Args:
            x: Of the original.
            y: Of the compressed model; the same shape.
            labels: (rows, ...), any real dtype.
            groups: (rows,), numbers or text.

        Raises:
            DataError: The labels do not fit the output.
        """

    def judge(self) -> Judgement:
        """All batches are in, one row at least.

        Raises:
            DataError: The labels do not let anything be told, such as those of one class.
        """
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Names:
    """For messages."""

    output: str
    label: str  # column
    group: str = "group"  # column


def kinds_of(x: Floats, labels: Array | None, names: Names) -> tuple[Kind, ...]:
    """What judges an output like this one, `x`, with labels like these.

    Raises:
        DataError: Labels of this shape fit no output of that shape; says which would.
    """
    output, label = names.output, names.label
    if x.size == len(x):
        return (Scores(output, label, names.group),)
    classes = classes_of(x.shape)
    if labels is None:
        alike = Similarities(output)
        return (alike, Classifier(output, label, classes) if classes else Unjudged(output))
    if classes:
        return (Classifier(output, label, classes),)
    if x.ndim == 3 and labels.size == x.shape[0] * x.shape[1] and labels.ndim < 3:
        return (Tokens.of(output, label, x.shape[2]),)
    if axis := _segmented(x.shape, labels.shape):
        return (Segmentation.of(output, label, x.shape[axis], axis),)
    if labels.size != len(labels):
        raise DataError(
            f"label column '{label}': labels of shape {_free(labels.shape)} do not fit output "
            f"'{output}' of shape {_free(x.shape)}; {_fitting(x.shape)}"
        )
    why = f"one label a row says nothing of output '{output}' of shape {_free(x.shape)}"
    return (Unjudged(output, f"{why}; {_fitting(x.shape)}"),)


@dataclasses.dataclass(slots=True)
class Unjudged:
    """An output of which no right answer is known."""

    output: str
    why: str = NO_LABELS

    def add(self, x: Floats, y: Floats, labels: Array | None, groups: Array | None) -> None:
        """Keeps nothing."""

    def judge(self) -> Judgement:
        """Why there is nothing."""
        names = ("auc", "logloss", "accuracy_top1")
        return Judgement(unavailable=dict.fromkeys(names, self.why))


def _segmented(shape: tuple[int, ...], labels: tuple[int, ...]) -> int:
    """The axis of the classes of an output that has a label a pixel; 0 if it has none."""
    if len(shape) == 4:
        for axis in (1, 3):
            if labels == shape[:axis] + shape[axis + 1 :] and shape[axis] >= 2:
                return axis
    return 0


def _free(shape: tuple[int, ...]) -> str:
    return f"({', '.join(['rows', *map(str, shape[1:])])})"


def _fitting(shape: tuple[int, ...]) -> str:
    """Which labels would fit an output of this shape."""
    if len(shape) == 3:
        return f"{_free(shape[:2])} would fit: the class of each token"
    if len(shape) == 4:
        first, last = (shape[0], *shape[2:]), shape[:3]
        return f"{_free(first)} or {_free(last)} would fit: the class of each pixel"
    return "no labels fit it; leave data.validation.label out"
