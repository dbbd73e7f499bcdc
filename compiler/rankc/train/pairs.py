"""Low-rank pairs in a rewritten graph: two linear layers in a row with nothing between them.

With the first one's weight unfolded to rows a_k (one for each of the r channels between the two)
and the second one's to rows b_k, the pair computes  sum_k a_k (x) b_k, whatever the two are: a
matrix product, a convolution and a 1 x 1, a column and a row.  So  A -> R A, B -> R^-T B  changes
nothing (`rebalance`: rows of A become orthonormal, those of B orthogonal and of falling length).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from rankc.graph import attribute, constant
from rankc.linalg import Floats

_LAYERS = ("Conv", "Gemm", "MatMul")


@dataclasses.dataclass(frozen=True, slots=True)
class Side:
    """How the weight of one layer of a pair becomes rows, one a channel between the two."""

    name: str  # of the initializer
    axis: int  # of the channels between

    def rows(self, weight: NDArray[np.generic]) -> Floats:
        """The weight as (r, rest), float64."""
        moved = np.moveaxis(np.asarray(weight, np.float64), self.axis, 0)
        return moved.reshape(len(moved), -1)

    def weight(self, rows: Floats, like: NDArray[np.generic]) -> NDArray[np.float32]:
        """The other way round, in the shape of `like`."""
        shape = list(like.shape)
        first = shape.pop(self.axis)
        moved = np.moveaxis(rows.reshape(first, *shape), 0, self.axis)
        return np.ascontiguousarray(moved, np.float32)


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
    """Two layers in a row. `plain`: neither has groups, so that the identity above holds."""

    first: Side
    second: Side
    nodes: tuple[str, str]
    plain: bool

    @property
    def weights(self) -> tuple[str, str]:
        """Names of both weights."""
        return self.first.name, self.second.name


def pairs_of(graph: ir.Graph) -> list[Pair]:
    """Every pair, in the order of the graph; of three layers in a row there are two."""
    return [pair for node in graph if (pair := _pair(node)) is not None]


def _pair(first: ir.Node) -> Pair | None:
    if not _is_layer(first) or (len(first.inputs) > 2 and first.inputs[2] is not None):
        return None
    uses = list(first.outputs[0].uses())
    if len(uses) != 1 or first.outputs[0].is_graph_output():
        return None
    second, index = uses[0]
    alike = (first.op_type == "Conv") == (second.op_type == "Conv")
    if index != 0 or not alike or not _is_layer(second):
        return None
    groups = [attribute(node, "group", 1) for node in (first, second)]
    return Pair(
        Side(_weight(first), _out_axis(first)),
        Side(_weight(second), _in_axis(second)),
        (str(first.name), str(second.name)),
        groups == [1, 1],
    )


def _is_layer(node: ir.Node) -> bool:
    if node.op_type not in _LAYERS:
        return False
    if node.op_type == "Gemm" and attribute(node, "transA", 0):
        return False
    weight = constant(node.inputs[1])
    shared = len(node.inputs[1].uses()) > 1  # type: ignore[union-attr]
    return weight is not None and not shared and (node.op_type == "Conv" or weight.ndim == 2)


def _weight(node: ir.Node) -> str:
    value = node.inputs[1]
    assert value is not None, node.name
    return str(value.name)


def _out_axis(node: ir.Node) -> int:
    turned = node.op_type == "Conv" or attribute(node, "transB", 0)
    return 0 if turned else 1


def _in_axis(node: ir.Node) -> int:
    return 1 - _out_axis(node)


def rebalance(model: ir.Model, pairs: Sequence[Pair]) -> None:
    """Orthonormal rows for every first factor, in place; the function stays the same.

    Pairs that have groups, and the second of two that share a layer, are left as they are.
    """
    for pair in separate(pairs):
        values = [model.graph.initializers[name] for name in pair.weights]
        arrays = [value.const_value.numpy() for value in values]  # type: ignore[union-attr]
        rows = orthogonal(pair.first.rows(arrays[0]), pair.second.rows(arrays[1]))
        for value, side, array, found in zip(
            values, (pair.first, pair.second), arrays, rows, strict=True
        ):
            value.const_value = ir.tensor(side.weight(found, array), name=value.name)


def orthogonal(first: Floats, second: Floats) -> tuple[Floats, Floats]:
    """A (r, p) and B (r, q) with the same A^T B, the rows of A orthonormal, those of B falling.

    Where r > p the rows of A cannot all be orthonormal; those beyond are zero in B.
    """
    q_a, r_a = np.linalg.qr(first.T)
    q_b, r_b = np.linalg.qr(second.T)
    u, s, vt = np.linalg.svd(r_a @ r_b.T, full_matrices=False)
    left, right = (q_a @ u).T, (s[:, None] * vt) @ q_b.T
    return _filled(left, first.shape), _filled(right, second.shape)


def _filled(rows: Floats, shape: tuple[int, ...]) -> Floats:
    whole = np.zeros(shape)
    whole[: len(rows)] = rows
    return whole


def separate(pairs: Sequence[Pair]) -> Iterator[Pair]:
    """Plain pairs of which no two share a layer."""
    taken: set[str] = set()
    for pair in pairs:
        if pair.plain and not taken.intersection(pair.nodes):
            taken.update(pair.nodes)
            yield pair
