"""What an error at a site does to the answer, measured with one perturbed run for each site.

The site alone is rewritten so that a middling share of its variance is lost, and the logits are
compared on a few rows. One number comes out,  s = E[(change of the logits)^2] / E|change of y|^2
with y one output of the site, and s I stands in for E[g gT] (`SiteStats.output_weight`): the loss
predicted for that rewrite is the change that was measured. It serves where no gradient could be
built, and costs no gradient anywhere. AAFM (Yu and Wu, AAAI 2023) and ASVD (Yuan et al., 2023)
measure sensitivity in the same way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from contextlib import closing
from typing import Any

import numpy as np
import onnx_ir as ir

from rankc.answers import divergence
from rankc.data import Source
from rankc.offers import Candidate
from rankc.passbase import Pass, Site, SiteStats
from rankc.perturbing import TRACE, Trial, saving, trials
from rankc.progress import Stage

ROWS = 512
MIDDLE = 0.1  # share of the variance that is lost


def measure(
    model: ir.Model,
    owners: Mapping[Site, Pass],
    stats: Mapping[Site, SiteStats],
    unknown: Collection[Site],
    source: Source,
    stage: Stage,
    *,
    rows: int = ROWS,
    fisher: bool = False,
) -> dict[Site, SiteStats]:
    """`stats` with an `output_weight` for every site in `unknown`.

    A site that no float output feels, or that has no rewrite with an error, gets the weight 1: it
    counts by itself.

    Args:
        model: the original, after clean-up.
        owners: the pass of every site.
        stats: what calibration found.
        unknown: the sites to measure, in any order.
        source: the rows; the first ones are used.
        stage: told of every site.
        rows: how many of them.
        fisher: twice the KL divergence of the answers instead of the square between logits, as
            gradients are weighed by `calibrate` with `fisher`.

    Raises:
        DataError: rows that the model does not take, or on which its answer is not finite.
        ModelError: with a site rewritten, the answer is not finite.
    """
    blank = {site: dataclasses.replace(stats[site], output_weight=None) for site in unknown}
    weights, done = dict.fromkeys(unknown, 1.0), 0
    with closing(trials(model, {s: owners[s] for s in unknown}, source, rows)) as running:
        for trial in running:
            site, pass_ = trial.site, owners[trial.site]
            solution = pass_.solve(model, site, blank[site])
            curve = pass_.cost(site, solution)
            dense, read_by = pass_.dense(model, site), pass_.read_by(model, site)
            at = middle(Candidate(site, dense, curve, read_by=read_by))
            # Without a weight, the curve's loss is the expected change of one output of the site.
            if at is not None and curve.loss[at] > 0:
                felt = _felt(trial, int(curve.ranks[at]), solution, curve.form(at), fisher)
                weights[site] = felt / float(curve.loss[at]) or 1.0
            done += 1
            stage.advance(done, len(unknown))
    return {**stats} | {
        site: dataclasses.replace(blank[site], output_weight=weight)
        for site, weight in weights.items()
    }


def middle(offer: Candidate) -> int | None:
    """The entry whose error is nearest to a middling one, by its ratio; of equals the cheapest.

    Among entries that save something, or all if none does; None where all are exact.
    """
    less, cost = saving(offer)
    wrong = offer.curve.error > TRACE
    entries = np.flatnonzero(wrong & less if (wrong & less).any() else wrong)
    if not len(entries):
        return None
    apart = np.abs(np.log(offer.curve.error[entries] / MIDDLE))
    return int(entries[np.lexsort((cost[entries], apart))[0]])


def _felt(trial: Trial, rank: int, solution: Any, form: str, fisher: bool) -> float:
    """Mean change of the answer over the rows."""
    total = 0.0
    for pairs in trial.compared(rank, solution, form):
        for answer, (before, after) in pairs.items():
            family = answer.family(before.shape) if fisher else "normal"
            total += 2 * divergence(family, before, after)
    return total / trial.rows
