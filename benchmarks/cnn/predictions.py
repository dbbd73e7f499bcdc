"""Predicted errors of convolutions against measured ones: every site, every form.

Two answers, both measured at all positions of the same images:
  exact    moments of all positions too: measured and predicted error are then the same number
  sampled  moments as the recipe takes them, of some positions an image: what sampling adds
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from benchmarks.ctr.checks import deviation
from rankc.calibrate import calibrate
from rankc.cleanup import clean
from rankc.data import Source, open_source
from rankc.graph import value_named
from rankc.intake import load
from rankc.layer_models import concrete, isolate, rewritten
from rankc.passbase import Curve, Floats, Pass, Site
from rankc.progress import SilentProgress
from rankc.recipe_load import build_passes, load_recipe
from rankc.rewriting import Sites
from rankc.serialize import save
from rankrt.session import Session, open_model

Answer = dict[str, Any]
BATCH = 64
EVERY = 1 << 20  # more positions than any image has
SHARE = 0.5  # of the dense layer's multiply-accumulates, at which a form is looked at


@dataclasses.dataclass(frozen=True, slots=True)
class Images:
    """How many are looked at: with moments of all positions, and with those of the recipe."""

    exact: int
    sampled: int


WHOLE, QUICK = Images(256, 2048), Images(64, 256)


def measure(recipe: Path, images: Images) -> dict[str, list[Answer]]:
    """One entry for each site and form, of both kinds."""
    return {
        "exact": list(_compared(recipe, images.exact, EVERY)),
        "sampled": list(_compared(recipe, images.sampled, None)),
    }


def worst(entries: Sequence[Mapping[str, Any]]) -> float:
    """The largest deviation of a measured error from its prediction."""
    return max(float(entry["deviation"]) for entry in entries)


def _compared(recipe: Path, images: int, positions: int | None) -> Iterator[Answer]:
    options = [f"data.calibration={{path: {_data(recipe)}, batch_size: {BATCH}, rows: {images}}}"]
    if positions is not None:
        options.append(f"passes.conv.positions={positions}")
    loaded = load_recipe(recipe, options)
    path = loaded.folder / loaded.model
    (pass_,) = build_passes(loaded)
    model = load(path).model.clone()
    clean(model)
    sites = Sites.of(model, [pass_])  # type: ignore[list-item]
    source = open_source(loaded.data.calibration, loaded.folder, open_model(path).inputs)
    probes = {site: owner.probe(model, site) for site, owner in sites.owners.items()}
    with SilentProgress().stage("calibrate") as stage:
        stats = calibrate(model, probes, source, stage, loaded.seed).stats
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for site, owner in sites.owners.items():
            solution = owner.solve(model, site, stats[site])
            trials = list(trials_of(model, owner, site, solution))
            for trial, lost in zip(
                trials, lost_shares(model, owner, site, trials, source, Path(folder)), strict=True
            ):
                yield {
                    "site": site.name,
                    "form": trial.form,
                    "rank": trial.rank,
                    "predicted": trial.predicted,
                    "measured": lost,
                    "deviation": deviation(trial.predicted, lost),
                }


def _data(recipe: Path) -> str:
    return load_recipe(recipe).data.calibration.path


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """A site in one form, by itself."""

    form: str
    rank: int
    predicted: float
    factored: ir.Model


def trials_of(
    model: ir.Model, pass_: Pass, site: Site, solution: Any, batch: int = BATCH
) -> Iterator[Trial]:
    """Each form at the rank that is nearest to the share of the dense layer's cost."""
    curve, wanted = pass_.cost(site, solution), SHARE * pass_.dense(model, site).macs
    alone = isolate(concrete(model, batch), pass_, site, batch)
    assert not isinstance(alone, str), alone
    for form, at in nearest(curve, wanted).items():
        rank = int(curve.ranks[at])
        factored = rewritten(alone, pass_, site, rank, solution, form)
        yield Trial(form, rank, float(curve.error[at]), factored)


def nearest(curve: Curve, macs: float) -> dict[str, int]:
    """Of each form the entry that is not exact and takes nearest to so many operations."""
    found: dict[str, int] = {}
    for at in range(len(curve.ranks)):
        form = curve.form(at)
        best = found.get(form)
        closer = best is None or abs(curve.macs[at] - macs) < abs(curve.macs[best] - macs)
        if curve.error[at] > 1e-6 and closer:
            found[form] = at
    return found


def lost_shares(
    model: ir.Model,
    pass_: Pass,
    site: Site,
    trials: Sequence[Trial],
    source: Source,
    folder: Path,
) -> list[float]:
    """E|y - y'|^2 / E|y - E y|^2 of the site's output for each trial, over all positions."""
    before = _opened(_cut(model, pass_, site), folder / "before.onnx")
    after = [_opened(trial.factored, folder / f"{k}.onnx") for k, trial in enumerate(trials)]
    probe = pass_.probe(model, site)
    given, (output,) = str(probe.inputs), probe.outputs
    lost, spread = np.zeros(len(trials)), _Spread()
    for batch in source.batches():
        seen = before.run({spec.name: batch.feeds[spec.name] for spec in before.inputs})
        want = seen[output].astype(np.float64)
        spread.add(want)
        for k, session in enumerate(after):
            (got,) = session.run({given: seen[given]}).values()
            lost[k] += float(np.square(got - want).sum())
    return [float(share) for share in lost / spread.variance()]


class _Spread:
    """The sum of squares of images (N, C, ...) about the mean of each channel."""

    def __init__(self) -> None:
        self._count = 0
        self._sum: Floats | float = 0.0
        self._squares: Floats | float = 0.0

    def add(self, images: Floats) -> None:
        axes = (0, *range(2, images.ndim))
        self._count += images.size // images.shape[1]
        self._sum = self._sum + images.sum(axis=axes)
        self._squares = self._squares + np.square(images).sum(axis=axes)

    def variance(self) -> float:
        return float(np.sum(self._squares - np.square(self._sum) / self._count))


def _cut(model: ir.Model, pass_: Pass, site: Site) -> ir.Model:
    """The model up to the site, with what the site reads as an output, too."""
    probe = pass_.probe(model, site)
    names = [str(probe.inputs), *probe.outputs]
    short = model.clone()
    graph = ir.convenience.extract(
        short.graph,
        [value for value in short.graph.inputs if not value.is_initializer()],
        [value_named(short, name) for name in names],
    )
    return ir.Model(graph, ir_version=model.ir_version)


def _opened(model: ir.Model, path: Path) -> Session:
    save(model, path)
    return open_model(path)
