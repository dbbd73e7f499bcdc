"""A weight as the product of two factors, the most useful direction first.

A weight is unfolded to a matrix whose rows are what the first factor reads and whose columns are
what the second one writes, and is `first @ second`; rank r is the first r columns of the one and
the first r rows of the other. Factors that were learned travel with the weight as metadata, and
stand for it only as long as their product is the weight.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from rankc.errors import ModelError
from rankc.graph import attribute, constant
from rankc.linalg import Floats

LEARNED = "rankc.factors"  # metadata of a weight: its `Factors`
DIRECTIONS = "rankc.directions"  # of one that was fitted again: the `Factors` of the weight before
SAME = 1e-5  # how far a product may be from its weight, relative: float32 rounding, no more

Array = NDArray[Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Unfolding:
    """A weight as a matrix: its axes in another order, the first `split` of them as rows."""

    shape: tuple[int, ...]
    order: tuple[int, ...]
    split: int

    @property
    def permuted(self) -> tuple[int, ...]:
        """The shape with the axes in order."""
        return tuple(self.shape[axis] for axis in self.order)

    @property
    def inverse(self) -> tuple[int, ...]:
        """The order that takes the axes back."""
        return tuple(self.order.index(axis) for axis in range(len(self.order)))

    @property
    def rows(self) -> int:
        return math.prod(self.permuted[: self.split])

    @property
    def columns(self) -> int:
        return math.prod(self.permuted[self.split :])

    @property
    def outputs(self) -> int:
        """How many outputs the layer has: the first axis of the columns."""
        return self.permuted[self.split]

    def unfold(self, array: Array) -> Floats:
        """(rows, columns) of a weight."""
        turned = np.asarray(array, np.float64).transpose(self.order)
        return np.asarray(turned.reshape(self.rows, self.columns), np.float64)

    def fold(self, matrix: Floats) -> Floats:
        """The other way round."""
        return np.asarray(matrix.reshape(self.permuted).transpose(self.inverse), np.float64)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """Of one weight, as it is stored."""

    unfolding: Unfolding
    first: Floats  # (rows, k)
    second: Floats  # (k, columns)

    @property
    def rank(self) -> int:
        return int(self.first.shape[1])

    def off(self, array: Array) -> float:
        """How far the product is from a weight, relative to it."""
        if array.shape != self.unfolding.shape:
            return math.inf
        matrix = self.unfolding.unfold(array)
        gap = float(np.linalg.norm(self.first @ self.second - matrix))
        return gap / max(float(np.linalg.norm(matrix)), 1e-300) if gap else 0.0


def unfolding_of(node: ir.Node, axes: tuple[int, ...] = ()) -> Unfolding:
    """Of the weight of a Conv, Gemm or MatMul: inputs are rows, outputs columns.

    Args:
        node: the layer.
        axes: of the space of a Conv, those that its first factor runs along.
    """
    weight = constant(node.inputs[1])
    assert weight is not None, node.name
    if node.op_type != "Conv":
        turned = node.op_type == "Gemm" and attribute(node, "transB", 0)
        return Unfolding(weight.shape, (1, 0) if turned else (0, 1), 1)
    rest = tuple(2 + a for a in range(weight.ndim - 2) if a not in axes)
    order = (1, *(2 + a for a in axes), 0, *rest)
    return Unfolding(weight.shape, order, 1 + len(axes))


def balanced(matrix: Floats) -> tuple[Floats, Floats]:
    """U sqrt(S) and sqrt(S) VT of the singular value decomposition U S VT, signs fixed."""
    u, sizes, v = np.linalg.svd(matrix, full_matrices=False)
    largest = np.abs(u).argmax(axis=0)
    signs = np.where(u[largest, np.arange(u.shape[1])] < 0, -1.0, 1.0)
    root = np.sqrt(sizes)
    return u * (signs * root), v * (signs * root)[:, None]


def attach_factors(model: ir.Model, factors: Mapping[str, Factors]) -> None:
    """Let weights carry the factors that they were learned as, in place.

    A weight may have been scaled output by output since, as folding a BatchNormalization does; the
    second factor is scaled along.

    Args:
        model: with the weights.
        factors: by the name of the weight.

    Raises:
        ModelError: a weight is missing, or is another than its factors make.
    """
    for name, learned in factors.items():
        value = model.graph.initializers.get(name)
        array = constant(value)
        if value is None or array is None:
            raise ModelError(f"weight {name!r} was trained as two factors, and is gone")
        found = _rescaled(learned, array) if array.shape == learned.unfolding.shape else learned
        if (off := found.off(array)) > SAME:
            raise ModelError(
                f"weight {name!r} is not the product of the factors that it was trained as, not "
                f"even with its outputs scaled: it is off by {off:.1g} of its size"
            )
        value.meta[LEARNED] = found


def _rescaled(factors: Factors, array: Array) -> Factors:
    """With every output scaled to what it is in the weight, by least squares."""
    outputs = factors.unfolding.outputs
    have = (factors.first @ factors.second).reshape(-1, outputs, factors.second.shape[1] // outputs)
    want = factors.unfolding.unfold(array).reshape(have.shape)
    size = np.einsum("iob,iob->o", have, have)
    scale = np.einsum("iob,iob->o", have, want) / np.where(size > 0, size, 1.0)
    second = factors.second.reshape(factors.rank, outputs, -1) * scale[:, None]
    return dataclasses.replace(factors, second=second.reshape(factors.second.shape))


def learned_factors(node: ir.Node) -> Factors | None:
    """What training left on the weight of a layer, if anything.

    Raises:
        ModelError: the weight is another by now.
    """
    value, array = node.inputs[1], constant(node.inputs[1])
    found = None if value is None else value.meta.get(LEARNED)
    if found is None or array is None:
        return None
    if (off := found.off(array)) > SAME:
        raise ModelError(
            f"{node.op_type} node {node.name!r}: its weight is not the product of the factors that "
            f"it was trained as: it is off by {off:.1g} of its size; train it again"
        )
    assert isinstance(found, Factors)
    return found
