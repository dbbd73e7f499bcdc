"""What is in a model, where each pass could act and what it would get there, and why not elsewhere.

The spectra are those of the outputs over calibration rows; without rows, of the weights alone: the
inputs of a layer are then taken to be uncorrelated and equally large, and the rows of a table to be
read equally often. No gradient is taken, so errors are the least that a rank can have, and those of
a plan, which looks after the answer first, may be a little larger.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from threadpoolctl import threadpool_limits

from rankc.calibrate import calibrate
from rankc.cleanup import clean
from rankc.data import Source, open_source
from rankc.errors import DataError
from rankc.graph import initializer_bytes, parameters
from rankc.intake import Intake, load, open_original
from rankc.layer_facts import every_rank, operator_of
from rankc.passbase import Moments, Pass, Probe, Site, SiteStats, Skip
from rankc.passes import EXACT_PASSES, PASSES
from rankc.progress import Progress, SilentProgress
from rankc.recipe import DataSpec
from rankc.recipe_checks import LEARNING
from rankc.recipe_load import load_recipe
from rankc.spectra import Offer, Spectrum, offers, paying, spectrum
from rankc.validate.footprint import footprint
from rankrt.session import TensorSpec

BATCH = 1024  # rows
BATCH_BYTES = 16 << 20  # of the inputs of a batch: rows of images are large
_RECIPES = (".yaml", ".yml")


@dataclasses.dataclass(frozen=True, slots=True)
class SiteView:
    """A place that a pass can rewrite, and what it would get there."""

    pass_name: str
    name: str
    shape: tuple[int, int]  # as in a plan
    operator: str
    weight_shape: tuple[int, ...]
    full_rank: int
    parameters: int
    macs: int  # for one row of the batch
    macs_share: float | None  # of the model's; None where those are not known
    spectrum: Spectrum
    offers: tuple[Offer, ...]
    paying: Mapping[str, int]  # form -> highest rank that is smaller than the site itself


@dataclasses.dataclass(frozen=True, slots=True)
class Inspection:
    """Facts about one model."""

    model: str
    opset: int
    ir_version: int
    producer: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: dict[str, int]  # how many of each operator, the most frequent first
    parameters: int
    weight_bytes: int
    macs: int | None  # for one row of the batch; None: shapes are not known
    rows: int  # of calibration; 0: the weights alone
    data: str  # where those are from
    sites: tuple[SiteView, ...]
    skips: tuple[Skip, ...]

    def to_dict(self) -> dict[str, Any]:
        """As `rankc inspect --json` prints it."""
        return dataclasses.asdict(self)

    def lines(self) -> Iterator[str]:
        """The facts in words, without sites and skips."""
        total = sum(self.nodes.values())
        macs = "" if self.macs is None else f", {self.macs:,} MACs a row"
        yield f"  opset {self.opset}, IR version {self.ir_version}, made by {self.producer or '?'}"
        yield f"  {self.parameters:,} parameters in {self.weight_bytes:,} bytes{macs}"
        yield f"  {total} nodes: " + ", ".join(f"{op} {n}" for op, n in self.nodes.items())
        for kind, values in (("input", self.inputs), ("output", self.outputs)):
            yield from (f"  {kind:<7} {value}" for value in values)


def inspect(
    path: Path,
    data: str | None = None,
    *,
    progress: Progress | None = None,
    trust_code: bool = False,
) -> Inspection:
    """Read a model, ask every pass with its default options where it could act, and what for.

    The facts are those of the file; sites are called as in a plan, after the exact rewrites.

    Args:
        path: the model.
        data: rows for calibration, as in a recipe's `data.calibration.path`, or a recipe that names
            them; None: look at the weights alone.
        progress: where stages are announced; silent by default.
        trust_code: allow `data` to name Python code.

    Raises:
        ModelError: as `rankc.intake.load`.
        DataError: as `rankc.data.open_source` and `rankc.calibrate.calibrate`.
        RecipeError: a recipe that cannot be read, or code that may not run.
    """
    tell = progress or SilentProgress()
    taken = load(path)
    source = None if data is None else _open(data, taken, trust_code)
    model = taken.model.clone()
    owners, skips = _sites(model)
    macs = footprint(path).macs
    with threadpool_limits(limits=1, user_api="blas"):  # the same digits on every machine
        rows, stats = (0, None) if source is None else _calibrate(model, owners, source, tell)
        views = _views(model, owners, stats, macs, tell)
    counts = Counter(node.op_type for node in taken.model.graph.all_nodes())
    return Inspection(
        model=path.name,
        opset=taken.opset,
        ir_version=taken.model.ir_version,
        producer=f"{taken.model.producer_name or ''} {taken.model.producer_version or ''}".strip(),
        inputs=tuple(_spec(value) for value in taken.model.graph.inputs),
        outputs=tuple(_spec(value) for value in taken.model.graph.outputs),
        nodes=dict(counts.most_common()),
        parameters=parameters(taken.model),
        weight_bytes=initializer_bytes(taken.model),
        macs=macs,
        rows=rows,
        data="" if source is None else source.path.name,
        sites=tuple(views),
        skips=tuple(skips),
    )


def _open(data: str, taken: Intake, trust_code: bool) -> Source:
    """The rows that the user means."""
    inputs = open_original(taken).inputs
    if Path(data).suffix.lower() in _RECIPES:
        recipe = load_recipe(Path(data))
        return open_source(recipe.data.calibration, recipe.folder, inputs, trust_code=trust_code)
    if ".py:" not in data and not Path(data).exists():
        raise DataError(f"{data}: no such file or folder; --calibrate takes rows, or a recipe")
    spec = DataSpec(path=data, batch_size=batch_size(inputs))
    return open_source(spec, Path(), inputs, trust_code=trust_code)


def batch_size(inputs: Sequence[TensorSpec]) -> int:
    """As many rows as the model insists on, or as are good to hold in memory."""
    fixed = [spec.shape[0] for spec in inputs if spec.shape and isinstance(spec.shape[0], int)]
    if fixed:
        return max(1, fixed[0])
    sizes = [[d for d in spec.shape[1:] if isinstance(d, int)] for spec in inputs]
    return max(1, min(BATCH, BATCH_BYTES // max(1, 4 * int(sum(map(np.prod, sizes))))))


def _sites(model: ir.Model) -> tuple[dict[Site, Pass], list[Skip]]:
    """Where the passes could act; brings `model` into the form in which they look at it."""
    clean(model)
    for exact in EXACT_PASSES:
        exact().prepare(model)
    owners: dict[Site, Pass] = {}
    skips: list[Skip] = []
    for kind in PASSES:
        if kind.name in LEARNING:  # says nothing of a model that was not trained
            continue
        pass_ = kind()
        for entry in pass_.match(model):
            if isinstance(entry, Site):
                owners[entry] = pass_
            else:
                skips.append(entry)
    return owners, skips


def _calibrate(
    model: ir.Model, owners: Mapping[Site, Pass], source: Source, tell: Progress
) -> tuple[int, Mapping[Site, SiteStats]]:
    with tell.stage("calibrate") as stage:
        probes = {
            site: dataclasses.replace(pass_.probe(model, site), outputs=())  # nothing to be graded
            for site, pass_ in owners.items()
        }
        known = calibrate(model, probes, source, stage)
        stage.note(f"{known.rows:,} rows, one pass")
    return known.rows, known.stats


def _views(
    model: ir.Model,
    owners: Mapping[Site, Pass],
    stats: Mapping[Site, SiteStats] | None,
    macs: int | None,
    tell: Progress,
) -> list[SiteView]:
    """Site by site, so that no more than one solution is in memory."""
    found: list[SiteView] = []
    with tell.stage("spectra") as stage:
        for k, (site, pass_) in enumerate(owners.items()):
            known = plain_stats(site, pass_.probe(model, site)) if stats is None else stats[site]
            found.append(_view(model, site, pass_, known, macs))
            stage.advance(k + 1, len(owners))
        stage.note(f"{len(found)} sites" + ("" if stats else ", from the weights alone"))
    return found


def _view(model: ir.Model, site: Site, pass_: Pass, stats: SiteStats, macs: int | None) -> SiteView:
    solution, dense = pass_.solve(model, site, stats), pass_.dense(model, site)
    every = every_rank(pass_).cost(site, solution)
    operator, weight_shape = operator_of(model, site.name)
    return SiteView(
        pass_name=site.pass_name,
        name=site.name,
        shape=site.shape,
        operator=operator,
        weight_shape=weight_shape,
        full_rank=site.full_rank,
        parameters=dense.parameters,
        macs=dense.macs,
        macs_share=dense.macs / macs if macs else None,
        spectrum=spectrum(every, site.full_rank),
        offers=offers(pass_.cost(site, solution), dense),
        paying=paying(every, dense),
    )


def plain_stats(site: Site, probe: Probe) -> SiteStats:
    """What stands in for calibration: white inputs, every row of a table read once."""
    if probe.indices:
        return SiteStats(counts=np.ones(site.shape[0], np.int64))
    n = site.shape[0]
    groups = () if probe.window is None else (probe.window.groups,)
    second = np.broadcast_to(np.eye(n), (*groups, n, n))
    return SiteStats(inputs=Moments(1, np.zeros((*groups, n)), second))


def _spec(value: ir.Value) -> str:
    """Name, type and shape, e.g. `x FLOAT [batch,16]`."""
    kind = value.dtype.name if value.dtype else "?"
    shape = "?" if value.shape is None else str(value.shape)
    return f"{value.name} {kind} {shape}"
