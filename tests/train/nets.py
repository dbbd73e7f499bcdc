"""Nets and rows that are trained in tests, and a hook with a state of its own."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from builders import model_of, weight
from rankc.progress import SilentProgress, Stage
from rankc.recipe_training import Training
from rankc.train.history import History
from rankc.train.hooks import Hook, Silent
from rankc.train.interpreter import Interpreter
from rankc.train.loop import train
from rankc.train.rows import Rows
from rankc.train.teacher import Teacher
from sources import Rows as Arrays

Array = NDArray[Any]
CLASSES = 4


def convnet(seed: int = 0) -> ir.Model:
    """Images (batch, 2, 6, 6) to 4 logits: Conv, BatchNormalization, Relu, pool, Gemm."""
    rng, tape = np.random.default_rng(seed), ir.tape.Tape()
    x = ir.val("x", ir.DataType.FLOAT, ["batch", 2, 6, 6])
    kernel = weight(tape, "conv.w", (rng.normal(size=(5, 2, 3, 3)) / 4).astype(np.float32))
    conv = tape.op("Conv", [x, kernel], attributes={"pads": [1, 1, 1, 1]}, name="conv")
    numbers = (np.ones(5), np.zeros(5), np.zeros(5), np.ones(5))
    names = ("scale", "shift", "mean", "var")
    parts = [
        weight(tape, f"bn.{n}", a.astype(np.float32)) for n, a in zip(names, numbers, strict=True)
    ]
    normal = tape.op("BatchNormalization", [conv, *parts], name="bn")
    pooled = tape.op(
        "Flatten", [tape.op("GlobalAveragePool", [tape.op("Relu", [normal], name="relu")])]
    )
    w = weight(tape, "fc.w", rng.normal(size=(5, CLASSES)).astype(np.float32))
    b = weight(tape, "fc.b", np.zeros(CLASSES, np.float32))
    logits = ir.val("logits", ir.DataType.FLOAT, ["batch", CLASSES])
    tape.op("Gemm", [pooled, w, b], name="fc", output=logits)
    return model_of(tape, [x], [logits])


def images(rows: int = 200, seed: int = 1) -> tuple[Array, Array]:
    """Pixels and classes that can be told apart: a class is bright in one quarter."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, rows)
    pixels = rng.normal(size=(rows, 2, 6, 6)).astype(np.float32)
    for k, (top, left) in enumerate(((0, 0), (0, 3), (3, 0), (3, 3))):
        pixels[labels == k, k % 2, top : top + 3, left : left + 3] += 2.0
    return pixels, labels


def image_rows(rows: int = 200, batch_size: int = 16, **options: Any) -> Rows:
    """Rows of `images`."""
    pixels, labels = images(rows)
    return Rows(Arrays({"x": pixels}, 64, labels), batch_size=batch_size, **options)


def digest(net: Interpreter) -> str:
    """Of the model's bytes."""
    return hashlib.sha256(
        ir.to_proto(net.to_onnx()).SerializeToString(deterministic=True)
    ).hexdigest()


class Noisy(Silent):
    """Adds noise of its own to gradients, and weighs a penalty by how often it was called."""

    name = "noisy"

    def __init__(self, seed: int = 0) -> None:
        self._drawn, self.calls = torch.Generator().manual_seed(seed), 0
        self._net: Interpreter | None = None

    def start(self, net: Interpreter, steps: int) -> None:
        self._net = net

    def penalty(self) -> torch.Tensor | None:
        assert self._net is not None
        return 1e-4 * self.calls * self._net.weight("fc.w").square().sum()

    def after_backward(self, step: int) -> None:
        assert self._net is not None
        self.calls += 1
        gradient = self._net.weight("fc.w").grad
        assert gradient is not None
        gradient += 0.01 * torch.randn(gradient.shape, generator=self._drawn)

    def report(self) -> dict[str, Any]:
        return {"calls": self.calls}

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self._drawn.get_state(), "calls": self.calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._drawn.set_state(state["drawn"])
        self.calls = state["calls"]


def run(
    net: Interpreter,
    rows: Rows,
    settings: Training,
    teacher: Teacher | None = None,
    hooks: tuple[Hook, ...] = (),
    stage: Stage | None = None,
    seed: int = 0,
) -> History:
    """Train a net without a word to anybody."""
    with SilentProgress().stage("train") as silent:
        return train(
            net, rows, settings, seed=seed, teacher=teacher, hooks=hooks, stage=stage or silent
        )
