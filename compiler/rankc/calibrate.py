"""Run the model over the calibration rows once and keep the moments that the passes need.

Nothing is kept of a row: only sums, in float64. Products of one batch are taken in the model's own
float32, about the mean of the first batch so that no digits are lost to a large mean, and added up
in float64. Inputs that several layers read are counted once. The logit's gradient is taken on every
`GRADIENT_EVERY`-th batch: a backward pass costs as much as two forward ones, and its second moment
needs far fewer rows than a layer's input does.
"""

from __future__ import annotations

import dataclasses
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
from rankc.graph import value_named
from rankc.passbase import Floats, Moments, Probe, Site, SiteStats
from rankc.progress import Stage
from rankc.serialize import save
from rankrt.session import Session, open_model

Array = NDArray[Any]
GRADIENT_EVERY = 24  # batches
PENDING = 1 << 15  # ids that are collected before they are counted: counting costs a pass over V


@dataclasses.dataclass(frozen=True, slots=True)
class Calibration:
    """What was seen. `ungraded` names the sites whose gradient could not be taken, and why."""

    rows: int
    stats: Mapping[Site, SiteStats]
    ungraded: Mapping[Site, str]


class _Moments:
    """Running first and second moment of rows (n), about a fixed shift."""

    def __init__(self, centred: bool) -> None:
        self.centred, self.count = centred, 0
        self.shift: Array | None = None
        self.sum: Floats | None = None
        self.products: Floats | None = None

    @np.errstate(over="ignore", invalid="ignore")  # told at the end, with the layer
    def add(self, rows: Array, count: int | None = None) -> None:
        """Take in rows (N, n); `count` replaces N as what they are averaged over."""
        if self.shift is None or self.sum is None or self.products is None:
            n = rows.shape[1]
            self.shift = rows.mean(axis=0) if self.centred else np.zeros(n, rows.dtype)
            self.sum, self.products = np.zeros(n), np.zeros((n, n))
        shifted = rows - self.shift if self.centred else rows
        self.sum += np.ones(len(shifted), shifted.dtype) @ shifted
        self.products += shifted.T @ shifted
        self.count += len(rows) if count is None else count

    @np.errstate(over="ignore", invalid="ignore")
    def result(self) -> Moments:
        assert self.shift is not None and self.sum is not None and self.products is not None
        shift, mean = self.shift.astype(np.float64), self.sum / self.count
        second = self.products / self.count + np.outer(shift, mean) + np.outer(mean, shift)
        return Moments(self.count, shift + mean, second + np.outer(shift, shift))


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
    model: ir.Model, probes: Mapping[Site, Probe], source: Source, stage: Stage, seed: int = 0
) -> Calibration:
    """Statistics of every site over all rows of `source`, in one pass.

    Raises:
        DataError: no rows, rows that the model cannot take, ids outside a table, or values that
            overflow.
    """
    inputs = {p.inputs: _Moments(centred=True) for p in probes.values() if p.inputs}
    reads = {site: _Reads(site) for site, p in probes.items() if p.indices}
    graded = [name for p in probes.values() if p.graded for name in p.outputs]
    felt = {name: _Moments(centred=False) for name in graded}
    watched = [*inputs, *(name for p in probes.values() for name in p.indices)]
    rng, rows = np.random.default_rng(seed), 0
    with tempfile.TemporaryDirectory(prefix="rankc-") as folder:
        forward = _Watch(model, watched, [], Path(folder) / "forward.onnx")
        backward = _Watch(model, watched, list(felt), Path(folder) / "backward.onnx")
        for k, batch in enumerate(source.batches()):
            watch = forward if k % GRADIENT_EVERY else backward
            size = len(next(iter(batch.feeds.values())))
            with refused_rows(source, rows, size):
                seen = watch.run(batch.feeds, rng)
            for name, moments in inputs.items():
                moments.add(_rows(seen[name]))
            for site, read in reads.items():
                for name in probes[site].indices:
                    read.add(seen[name])
            for name in watch.gradients.outputs:
                felt[name].add(_rows(seen[watch.gradients.outputs[name]]), size)
            rows += size
            stage.advance(rows, source.rows)
    if not rows:
        raise DataError(f"{source.path}: no rows to calibrate on")
    reasons = {u.value: u.reason for u in backward.gradients.unreachable}
    stats = {
        site: SiteStats(
            inputs=inputs[probe.inputs].result() if probe.inputs else None,
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
        self, model: ir.Model, watched: list[str], differentiated: list[str], path: Path
    ) -> None:
        probed = model.clone()
        self.gradients = (
            add_gradients(probed, differentiated) if differentiated else Gradients({}, (), None, 0)
        )
        gradients = {value.name: value for value in probed.graph.outputs}
        probed.graph.outputs.clear()
        probed.graph.outputs.extend(gradients[name] for name in self.gradients.outputs.values())
        for name in dict.fromkeys(watched):
            value = value_named(probed, name)
            if not value.is_graph_input() and not value.is_graph_output():
                probed.graph.outputs.append(value)
        RemoveUnusedNodesPass()(probed)
        save(probed, path)
        # Where only graph inputs are watched, there is nothing to compute.
        self.session: Session | None = open_model(path) if probed.graph.outputs else None

    def run(self, feeds: Mapping[str, Array], rng: np.random.Generator) -> dict[str, Array]:
        if self.session is None:
            return dict(feeds)
        given = dict(feeds)
        if self.gradients.cotangent is not None:
            size = (len(next(iter(feeds.values()))), self.gradients.width)
            given[self.gradients.cotangent] = rng.choice(np.array([-1, 1], np.float32), size)
        used = {spec.name: given[spec.name] for spec in self.session.inputs}
        return given | self.session.run(used)


def _rows(values: Array) -> Array:
    return values.reshape(-1, values.shape[-1])


def _weight(probe: Probe, felt: Mapping[str, _Moments]) -> Floats | None:
    """E[g gT] summed over the places where the site's output is used, (m, m)."""
    seen = [felt[n].result().second for n in probe.outputs if n in felt and felt[n].count]
    return np.sum(seen, axis=0) if len(seen) == len(probe.outputs) and seen else None


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
