"""The projections: optimal, and their loss known in advance."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rankc.linalg import (
    Directions,
    directions,
    eigh_descending,
    lost,
    plain_directions,
    plain_lost,
    share_lost,
    shrunk,
    square_root,
)

Floats = NDArray[np.float64]


def moment(rng: np.random.Generator, size: int, decay: float) -> Floats:
    """A random second moment (size, size) whose spectrum falls by `decay` a step."""
    basis, _ = np.linalg.qr(rng.normal(size=(size, size)))
    found: Floats = (basis * decay ** np.arange(size)) @ basis.T
    return found


def loss_of(projection: Floats, covariance: Floats, metric: Floats) -> float:
    missed = np.eye(len(covariance)) - projection
    return float(np.trace(metric @ missed @ covariance @ missed.T))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 12), st.floats(0.05, 0.95), st.floats(0.3, 1.0), st.integers(0, 99))
def test_lost_is_what_the_projection_loses(size: int, fast: float, slow: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    covariance, metric = moment(rng, size, fast), moment(rng, size, slow)
    found = directions(covariance, metric)
    for weight in (np.eye(size), metric):
        predicted = lost(found, covariance, weight)
        for rank in range(size + 1):
            kept = found.decode[:, :rank] @ found.encode[:, :rank].T
            want = loss_of(kept, covariance, weight)
            np.testing.assert_allclose(predicted[rank], want, rtol=1e-6, atol=1e-9)


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 8), st.integers(0, 99))
def test_no_other_projection_loses_less(size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    covariance, metric = moment(rng, size, 0.7), moment(rng, size, 0.8)
    shrunk = np.square(
        1
    )  # the metric that is minimised is the shrunk one: rebuild it from its root
    root, _ = square_root(metric)
    shrunk = root @ root
    found, rank = directions(covariance, metric), size // 2
    best = lost(found, covariance, shrunk)[rank]
    for _ in range(20):
        left, right = rng.normal(size=(2, size, rank))
        other = left @ np.linalg.pinv(right.T @ left) @ right.T  # a random oblique projection
        assert loss_of(other, covariance, shrunk) >= best * (1 - 1e-9)


def test_the_weighted_tail_is_the_sum_of_the_other_eigenvalues() -> None:
    rng = np.random.default_rng(3)
    covariance, metric = moment(rng, 6, 0.5), moment(rng, 6, 0.9)
    root, _ = square_root(metric)
    values, _ = eigh_descending(root @ covariance @ root)
    tails = np.concatenate([np.cumsum(values[::-1])[::-1], [0.0]])
    np.testing.assert_allclose(
        lost(directions(covariance, metric), covariance, root @ root), tails, rtol=1e-9, atol=1e-12
    )


def test_a_weight_of_zero_falls_back_to_plain_pca() -> None:
    covariance = moment(np.random.default_rng(0), 5, 0.5)
    plain = directions(covariance)
    found: Directions = directions(covariance, np.zeros((5, 5)))
    np.testing.assert_allclose(found.encode, plain.encode, atol=1e-12)


def test_signs_do_not_depend_on_the_library() -> None:
    _, vectors = eigh_descending(moment(np.random.default_rng(1), 7, 0.6))
    largest = np.abs(vectors).argmax(axis=0)
    assert (vectors[largest, np.arange(7)] > 0).all()


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.integers(1, 14), st.booleans(), st.integers(0, 99))
def test_plain_directions_are_the_same_on_either_side(
    n: int, m: int, dead: bool, seed: int
) -> None:
    """Wide layers lose what the (m, m) eigenproblem says, and nothing at full rank."""
    rng = np.random.default_rng(seed)
    weight, covariance = rng.normal(size=(n, m)), moment(rng, n, 0.5)
    if dead:  # an input that calibration never saw
        covariance[0] = covariance[:, 0] = 0
    spread = weight.T @ covariance @ weight
    found = plain_directions(weight, shrunk(covariance))
    want = lost(directions(spread), spread)[: min(n, m) + 1]
    got = plain_lost(found, weight, covariance)[: min(n, m) + 1]
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5 * max(float(want[0]), 1e-12))
    np.testing.assert_allclose(weight @ found.encode @ found.decode.T, weight, atol=1e-8)


def test_what_does_not_vary_is_judged_by_its_energy() -> None:
    lost_ = np.array([4.0, 0.0])
    np.testing.assert_array_equal(share_lost(lost_, 8.0, 10.0), [0.5, 0])
    np.testing.assert_array_equal(share_lost(lost_, 1e-12, 16.0), [0.25, 0])
    np.testing.assert_array_equal(share_lost(np.zeros(2), 0.0, 0.0), [0, 0])
