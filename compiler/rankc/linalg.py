"""The maths that passes share: which directions of a vector may be lost. NumPy, float64.

Vectors y (m) have covariance C; an error in y is felt through a weight M, here E[g gT] with g the
gradient of the model's logit. With L = M^(1/2) the best rank-r projection of y keeps the leading
eigenvectors U of L C L:  P = L^-1 U UT L, and loses  tr(M (I-P) C (I-P)T) = sum of the other
eigenvalues  (Eckart and Young 1936, in the metric of M). M = I is plain PCA.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SHRINKAGE = 1e-3  # share of the identity mixed into a weight, so that no direction is free to lose
PRIOR = 1e-6  # least share of the identity in a moment: unseen directions come last, but come
STILL = 1e-9  # share of the energy below which a variance is rounding


@dataclasses.dataclass(frozen=True, slots=True)
class Directions:
    """A nested family of projections: rank r keeps the first r columns, P = decode @ encode.T."""

    encode: Floats  # (m, k)
    decode: Floats  # (m, k)


def eigh_descending(matrix: Floats) -> tuple[Floats, Floats]:
    """Eigenvalues (k,), falling and not below zero, and eigenvectors (k, k), signs fixed.

    The sign of each vector is chosen so that its largest entry is positive: the same matrix gives
    the same bytes.
    """
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    vectors = vectors[:, ::-1]
    largest = np.abs(vectors).argmax(axis=0)
    signs = np.where(vectors[largest, np.arange(vectors.shape[1])] < 0, -1.0, 1.0)
    return np.maximum(values[::-1], 0.0), vectors * signs


def square_root(weight: Floats) -> tuple[Floats, Floats]:
    """L and L^-1 with L L = weight, shrunk towards the identity by `SHRINKAGE`; both (m, m)."""
    m = len(weight)
    scale = np.trace(weight) / m
    if scale <= 0:  # nothing is felt: every direction counts the same
        return np.eye(m), np.eye(m)
    values, vectors = eigh_descending(weight)
    root = np.sqrt((1 - SHRINKAGE) * values + SHRINKAGE * scale)
    return (vectors * root) @ vectors.T, (vectors / root) @ vectors.T


def directions(covariance: Floats, weight: Floats | None = None) -> Directions:
    """The best projections of a vector with this covariance under this weight; both (m, m)."""
    if weight is None:
        _, vectors = eigh_descending(covariance)
        return Directions(vectors, vectors)
    root, inverse = square_root(weight)
    _, vectors = eigh_descending(root @ covariance @ root)
    return Directions(root @ vectors, inverse @ vectors)


def nested_tail(whole: float, linear: Floats, block: Floats) -> Floats:
    """A quadratic error at every rank: whole - 2 sum_i linear_i + sum_ij block_ij, i and j up to r.

    Args:
        whole: What is lost at rank 0.
        linear: What each direction takes away, (k,).
        block: What two directions together put back, (k, k).

    Returns:
        Not below zero, for ranks 0 to k, (k + 1,).
    """
    quadratic = np.diagonal(np.cumsum(np.cumsum(block, axis=0), axis=1))
    tail = np.concatenate([[whole], whole - 2 * np.cumsum(linear) + quadratic])
    found: Floats = np.maximum(tail, 0.0)
    return found


def lost(found: Directions, covariance: Floats, metric: Floats | None = None) -> Floats:
    """tr(metric (I-P_r) covariance (I-P_r)T) for r = 0..k, exactly, (k + 1,).

    With P_r = sum of a_i b_iT and K the metric (default: the identity) this is
    tr(KC) - 2 sum_i b_iT C K a_i + sum_ij (a_iT K a_j)(b_jT C b_i), i and j up to r.
    """
    a, b = found.decode, found.encode
    ka = a if metric is None else metric @ a  # (m, k)
    total = np.trace(covariance) if metric is None else np.sum(metric * covariance)
    linear = np.einsum("mi,mi->i", covariance @ b, ka)
    return nested_tail(float(total), linear, (a.T @ ka) * (b.T @ covariance @ b))


def plain_directions(weight: Floats, moment: Floats) -> Directions:
    """PCA of y = x W without a weight, on the smaller side of W (n, m).

    Where there are more outputs than inputs, nothing (m, m) is made: with S = moment^(1/2) the left
    singular vectors of WT S are the directions, from the eigenproblem of S W WT S (n, n). At full
    rank every output is kept if the moment is positive definite, see `shrunk`.
    """
    n, m = weight.shape
    if m <= n:
        return directions(weight.T @ moment @ weight)
    values, vectors = eigh_descending(moment)
    root = (vectors * np.sqrt(values)) @ vectors.T
    _, inner = eigh_descending(root @ weight @ weight.T @ root)
    basis, _ = np.linalg.qr(weight.T @ root @ inner)  # orthonormal, even if W has dependent rows
    return Directions(basis, basis)


def plain_lost(found: Directions, weight: Floats, moment: Floats) -> Floats:
    """`lost` of an orthonormal basis for y = x W with this moment of x, (k + 1,)."""
    projected = weight @ found.encode  # (n, k)
    kept = np.einsum("nk,nk->k", projected, moment @ projected)
    tails: Floats = np.sum(weight * (moment @ weight)) - np.concatenate([[0.0], np.cumsum(kept)])
    return np.maximum(tails, 0.0)


def shrunk(moment: Floats, share: float = 0.0) -> Floats:
    """A moment with at least `PRIOR` of the identity of its own scale, so definite, (n, n)."""
    n, share = len(moment), max(share, PRIOR)
    level = np.trace(moment) / n
    found: Floats = (1 - share) * moment + share * (level if level > 0 else 1.0) * np.eye(n)
    return found


def share_lost(lost: Floats, variance: float, energy: float) -> Floats:
    """Share of the variance that is lost; of the energy E|y|^2, where y does not vary; finite."""
    whole = variance if variance > STILL * energy else energy
    return lost / whole if whole > 0 else np.zeros_like(lost)
