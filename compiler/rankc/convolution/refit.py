"""Given the first factor of a layer, the best second one, at every rank at once.

y = W p for patches p with moment G. A first factor maps p to z = P p, whose rows come in blocks,
one block a unit of rank. The best second factor is least squares,  B = W G PT (P G PT)^-1,  and
loses  tr(W G WT) - tr(B P G WT).  With the Cholesky factor L of P G PT, whose leading part is the
factor of the leading part, Z = L^-1 P G WT gives every rank:
    B_r = Z_rT L_r^-1         lost(r) = tr(W G WT) - sum of |Z_i|^2 over the rows i of r blocks
A little of the identity is mixed into the G that decides on B, so that B stays sane where
calibration saw nothing; what is lost is then still computed under the true G, exactly.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from rankc.linalg import Floats, nested_tail

DAMPING = 1e-5  # share of the identity in the moment that decides, of its own scale
ROUNDING = 1e-13  # of the largest pivot: below it a row of z repeats what earlier ones say


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Refit:
    """Second factors for the nested first factors P_1, P_2, ... of one layer."""

    solved: Floats  # Z under the damped moment, (q, m)
    inverse: Floats  # L^-1, lower triangular, (q, q)
    block: int  # rows of z a unit of rank
    lost: Floats  # E|y - B z|^2 at ranks 0, 1, ..., (ranks + 1,)
    felt: Floats  # the same under the weight of an error, (ranks + 1,)

    def second(self, rank: int) -> Floats:
        """B at that rank, (m, rank block)."""
        rows = rank * self.block
        found: Floats = self.solved[:rows].T @ self.inverse[:rows, :rows]
        return found


def refit(
    weight: Floats,
    moment: Floats,
    first: Floats,
    block: int,
    felt: Floats | None = None,
    deciding: Floats | None = None,
) -> Refit:
    """Fit the second factor at every rank.

    Args:
        weight: W, (m, n).
        moment: G, (n, n).
        first: P, (q, n), `block` rows a unit of rank, the most useful first.
        block: Divides q.
        felt: Weight of an error at the output, (m, m); the identity by default.
        deciding: The moment that B is best under, (n, n); by default `moment`.
    """
    damped = damp(moment if deciding is None else deciding)
    inverse = _inverse_factor(first @ damped @ first.T)
    solved = inverse @ (first @ (damped @ weight.T))  # (q, m)
    cross = inverse @ (first @ (moment @ weight.T))
    spread = inverse @ (first @ moment @ first.T) @ inverse.T  # (q, q), the identity if undamped
    total = weight @ moment @ weight.T
    lost = _tails(total, solved, cross, spread, None, block)
    heavy = lost if felt is None else _tails(total, solved, cross, spread, felt, block)
    return Refit(solved, inverse, block, lost, heavy)


def given(
    weight: Floats,
    moment: Floats,
    first: Floats,
    second: Floats,
    block: int,
    felt: Floats | None = None,
) -> Refit:
    """A second factor that is taken as it is, at every rank its leading part; (m, q)."""
    total, solved = weight @ moment @ weight.T, second.T
    cross, spread = first @ moment @ weight.T, first @ moment @ first.T
    lost = _tails(total, solved, cross, spread, None, block)
    heavy = lost if felt is None else _tails(total, solved, cross, spread, felt, block)
    return Refit(solved, np.eye(len(solved)), block, lost, heavy)


def damp(moment: Floats, share: float = DAMPING) -> Floats:
    """With a share of the identity of its own scale, (n, n)."""
    level = float(np.trace(moment)) / len(moment)
    found: Floats = moment + share * (level if level > 0 else 1.0) * np.eye(len(moment))
    return found


def _inverse_factor(matrix: Floats) -> Floats:
    """L^-1 of L LT = matrix, lower triangular; rows that say nothing new are zero, (q, q)."""
    least = ROUNDING * max(float(np.max(np.diagonal(matrix), initial=0.0)), 1e-300)
    try:
        lower = np.linalg.cholesky(matrix)
        if np.min(np.diagonal(lower), initial=np.inf) ** 2 > least:
            return np.asarray(np.linalg.inv(lower), np.float64)
    except np.linalg.LinAlgError:
        pass
    return _semidefinite(matrix, least)


def _semidefinite(matrix: Floats, least: float) -> Floats:
    """Gram-Schmidt in the metric of the matrix, for one whose rows depend on each other."""
    inverse = np.zeros_like(matrix)
    for k in range(len(matrix)):
        row = np.zeros(len(matrix))
        row[k] = 1.0
        done = inverse[:k]
        for _ in range(2):  # twice is enough (Kahan and Parlett)
            row -= done.T @ (done @ (matrix @ row))
        size = float(row @ matrix @ row)
        if size > least:
            inverse[k] = row / np.sqrt(size)
    return inverse


def _tails(
    total: Floats,
    solved: Floats,
    cross: Floats,
    spread: Floats,
    felt: Floats | None,
    block: int,
) -> Floats:
    """tr(felt (W - B P) G (W - B P)T) at ranks 0, 1, ..., (ranks + 1,)."""
    weighted = solved if felt is None else solved @ felt
    whole = float(np.trace(total)) if felt is None else float(np.sum(felt * total))
    linear = np.einsum("qm,qm->q", weighted, cross)
    return nested_tail(whole, linear, (weighted @ solved.T) * spread)[::block]
