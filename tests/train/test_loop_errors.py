"""Rows, labels, objectives and trainings that cannot be: each a named error that says where."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from builders import lookup, model_of, weight
from rankc.errors import DataError, MachineError, ModelError, RecipeError
from rankc.recipe_training import Objective, Training
from rankc.train.hooks import Silent
from rankc.train.interpreter import Interpreter
from rankc.train.looks import Look
from rankc.train.rows import Rows
from rankc.train.teacher import Teacher
from sources import Rows as Arrays
from train.nets import CLASSES, convnet, image_rows, images, run

LABELS = Objective(label=1.0, distill=0.0)


def with_labels(labels: Any) -> Rows:
    return Rows(Arrays({"x": images()[0]}, 64, labels), batch_size=16)


@pytest.mark.parametrize("label", [CLASSES, -1, 1.5])
def test_a_class_that_there_is_not(label: float) -> None:
    labels = images()[1].astype(np.float64)
    labels[123] = label
    with pytest.raises(DataError, match=rf"row 123: label {label}.*multiclass answer 'logits'; "
                       r"valid are whole numbers from 0 to 3"):  # fmt: skip
        run(Interpreter(convnet()), with_labels(labels), Training(objective=LABELS))


def test_a_binary_label_that_is_neither() -> None:
    ids = np.zeros((50, 3), np.int64)
    labels = np.arange(50) % 2
    labels[41] = 2
    rows = Rows(Arrays({"ids": ids}, 64, labels), batch_size=10)
    with pytest.raises(DataError, match=r"row 41: label 2 is none .*; valid are 0 and 1"):
        run(Interpreter(lookup()), rows, Training(objective=LABELS))


def test_labels_of_another_shape() -> None:
    labels = np.zeros((200, 3), np.int64)
    with pytest.raises(DataError, match=r"labels of shape .*3\) .* one class a row"):
        run(Interpreter(convnet()), with_labels(labels), Training(objective=LABELS))


def test_a_wrong_label_among_rows_held_out() -> None:
    (pixels, labels), broken = images(), images()[1].copy()
    broken[7] = 9
    held_out = Arrays({"x": pixels}, 64, broken, path=Path("held out.npz"))
    rows = Rows(Arrays({"x": pixels}, 64, labels), held_out, batch_size=16)
    with pytest.raises(DataError, match=r"held out\.npz: row 7: label 9 "):
        run(Interpreter(convnet()), rows, Training(objective=LABELS))


def test_no_labels_of_the_rows_held_out() -> None:
    pixels, labels = images()
    rows = Rows(Arrays({"x": pixels}, 64, labels), Arrays({"x": pixels}), batch_size=16)
    with pytest.raises(RecipeError, match=r"in memory: the rows held out have no label, and"):
        run(Interpreter(convnet()), rows, Training(objective=LABELS))


def test_no_labels_where_they_are_needed() -> None:
    rows = Rows(Arrays({"x": images()[0]}), batch_size=16)
    with pytest.raises(RecipeError, match=r"objective.label is 1.0, and the rows have no label"):
        run(Interpreter(convnet()), rows, Training(objective=LABELS))
    with pytest.raises(RecipeError, match="'auc' without labels of the rows held out"):
        run(Interpreter(convnet()), rows, Training(metric="auc"), Teacher(convnet()))


def test_a_metric_of_other_answers() -> None:
    with pytest.raises(RecipeError, match="'auc' of a multiclass answer: there is loss, logloss"):
        run(Interpreter(convnet()), image_rows(), Training(objective=LABELS, metric="auc"))


def test_a_task_that_the_answer_has_not_the_shape_of() -> None:
    goal = dataclasses.replace(LABELS, task="tokens")
    with pytest.raises(RecipeError, match=r"task is tokens, .* 'logits' has \(16, 4\)"):
        run(Interpreter(convnet()), image_rows(), Training(objective=goal))


def test_drawn_losses_are_for_binary_labels() -> None:
    goal = dataclasses.replace(LABELS, ensemble=True)
    with pytest.raises(RecipeError, match="ensemble draws losses of binary labels; the answer is "):
        run(Interpreter(convnet()), image_rows(), Training(objective=goal))


def test_a_glob_that_fits_no_inner_value() -> None:
    goal = Objective(match={"layer9*": 1.0})
    with pytest.raises(RecipeError, match=r"'layer9\*' fits no value .* they have .*logits"):
        run(Interpreter(convnet()), image_rows(), Training(objective=goal), Teacher(convnet()))


def test_nothing_to_train() -> None:
    net = Interpreter(convnet(), frozen=("*",))
    with pytest.raises(ModelError, match=r"nothing to train: .* initializers are conv\.w"):
        run(net, image_rows(), Training(objective=LABELS))


@pytest.mark.parametrize("clip", [None, 1e30])
def test_a_training_that_diverges_says_where(clip: float | None) -> None:
    net = Interpreter(convnet())
    settings = Training(epochs=9, objective=LABELS, lr=1e30, schedule="constant", clip=clip)
    with pytest.raises(RecipeError, match=r"diverged at step [23] \(epoch 0\.\d+, learning rate "
                       r"1e\+30\): the loss is not finite \(label (nan|inf)\); (weight|.* node) "
                       r"'.*Lower lr, set clip"):  # fmt: skip
        run(net, image_rows(), settings)


def test_the_node_that_overflows_is_named_and_a_mask_is_not() -> None:
    tape, x = ir.tape.Tape(), ir.val("x", ir.DataType.FLOAT, ["batch", 3])
    w = weight(tape, "w", np.full((3, 3), 40.0, np.float32))
    mask = weight(tape, "mask", np.array([0.0, -np.inf, 0.0], np.float32))
    kept = tape.op("Softmax", [tape.op("Add", [x, mask], name="masked")], name="softmax")
    y = ir.val("y", ir.DataType.FLOAT, ["batch", 3])
    tape.op("Exp", [tape.op("MatMul", [kept, w], name="up")], name="grow", output=y)
    net = Interpreter(model_of(tape, [x], [y]), frozen=("mask",))
    with torch.no_grad():
        net.weight("w").fill_(100.0)
    x_rows = np.ones((40, 3), np.float32)
    source = Arrays({"x": x_rows}, 64, np.zeros((40, 3)))
    goal = dataclasses.replace(LABELS, task="regression")
    with pytest.raises(RecipeError, match=r"before any .* Exp node 'grow' is the first to"):
        run(net, Rows(source, batch_size=4), Training(objective=goal))


def test_a_penalty_that_is_not_finite_is_named() -> None:
    class Broken(Silent):
        name = "broken"

        def penalty(self) -> torch.Tensor | None:
            return torch.tensor(float("nan"))

    with pytest.raises(RecipeError, match=r"step 1 .*label [\d.]+, penalty of broken nan\); every"):
        run(Interpreter(convnet()), image_rows(), Training(objective=LABELS), hooks=(Broken(),))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_cuda_device() -> None:
    with pytest.raises(MachineError, match=r"is cuda, and PyTorch .*CUDA; .* set it to auto"):
        run(Interpreter(convnet()), image_rows(), Training(objective=LABELS, device="cuda"))


def test_a_metric_that_the_rows_held_out_do_not_tell() -> None:
    """An area under a curve takes both labels."""
    look = Look(3, 1.0, 0.5, {"logloss": 0.5})
    with pytest.raises(RecipeError, match=r"metric 'auc' cannot be told .* hold out more rows"):
        look.value("auc")
