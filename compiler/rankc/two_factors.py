"""A convolution of one group, a Gemm or a MatMul, to be written as two factors; all three alike.

y = W p + b for rows p (of a convolution: patches). The weight unfolds to first @ second, see
`rankc.factors`; seen from p that is  W = S P  with P (q, n) what the first factor makes of a patch,
`block` rows for a unit of rank, and S (m, q) what the second one makes of those.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import onnx_ir as ir

from rankc.convolution import kernel as convolutions
from rankc.convolution.kernel import Kernel, Stage, kernel_of, replace_conv, window_of
from rankc.convolution.split import axes_of, map_of, windows
from rankc.factors import Unfolding, unfolding_of
from rankc.graph import constant, layer_outputs, only_input, why_shared
from rankc.layers import layer, refusal, replace_layer
from rankc.linalg import Floats

Scheme = Literal["channel", "spatial"]


def is_layer(node: ir.Node) -> bool:
    """Whether a node is of the kind at all; `why_not` says whether it can be written so."""
    return node.op_type == "Conv" or layer_outputs(node) is not None


def why_not(node: ir.Node) -> str | None:
    """Why a layer cannot be written as two factors, else None."""
    weight = only_input(node, 1)
    reason = (refusal if node.op_type != "Conv" else _no_convolution)(node)
    if reason is not None and reason == why_shared(weight) and weight.is_initializer():
        return f"{reason}; train.unshare gives each its own"
    return reason


def _no_convolution(node: ir.Node) -> str | None:
    if constant(node.inputs[1]) is not None and (groups := window_of(node).groups) > 1:
        return f"a convolution of {groups} groups does not become two factors"
    return convolutions.refusal(node)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A layer and how it splits."""

    weight: Floats  # W, (m, n)
    bias: Floats | None  # (m,)
    unfolding: Unfolding
    kernel: Kernel | None  # of a convolution
    axes: tuple[int, ...] = ()  # of its space, those that the first factor runs along

    @classmethod
    def of(cls, node: ir.Node, scheme: Scheme) -> Layer:
        """Read a node that `why_not` has nothing against; one axis of space splits as channel."""
        if node.op_type != "Conv":
            weight, bias = layer(node)
            return cls(weight.T, bias, unfolding_of(node), None)
        kernel = kernel_of(node)
        wide = sum(taps > 1 for taps in kernel.window.kernel)
        axes = axes_of("vertical" if scheme == "spatial" and wide > 1 else "channel", kernel)
        return cls(kernel.matrix[0], kernel.bias, unfolding_of(node, axes), kernel, axes)

    @property
    def block(self) -> int:
        """Rows of P a unit of rank."""
        return self.unfolding.columns // len(self.weight)

    @property
    def macs(self) -> int:
        """Of the layer as it is, for one row of the batch."""
        places = 1 if self.kernel is None else int(np.prod(self.kernel.window.output))
        return self.weight.size * places

    @property
    def parameters_a_rank(self) -> int:
        return self.unfolding.rows + self.unfolding.columns

    @property
    def macs_a_rank(self) -> int:
        """Of both factors, for each unit of rank and one row of the batch."""
        return sum(s.macs for s in self.stages(1)) if self.kernel else self.parameters_a_rank

    def stages(self, rank: int) -> tuple[Stage, ...]:
        """Of a convolution, what it becomes."""
        assert self.kernel is not None
        a, b = windows(self.kernel.window, self.axes)
        m, channels = self.kernel.weight.shape[1:3]
        return Stage((rank, channels, *a.kernel), a), Stage((m, rank, *b.kernel), b)

    def maps(self, first: Floats) -> Floats:
        """P of a first factor (rows, k)."""
        if self.kernel is None:
            return np.asarray(first.T, np.float64)
        shape = first.shape[1], self.kernel.weight.shape[2], -1
        return map_of(first.T.reshape(shape), self.kernel.window.kernel, self.axes)

    def behind(self, second: Floats) -> Floats:
        """S of a second factor (k, columns)."""
        m = len(self.weight)
        blocks = second.reshape(-1, m, self.block).transpose(1, 0, 2)
        return np.asarray(blocks.reshape(m, -1), np.float64)

    def replace(
        self,
        model: ir.Model,
        node: ir.Node,
        first: Floats,
        behind: Floats,
        bias: Floats | None,
    ) -> None:
        """Put two layers in the place of `node`: a first factor (rows, r) and S (m, q)."""
        if self.kernel is not None:
            stages = self.stages(first.shape[1])
            replace_conv(model, node, stages, [first.T, behind], bias)
            return
        a, b = (np.ascontiguousarray(x, np.float32) for x in (first, behind.T))
        replace_layer(model, node, a, b, bias)
