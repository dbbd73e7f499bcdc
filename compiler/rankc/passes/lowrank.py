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
Form `pivot` computes r of the outputs and the others from those: the same function out of fewer
weights, r (n + m - r), and the index that brings them into order (see `rankc.pivot`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import numpy as np
import onnx_ir as ir
from annotated_types import Ge, Le, MinLen

from rankc.graph import (
    Readers,
    layer_outputs,
    node_named,
    only_input,
    selected,
)
from rankc.layers import layer, refusal, replace_by_pivots, replace_layer
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
from rankc.pivot import index_bytes, pivoted

Form = Literal["pair", "pivot"]


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
    # pair: two factors; pivot: fewer weights at the same rank, one more operator to reorder outputs
    forms: Annotated[tuple[Form, ...], MinLen(1)] = ("pair",)
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
        if reason := refusal(node):
            return reason
        matrix, _ = layer(node)
        if matrix.size < self.min_size:
            return f"{matrix.size} weights are fewer than min_size = {self.min_size}"
        return self._never_pays(*matrix.shape)

    def _never_pays(self, n: int, m: int) -> str | None:
        """Why no rank that is offered takes less than the layer, else None."""
        if "pivot" in self.forms:  # pays at every rank below the full one
            if min(n, m) > self.round_to:
                return None
            return f"{n} x {m} has no rank below {min(n, m)} that is a multiple of {self.round_to}"
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
        (n, m), forms = site.shape, tuple(dict.fromkeys(self.forms))
        asked = min(self.rank or site.full_rank, site.full_rank)
        ranks = np.unique([*range(0, site.full_rank, self.round_to)[1:], asked, site.full_rank])
        every, names = np.tile(ranks, len(forms)), np.repeat(forms, len(ranks))
        shorter = np.where(names == "pivot", every, 0)  # than the pair, the second factor is
        macs = every * (n + m - shorter)
        index = [index_bytes(int(rank), m) if rank else 0 for rank in shorter]
        biased = solution.bias is not None or self.centred
        count = macs + (m if biased else 0)
        return Curve(
            every,
            solution.error[every],
            solution.loss[every],
            count,
            macs=macs,
            size_bytes=4 * count + np.array(index),
            forms=() if forms == ("pair",) else tuple(names.tolist()),
        )

    def rewrite(
        self, model: ir.Model, site: Site, rank: int, solution: Solution, form: str = ""
    ) -> None:
        node, found = node_named(model, site.name), solution.found
        first = solution.weight @ found.encode[:, :rank]  # (n, r)
        second = found.decode[:, :rank].T  # (r, m)
        if (form or self.forms[0]) == "pair":
            a, b = first.astype(np.float32), second.astype(np.float32)
            replace_layer(model, node, a, b, _corrected(solution, a.astype(np.float64) @ b))
            return
        outputs = pivoted(second)
        a = (first @ second[:, outputs.kept]).astype(np.float32)
        b = outputs.mix.astype(np.float32)
        kept = outputs.whole(a.astype(np.float64), b.astype(np.float64))
        replace_by_pivots(model, node, (a, b), _corrected(solution, kept), outputs)


def _corrected(solution: Solution, kept: Floats) -> Floats | None:
    """The bias that keeps the mean output, (m,), where the weight becomes `kept` (n, m)."""
    if solution.mean is None:
        return solution.bias
    missing: Floats = solution.mean @ (solution.weight - kept)
    return (0.0 if solution.bias is None else solution.bias) + missing
