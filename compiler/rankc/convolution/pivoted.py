"""The form `channel`, some of whose outputs are computed first, and the others from those.

k x k to r of the m outputs, then 1 x 1 from those to the other m - r. The same function as k x k to
r channels and 1 x 1 to all, out of r^2 weights fewer; see `rankc.pivot`. For one group.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from rankc.convolution.kernel import Stage, convolve
from rankc.convolution.split import Split
from rankc.graph import only_input, replace_node
from rankc.linalg import Floats
from rankc.pivot import Pivoted, in_order, pivoted


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Pivot:
    """Two convolutions one beside the other, at every rank; one where all outputs are kept."""

    channel: Split  # the form `channel`

    name = "pivot"

    @property
    def lost(self) -> Floats:
        return self.channel.lost

    @property
    def felt(self) -> Floats:
        return self.channel.felt

    def stages(self, rank: int) -> tuple[Stage, ...]:
        first, second = self.channel.stages(rank)
        others = second.shape[0] - rank
        rest = Stage((others, *second.shape[1:]), second.window)
        return (first, rest) if others else (first,)

    def weights(self, rank: int) -> list[Floats]:
        return self.factors(rank)[1]

    def matrix(self, rank: int) -> Floats:
        return self.channel.matrix(rank)

    def factors(self, rank: int) -> tuple[Pivoted, list[Floats]]:
        """Which outputs are kept, and the weight of each stage."""
        first, second = (w[0].reshape(w.shape[1], -1) for w in self.channel.weights(rank))
        found = pivoted(second.T)
        kept = second[found.kept] @ first
        return found, [kept, found.mix.T][: len(self.stages(rank))]


def replace_by_pivots(
    model: ir.Model, node: ir.Node, chain: Pivot, rank: int, bias: Floats | None
) -> None:
    """Put the chain in the place of `node`; `bias` is that of all outputs."""
    name, tape, (found, weights) = str(node.name), ir.tape.Tape(), chain.factors(rank)
    stages, biases = chain.stages(rank), found.biases(bias)
    value, parts = only_input(node), []
    for what, stage, weight, added in zip(
        ("kept", "others"), stages, weights, biases, strict=False
    ):
        label = f"{name}.{what}"
        value = convolve(model, tape, value, stage, (label, weight), (f"{label}.b", added))
        parts.append(value)
    if len(parts) > 1:
        value = in_order(model, tape, name, parts, found, axis=1)
    replace_node(model, node, tape.nodes, value)
