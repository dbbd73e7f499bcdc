"""What a pass is. Read this, then any one file in `passes/`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from rankc.graph import Readers
from rankc.windows import Window

Floats = NDArray[np.float64]

MAX_GRADED = 4096  # outputs of a layer: E[g gT] of more would take over 134 MB


@dataclasses.dataclass(frozen=True, slots=True)
class Site:
    """A place that a pass can rewrite. Hashable; equal sites are the same place.

    `name` is unique in the model and is what the recipe, the plan and the report call it: the
    node's name for a layer, the initializer's name for a table (several Gathers may share it).
    """

    pass_name: str
    name: str
    shape: tuple[int, int]  # layer: (inputs n, outputs m); table: (rows V, width d)

    @property
    def full_rank(self) -> int:
        return min(self.shape)


@dataclasses.dataclass(frozen=True, slots=True)
class Skip:
    """How a pass says no. Shown in the report; the reason is for the user."""

    pass_name: str
    name: str
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class Moments:
    """First and second moment of a vector over the calibration rows, in float64.

    Of the patches of a convolution there is one of each for every group, in a leading axis.
    """

    count: int
    mean: Floats  # (n,) or (groups, n)
    second: Floats  # E[x xT], (n, n) or (groups, n, n)

    @property
    def covariance(self) -> Floats:
        return self.second - self.mean[..., :, None] * self.mean[..., None, :]


@dataclasses.dataclass(frozen=True, slots=True)
class SiteStats:
    """What calibration knows of one site."""

    inputs: Moments | None = None  # layer: of its input x
    counts: NDArray[np.int64] | None = None  # table: how often each row was read, (V,)
    # E[g gT], g the gradient of the model's logit at the site's output: what an error there
    # does to the answer, (m, m). One number, times the identity, where only that was measured.
    output_weight: Floats | float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Probe:
    """Which tensors of the graph calibration has to watch for a site."""

    inputs: str | None = None  # value whose moments are wanted: of its rows (last axis)
    window: Window | None = None  # or of its patches; channels are then the second axis
    indices: tuple[str, ...] = ()  # integer values whose accesses are counted
    outputs: tuple[str, ...] = ()  # the values that a rewrite changes
    graded: bool = True  # the logit's gradient is wanted there, or else one measured number


@dataclasses.dataclass(frozen=True, slots=True)
class Curve:
    """What every rank would cost at a site: entry i of each array belongs to `ranks[i]`.

    A pass that can emit a site in several forms (a convolution as columns and rows, or as two
    1 x 1 layers round a small one) lists the ranks of one form after those of another. What has no
    error is exact; of each form `f`, or of a family of forms `f-1`, `f-2`, one entry is.
    """

    ranks: NDArray[np.int64]  # rising within a form
    error: Floats  # E|y - y'|^2 / E|y - E y|^2 over the calibration rows: share of variance lost
    loss: Floats  # E[(g . (y - y'))^2]: expected squared change of the logit, or a KL divergence
    parameters: NDArray[np.int64]  # scalars in the site's initializers after the rewrite
    macs: NDArray[np.int64]  # multiply-accumulates for one row of the batch
    size_bytes: NDArray[np.int64]  # of the site's initializers after the rewrite
    decoder: NDArray[np.int64] | None = None  # scalars among them that folding can remove
    forms: tuple[str, ...] = ()  # what entry i is emitted as; empty: there is one form only
    own: int | None = (
        None  # the entry that the pass takes where no budget decides; None: it has none
    )

    def form(self, at: int) -> str:
        """What entry `at` is emitted as; empty for the only form there is."""
        return self.forms[at] if self.forms else ""


@dataclasses.dataclass(frozen=True, slots=True)
class Dense:
    """The same columns for the site left as it is."""

    parameters: int
    macs: int
    size_bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class Times:
    """Milliseconds of a site on the target, one call at the batch size of the profile.

    All 0 for what takes no time that counts: rows of a table that are looked up.
    """

    dense: float
    ranked: Floats  # one for each entry of the curve
    measured: bool  # from a latency table; False: from a roofline


class Pass(Protocol):
    """A closed-form method. A frozen dataclass whose fields are its recipe options."""

    name: ClassVar[str]

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of sites to rewrite: globs, or `re:` patterns."""
        ...

    @property
    def ignore(self) -> tuple[str, ...]:
        """Names of sites to leave alone, the same way."""
        ...

    @property
    def rank(self) -> int | None:
        """Use this rank everywhere; None: what the budget allows."""
        ...

    def match(self, model: ir.Model) -> Iterator[Site | Skip]:
        """Sites this pass can rewrite, and why not the others. Must not change the model."""
        ...

    def probe(self, model: ir.Model, site: Site) -> Probe:
        """Which tensors calibration has to watch."""
        ...

    def dense(self, model: ir.Model, site: Site) -> Dense:
        """What the site costs now."""
        ...

    def solve(self, model: ir.Model, site: Site, stats: SiteStats, form: str = "") -> Any:
        """The decomposition of the site, once for all ranks: what `cost` and `rewrite` take.

        With a `form`, of that one alone.
        """
        ...

    def settle(self, site: Site, stats: SiteStats, solution: Any, rank: int, form: str) -> Any:
        """The solution for that rank alone, as good as it gets at whatever price."""
        ...

    def cost(self, site: Site, solution: Any) -> Curve:
        """Predict what `rewrite` would do at every rank, without doing it."""
        ...

    def read_by(self, model: ir.Model, site: Site) -> Readers | None:
        """Who reads the site, where its decoder can be folded into them by an exact pass.

        None: nothing of it is ever folded, and what it costs is what `cost` says.
        """
        ...

    def rewrite(
        self, model: ir.Model, site: Site, rank: int, solution: Any, form: str = ""
    ) -> None:
        """Do it, in place, in one of the curve's forms.

        Where the curve says that there is no error, the model computes the same function.
        """
        ...


class ExactPass(Protocol):
    """A rewrite with zero error. A frozen dataclass whose fields are its recipe options."""

    name: ClassVar[str]

    def prepare(self, model: ir.Model) -> None:
        """Before calibration, in place: bring sites into the form in which they compress best."""
        ...

    def finish(self, model: ir.Model) -> None:
        """After the closed-form rewrites, in place: fold what can be folded."""
        ...


CalibrationStats = Mapping[Site, SiteStats]
