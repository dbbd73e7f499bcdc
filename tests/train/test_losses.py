"""Losses against closed forms in float64, and the ensemble against what makes a loss calibrated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rankc.answers import Family, divergence
from rankc.train.losses import distance, ensemble_loss, logit_of, task_loss

SEEDS = st.integers(0, 10_000)


def pairs(seed: int, shape: tuple[int, ...], scale: float = 5.0) -> tuple[NDArray[Any], ...]:
    rng = np.random.default_rng(seed)
    return tuple(scale * rng.normal(size=(2, *shape)))


def at(temperature: float, family: Family, before: NDArray[Any], after: NDArray[Any]) -> float:
    """What `distance` has to sum up to."""
    if family == "normal":
        return float(np.square(before - after).sum())
    return temperature**2 * divergence(family, before / temperature, after / temperature)


@pytest.mark.parametrize("family", ["bernoulli", "categorical", "normal"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@given(SEEDS)
@settings(max_examples=25, deadline=None)
def test_the_distance_is_the_divergence(family: Family, temperature: float, seed: int) -> None:
    before, after = pairs(seed, (6, 5))
    found = distance(family, torch.tensor(before), torch.tensor(after), temperature)
    assert found.shape == ((6,) if family == "categorical" else (6, 5))
    assert float(found.sum()) == pytest.approx(at(temperature, family, before, after), abs=1e-9)


@pytest.mark.parametrize("family", ["bernoulli", "categorical", "normal"])
def test_equal_answers_are_no_distance_apart(family: Family) -> None:
    logits = torch.tensor([[-300.0, 0.0, 90.0]])
    assert distance(family, logits, logits.clone(), 2.0).abs().max() < 1e-6


@pytest.mark.parametrize("family", ["bernoulli", "categorical"])
def test_sure_answers_have_finite_losses_and_gradients(family: Family) -> None:
    before, after = torch.tensor([[-500.0, 500.0]]), torch.tensor([[500.0, -500.0]])
    after.requires_grad_()
    label = torch.tensor([[1.0, 0.0]]) if family == "bernoulli" else torch.tensor([1])
    loss = distance(family, before, after, 1.0).sum() + task_loss(family, after, 1 - label).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(loss)
    assert after.grad is not None
    assert torch.isfinite(after.grad).all()
    assert after.grad.abs().max() > 0.5


def test_the_gradient_of_distillation_keeps_its_size_at_high_temperatures() -> None:
    """At T so high that both answers are flat: (after - before) / classes, of centred logits."""
    before, after = (torch.tensor(a - a.mean(axis=1, keepdims=True)) for a in pairs(0, (3, 4)))
    after.requires_grad_()
    distance("categorical", before, after, 1e4).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(after.grad, (after.detach() - before) / 4, rtol=1e-2, atol=1e-3)


def test_task_losses_are_minus_log_likelihoods() -> None:
    logits, _ = pairs(1, (7, 3))
    labels = np.array([0, 1, 2, 0, 1, 2, 0])
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    found = task_loss("categorical", torch.tensor(logits), torch.tensor(labels))
    np.testing.assert_allclose(found, -np.log(p[np.arange(7), labels]))
    yes = (logits > 1).astype(float)
    q = 1 / (1 + np.exp(-logits))
    found = task_loss("bernoulli", torch.tensor(logits), torch.tensor(yes))
    np.testing.assert_allclose(found, -np.log(np.where(yes == 1, q, 1 - q)))
    found = task_loss("normal", torch.tensor(logits), torch.tensor(yes))
    np.testing.assert_allclose(found, (logits - yes) ** 2)


def test_places_without_a_label_cost_nothing() -> None:
    logits = torch.tensor(pairs(2, (2, 3, 4))[0], requires_grad=True)
    labels = torch.tensor([[0, -100, 3], [-1, 2, -100]])
    loss = task_loss("categorical", logits, labels)
    assert (loss == 0).tolist() == [[False, True, False], [True, False, True]]
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert (logits.grad.abs().sum(dim=2) == 0).tolist() == (labels < 0).tolist()


@given(SEEDS)
@settings(max_examples=25, deadline=None)
def test_the_logit_behind_a_probability(seed: int) -> None:
    logits = torch.tensor(pairs(seed, (5, 4), scale=2.0)[0], dtype=torch.float32)
    found = logit_of("bernoulli", torch.sigmoid(logits))
    torch.testing.assert_close(found, logits, rtol=1e-3, atol=1e-4)
    found = logit_of("categorical", torch.softmax(logits, dim=1))
    torch.testing.assert_close(found, torch.log_softmax(logits, dim=1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["bernoulli", "categorical"])
def test_probabilities_of_0_and_1_have_a_logit_and_a_gradient(family: Family) -> None:
    sure = torch.tensor([[0.0, 1.0]], requires_grad=True)
    found = logit_of(family, sure)
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(found).all()
    assert sure.grad is not None
    assert torch.isfinite(sure.grad).all()


def slopes(logits: torch.Tensor, targets: torch.Tensor, seed: int, step: int) -> torch.Tensor:
    """The derivative of the drawn loss with respect to every margin."""
    logits = logits.clone().requires_grad_()
    ensemble_loss(logits, targets, seed, step).sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    return logits.grad * (2 * targets - 1)


@given(SEEDS, st.integers(0, 100))
@settings(max_examples=50, deadline=None)
def test_a_drawn_loss_is_calibrated(seed: int, step: int) -> None:
    """Convex: slopes rise with the margin; falling everywhere; a tail that 1/z^2 bounds."""
    rng = np.random.default_rng(seed)
    logits = torch.tensor(4 * rng.normal(size=(64, 1)))
    targets = torch.tensor(rng.integers(0, 2, (64, 1)).astype(float))
    found, margins = slopes(logits, targets, seed, step), (2 * targets - 1) * logits
    in_order = found.flatten()[torch.argsort(margins.flatten())]
    assert bool((in_order < 0).all())
    assert bool((in_order.diff() >= 0).all())
    before_tail = found * margins.clamp(min=1.0).square()
    assert float(before_tail.mean()) == pytest.approx(-0.5)
    # So the loss, which is the integral of its slopes, falls by no more than this beyond z = 1.
    assert bool((found >= before_tail.min() / margins.clamp(min=1.0).square() - 1e-9).all())


def test_every_batch_draws_another_loss_and_the_same_again() -> None:
    logits, targets = torch.linspace(-2, 2, 32)[:, None], (torch.arange(32)[:, None] % 2).float()
    first, again, other, seeded = (
        slopes(logits, targets, *draw) for draw in ((0, 5), (0, 5), (0, 6), (1, 5))
    )
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.allclose(first, other)
    assert not torch.allclose(first, seeded)
