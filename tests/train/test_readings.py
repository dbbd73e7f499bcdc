"""What an answer is, is found in the graph, in the labels and in the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray

from builders import model_of, weight
from rankc.errors import ModelError
from rankc.recipe_training import Objective
from rankc.train.criterion import Criterion
from rankc.train.interpreter import Interpreter
from rankc.train.minibatches import Minibatch
from rankc.train.readings import reading_of

Operator = tuple[str, dict[str, Any]]
X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
SOFTMAX: Operator = ("Softmax", {"axis": 1})
SIGMOID: Operator = ("Sigmoid", {})


def headed(width: int, *heads: Operator, shape: Sequence[int] = ()) -> ir.Model:
    """x (batch, 4) times a weight, reshaped, and then some operators."""
    tape, x = ir.tape.Tape(), ir.val("x", ir.DataType.FLOAT, ["batch", 4])
    w = np.random.default_rng(1).normal(size=(4, width)).astype(np.float32)
    value = tape.op("MatMul", [x, weight(tape, "w", w)], name="layer")
    value.shape, value.type = ir.Shape(["batch", width]), ir.TensorType(ir.DataType.FLOAT)
    if shape:
        sizes = weight(tape, "sizes", np.array([0, *shape]))
        value = tape.op("Reshape", [value, sizes], name="reshape")
    for op_type, attributes in heads:
        if op_type == "Clip":
            low, high = (
                weight(tape, n, np.array(v, np.float32)) for n, v in (("low", 1e-6), ("high", 1.0))
            )
            value = tape.op("Clip", [value, low, high], name="clip")
        else:
            value = tape.op(op_type, [value], attributes=attributes, name=op_type)
    value.name, value.type = "y", ir.TensorType(ir.DataType.FLOAT)
    value.shape = ir.Shape(["batch", *(shape or [width])])
    return model_of(tape, [x], [value])


def batch(labels: NDArray[Any] | None = None) -> Minibatch:
    told = None if labels is None else torch.from_numpy(labels)
    return Minibatch({"x": torch.from_numpy(X)}, told, np.arange(len(X)))


CLIP: Operator = ("Clip", {})
BITS, NUMBERS = np.array([0, 1, 1, 0, 1, 0]), np.array([0.5, 1, 2, 3, 4, 5])


@pytest.mark.parametrize(
    ("model", "labels", "task", "classes", "probability"),
    [
        (headed(1, SIGMOID), None, "binary", 1, False),
        (headed(3, SIGMOID), None, "binary", 3, False),
        (headed(1), BITS, "binary", 1, False),
        (headed(1), NUMBERS, "regression", 1, False),
        (headed(1), None, "regression", 1, False),
        (headed(1, SIGMOID, CLIP), None, "binary", 1, True),
        (headed(1, SIGMOID, CLIP), BITS, "binary", 1, True),
        (headed(5), None, "multiclass", 5, False),
        (headed(5, SOFTMAX), None, "multiclass", 5, False),
        (headed(5, SOFTMAX, CLIP), None, "multiclass", 5, True),
        (headed(5), np.ones((6, 5)), "regression", 5, False),
        (headed(5, shape=(5, 1, 1)), None, "multiclass", 5, False),
        (headed(6, shape=(2, 3)), None, "tokens", 3, False),
        (headed(8, shape=(2, 2, 2)), None, "regression", 8, False),
    ],
)
def test_what_an_answer_is(
    model: ir.Model, labels: NDArray[Any] | None, task: str, classes: int, probability: bool
) -> None:
    found = reading_of(Interpreter(model), Objective(), batch(labels))
    assert (found.task, found.classes, found.probability) == (task, classes, probability)


@pytest.mark.parametrize(("width", "head"), [(1, SIGMOID), (5, SOFTMAX)])
def test_probabilities_and_logits_have_the_same_loss_and_gradient(
    width: int, head: Operator
) -> None:
    """With the head, with a head that cannot be read, and without: one and the same loss."""
    labels = BITS if width == 1 else np.array([0, 1, 2, 3, 4, 0])
    found = []
    for heads in ((), (head,), (head, CLIP)):
        net = Interpreter(headed(width, *heads))
        rows = batch(labels)
        criterion = Criterion(net, Objective(label=1.0, distill=0.0), None, rows, "rows")
        loss = criterion.terms(rows).loss
        loss.backward()  # type: ignore[no-untyped-call]
        found.append((loss.detach(), net.weight("w").grad))
    for loss, gradient in found[1:]:
        torch.testing.assert_close(loss, found[0][0], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(gradient, found[0][1], rtol=1e-3, atol=1e-5)


def test_no_answer_of_numbers() -> None:
    tape, x = ir.tape.Tape(), ir.val("x", ir.DataType.FLOAT, ["batch", 4])
    scaled = tape.op("Mul", [x, weight(tape, "w", np.ones(4, np.float32))])
    y = ir.val("y", ir.DataType.INT64, ["batch"])
    tape.op("ArgMax", [scaled], attributes={"axis": 1, "keepdims": 0}, output=y)
    with pytest.raises(ModelError, match="no float output to train on; outputs are y"):
        reading_of(Interpreter(model_of(tape, [x], [y])), Objective(), batch())


def test_rows_and_their_mean_are_one_loss() -> None:
    net, rows = (
        Interpreter(headed(6, shape=(2, 3))),
        batch(np.array([[0, -100]] * 3 + [[1, 2]] * 3)),
    )
    criterion = Criterion(net, Objective(label=1.0, distill=0.0), None, rows, "rows")
    terms = criterion.terms(rows)
    logits = net.run(rows.feeds)["y"].detach()
    assert rows.labels is not None
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows.labels.flatten())
    torch.testing.assert_close(terms.loss, expected)
    torch.testing.assert_close(terms.rows.mean(), terms.loss)
