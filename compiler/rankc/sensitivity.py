"""What an error at a site does to the answer, measured, where no gradient could be built.

The site alone is rewritten at a middle rank and the logits are compared on a few batches. One
perturbed run gives one number,  s = E[(change of the logits)^2] / E|change of the site|^2,  and
s I stands in for E[g gT] (`SiteStats.output_weight`). AAFM (Yu and Wu, AAAI 2023) and ASVD (Yuan et
al., 2023) measure sensitivity in the same way.
"""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from rankc.data import Source, refused_rows
from rankc.gradient import logits_of
from rankc.graph import value_named
from rankc.passbase import Pass, Site, SiteStats
from rankc.progress import Stage
from rankc.serialize import save
from rankrt.session import open_model

BATCHES = 4


def measure(
    model: ir.Model,
    owners: Mapping[Site, Pass],
    stats: Mapping[Site, SiteStats],
    unknown: Mapping[Site, str],
    source: Source,
    stage: Stage,
) -> dict[Site, SiteStats]:
    """`stats` with an `output_weight` for every site in `unknown` (site: why it has none)."""
    known, answers = dict(stats), [str(logit.name) for logit in logits_of(model.graph)]
    for k, site in enumerate(unknown):
        pass_, probe = owners[site], owners[site].probe(model, site)
        solution = pass_.solve(model, site, stats[site])
        curve = pass_.cost(site, solution)
        at = len(curve.ranks) // 2
        changed = model.clone()
        pass_.rewrite(changed, site, int(curve.ranks[at]), solution)
        felt = _change(model, changed, answers, source)
        moved = _change(model, changed, probe.outputs, source)
        # Nothing felt: it leads to other outputs, integers say. Then it is an answer by itself.
        weight = felt / moved if felt > 0 and moved > 0 else 1.0
        known[site] = dataclasses.replace(stats[site], output_weight=weight)
        stage.advance(k + 1, len(unknown))
    return known


def _change(before: ir.Model, after: ir.Model, names: Sequence[str], source: Source) -> float:
    """Mean over the rows of the squared change of the values called `names`."""
    total, rows = 0.0, 0
    with tempfile.TemporaryDirectory(prefix="rankc-") as folder:
        sessions = []
        for k, model in enumerate((before, after)):
            watched = model.clone()
            watched.graph.outputs.clear()
            watched.graph.outputs.extend(value_named(watched, name) for name in names)
            path = Path(folder) / f"{k}.onnx"
            save(watched, path)
            sessions.append(open_model(path))
        for batch in itertools.islice(source.batches(), BATCHES):
            with refused_rows(source, rows, batch.rows):
                a, b = (session.run(batch.feeds) for session in sessions)
            total += sum(float(np.square(a[n] - b[n], dtype=np.float64).sum()) for n in names)
            rows += batch.rows
    return total / rows
