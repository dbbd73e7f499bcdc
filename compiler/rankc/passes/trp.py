"""Layers whose rank training has brought down: truncated again and again while the net is trained.

Every `period` steps the weight of each layer, unfolded to a matrix W = U S VT, is cut in place to
the smallest rank k that keeps `energy` of sum S_i^2, and the step's gradient gets lambda U_k V_kT
added, a sub-gradient of lambda |W|_* (`rankc.train.trp`). So the net learns to live with low rank,
and what is cut here, the trained weight by its singular values, is hardly missed:
  spatial    (C kH) x (N kW)     kH x 1 to r channels, then 1 x kW
  channel    (C kH kW) x N       kH x kW to r channels, then 1 x 1; all that is a matrix already
  decoupled  C x (kH kW), N times   1 x 1 to r channels an output, then a kernel for each
b' = b + (W - W') mean(p) keeps the mean output, and the error at every rank is known from the
moments of p. Without a budget, the rank is that of the singular values above `threshold`.
Batch normalisation behind a layer scales its outputs, columns of W or whole matrices: folded away,
it changes no rank.
Xu et al., "TRP: Trained Rank Pruning for Efficient Deep Neural Networks", IJCAI 2020.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import onnx_ir as ir
from annotated_types import Ge, Gt, Le, Lt, MinLen

from rankc.convolution.kernel import Kernel, kernel_of, replace_conv
from rankc.convolution.solution import Solution, within_groups
from rankc.convolution.split import axes_of
from rankc.convolution.weights import Scheme, cut, form_of, matrix_kernel, strengths, uncut
from rankc.factors import Unfolding, unfolding_of
from rankc.graph import Readers, node_named, only_input, selected
from rankc.layers import layer, replace_layer
from rankc.passbase import MAX_GRADED, Curve, Dense, Moments, Probe, Site, SiteStats, Skip
from rankc.two_factors import is_layer, why_not

Kind = Literal["conv", "pointwise", "dense"]


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """A weight that training truncates."""

    site: str
    weight: str  # name of the initializer
    unfolding: Unfolding
    matrices: int  # that the rows of the unfolding fall into, one below the other
    most: int  # the largest rank at which the factors take fewer weights and MACs than the layer
    macs: int  # of the layer as it is, for one row of the batch
    macs_a_rank: int  # of the factors, for each unit of rank


@dataclasses.dataclass(frozen=True, slots=True)
class Trp:
    """Train layers towards low rank, then cut them by their singular values."""

    name: ClassVar[str] = "trp"
    targets: tuple[str, ...] = ("*",)  # names of layers: globs, or re: patterns
    ignore: tuple[str, ...] = ()  # layers to leave alone, the same way
    # conv: wider than 1 x 1; pointwise: 1 x 1; dense: MatMul and Gemm
    layers: Annotated[tuple[Kind, ...], MinLen(1)] = ("conv", "pointwise", "dense")
    scheme: Scheme = "spatial"  # how convolutions split; with taps along one axis, as channel
    rank: Annotated[int, Ge(1)] | None = None  # one for all; by default what the budget allows
    period: Annotated[int, Ge(1)] = 20  # steps of training from one truncation to the next
    # share of the squared singular values that a truncation keeps; 1 truncates nothing
    energy: Annotated[float, Gt(0), Le(1)] = 0.98
    # instead of `energy`: share of the MACs of all these layers that truncations come down to
    keep: Annotated[float, Gt(0), Lt(1)] | None = None
    # share of the training over which truncations come down to what is asked for, from nothing
    anneal: Annotated[float, Ge(0), Le(1)] = 0.0
    nuclear: Annotated[float, Ge(0)] = 3e-4  # lambda, weight of the nuclear norm
    # svd: truncations, lambda in their steps alone; newton-schulz: lambda in every step, decoupled
    # from the gradient, by matrix products alone, and no truncation before the net is looked at
    step: Literal["svd", "newton-schulz"] = "svd"
    # a layer whose rank was the same for that many truncations is left out of as many, less one,
    # before it is truncated again; 0 leaves none out
    settled: Annotated[int, Ge(0)] = 5
    # without a budget, singular values below this share of a layer's largest go: far above what
    # rounding leaves of those that training cut, far below those that it kept
    threshold: Annotated[float, Gt(0), Le(1)] = 1e-3
    centred: bool = True  # keep the mean output exactly, by the bias
    positions: Annotated[int, Ge(1)] = 64  # patches of an image that calibration looks at
    min_size: Annotated[int, Ge(0)] = 1024  # leave layers with fewer weights alone
    round_to: Annotated[int, Ge(1)] = 1  # ranks are multiples of this

    def match(self, model: ir.Model) -> Iterator[Site | Skip]:
        for node in model.graph:
            name = str(node.name)
            if not is_layer(node) or not selected(name, self.targets, self.ignore):
                continue
            if reason := why_not(node) or self._refusal(node):
                yield Skip(self.name, name, reason)
            else:
                m, n = _kernel(node).matrix.shape[1:]
                yield Site(self.name, name, (n, m))

    def _refusal(self, node: ir.Node) -> str | None:
        kernel = _kernel(node)
        wide = kernel.window.taps > 1
        kind: Kind = "dense" if node.op_type != "Conv" else "conv" if wide else "pointwise"
        if kind not in self.layers:
            return f"{kind} layers are not among those of `layers`"
        if kernel.weight.size < self.min_size:
            return f"{kernel.weight.size} weights are fewer than min_size = {self.min_size}"
        most, _ = self._limits(kernel)
        if most < self.round_to:
            return f"it pays up to rank {most}, less than {self.round_to}"
        return None

    def _limits(self, kernel: Kernel) -> tuple[int, int]:
        """The largest rank that pays, and the MACs of each unit of rank."""
        stages = uncut(form_of(self.scheme, kernel), kernel).stages(1)
        weights, macs = sum(s.parameters for s in stages), sum(s.macs for s in stages)
        most = min((kernel.weight.size - 1) // weights, (kernel.dense.macs - 1) // macs)
        return most, macs

    def trained(self, model: ir.Model) -> list[Target]:
        """What training truncates of a model."""
        sites = [site for site in self.match(model) if isinstance(site, Site)]
        return [self._target(node_named(model, site.name)) for site in sites]

    def _target(self, node: ir.Node) -> Target:
        kernel, weight, matrices = _kernel(node), only_input(node, 1), 1
        form = form_of(self.scheme, kernel)
        unfolding = unfolding_of(node, axes_of(form, kernel))
        if form == "decoupled":
            shape = unfolding.shape
            unfolding, matrices = Unfolding(shape, tuple(range(len(shape))), 2), shape[0]
        most, each = self._limits(kernel)
        names = str(node.name), str(weight.name)
        return Target(*names, unfolding, matrices, most, kernel.dense.macs, each)

    def probe(self, model: ir.Model, site: Site) -> Probe:
        node, window = node_named(model, site.name), None
        if node.op_type == "Conv":
            window = dataclasses.replace(kernel_of(node).window, positions=self.positions)
        inputs, output = str(only_input(node).name), str(node.outputs[0].name)
        graded = site.shape[1] <= MAX_GRADED
        return Probe(inputs=inputs, window=window, outputs=(output,), graded=graded)

    def dense(self, model: ir.Model, site: Site) -> Dense:
        return _kernel(node_named(model, site.name)).dense

    def read_by(self, model: ir.Model, site: Site) -> Readers | None:
        return None

    def solve(self, model: ir.Model, site: Site, stats: SiteStats, form: str = "") -> Solution:
        assert stats.inputs is not None, site.name
        kernel, seen = _kernel(node_named(model, site.name)), stats.inputs
        if seen.mean.ndim == 1:  # of rows, not of patches
            seen = Moments(seen.count, seen.mean[None], seen.second[None])
        moments = seen.covariance if self.centred else seen.second
        felt = within_groups(stats.output_weight, kernel)
        chain = cut(form_of(self.scheme, kernel), kernel, moments, felt)
        grouped = dataclasses.replace(stats, inputs=seen)
        return Solution.of(kernel, grouped, [chain], self.centred)

    def settle(
        self, site: Site, stats: SiteStats, solution: Solution, rank: int, form: str
    ) -> Solution:
        return solution  # what training left is not to be made better

    def cost(self, site: Site, solution: Solution) -> Curve:
        (chain,) = solution.chains.values()
        sizes = strengths(chain)
        full, above = len(sizes), int((sizes > self.threshold * sizes.max()).sum())
        own = min(-(-max(above, 1) // self.round_to) * self.round_to, full)
        asked = min(self.rank or full, full)
        # What lies between is of no use: training has cut it, and only rounding is left there.
        ranks = sorted({*range(self.round_to, own, self.round_to), own, asked, full})
        curve = solution.curve({chain.name: ranks})
        forms = curve.forms if solution.kernel.window.kernel else ()
        return dataclasses.replace(curve, forms=forms, own=ranks.index(own))

    def rewrite(
        self, model: ir.Model, site: Site, rank: int, solution: Solution, form: str = ""
    ) -> None:
        node, (chain,) = node_named(model, site.name), solution.chains.values()
        rank = min(rank, len(chain.lost) - 1)
        bias, weights = solution.bias(chain, rank), chain.weights(rank)
        if node.op_type == "Conv":
            replace_conv(model, node, chain.stages(rank), weights, bias)
            return
        first, second = (w.reshape(len(w[0]), -1).T.astype("float32") for w in weights)
        replace_layer(model, node, first, second, bias)


def _kernel(node: ir.Node) -> Kernel:
    """A layer that `why_not` has nothing against."""
    return kernel_of(node) if node.op_type == "Conv" else matrix_kernel(*layer(node))
