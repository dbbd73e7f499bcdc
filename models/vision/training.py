"""Train an image classifier: SGD with momentum along half a cosine, flips and crops."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import torch  # noqa: TID253 - the zoo trains; the compiler never imports this
from models.vision.augment import augment
from numpy.typing import NDArray
from torch import nn  # noqa: TID253

LINES = 10  # of progress, at most


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """How to train; written to build.json as it is."""

    epochs: int
    seed: int  # draws the order of rows, flips and crops
    lr: float  # first; falls to 0 along half a cosine
    batch_size: int
    weight_decay: float
    pad: int  # pixels of black border that crops are drawn from
    flip: bool  # left and right, every other time
    momentum: float = 0.9


def train(
    model: nn.Module, image: NDArray[np.uint8], label: NDArray[np.int64], settings: Settings
) -> None:
    """Train `model` in place, in evaluation mode afterwards.

    The same arguments give the same weights on the same machine with the same number of threads;
    another number takes sums in another order.

    Args:
        model: From float32 pixels (rows, channels, height, width) to logits (rows, classes).
        image: (rows, channels, height, width), pixels.
        label: (rows,), class numbers.
        settings: How.
    """
    torch.use_deterministic_algorithms(True)
    rng = np.random.default_rng(settings.seed)
    steps = settings.epochs * -(-len(label) // settings.batch_size)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    started, every = time.perf_counter(), -(-settings.epochs // LINES)
    model.train()
    for epoch in range(1, settings.epochs + 1):
        total = 0.0
        order = rng.permutation(len(label))
        for start in range(0, len(order), settings.batch_size):
            rows = order[start : start + settings.batch_size]
            pixels = augment(image[rows], rng, pad=settings.pad, flip=settings.flip)
            loss = _loss(model, pixels, label[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(rows)
        if epoch % every == 0 or epoch == settings.epochs:
            spent, mean = time.perf_counter() - started, total / len(order)
            print(f"epoch {epoch}/{settings.epochs}  loss {mean:.4f}  {spent:.0f} s", flush=True)
    model.eval()


def _loss(model: nn.Module, pixels: NDArray[np.uint8], label: NDArray[np.int64]) -> torch.Tensor:
    logits = model(torch.from_numpy(pixels.astype(np.float32)))
    return nn.functional.cross_entropy(logits, torch.from_numpy(label))
