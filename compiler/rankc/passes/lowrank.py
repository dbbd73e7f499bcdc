"""Low-rank layers: y = x W + b becomes ((x A) B) + b', of r columns in the middle.

With C the covariance of x over the calibration rows, the output varies by  Cy = WT C W.  Keep the
r directions of y that matter most under the logit's gradient, P = decode @ encode.T (see `linalg`):
    A = W encode  (n, r)      B = decode.T  (r, m)      b' = b + mean(x) (W - A B)
The last term is exact: the mean output is kept. Error = the tail of the spectrum. Directions that
calibration never saw keep the original W, projected: no moment of x is ever inverted.
  `pca`       as above: Yu and Wu, "Compressing Transformers: Features Are Low-Rank, but Weights
              Are Not!" (AFM), AAAI 2023, with the weight of the logit added
  `whitened`  the same optimum with C shrunk towards the identity, so that inputs unlike the
              calibration rows count too: Wang et al., SVD-LLM, ICLR 2025
  `svd`       C = I and no weight: the truncated SVD of W, the baseline
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import numpy as np
import onnx_ir as ir
from annotated_types import Ge, Le

from rankc.graph import (
    Readers,
    attribute,
    layer_outputs,
    node_named,
    only_input,
    selected,
)
from rankc.layers import has_row_bias, layer, replace_layer
from rankc.linalg import (
    Directions,
    Floats,
    directions,
    lost,
    plain_directions,
    plain_lost,
    share_lost,
    shrunk,
)
from rankc.passbase import MAX_GRADED, Curve, Dense, Probe, Site, SiteStats, Skip


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """The spectrum of a layer: every rank at once."""

    weight: Floats  # (n, m)
    bias: Floats | None  # (m,)
    mean: Floats | None  # of the input, (n,); None: the bias is not to be corrected
    found: Directions
    error: Floats  # share of the output's variance lost at ranks 0..m, (m + 1,)
    loss: Floats  # what the logit feels of it, (m + 1,)


@dataclasses.dataclass(frozen=True, slots=True)
class LowRank:
    """Factor MatMul and Gemm layers with constant weights."""

    name: ClassVar[str] = "lowrank"
    targets: tuple[str, ...] = ("*",)  # names of layers: globs, or re: patterns
    ignore: tuple[str, ...] = ()  # layers to leave alone, the same way
    rank: Annotated[int, Ge(1)] | None = None  # one for all; by default what the budget allows
    method: Literal["pca", "whitened", "svd"] = "pca"  # svd is the baseline: the weight alone
    weighted: bool = True  # by the logit's gradient; not for `svd`
    centred: bool = True  # keep the mean output exactly, by the bias
    shrinkage: Annotated[float, Ge(0), Le(1)] = 0.01  # `whitened`: share of the identity in C
    round_to: Annotated[int, Ge(1)] = 8  # ranks are multiples of this
    min_size: Annotated[int, Ge(0)] = 1024  # leave layers with fewer weights alone

    def match(self, model: ir.Model) -> Iterator[Site | Skip]:
        for node in model.graph:
            if layer_outputs(node) is None or not selected(
                str(node.name), self.targets, self.ignore
            ):
                continue
            reason = self._refusal(node)
            if reason:
                yield Skip(self.name, str(node.name), reason)
            else:
                n, m = layer(node)[0].shape
                yield Site(self.name, str(node.name), (n, m))

    def _refusal(self, node: ir.Node) -> str | None:
        weight = only_input(node, 1)
        if len(weight.uses()) > 1:
            return f"its weight {weight.name!r} is shared by {len(weight.uses())} nodes"
        if node.op_type == "Gemm" and attribute(node, "transA", 0):
            return "a Gemm with transA has no batch rows"
        if not has_row_bias(node):
            return "its bias is not one constant row"
        matrix, _ = layer(node)
        if matrix.size < self.min_size:
            return f"{matrix.size} weights are fewer than min_size = {self.min_size}"
        n, m = matrix.shape
        if n * m // (n + m) < self.round_to:
            return f"{n} x {m} pays below rank {n * m / (n + m):.1f}, less than {self.round_to}"
        return None

    def probe(self, model: ir.Model, site: Site) -> Probe:
        node = node_named(model, site.name)
        x, y = only_input(node), node.outputs[0]
        graded = site.shape[1] <= MAX_GRADED
        return Probe(inputs=str(x.name), outputs=(str(y.name),), graded=graded)

    def dense(self, model: ir.Model, site: Site) -> Dense:
        weight, bias = layer(node_named(model, site.name))
        count = weight.size + (0 if bias is None else bias.size)
        return Dense(parameters=count, macs=weight.size, size_bytes=4 * count)

    def read_by(self, model: ir.Model, site: Site) -> Readers | None:
        return None

    def solve(self, model: ir.Model, site: Site, stats: SiteStats, form: str = "") -> Solution:
        assert stats.inputs is not None, site.name
        weight, bias = layer(node_named(model, site.name))
        inputs, felt = stats.inputs, stats.output_weight
        moment = inputs.covariance if self.centred else inputs.second
        shaping = self._shaping(moment)
        if isinstance(felt, np.ndarray):
            spread = weight.T @ moment @ weight
            weighted = self.weighted and self.method != "svd"
            found = directions(weight.T @ shaping @ weight, felt if weighted else None)
            error, loss = lost(found, spread), lost(found, spread, felt)
        else:
            found = plain_directions(weight, shaping)
            error = plain_lost(found, weight, moment)
            loss = error * (1.0 if felt is None else felt)
        energy, variance = (
            float(np.sum(weight * (m @ weight))) for m in (inputs.second, inputs.covariance)
        )
        mean = inputs.mean if self.centred else None
        return Solution(weight, bias, mean, found, share_lost(error, variance, energy), loss)

    def _shaping(self, moment: Floats) -> Floats:
        """The moment of the input that decides on the directions, (n, n), positive definite."""
        if self.method == "svd":
            return np.eye(len(moment))
        return shrunk(moment, self.shrinkage if self.method == "whitened" else 0.0)

    def settle(
        self, site: Site, stats: SiteStats, solution: Solution, rank: int, form: str
    ) -> Solution:
        return solution  # every rank is the best there is

    def cost(self, site: Site, solution: Solution) -> Curve:
        n, m = site.shape
        asked = min(self.rank or site.full_rank, site.full_rank)
        ranks = np.unique([*range(0, site.full_rank, self.round_to)[1:], asked, site.full_rank])
        biased = solution.bias is not None or self.centred
        count = ranks * (n + m) + (m if biased else 0)
        error, loss = solution.error[ranks], solution.loss[ranks]
        return Curve(ranks, error, loss, count, macs=ranks * (n + m), size_bytes=4 * count)

    def rewrite(
        self, model: ir.Model, site: Site, rank: int, solution: Solution, form: str = ""
    ) -> None:
        weight, bias, found = solution.weight, solution.bias, solution.found
        first = (weight @ found.encode[:, :rank]).astype(np.float32)  # (n, r)
        second = found.decode[:, :rank].T.astype(np.float32)  # (r, m)
        if solution.mean is not None:
            kept = first.astype(np.float64) @ second
            bias = (0.0 if bias is None else bias) + solution.mean @ (weight - kept)
        replace_layer(model, node_named(model, site.name), first, second, bias)
