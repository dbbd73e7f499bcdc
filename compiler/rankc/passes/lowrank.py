"""Low-rank layers: y = x W + b becomes ((x A) B) + b', of r columns in the middle.

With C the covariance of x over the calibration rows, the output varies by  Cy = WT C W.  Keep the
r directions of y that matter most under the logit's gradient, P = decode @ encode.T (see `linalg`):
    A = W encode  (n, r)      B = decode.T  (r, m)      b' = b + mean(x) (W - A B)
The last term is exact: the mean output is kept. Error = the tail of the spectrum. Directions that
calibration never saw keep the original W, projected. No matrix is inverted.
  `pca`       as above: Yu and Wu, "Compressing Transformers: Features Are Low-Rank, but Weights
              Are Not!" (AFM), AAAI 2023, with the weight of the logit added
  `whitened`  the same optimum with C shrunk towards the identity, so that inputs unlike the
              calibration rows count too: Wang et al., SVD-LLM, ICLR 2025
  `svd`       C = I and no weight: the truncated SVD of W, the baseline
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from rankc.graph import (
    Readers,
    attribute,
    constant,
    layer_outputs,
    new_initializer,
    node_named,
    only_input,
    replace_node,
    selected,
)
from rankc.linalg import Directions, Floats, directions, lost
from rankc.passbase import Curve, Dense, Moments, Probe, Site, SiteStats, Skip


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
    rank: int | None = None  # the same rank everywhere; by default what the budget allows
    method: Literal["pca", "whitened", "svd"] = "pca"  # svd is the baseline: the weight alone
    weighted: bool = True  # by the logit's gradient; not for `svd`
    centred: bool = True  # keep the mean output exactly, by the bias
    shrinkage: float = 0.01  # `whitened`: share of the identity in C
    round_to: int = 8  # ranks are multiples of this
    min_size: int = 1024  # leave layers with fewer weights alone

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
        if node.op_type == "Gemm" and len(node.inputs) > 2 and constant(node.inputs[2]) is None:
            return "its bias is not constant"
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
        return Probe(inputs=str(x.name), outputs=(str(y.name),))

    def dense(self, model: ir.Model, site: Site) -> Dense:
        weight, bias = layer(node_named(model, site.name))
        count = weight.size + (0 if bias is None else bias.size)
        return Dense(parameters=count, macs=weight.size, size_bytes=4 * count)

    def read_by(self, model: ir.Model, site: Site) -> Readers | None:
        return None

    def solve(self, model: ir.Model, site: Site, stats: SiteStats) -> Solution:
        assert stats.inputs is not None, site.name
        weight, bias = layer(node_named(model, site.name))
        inputs = stats.inputs
        moment = inputs.covariance if self.centred else inputs.second
        spread, seen = weight.T @ moment @ weight, weight.T @ inputs.covariance @ weight
        found = self._directions(weight, spread, inputs, stats.output_weight)
        error, loss = lost(found, spread), lost(found, spread, stats.output_weight)
        variance = max(float(np.trace(seen)), np.finfo(np.float64).tiny)
        mean = inputs.mean if self.centred else None
        return Solution(weight, bias, mean, found, error / variance, loss)

    def _directions(
        self, weight: Floats, spread: Floats, inputs: Moments, felt: Floats | None
    ) -> Directions:
        if self.method == "svd":
            return directions(weight.T @ weight)
        if self.method == "whitened":
            level = np.trace(inputs.covariance) / len(weight)
            prior = self.shrinkage * level * (weight.T @ weight)
            spread = (1 - self.shrinkage) * spread + prior
        return directions(spread, felt if self.weighted else None)

    def cost(self, site: Site, solution: Solution) -> Curve:
        n, m = site.shape
        ranks = np.unique([*range(0, site.full_rank, self.round_to)[1:], site.full_rank])
        biased = solution.bias is not None or self.centred
        count = ranks * (n + m) + (m if biased else 0)
        error, loss = solution.error[ranks], solution.loss[ranks]
        return Curve(ranks, error, loss, count, macs=ranks * (n + m), size_bytes=4 * count)

    def rewrite(self, model: ir.Model, site: Site, rank: int, solution: Solution) -> None:
        weight, bias, found = solution.weight, solution.bias, solution.found
        first = (weight @ found.encode[:, :rank]).astype(np.float32)  # (n, r)
        second = found.decode[:, :rank].T.astype(np.float32)  # (r, m)
        if solution.mean is not None:
            kept = first.astype(np.float64) @ second
            bias = (0.0 if bias is None else bias) + solution.mean @ (weight - kept)
        emit(model, node_named(model, site.name), first, second, bias)


def layer(node: ir.Node) -> tuple[Floats, Floats | None]:
    """W (n, m) and b (m,) or None of y = x W + b, float64, Gemm's alpha and beta applied."""
    matrix = constant(node.inputs[1], ndim=2)
    assert matrix is not None, node.name
    weight = matrix.astype(np.float64)
    if node.op_type == "MatMul":
        return weight, None
    if attribute(node, "transB", 0):
        weight = weight.T
    scale = {key: a.as_float() for key, a in node.attributes.items() if key in ("alpha", "beta")}
    weight = weight * scale.get("alpha", 1.0)
    added = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if added is None:
        return weight, None
    bias = added.reshape(-1).astype(np.float64) * scale.get("beta", 1.0)
    return weight, np.broadcast_to(bias, weight.shape[1:])


def emit(
    model: ir.Model, node: ir.Node, first: np.ndarray, second: np.ndarray, bias: Floats | None
) -> None:
    """Put (x first) second + bias in the place of `node`; a Gemm stays a Gemm."""
    name, tape = str(node.name), ir.tape.Tape()
    a, b = (new_initializer(model, f"{name}.{k}", f) for k, f in (("A", first), ("B", second)))
    hidden = tape.op("MatMul", [only_input(node), a], name=f"{name}.A")
    added = [] if bias is None else [new_initializer(model, f"{name}.b", bias.astype(np.float32))]
    if node.op_type == "Gemm":
        out = tape.op("Gemm", [hidden, b, *added], name=f"{name}.B")
    else:
        out = tape.op("MatMul", [hidden, b], name=f"{name}.B")
        if added:
            out = tape.op("Add", [out, *added], name=f"{name}.b")
    replace_node(model, node, tape.nodes, out)
