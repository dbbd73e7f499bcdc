"""Layers whose directions training has put in order: train once, then cut every layer where asked.

A layer y = W p + b is trained as two factors, W = sum of u_j v_jT over j, with ordered dropout:
at each step layers run on their first j directions only, j drawn anew, so that every prefix is a
good layer. A group lasso on suffixes empties the last ones, which are then dropped for good
(`rankc.train.maestro`). Rank r is the first r directions; with M the moment of p,
    E|y - y'|^2 = tr(D M DT)     D = W - sum of the first r     b' = b + D mean(p)
is known for all r at once. Nothing is lost at the rank that was learned, and the ranks are nested:
one training gives a family of models. A layer that was not trained is cut by its SVD.
  channel  k x k to r channels, then 1 x 1         spatial  k x 1 to r channels, then 1 x k
Horvath et al., "Maestro: Uncovering Low-Rank Structures via Trainable Decomposition", ICML 2024.
Where `refit` fits a layer again, its first factor stays and the second is least squares.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import numpy as np
import onnx_ir as ir
from annotated_types import Ge, Gt, Le

from rankc.convolution.refit import Refit, given, refit
from rankc.errors import ModelError
from rankc.factors import DIRECTIONS, Factors, Unfolding, balanced, learned_factors
from rankc.graph import Readers, constant, node_named, only_input, selected
from rankc.linalg import Floats, share_lost
from rankc.passbase import MAX_GRADED, Curve, Dense, Probe, Site, SiteStats, Skip
from rankc.two_factors import Layer, Scheme, is_layer, why_not


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """A layer to be trained as two factors."""

    site: str
    weight: str  # name of the initializer
    unfolding: Unfolding
    macs: int  # of the layer as it is, for one row of the batch
    macs_a_rank: int  # of the two factors, for each unit of rank


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """A layer at every rank at once."""

    layer: Layer
    mean: Floats | None  # of the input, (n,); None: the bias is not to be corrected
    first: Floats  # (rows, ranks)
    fit: Refit  # the second factor
    error: Floats  # share of the output's variance lost at ranks 0, 1, ..., (ranks + 1,)
    loss: Floats  # what the logit feels of it, (ranks + 1,)

    @property
    def ranks(self) -> int:
        return int(self.first.shape[1])


@dataclasses.dataclass(frozen=True, slots=True)
class Maestro:
    """Train layers as ordered factors, and cut them where the budget asks for it."""

    name: ClassVar[str] = "maestro"
    targets: tuple[str, ...] = ("*",)  # names of layers: globs, or re: patterns
    ignore: tuple[str, ...] = ()  # layers to leave alone, the same way
    scheme: Scheme = "spatial"  # how convolutions split; where one axis has all taps, as channel
    rank: Annotated[int, Ge(1)] | None = None  # one for all; by default what the budget allows
    # what runs on its first directions in a step of training. budget: all layers, at ranks that fit
    # into a share of their MACs that is drawn; layer: as in the paper, one at a drawn rank
    sampling: Literal["budget", "layer"] = "budget"
    smallest: Annotated[float, Gt(0), Le(1)] = 0.15  # `budget`: the least share of MACs
    sampled: Annotated[int, Ge(0)] = 1  # `layer`: how many are drawn
    # weight of the hierarchical group lasso that makes ranks fall while training: 0 keeps them all,
    # for a family of models; else to be tuned over decades
    group_lasso: Annotated[float, Ge(0)] = 0.0
    shrink: Annotated[float, Gt(0)] = 1e-5  # directions of less importance are dropped in training
    centred: bool = True  # keep the mean output exactly, by the bias
    positions: Annotated[int, Ge(1)] = 64  # patches of an image that calibration looks at
    min_size: Annotated[int, Ge(0)] = 1024  # leave layers with fewer weights alone
    round_to: Annotated[int, Ge(1)] = 4  # ranks are multiples of this, or what was learned

    def match(self, model: ir.Model) -> Iterator[Site | Skip]:
        for node in model.graph:
            name = str(node.name)
            if not is_layer(node) or not selected(name, self.targets, self.ignore):
                continue
            if reason := why_not(node) or self._never_pays(node):
                yield Skip(self.name, name, reason)
            else:
                m, n = Layer.of(node, self.scheme).weight.shape
                yield Site(self.name, name, (n, m))

    def _never_pays(self, node: ir.Node) -> str | None:
        layer = Layer.of(node, self.scheme)
        size, each = layer.weight.size, layer.parameters_a_rank
        if size < self.min_size:
            return f"{size} weights are fewer than min_size = {self.min_size}"
        if size // each < self.round_to:
            shape = f"{layer.unfolding.rows} x {layer.unfolding.columns}"
            return f"{shape} pays below rank {size / each:.1f}, less than {self.round_to}"
        return None

    def trained(self, model: ir.Model) -> list[Target]:
        """The layers that training turns into factors."""
        names = [site.name for site in self.match(model) if isinstance(site, Site)]
        nodes = [node_named(model, name) for name in names]
        layers = [Layer.of(node, self.scheme) for node in nodes]
        return [
            Target(name, str(only_input(node, 1).name), one.unfolding, one.macs, one.macs_a_rank)
            for name, node, one in zip(names, nodes, layers, strict=True)
        ]

    def probe(self, model: ir.Model, site: Site) -> Probe:
        node, window = node_named(model, site.name), None
        kernel = Layer.of(node, self.scheme).kernel
        if kernel is not None:
            window = dataclasses.replace(kernel.window, positions=self.positions)
        inputs, output = str(only_input(node).name), str(node.outputs[0].name)
        graded = site.shape[1] <= MAX_GRADED
        return Probe(inputs=inputs, window=window, outputs=(output,), graded=graded)

    def dense(self, model: ir.Model, site: Site) -> Dense:
        layer = Layer.of(node_named(model, site.name), self.scheme)
        count = layer.weight.size + (0 if layer.bias is None else layer.bias.size)
        return Dense(parameters=count, macs=layer.macs, size_bytes=4 * count)

    def read_by(self, model: ir.Model, site: Site) -> Readers | None:
        return None

    def solve(self, model: ir.Model, site: Site, stats: SiteStats, form: str = "") -> Solution:
        assert stats.inputs is not None, site.name
        node, inputs = node_named(model, site.name), stats.inputs
        layer, felt = Layer.of(node, self.scheme), stats.output_weight
        mean, second, covariance = (
            np.squeeze(x, 0) if layer.kernel else x
            for x in (inputs.mean, inputs.second, inputs.covariance)
        )
        factors, again = _factors(node, layer)
        moment = covariance if self.centred else second
        matrix = felt if isinstance(felt, np.ndarray) else None
        first, weight = layer.maps(factors.first), layer.weight
        if again:
            fit = refit(weight, moment, first, layer.block, matrix)
        else:
            behind = layer.behind(factors.second)
            fit = given(weight, moment, first, behind, layer.block, matrix)
        energy, variance = (float(np.sum(weight @ x * weight)) for x in (second, covariance))
        error = share_lost(fit.lost, variance, energy)
        loss = fit.felt * (felt if isinstance(felt, float) else 1.0)
        known = mean if self.centred else None
        return Solution(layer, known, factors.first, fit, error, loss)

    def settle(
        self, site: Site, stats: SiteStats, solution: Solution, rank: int, form: str
    ) -> Solution:
        return solution  # a prefix of what was trained, or least squares behind it

    def cost(self, site: Site, solution: Solution) -> Curve:
        layer, full = solution.layer, solution.ranks
        asked = min(self.rank or full, full)
        ranks = np.unique([*range(0, full, self.round_to)[1:], asked, full])
        biased = layer.bias is not None or self.centred
        count = ranks * layer.parameters_a_rank + (site.shape[1] if biased else 0)
        error, loss = solution.error[ranks], solution.loss[ranks]
        macs, learned = ranks * layer.macs_a_rank, len(ranks) - 1
        return Curve(ranks, error, loss, count, macs, 4 * count, own=learned)

    def rewrite(
        self, model: ir.Model, site: Site, rank: int, solution: Solution, form: str = ""
    ) -> None:
        layer, rank = solution.layer, min(rank, solution.ranks)
        first, second, bias = solution.first[:, :rank], solution.fit.second(rank), layer.bias
        if solution.mean is not None:
            missing = (layer.weight - second @ layer.maps(first)) @ solution.mean
            bias = missing if bias is None else bias + missing
        layer.replace(model, node_named(model, site.name), first, second, bias)


def _factors(node: ir.Node, layer: Layer) -> tuple[Factors, bool]:
    """What is to be cut, and whether its second factor is to be fitted again.

    Raises:
        ModelError: it was trained as other factors, or the weight was changed since.
    """
    value, array = only_input(node, 1), constant(node.inputs[1])
    assert array is not None, node.name
    again = DIRECTIONS in value.meta
    found = value.meta[DIRECTIONS] if again else learned_factors(node)
    if found is None:
        found = Factors(layer.unfolding, *balanced(layer.unfolding.unfold(array)))
    if found.unfolding != layer.unfolding:
        raise ModelError(f"layer {node.name!r} was trained with another `scheme`; train it again")
    alpha = node.attributes.get_float("alpha", 1.0) if node.op_type == "Gemm" else 1.0
    return dataclasses.replace(found, second=found.second * alpha), again
