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
from rankc.convolution.kernel import Kernel, kernel_of, refusal, replace_conv, window_of
from rankc.convolution.pivoted import Pivot, replace_by_pivots
from rankc.convolution.solution import Solution, within_groups
from rankc.convolution.split import Split, split
from rankc.convolution.tucker import inner_channels, tucker
from rankc.graph import Readers, node_named, only_input, selected
from rankc.linalg import Floats
from rankc.passbase import MAX_GRADED, Curve, Dense, Probe, Site, SiteStats, Skip

Form = Literal["channel", "vertical", "horizontal", "input", "tucker", "decoupled", "pivot"]
DEFAULT_FORMS: tuple[Form, ...] = (
    "channel",
    "vertical",
    "horizontal",
    "input",
    "tucker",
    "decoupled",
)


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
        return kernel_of(node_named(model, site.name)).dense

    def read_by(self, model: ir.Model, site: Site) -> Readers | None:
        return None

    def solve(self, model: ir.Model, site: Site, stats: SiteStats, form: str = "") -> Solution:
        assert stats.inputs is not None, site.name
        kernel, inputs = kernel_of(node_named(model, site.name)), stats.inputs
        moments = inputs.covariance if self.centred else inputs.second
        felt = within_groups(stats.output_weight, kernel)
        wanted = [name for name in self.forms if form.partition("-")[0] in ("", name)]
        chains = self._chains(wanted, kernel, moments, felt)
        return Solution.of(kernel, stats, chains, self.centred)

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
        return solution.curve(
            {
                name: self._ranks(chain, 1 if name == "decoupled" else self.round_to)
                for name, chain in solution.chains.items()
            }
        )

    def _ranks(self, chain: Chain, step: int) -> list[int]:
        full = len(chain.lost) - 1
        return sorted({*range(step, full, step), min(self.rank or full, full), full})

    def rewrite(
        self, model: ir.Model, site: Site, rank: int, solution: Solution, form: str = ""
    ) -> None:
        chain, node = (
            solution.chains[form or next(iter(solution.chains))],
            node_named(model, site.name),
        )
        rank = min(rank, len(chain.lost) - 1)
        bias = solution.bias(chain, rank)
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
