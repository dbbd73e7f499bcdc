"""Refit layer by layer: each one corrects what the compressed layers before it did.

The original and the compressed model run side by side, piece by piece. At a layer, let x be the
original's input and x' the compressed model's. What the layer should put out is y = W x + b (where
it ends in an Add with a value that is already there, the original's sum less the compressed other
operand, so that it corrects that, too). Its best weights for the input that it will really see:
    W* = (Cov(y, x') + t W) (Cov(x') + t I)^-1      b* = mean(y) - W* mean(x')
and since  E|y - W'x' - b'|^2 = const + E|(W* - W')x' + b* - b'|^2,  factoring W* under the moments
of x' is the best factoring there is: reduced-rank regression (Izenman, 1975). t pulls towards the
original weights where x' says little. Layers that stay dense take W* as it is.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from rankc.data import Source, refused_rows
from rankc.graph import node_named, only_input, value_named
from rankc.linalg import Floats
from rankc.linear import Linear, linear_of
from rankc.moments import RunningMoments
from rankc.passbase import Moments, Pass, Site, SiteStats
from rankc.planning import Choice
from rankc.progress import Stage
from rankc.recipe import Refit
from rankc.segments import Cuts, Flow, open_part, run

Array = NDArray[Any]
DAMPING = 1e-4  # t, as a share of the mean variance of the inputs
MATCHED = 8  # batches on which mean and variance of an output are matched
MOST = 4.0  # factor by which an output is scaled to match its variance


@dataclasses.dataclass(frozen=True, slots=True)
class Refitting:
    """What is to be refitted, and on what."""

    model: ir.Model  # the original, cleaned up
    changed: ir.Model  # the same with everything rewritten that is no layer
    choices: Mapping[str, tuple[Site, Choice]]  # of layers, by the name of the node
    owners: Mapping[Site, Pass]
    stats: Mapping[Site, SiteStats]
    source: Source
    settings: Refit
    seed: int
    ignored: frozenset[str]  # nodes that keep their weights


def refit(job: Refitting, stage: Stage) -> tuple[ir.Model, int]:
    """Carry out the layer choices one after another: the model, and how many layers were refitted.

    Raises:
        DataError: rows that the model does not take.
    """
    layers = _layers(job)
    before, after = Cuts.of(job.model, list(layers)), Cuts.of(job.changed, list(layers))
    result, rng = job.changed.clone(), np.random.default_rng(job.seed)
    with Flow() as original, Flow() as compressed:
        original.start(_first(before, job))
        compressed.start(_first(after, job))
        for k, name in enumerate(before.names):
            last = k + 1 == len(before.names)
            part = after.part(k, None if last else k + 1)
            view = layers[name]
            fitted = _fit(job, before, view, k, (original, compressed), rng)
            _carry_out(job, name, view, fitted, (part, result))
            if job.settings.variance:
                parts = before.part(k, None if last else k + 1), part
                _match(name, parts, (original, compressed), result)
            if not last:
                original.advance(open_part(before.part(k, k + 1)), before.live[k + 1])
                compressed.advance(open_part(part), after.live[k + 1])
            stage.advance(k + 1, len(before.names))
    return result, len(layers)


def _layers(job: Refitting) -> dict[str, Linear]:
    """Every layer that may change and is the same in both models, by name."""
    names = {str(node.name) for node in job.changed.graph}
    found = {
        str(node.name): view
        for node in job.model.graph
        if node.name in names and (view := linear_of(node, job.settings.positions)) is not None
    }
    return {
        name: view
        for name, view in found.items()
        if name in job.choices or (job.settings.weights and name not in job.ignored)
    }


def _first(cuts: Cuts, job: Refitting) -> Iterator[dict[str, Array]]:
    """The values at the first cut, batch by batch."""
    session, rows = open_part(cuts.before()), 0
    for batch in job.source.batches():
        if rows >= job.settings.rows:
            return
        feeds = {name: array[: job.settings.rows - rows] for name, array in batch.feeds.items()}
        with refused_rows(job.source, rows, batch.rows):
            found = feeds if session is None else feeds | run(session, feeds)
        rows += len(next(iter(feeds.values())))
        yield {name: found[name] for name in cuts.live[0]}


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Fitted:
    weight: Floats  # W*, (groups, m, n)
    bias: Floats | None  # (groups m,)
    inputs: Moments  # of x'


def _fit(
    job: Refitting,
    cuts: Cuts,
    view: Linear,
    k: int,
    flows: tuple[Flow, Flow],
    rng: np.random.Generator,
) -> _Fitted:
    """W*, b* and the moments of x' of one layer."""
    node = node_named(job.model, cuts.names[k])
    source, added = str(only_input(node).name), _added(node, cuts.live[k])
    seen = RunningMoments(centred=True)
    for a, b in zip(*flows, strict=True):
        places = view.draw(rng)
        x = view.inputs(b[source], places)
        y = view.inputs(a[source], places) @ np.swapaxes(view.weight, 1, 2).astype(x.dtype)
        if added:
            y += view.outputs(a[added], places) - view.outputs(b[added], places)
        seen.add(np.concatenate([x, y], axis=2))
    return _regress(view, seen.result(), job.settings.weights)


def _added(node: ir.Node, live: tuple[str, ...]) -> str | None:
    """The other operand of the Add that alone reads a layer's output, if it is there already."""
    output, readers = node.outputs[0], [reader for reader, _ in node.outputs[0].uses()]
    if len(readers) != 1 or readers[0].op_type != "Add" or output.shape is None:
        return None
    others = [v for v in readers[0].inputs if v is not None and v is not output]
    fits = [v for v in others if v.name in live and v.shape == output.shape]
    return str(fits[0].name) if fits else None


def _regress(view: Linear, both: Moments, weights: bool) -> _Fitted:
    """The best linear map from the moments of [x', y - b], see the head of the module."""
    n = view.weight.shape[2]
    inputs = Moments(both.count, both.mean[:, :n], both.second[:, :n, :n])
    seen = inputs if view.grouped else Moments(both.count, inputs.mean[0], inputs.second[0])
    if not weights:
        return _Fitted(view.weight, view.bias, seen)
    moment = both.covariance if view.biased else both.second
    spread, cross = moment[:, :n, :n], moment[:, n:, :n]
    level = DAMPING * np.trace(spread, axis1=1, axis2=2)[:, None, None] / n
    level = np.where(level > 0, level, 1.0)
    target = np.swapaxes(cross + level * view.weight, 1, 2)
    solved = np.linalg.solve(spread + level * np.eye(n), target)
    weight = np.asarray(np.swapaxes(solved, 1, 2), np.float64)
    if not view.biased:
        return _Fitted(weight, None, seen)
    missing = both.mean[:, n:] - np.einsum("gmn,gn->gm", weight, inputs.mean)
    return _Fitted(weight, missing.reshape(-1) + (0.0 if view.bias is None else view.bias), seen)


def _carry_out(
    job: Refitting, name: str, view: Linear, fitted: _Fitted, models: tuple[ir.Model, ir.Model]
) -> None:
    """Write W* into both models and, where the plan says so, factor it."""
    if job.settings.weights:
        for model in models:
            view.write(model, name, fitted.weight, fitted.bias)
    if name not in job.choices:
        return
    site, choice = job.choices[name]
    pass_ = job.owners[site]
    stats = SiteStats(inputs=fitted.inputs, output_weight=job.stats[site].output_weight)
    solution = pass_.solve(models[0], site, stats, choice.form)
    if job.settings.weights:
        solution = pass_.settle(site, stats, solution, choice.rank, choice.form)
    for model in models:
        pass_.rewrite(model, site, choice.rank, solution, choice.form)


def _match(
    name: str, parts: tuple[ir.Model, ir.Model], flows: tuple[Flow, Flow], result: ir.Model
) -> None:
    """Give each output the mean and variance that it had; without a bias it stays as it is."""
    output = str(node_named(parts[0], name).outputs[0].name)
    last = value_named(parts[1], output).producer()
    view = None if last is None else linear_of(last, 1)
    if last is None or view is None or not view.biased:
        return
    (mean, spread), (mean_now, spread_now) = (
        _spread(part, output, flow) for part, flow in zip(parts, flows, strict=True)
    )
    scale = np.where(spread_now > 0, spread / np.where(spread_now > 0, spread_now, 1.0), 1.0)
    scale = np.clip(scale, 1 / MOST, MOST)
    bias = (0.0 if view.bias is None else view.bias) - mean_now
    weight = view.weight * scale.reshape(len(view.weight), -1, 1)
    for model in (parts[1], result):
        view.write(model, str(last.name), weight, bias * scale + mean)


def _spread(part: ir.Model, output: str, flow: Flow) -> tuple[Floats, Floats]:
    """Mean and standard deviation of each output over all places of some batches, (m,)."""
    watched = part.clone()
    watched.graph.outputs.clear()
    watched.graph.outputs.append(value_named(watched, output))
    RemoveUnusedNodesPass()(watched)
    session = open_part(watched)
    assert session is not None
    seen = [run(session, values)[output] for values in itertools.islice(flow, MATCHED)]
    axis = 1 if seen[0].ndim > 2 else -1
    rows = np.concatenate([np.moveaxis(y, axis, -1).reshape(-1, y.shape[axis]) for y in seen])
    return rows.mean(axis=0, dtype=np.float64), rows.std(axis=0, dtype=np.float64)
