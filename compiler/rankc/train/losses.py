"""Losses at every place of an answer, of logits: what is minimised, before means are taken.

A place is a number of a binary answer, a row of classes, or a position of a text. All are computed
from logits, in float32, so that nothing overflows or is clamped.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it

from rankc.answers import Family

Tensor = torch.Tensor
_ENSEMBLE = 4  # what numbers are drawn for
_SURE = 16.0  # logits of a probability that float32 rounds to 0 or 1


def bernoulli_divergence(before: Tensor, after: Tensor, temperature: float) -> Tensor:
    """T^2 KL(before | after) of one yes or no a number, at temperature T; of the logits' shape."""
    z, w = before / temperature, after / temperature
    apart = F.softplus(w) - F.softplus(z) + torch.sigmoid(z) * (z - w)
    return temperature**2 * apart


def categorical_divergence(before: Tensor, after: Tensor, temperature: float) -> Tensor:
    """T^2 KL(before | after) of one choice among the last axis, at temperature T.

    T^2 keeps the gradient's size: Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural
    Network (2015).
    """
    z = F.log_softmax(before / temperature, dim=-1)
    w = F.log_softmax(after / temperature, dim=-1)
    return temperature**2 * F.kl_div(w, z, reduction="none", log_target=True).sum(dim=-1)


def distance(family: Family, before: Tensor, after: Tensor, temperature: float) -> Tensor:
    """How far an answer is from the original's; of a normal family the squared difference."""
    if family == "bernoulli":
        return bernoulli_divergence(before, after, temperature)
    if family == "categorical":
        return categorical_divergence(before, after, temperature)
    return torch.square(after - before)


def task_loss(family: Family, logits: Tensor, targets: Tensor) -> Tensor:
    """-log likelihood of the label at every place; of a normal family the squared error.

    Args:
        family: of the answer.
        logits: of a categorical answer (..., classes).
        targets: of a categorical answer class numbers, (...), below 0 where there is none; else of
            the logits' shape.
    """
    if family == "bernoulli":
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    if family == "categorical":
        flat = F.cross_entropy(
            logits.flatten(0, -2), targets.flatten().clamp(min=-1), reduction="none",
            ignore_index=-1,
        )  # fmt: skip
        return flat.reshape(targets.shape)
    return torch.square(logits - targets)


def logit_of(family: Family, probability: Tensor) -> Tensor:
    """The logit behind a probability, where the model computes it in no way that can be read."""
    least = torch.finfo(torch.float32).tiny
    if family == "categorical":
        return torch.log(probability.clamp(min=least))
    logit = torch.log(probability.clamp(min=least)) - torch.log1p(
        -probability.clamp(max=1 - 2**-24)
    )
    return logit.clamp(-_SURE, _SURE)


def ensemble_loss(logits: Tensor, targets: Tensor, seed: int, step: int) -> Tensor:
    """A term whose gradient is that of a loss drawn anew for every batch, at every place.

    With the margin z = y f, y in {-1, 1}, a loss phi(z) is calibrated if it is convex and falls at
    0 (Bartlett, Jordan and McAuliffe, 2006). Only its derivative is needed, at the margins of the
    batch: numbers below 0 that rise with z. They are drawn, one a place, from a positive
    distribution that is drawn itself (the inverse Box-Cox transform of exponential numbers, its
    exponent uniform), sorted by the margins, and divided by z^2 where z > 1, so that the loss is
    bounded below: Dai, EnsLoss: Stochastic Calibrated Loss Ensembles for Preventing Overfitting in
    Classification (2024), algorithm 1. Scaled to a mean slope of 1/2 before that, which the
    logistic loss has at 0, so that learning rates mean the same.

    Args:
        logits: (...).
        targets: 0 or 1, of the same shape.
        seed: with `step` all that the draw depends on.
        step: of the training.
    """
    rng = np.random.default_rng([_ENSEMBLE, seed, step])
    margins = (2 * targets - 1) * logits
    flat = margins.detach().flatten()
    exponent, drawn = rng.uniform(0.0, 1.0), rng.exponential(size=flat.numel())
    drawn = np.expm1(np.log1p(exponent * drawn) / max(exponent, 1e-6)) + 1
    slopes = torch.from_numpy(-np.sort(drawn)[::-1] / (2 * drawn.mean())).to(flat)
    sorted_slopes = torch.empty_like(flat)
    sorted_slopes[torch.argsort(flat, stable=True)] = slopes
    slope = (sorted_slopes / flat.clamp(min=1.0).square()).reshape(margins.shape)
    return slope * margins
