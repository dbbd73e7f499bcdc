"""What a model answers: its logits, what they are logits of, and how far two answers are apart.

The distance is the Kullback-Leibler divergence, in nats:
  Sigmoid               of one yes or no a number               sum over the numbers
  Softmax, LogSoftmax   of one choice among the last axis       sum over the other axes
  neither               a choice, too, if there are two or three axes and the last is longer than
                        one: classes of a net that was exported without its Softmax. Else of unit
                        normals about the numbers: half the squared difference
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from rankc.gradient_tape import NoGradientError, dims, length

Array = NDArray[Any]
Head = Literal["Sigmoid", "Softmax", ""]  # what the model does with a logit
Family = Literal["bernoulli", "categorical", "normal"]  # distributions

_SHAPE_OR_TYPE = ("Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze")
_CLASSES = (2, 3)  # axes of logits of classes: (batch, classes) or (batch, places, classes)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """One of a model's answers."""

    logit: ir.Value
    head: Head

    @property
    def name(self) -> str:
        """Of the logit."""
        return str(self.logit.name)

    def family(self, shape: Sequence[object]) -> Family:
        """What a logit of that shape is the parameter of."""
        if self.head:
            return "bernoulli" if self.head == "Sigmoid" else "categorical"
        return "categorical" if len(shape) in _CLASSES and shape[-1] != 1 else "normal"


def answers_of(graph: ir.Graph) -> list[Answer]:
    """Of the float outputs, in order and without repetition; empty where there are none."""
    heads: dict[ir.Value, Head] = {}
    for output in graph.outputs:
        if output.dtype is None or output.dtype.is_floating_point():
            logit, head = _before_probability(output)
            heads[logit] = heads.get(logit, "") or head
    return [Answer(logit, head) for logit, head in heads.items()]


def row_width(answer: Answer) -> int:
    """Logits a row. Raises NoGradientError where that is not known."""
    logit, rank = answer.logit, len(dims(answer.logit))
    if logit.dtype is None:
        raise NoGradientError(f"the type of the model's answer '{logit.name}' is unknown")
    if rank == 0:
        raise NoGradientError(f"the model's answer '{logit.name}' has no rows")
    return math.prod(length(logit, axis) for axis in range(1, rank))


def _before_probability(output: ir.Value) -> tuple[ir.Value, Head]:
    """The logit of an output; the output itself where it is no probability."""
    value = output
    while (node := value.producer()) is not None and node.inputs and node.inputs[0] is not None:
        if node.op_type == "Sigmoid":
            return node.inputs[0], "Sigmoid"
        if node.op_type in ("Softmax", "LogSoftmax") and _is_last_axis(node):
            return node.inputs[0], "Softmax"
        if node.op_type not in _SHAPE_OR_TYPE:
            return output, ""
        value = node.inputs[0]
    return output, ""


def _is_last_axis(node: ir.Node) -> bool:
    axis = node.attributes.get_int("axis", -1) if "axis" in node.attributes else -1
    shape = node.outputs[0].shape
    return axis == -1 or (shape is not None and axis == len(shape) - 1)


def divergence(family: Family, before: Array, after: Array) -> float:
    """KL(before | after) of logits, summed over all rows, in nats; never negative.

    Args:
        family: of the distributions.
        before: logits, (rows, ...), finite.
        after: logits of the same shape.
    """
    z, w = before.astype(np.float64), after.astype(np.float64)
    if family == "normal":
        return float(np.square(z - w).sum() / 2)
    if family == "bernoulli":
        p = np.exp(-np.logaddexp(0.0, -z))
        apart = np.logaddexp(0.0, w) - np.logaddexp(0.0, z) + p * (z - w)
    else:
        log_p, log_q = _log_softmax(z), _log_softmax(w)
        apart = (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)
    return max(0.0, float(apart.sum()))


def _log_softmax(z: NDArray[np.float64]) -> NDArray[np.float64]:
    z = z - z.max(axis=-1, keepdims=True)
    result: NDArray[np.float64] = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
    return result
