"""Low-rank convolutions: one convolution becomes two or three smaller ones in a row.

All ways to write it compete, each at every rank (see `rankc.convolution`):
  channel     k x k to r channels, then 1 x 1          input     1 x 1 to r channels, then k x k
  vertical    k x 1 to r channels, then 1 x k          tucker    1 x 1, k x k on fewer, 1 x 1
  horizontal  1 x k to r channels, then k x 1          decoupled 1 x 1, then a kernel a channel
The first factor keeps the directions that the moments of the patches ask for, the last is least
squares, the bias keeps the mean output:  b' = b + (W - W') mean(p).  A convolution of one tap has
the forms `channel` and `pivot` only: it is a matrix. Of one group, to be asked for in `forms`:
  pivot       k x k to r of the outputs, then 1 x 1 from those to the others; as `channel`, of fewer
              weights, and an operator more that brings the outputs into order (see `rankc.pivot`)
  `pca`  moments of the patches at calibration; Zhang et al., TPAMI 2016, extended to every form
  `svd`  of the weights alone: Jaderberg et al., BMVC 2014 (vertical); the baseline
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
import onnx_ir as ir
from annotated_types import Ge, MinLen

from rankc.convolution.alternate import alternate
from rankc.convolution.chain import Chain
from rankc.convolution.decoupled import decoupled
from rankc.convolution.kernel import Kernel, Stage, kernel_of, refusal, replace_conv, window_of
from rankc.convolution.pivoted import Pivot, replace_by_pivots
from rankc.convolution.split import Split, split
from rankc.convolution.tucker import inner_channels, tucker
from rankc.graph import Readers, node_named, only_input, selected
from rankc.linalg import Floats, share_lost
from rankc.passbase import MAX_GRADED, Curve, Dense, Probe, Site, SiteStats, Skip
from rankc.pivot import index_bytes

Form = Literal["channel", "vertical", "horizontal", "input", "tucker", "decoupled", "pivot"]
DEFAULT_FORMS: tuple[Form, ...] = (
    "channel",
    "vertical",
    "horizontal",
    "input",
    "tucker",
    "decoupled",
)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """A convolution in every form."""

    kernel: Kernel
    mean: Floats | None  # of the patches, (groups, n); None: the bias is not to be corrected
    chains: dict[str, Chain]
    variance: float  # of the outputs, summed over channels
    energy: float  # E|y - bias|^2
    scale: float  # what is felt of an error, where it is one number

    def error(self, form: str) -> Floats:
        """Share of the output's variance lost at every rank of a form, (full + 1,)."""
        return share_lost(self.chains[form].lost, self.variance, self.energy)


@dataclasses.dataclass(frozen=True, slots=True)
class Conv:
    """Replace convolutions by low-rank ones."""

    name: ClassVar[str] = "conv"
    targets: tuple[str, ...] = ("*",)  # names of Conv nodes: globs, or re: patterns
    ignore: tuple[str, ...] = ()  # convolutions to leave alone, the same way
    # what each may become; pivot has to be asked for
    forms: Annotated[tuple[Form, ...], MinLen(1)] = DEFAULT_FORMS
    rank: Annotated[int, Ge(1)] | None = None  # one for all; by default what the budget allows
    method: Literal["pca", "svd"] = "pca"  # svd is the baseline: weights alone, no statistics
    centred: bool = True  # correct the bias so that the mean output is kept
    weighted: bool = True  # by the logit's gradient; False: plain PCA. Not for `svd`
    rounds: Annotated[int, Ge(0)] = 3  # of alternating least squares, where layers are refitted
    positions: Annotated[int, Ge(1)] = 64  # patches of an image that calibration looks at
    min_size: Annotated[int, Ge(0)] = 1024  # leave convolutions with fewer weights alone
    round_to: Annotated[int, Ge(1)] = 4  # ranks are multiples of this; of decoupled, all are there

    def match(self, model: ir.Model) -> Iterator[Site | Skip]:
        for node in model.graph:
            if node.op_type != "Conv" or not selected(str(node.name), self.targets, self.ignore):
                continue
            reason = refusal(node) or self._refusal(node)
            if reason:
                yield Skip(self.name, str(node.name), reason)
            else:
                out, *rest = (int(d) for d in only_input(node, 1).shape.numpy())  # type: ignore[union-attr]
                yield Site(self.name, str(node.name), (int(np.prod(rest)), out))

    def _refusal(self, node: ir.Node) -> str | None:
        kernel = kernel_of(node)
        if kernel.weight.size < self.min_size:
            return f"{kernel.weight.size} weights are fewer than min_size = {self.min_size}"
        forms = [name for name in self.forms if _possible(name, kernel)]
        if not forms:
            return "none of the forms is smaller than the convolution itself"
        return None

    def probe(self, model: ir.Model, site: Site) -> Probe:
        node = node_named(model, site.name)
        return Probe(
            inputs=str(only_input(node).name),
            window=window_of(node, self.positions),
            outputs=(str(node.outputs[0].name),),
            graded=site.shape[1] <= MAX_GRADED,
        )

    def dense(self, model: ir.Model, site: Site) -> Dense:
        kernel = kernel_of(node_named(model, site.name))
        count = kernel.weight.size + (0 if kernel.bias is None else kernel.bias.size)
        macs = kernel.weight.size * int(np.prod(kernel.window.output))
        return Dense(parameters=count, macs=macs, size_bytes=4 * count)

    def read_by(self, model: ir.Model, site: Site) -> Readers | None:
        return None

    def solve(self, model: ir.Model, site: Site, stats: SiteStats, form: str = "") -> Solution:
        assert stats.inputs is not None, site.name
        kernel, inputs = kernel_of(node_named(model, site.name)), stats.inputs
        moments = inputs.covariance if self.centred else inputs.second
        felt = _blocks(stats.output_weight, kernel)
        wanted = [name for name in self.forms if form.partition("-")[0] in ("", name)]
        chains = {c.name: c for c in self._chains(wanted, kernel, moments, felt)}
        energy, variance = (
            float(np.einsum("gmn,gnk,gmk->", kernel.matrix, m, kernel.matrix, optimize=True))
            for m in (inputs.second, inputs.covariance)
        )
        scale = stats.output_weight if isinstance(stats.output_weight, float) else 1.0
        mean = inputs.mean if self.centred else None
        return Solution(kernel, mean, chains, variance, energy, scale)

    def _chains(
        self, names: Sequence[str], kernel: Kernel, moments: Floats, felt: Floats | None
    ) -> Iterator[Chain]:
        """The forms that are one here; of tucker, one for each number of inner channels."""
        plain = np.broadcast_to(np.eye(moments.shape[-1]), moments.shape)
        deciding = plain if self.method == "svd" else None
        weighted = self.weighted and self.method == "pca"

        @functools.cache
        def two(name: str) -> Split:
            return split(name, kernel, moments, felt, deciding, weighted)

        for name in names:
            if not _possible(name, kernel):
                continue
            if name == "decoupled":
                yield decoupled(kernel, moments, felt, deciding)
            elif name == "tucker":
                metrics = felt if weighted else None
                for inner in inner_channels(two("input"), self.round_to):
                    yield tucker(two("input"), inner, moments, metrics, felt, deciding)
            else:
                yield Pivot(two("channel")) if name == "pivot" else two(name)

    def settle(
        self, site: Site, stats: SiteStats, solution: Solution, rank: int, form: str
    ) -> Solution:
        assert stats.inputs is not None, site.name
        chain = solution.chains[form]
        if not isinstance(chain, Split) or chain.name == "channel" or self.method == "svd":
            return solution
        moments = stats.inputs.covariance if self.centred else stats.inputs.second
        better = alternate(chain, rank, moments, self.rounds)
        return dataclasses.replace(solution, chains={form: better})

    def cost(self, site: Site, solution: Solution) -> Curve:
        biased = solution.kernel.bias is not None or self.centred
        bias = site.shape[1] if biased else 0
        entries = [
            (name, rank, chain.stages(rank))
            for name, chain in solution.chains.items()
            for rank in self._ranks(
                len(chain.lost) - 1, 1 if name == "decoupled" else self.round_to
            )
        ]
        errors = {name: solution.error(name) for name in solution.chains}
        losses = {name: solution.scale * c.felt for name, c in solution.chains.items()}
        count = np.array([bias + _sum(stages, "parameters") for _, _, stages in entries])
        index = [index_bytes(r, site.shape[1]) if f == "pivot" else 0 for f, r, _ in entries]
        return Curve(
            ranks=np.array([rank for _, rank, _ in entries]),
            error=np.array([errors[name][rank] for name, rank, _ in entries]),
            loss=np.array([losses[name][rank] for name, rank, _ in entries]),
            parameters=count,
            macs=np.array([_sum(stages, "macs") for _, _, stages in entries]),
            size_bytes=4 * count + np.array(index),
            forms=tuple(name for name, _, _ in entries),
        )

    def _ranks(self, full: int, step: int) -> list[int]:
        asked = min(self.rank or full, full)
        return sorted({*range(step, full, step), asked, full})

    def rewrite(
        self, model: ir.Model, site: Site, rank: int, solution: Solution, form: str = ""
    ) -> None:
        kernel, chain = solution.kernel, solution.chains[form or next(iter(solution.chains))]
        rank, bias = min(rank, len(chain.lost) - 1), kernel.bias
        if solution.mean is not None:
            missing = (kernel.matrix - chain.matrix(rank)) @ solution.mean[:, :, None]
            bias = (0.0 if bias is None else bias) + missing.reshape(-1)
        node = node_named(model, site.name)
        if isinstance(chain, Pivot):
            replace_by_pivots(model, node, chain, rank, bias)
        else:
            replace_conv(model, node, chain.stages(rank), chain.weights(rank), bias)


def _possible(name: str, kernel: Kernel) -> bool:
    """Whether a form is one of its own for this convolution, and can be smaller than it."""
    groups, m, channels = kernel.weight.shape[:3]
    wide = sum(k > 1 for k in kernel.window.kernel)
    if name == "pivot" and groups > 1:
        return False
    if name in ("channel", "pivot"):
        return bool(m > 1 and channels * kernel.window.taps > 1)
    if name in ("vertical", "horizontal"):
        return wide > 1
    return bool(wide > 0 and channels > 1 and (groups == 1 or name != "decoupled"))


def _blocks(weight: Floats | float | None, kernel: Kernel) -> Floats | None:
    """The part of E[g gT] within each group, (groups, m, m)."""
    if not isinstance(weight, np.ndarray):
        return None
    groups, m = kernel.weight.shape[:2]
    blocks = np.einsum("gigj->gij", weight.reshape(groups, m, groups, m))
    return np.asarray(blocks, np.float64)


def _sum(stages: Sequence[Stage], figure: Literal["parameters", "macs"]) -> int:
    return sum(getattr(stage, figure) for stage in stages)
