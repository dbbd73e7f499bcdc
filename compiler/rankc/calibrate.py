"""Run the model over the calibration rows once and keep the moments that the passes need.

Nothing is kept of a row: only sums, see `moments`. Inputs that several layers read are counted
once; of images only patches at a few random positions leave the model. The logit's gradient is
taken on one row of `GRADIENT_EVERY`: a backward pass costs as much as two to four forward ones,
and its second moment needs far fewer rows than a layer's input does. Rows are cheap and batches
many, so it is every `GRADIENT_EVERY`-th batch. Images are few and dear, and have a gradient at
every position: there it is some of every batch, so that they differ, and memory is held for a few.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from rankc.data import Source, refused_rows
from rankc.errors import DataError
from rankc.gradient import Gradients, add_gradients
from rankc.graph import has_fixed_batch, value_named
from rankc.moments import RunningMoments
from rankc.passbase import Floats, Probe, Site, SiteStats
from rankc.progress import Stage
from rankc.serialize import save
from rankc.windows import Window, gather_pixels
from rankrt.session import Session, open_model

Array = NDArray[Any]
Place = tuple[str, Window | None]  # a value, or patches of it
GRADIENT_EVERY = 24  # rows, or batches
LEAST_IMAGES = 16  # that gradients are taken of, if there are so many
PENDING = 1 << 15  # ids that are collected before they are counted: counting costs a pass over V


@dataclasses.dataclass(frozen=True, slots=True)
class Calibration:
    """What was seen. `ungraded` names the sites whose gradient could not be taken, and why."""

    rows: int
    stats: Mapping[Site, SiteStats]
    ungraded: Mapping[Site, str]


class _Reads:
    """How often each row of a table is read, (V,)."""

    def __init__(self, site: Site) -> None:
        self.site, self.waiting = site, 0
        self.counts = np.zeros(site.shape[0], np.int64)
        self.pending: list[Array] = []

    def add(self, ids: Array) -> None:
        """Take in ids of any shape.

        Raises:
            DataError: an id outside the table.
        """
        self.pending.append(ids.reshape(-1))
        self.waiting += ids.size
        if self.waiting >= PENDING:
            self._count()

    def result(self) -> NDArray[np.int64]:
        self._count()
        return self.counts

    def _count(self) -> None:
        ids, size = np.concatenate([*self.pending, np.zeros(0, np.int64)]), len(self.counts)
        if ids.size and (ids.min() < 0 or ids.max() >= size):
            wrong = ids[(ids < 0) | (ids >= size)][0]
            raise DataError(
                f"calibration data: id {wrong} for table {self.site.name!r}, whose rows are 0 to "
                f"{size - 1}"
            )
        self.counts += np.bincount(ids, minlength=size)
        self.pending, self.waiting = [], 0


def calibrate(
    model: ir.Model,
    probes: Mapping[Site, Probe],
    source: Source,
    stage: Stage,
    seed: int = 0,
    *,
    fisher: bool = False,
) -> Calibration:
    """Statistics of every site over all rows of `source`, in one pass.

    Args:
        model: after clean-up.
        probes: what is to be watched.
        source: the rows.
        stage: told of every batch.
        seed: of the patches and of the signs that are drawn.
        fisher: weigh an error by what it does to the answer's distribution, not to its logits.

    Raises:
        DataError: no rows, rows that the model cannot take, ids outside a table, or values that
            overflow.
    """
    inputs = {_seen_at(p): RunningMoments(centred=True) for p in probes.values() if p.inputs}
    reads = {site: _Reads(site) for site, p in probes.items() if p.indices}
    graded = [name for p in probes.values() if p.graded for name in p.outputs]
    felt = {name: RunningMoments(centred=False) for name in graded}
    images = {name for p in probes.values() if p.window for name in p.outputs}
    watched = [*inputs, *((name, None) for p in probes.values() for name in p.indices)]
    rng, rows = np.random.default_rng(seed), 0
    with tempfile.TemporaryDirectory(prefix="rankc-") as folder:
        forward = _Watch(model, watched, [], Path(folder) / "forward.onnx")
        backward = Path(folder) / "backward.onnx"
        if images and not has_fixed_batch(model):
            turns: _Turns = _Images(forward, _Watch(model, [], list(felt), backward, fisher))
        else:
            turns = _Turns(forward, _Watch(model, watched, list(felt), backward, fisher))
        for k, batch in enumerate(source.batches()):
            with refused_rows(source, rows, batch.rows):
                seen, gradients, count = turns.run(k, batch.feeds, source.rows, rng)
            for place, moments in inputs.items():
                moments.add(seen[place] if place[1] else _rows(seen[place]))
            for site, read in reads.items():
                for name in probes[site].indices:
                    read.add(seen[name, None])
            for name, gradient in gradients.items():
                felt[name].add(_rows(gradient, name in images), count)
            rows += batch.rows
            stage.advance(rows, source.rows)
    if not rows:
        raise DataError(f"{source.path}: no rows to calibrate on")
    reasons = {u.value: u.reason for u in turns.backward.gradients.unreachable}
    stats = {
        site: SiteStats(
            inputs=inputs[_seen_at(probe)].result() if probe.inputs else None,
            counts=reads[site].result() if site in reads else None,
            output_weight=_weight(probe, felt),
        )
        for site, probe in probes.items()
    }
    _check_finite(stats)
    ungraded = {s: "too wide for a gradient" for s, p in probes.items() if not p.graded}
    ungraded |= {s: reasons[n] for s, p in probes.items() for n in p.outputs if n in reasons}
    return Calibration(rows, stats, ungraded)


class _Watch:
    """The model up to some of its values, and gradients at others; the rest is not computed."""

    def __init__(
        self,
        model: ir.Model,
        watched: list[Place],
        differentiated: list[str],
        path: Path,
        fisher: bool = False,
    ) -> None:
        probed = model.clone()
        self.gradients = (
            add_gradients(probed, differentiated, fisher=fisher)
            if differentiated
            else Gradients({}, (), None, 0)
        )
        gradients = {value.name: value for value in probed.graph.outputs}
        probed.graph.outputs.clear()
        probed.graph.outputs.extend(gradients[name] for name in self.gradients.outputs.values())
        self.windows: dict[Place, str] = {}  # the value that has a window's pixels
        for name, window in dict.fromkeys(watched):
            value = value_named(probed, name)
            if window is not None:
                self.windows[name, window] = _add_gather(probed, value, len(self.windows))
            elif not value.is_graph_input() and not value.is_graph_output():
                probed.graph.outputs.append(value)
        RemoveUnusedNodesPass()(probed)
        save(probed, path)
        # Where only graph inputs are watched, there is nothing to compute.
        self.session: Session | None = open_model(path) if probed.graph.outputs else None

    def run(self, feeds: Mapping[str, Array], rng: np.random.Generator) -> dict[Place, Array]:
        if self.session is None:
            return {(name, None): rows for name, rows in feeds.items()}
        given = dict(feeds)
        if self.gradients.cotangent is not None:
            size = (len(next(iter(feeds.values()))), self.gradients.width)
            given[self.gradients.cotangent] = rng.choice(np.array([-1, 1], np.float32), size)
        under = {place: place[1].under(place[1].draw(rng)) for place in self.windows if place[1]}
        given |= {f"{self.windows[p]}.index": index.ravel() for p, (index, _) in under.items()}
        used = {spec.name: given[spec.name] for spec in self.session.inputs}
        seen = given | self.session.run(used)
        found: dict[Place, Array] = {(name, None): rows for name, rows in seen.items()}
        for place, (_, inside) in under.items():
            assert place[1] is not None
            found[place] = place[1].rows(seen[self.windows[place]], inside)
        return found

    def found(self, seen: Mapping[Place, Array]) -> dict[str, Array]:
        """The gradients among what was seen, by the value that they are of."""
        return {name: seen[gradient, None] for name, gradient in self.gradients.outputs.items()}


@dataclasses.dataclass(frozen=True, slots=True)
class _Turns:
    """Forward and backward runs: batches in turn."""

    forward: _Watch
    backward: _Watch  # watches the same values, and gradients

    def run(
        self, k: int, feeds: Mapping[str, Array], whole: int | None, rng: np.random.Generator
    ) -> tuple[dict[Place, Array], dict[str, Array], int]:
        """What is seen of batch `k`, gradients by value, and of how many rows they are.

        Args:
            k: of the batch.
            feeds: its rows.
            whole: rows of the source, if that is known.
            rng: draws positions of patches, rows and signs.
        """
        watch = self.forward if k % GRADIENT_EVERY else self.backward
        seen = watch.run(feeds, rng)
        return seen, watch.found(seen), _count(feeds)


class _Images(_Turns):
    """Forward runs of every batch, and backward ones of some of its images; these see no values."""

    def run(
        self, k: int, feeds: Mapping[str, Array], whole: int | None, rng: np.random.Generator
    ) -> tuple[dict[Place, Array], dict[str, Array], int]:
        """As above."""
        size = _count(feeds)
        needed = math.ceil(LEAST_IMAGES * size / (whole or LEAST_IMAGES * size))
        count = min(size, max(needed, round(size / GRADIENT_EVERY)))
        some = np.sort(rng.choice(size, count, replace=False))
        seen = self.forward.run(feeds, rng)
        backward = self.backward.run({name: rows[some] for name, rows in feeds.items()}, rng)
        return seen, self.backward.found(backward), count


def _count(feeds: Mapping[str, Array]) -> int:
    return len(next(iter(feeds.values())))


def _add_gather(model: ir.Model, value: ir.Value, k: int) -> str:
    """Let the model put out some pixels of `value`: the output's name; feed `<name>.index`."""
    name = f"rankc.window{k}"
    index = ir.val(f"{name}.index", ir.DataType.INT64, ["taps"])
    nodes, taken = gather_pixels(value, index)
    taken.name = name
    model.graph.inputs.append(index)
    for node in nodes:
        model.graph.append(node)
    model.graph.outputs.append(taken)
    return name


def _seen_at(probe: Probe) -> Place:
    assert probe.inputs is not None
    return probe.inputs, probe.window


def _rows(values: Array, images: bool = False) -> Array:
    """Rows (N, n): the last axis, or in images (N, n, ...) the second."""
    if images:
        values = np.moveaxis(values, 1, -1)
    return values.reshape(-1, values.shape[-1])


def _weight(probe: Probe, felt: Mapping[str, RunningMoments]) -> Floats | None:
    """E[g gT] summed over the places where the site's output is used, (m, m)."""
    seen = [felt[n].result().second for n in probe.outputs if n in felt and felt[n].count]
    return np.sum(seen, axis=0) if len(seen) == len(probe.outputs) and seen else None


def require_enough(known: Calibration, probes: Mapping[Site, Probe], source: Source) -> None:
    """Refuse moments of fewer patches than a patch has pixels: they say nothing of most directions.

    Raises:
        DataError: says how many images are needed.
    """
    short = {}
    for site, probe in probes.items():
        moments = known.stats[site].inputs
        if probe.window is not None and moments is not None:
            drawn = min(probe.window.positions, math.prod(probe.window.output))
            needed = moments.mean.shape[-1] // drawn + 1
            if known.rows < needed:
                short[site.name] = needed
    if short:
        worst = max(short, key=lambda name: short[name])
        raise DataError(
            f"{source.path}: {known.rows} images are too few for the moments of {len(short)} "
            f"convolutions; {worst!r} needs the most: at least {short[worst]}. Give more images, "
            "let `positions` of the pass be larger, or ignore these layers"
        )


def _check_finite(stats: Mapping[Site, SiteStats]) -> None:
    for site, known in stats.items():
        moments = known.inputs
        if moments is not None and not np.isfinite(moments.second).all():
            raise DataError(
                f"calibration: the input of {site.name!r} is not finite or overflows; look for "
                "NaN, infinite or very large values in the calibration data"
            )
        if known.output_weight is not None and not np.isfinite(known.output_weight).all():
            raise DataError(
                f"calibration: the gradient at {site.name!r} is not finite or overflows; look for "
                "very large weights in the model, or values in the calibration data"
            )
