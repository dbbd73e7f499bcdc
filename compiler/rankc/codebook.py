"""An embedding table as codes: the maths of the `embedding` pass, in numpy alone."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from rankc.linalg import Directions, Floats, directions, eigh_descending

INT8_MAX = 127
# A decoder whose Gram matrix has a smaller eigenvalue than this share does not reach all of K.
REACHED = 1e-9


@dataclasses.dataclass(frozen=True, slots=True)
class Coded:
    """A table at one rank: row v stands for codes[v] @ decoder + mean."""

    codes: NDArray[np.float32] | NDArray[np.int8]  # (V, r)
    decoder: NDArray[np.float32]  # (r, d); of int8 codes it carries the scales
    mean: NDArray[np.float32]  # (d,), zero where the table has a padding row

    def decoded(self) -> NDArray[np.float32]:
        """What the rewritten graph computes for every row, (V, d)."""
        return self.codes.astype(np.float32) @ self.decoder + self.mean


@dataclasses.dataclass(frozen=True, slots=True)
class Codebook:
    """A table with what is known of its reads."""

    table: Floats  # (V, d)
    mean: Floats  # (d,)
    covariance: Floats  # (d, d), about `mean`, under the smoothed probabilities of a read
    found: Directions
    kept: NDArray[np.bool_]  # (d,): columns on which the decoder has to be orthonormal
    int8: bool

    @classmethod
    def of(
        cls,
        table: Floats,
        read: Floats,
        weight: Floats | None,
        kept: NDArray[np.bool_],
        int8: bool,
        centred: bool = True,
    ) -> Codebook:
        """`read`: probability of each row, (V,). `weight`: what an error costs, (d, d) or None."""
        padded = not table.any(axis=1).all()
        mean = read @ table if centred and not padded else np.zeros(table.shape[1])
        away = table - mean
        covariance = (away * read[:, None]).T @ away
        return cls(table, mean, covariance, directions(covariance, weight), kept, int8)

    def at(self, rank: int) -> Coded:
        """The table at `rank`; at full rank float codes are the table itself."""
        if rank == self.table.shape[1]:
            mean, basis = np.zeros_like(self.mean), Directions(np.eye(rank), np.eye(rank))
        else:
            mean, basis = self.mean, self._basis(rank)
        codes = (self.table - mean) @ basis.encode  # (V, r)
        offset = mean.astype(np.float32)
        if not self.int8:
            return Coded(codes.astype(np.float32), basis.decode.T.astype(np.float32), offset)
        largest = np.abs(codes).max(axis=0)
        scale = np.where(largest > 0, largest, 1.0) / INT8_MAX
        decoder = (scale[:, None] * basis.decode.T).astype(np.float32)
        return Coded(np.rint(codes / scale).astype(np.int8), decoder, offset)

    def _basis(self, rank: int) -> Directions:
        """The projection of that rank in a basis with DT K D = I and uncorrelated codes.

        K selects the columns in `kept`. Codes z become T z, and the decoder D becomes D T^-1. Where
        the projection does not reach those columns in full, the basis is left as it is.
        """
        encode, decode = self.found.encode[:, :rank], self.found.decode[:, :rank]
        values, vectors = eigh_descending(decode[self.kept].T @ decode[self.kept])
        if values[-1] <= REACHED * values[0]:
            return Directions(encode, decode)
        root = (vectors * np.sqrt(values)) @ vectors.T
        inverse = (vectors / np.sqrt(values)) @ vectors.T
        _, turn = eigh_descending(root @ encode.T @ self.covariance @ encode @ root)
        return Directions(encode @ root @ turn, decode @ inverse @ turn)


def probabilities(counts: NDArray[np.int64], smoothing: float) -> Floats:
    """Of a read hitting each row, (V,), with a pseudo-count; all equal when nothing was counted."""
    smoothed = counts + smoothing
    total = smoothed.sum()
    return smoothed / total if total > 0 else np.full(len(counts), 1 / len(counts))
