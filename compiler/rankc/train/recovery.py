"""What is trained of a compressed model: everything, its factors, or one number a rank.

  factors    the weights of low-rank pairs and the bias behind them
  singular   with  W = sum_k s_k a_k (x) b_k,  a and b orthonormal, s alone: r numbers a layer,
             which few rows cannot over-fit. C. Sun et al., "SVFit: Parameter-Efficient Fine-Tuning
             of Large Pre-Trained Models Using Singular Values", 2024
and what holds the first factor A of a pair in place:
  orthogonality   sum over pairs of |A A^T - I|^2 (Frobenius): what flows between the factors
             keeps the range of what flows into them. J. Wang et al., "Orthogonal Convolutional
             Neural Networks", CVPR 2020, section 3
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from typing import Any, Literal

import onnx_ir as ir
import torch
from torch import nn

from rankc.errors import ModelError
from rankc.train.codes import modules_of_codes
from rankc.train.hooks import Silent
from rankc.train.interpreter import Interpreter
from rankc.train.pairs import Pair, Side, pairs_of, rebalance, separate

Tensor = torch.Tensor
Parameters = Literal["all", "factors", "singular"]


class NothingToRecoverError(ModelError):
    """Factors alone are to be trained, and there are none."""


class Scaled(nn.Module):
    """A weight whose slices along the rank's axis are each multiplied by a number of their own."""

    def __init__(self, weight: Tensor, axis: int) -> None:
        """Args: the weight; its axis of r channels."""
        super().__init__()
        self.weight: Tensor
        self.register_buffer("weight", weight.detach().clone())
        self.scale = nn.Parameter(torch.ones(weight.shape[axis], dtype=weight.dtype))
        self._shape = [-1 if k == axis else 1 for k in range(weight.dim())]

    def forward(self) -> Tensor:
        """The weight as it is now."""
        return self.weight * self.scale.reshape(self._shape)


class Recovering(Silent):
    """Trains singular values alone, and keeps first factors orthonormal, as asked."""

    name = "recovery"

    def __init__(
        self,
        pairs: Sequence[Pair],
        parameters: Parameters,
        orthogonality: float,
        frozen: Sequence[str] = (),
    ) -> None:
        """Make a hook.

        Args:
            pairs: of the model that will be trained.
            parameters: what is trained.
            orthogonality: weight of the penalty.
            frozen: patterns of tables of codes that are not to be trained.
        """
        self._frozen = tuple(frozen)
        self._pairs = tuple(separate(pairs))
        self._parameters, self._orthogonality = parameters, orthogonality
        self._computed: list[str] = []
        self._net: Interpreter | None = None

    def start(self, net: Interpreter, steps: int) -> None:
        self._net = net
        modules: dict[str, nn.Module] = {}
        if self._parameters == "singular":
            for pair in self._pairs:
                name = pair.second.name
                modules[name] = Scaled(net.weight(name), pair.second.axis)
        elif self._parameters == "all":
            modules = modules_of_codes(net, self._frozen)
        for name, module in modules.items():
            net.compute_weight(name, module)
        self._computed = list(modules)

    def penalty(self) -> Tensor | None:
        if not self._orthogonality or self._parameters == "singular" or self._net is None:
            return None
        terms = [from_identity(self._net.weight(p.first.name), p.first) for p in self._pairs]
        return self._orthogonality * torch.stack(terms).sum() if terms else None

    def finish(self, net: Interpreter) -> None:
        for name in self._computed:
            net.settle_weight(name)

    def report(self) -> dict[str, Any]:
        return {"pairs": [pair.nodes[0] for pair in self._pairs]}


def from_identity(weight: Tensor, side: Side) -> Tensor:
    """|A A^T - I|^2 of the weight's rows, of A^T A where there are more rows than columns."""
    rows = weight.movedim(side.axis, 0).flatten(1)
    short = rows if rows.shape[0] <= rows.shape[1] else rows.T
    gram = short @ short.T
    return (gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).square().sum()


def prepared(model: ir.Model, parameters: Parameters, orthogonality: float) -> list[Pair]:
    """The model's pairs; where their gauge matters, it is made the balanced one, in place.

    Raises:
        NothingToRecoverError: factors alone are to be trained, and there are none.
    """
    pairs = pairs_of(model.graph)
    if parameters != "all" and not pairs:
        raise NothingToRecoverError(
            f"recover.parameters: {parameters} are to be trained, and the compressed model has no "
            "low-rank layer; set it to all"
        )
    if parameters == "singular" or orthogonality:
        rebalance(model, pairs)
    return pairs


def frozen_but(model: ir.Model, pairs: Sequence[Pair], parameters: Parameters) -> list[str]:
    """Patterns of the weights that are not trained."""
    if parameters == "all":
        return []
    kept = {name for pair in pairs for name in pair.weights}
    if parameters == "singular":
        kept = {pair.second.name for pair in separate(pairs)}
    else:
        kept |= _behind(model, {pair.nodes[1] for pair in pairs})
    return [glob.escape(str(name)) for name in model.graph.initializers if name not in kept]


def _behind(model: ir.Model, nodes: set[str]) -> set[str]:
    """The biases of layers, and what a BatchNormalization or an Add right behind them reads."""
    found: set[str] = set()
    for node in model.graph:
        if node.name not in nodes:
            continue
        readers = [reader for reader, _ in node.outputs[0].uses()]
        near = [r for r in readers if r.op_type in ("Add", "BatchNormalization")]
        for value in (*node.inputs[2:], *(v for r in near for v in r.inputs)):
            if value is not None and value.is_initializer():
                found.add(str(value.name))
    return found
