"""One site rewritten at a time: what the model answers then, beside what it answered.

The rows run through the original once. Of a layer, only what lies behind it is run for a rewrite:
what flows into it is kept on disk. A table may be read anywhere, so the whole model is run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from rankc.answers import Answer, answers_of
from rankc.data import Source, refused_rows
from rankc.errors import DataError, ModelError
from rankc.graph import has_fixed_batch
from rankc.offers import Candidate
from rankc.passbase import Pass, Site
from rankc.recipe import Unit
from rankc.segments import Cuts, Flow, open_part, run

Array = NDArray[Any]
Pair = tuple[Array, Array]  # logits of some rows, of the original and of the rewritten model
TRACE = 1e-10  # share of a site's variance: less is lost by rounding
UNITS: tuple[Unit, ...] = ("macs", "bytes", "parameters", "ms")


def saving(candidate: Candidate) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Which entries of the curve cost less than dense, and what every entry costs.

    In MACs; where none of those falls, in bytes, then parameters, then milliseconds.
    """
    units = UNITS if candidate.times is not None else UNITS[:-1]
    found = [(ranked < dense, ranked) for dense, ranked in map(candidate.costs, units)]
    return next((pair for pair in found if pair[0].any()), found[0])


@dataclasses.dataclass(frozen=True, slots=True)
class Trial:
    """A site that can be rewritten now."""

    site: Site
    rows: int
    owner: Pass
    part: ir.Model  # from the site on, or the whole
    inputs: Flow
    original: Flow  # logits
    answers: tuple[Answer, ...]

    def compared(self, rank: int, solution: Any, form: str) -> Iterator[dict[Answer, Pair]]:
        """Every answer of the original and with the site rewritten, some rows at a time.

        Raises:
            ModelError: a rewritten answer is not finite.
        """
        part = self.part.clone()
        self.owner.rewrite(part, self.site, rank, solution, form)
        session = open_part(part)
        assert session is not None
        for values, before in zip(self.inputs, self.original, strict=True):
            after = values | run(session, values)
            pairs = {a: (before[a.name], after[a.name]) for a in self.answers}
            for answer, (_, logits) in pairs.items():
                if not np.isfinite(logits).all():
                    raise ModelError(
                        f"site '{self.site.name}' ({self.site.pass_name}): at rank {rank}"
                        f"{form and f' as {form}'} the model's answer '{answer.name}' is not "
                        "finite; look for very large weights, or add the site to the pass's "
                        "`ignore`"
                    )
            yield pairs


def trials(
    model: ir.Model, sites: Mapping[Site, Pass], source: Source, rows: int
) -> Generator[Trial, None, None]:
    """The sites one after another, tables first, layers in an order in which they can run.

    A trial holds until the next one is asked for. Sites that no float output depends on are left
    out. Files are gone when the iterator is closed or at its end.

    Args:
        model: the original, after clean-up.
        sites: with the pass that owns each.
        source: the rows; the first ones are used.
        rows: how many; one batch more or less where the model takes a fixed number.

    Raises:
        DataError: rows that the model does not take, or on which its answer is not finite.
    """
    answers = tuple(a for a in answers_of(model.graph) if a.logit.producer() is not None)
    if not answers or not sites:
        return
    watched = _up_to(model, [answer.name for answer in answers])
    nodes = {str(node.name) for node in watched.graph}
    layers = {s.name: s for s, p in sites.items() if p.probe(model, s).inputs is not None}
    tables = [s for s in sites if layers.get(s.name) != s and s.name in watched.graph.initializers]
    cuts = Cuts.of(watched, [name for name in layers if name in nodes])
    with Flow() as feeds, Flow() as original, Flow() as inside:
        feeds.start(_first(model, source, rows))
        original.start(_original(watched, feeds, source))
        count = sum(len(next(iter(values.values()))) for values in feeds)
        for site in tables:
            yield Trial(site, count, sites[site], watched, feeds, original, answers)
        if cuts.names:
            before = open_part(cuts.before())
            found = (v if before is None else v | run(before, v) for v in feeds)
            inside.start({name: values[name] for name in cuts.live[0]} for values in found)
        for k, name in enumerate(cuts.names):
            site, part = layers[name], cuts.part(k)
            yield Trial(site, count, sites[site], part, inside, original, answers)
            if k + 1 < len(cuts.names):
                inside.advance(open_part(cuts.part(k, k + 1)), cuts.live[k + 1])


def _up_to(model: ir.Model, names: list[str]) -> ir.Model:
    """A copy that puts out those values, and computes no others."""
    watched = model.clone()
    by_name = {value.name: value for node in watched.graph for value in node.outputs}
    watched.graph.outputs.clear()
    watched.graph.outputs.extend(by_name[name] for name in names)
    RemoveUnusedNodesPass()(watched)
    return watched


def _first(model: ir.Model, source: Source, rows: int) -> Iterator[dict[str, Array]]:
    """What the model takes, of the first rows; whole batches where their size is fixed."""
    fixed, seen = has_fixed_batch(model), 0
    for batch in source.batches():
        left = batch.rows if fixed else rows - seen
        yield {name: array[:left] for name, array in batch.feeds.items()}
        seen += min(left, batch.rows)
        if seen >= rows:
            return
    if not seen:
        raise DataError(f"{source.path}: no rows to measure on")


def _original(watched: ir.Model, feeds: Flow, source: Source) -> Iterator[dict[str, Array]]:
    session, start = open_part(watched), 0
    assert session is not None
    for values in feeds:
        count = len(next(iter(values.values())))
        with refused_rows(source, start, count):
            found = run(session, values)
        for name, logits in found.items():
            if not np.isfinite(logits).all():
                raise DataError(
                    f"{source.path}: rows {start} to {start + count - 1}: the model's answer "
                    f"'{name}' is not finite, so a change of it cannot be measured; look for very "
                    "large values"
                )
        start += count
        yield found
