"""What each rewrite costs in KL divergence, measured: one site alone is rewritten, at a few ranks.

Of the entries that cost less than dense, those that no other undercuts in predicted loss are a
front. A few of them, evenly spread, are carried out and the answer is held against the original's:
    loss = mean over rows of KL(original | rewritten), in nats, see `answers`
All other entries, of every form, are read off on straight lines of log KL over log predicted loss;
outside of what was measured, in proportion, which is how a small error is felt. Predicted under the
logit's gradient, or else the error: without gradients the two are proportional. The gradient takes
out part of what sets forms apart (on ResNet-20 a third of the variance about one line).
Sums over sites are rough, but a site is judged by all that it does to the answer, not to second
order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import onnx_ir as ir

from rankc.answers import answers_of, divergence
from rankc.data import Source
from rankc.errors import ModelError
from rankc.knapsack_points import Floats, Ints
from rankc.offers import Candidate
from rankc.passbase import Curve, Pass, Site
from rankc.perturbing import TRACE, Trial, saving, trials
from rankc.progress import Stage

ROUNDING = 1e-6  # share of the logits that rounding may change; a KL divergence below is unknown


def measured(
    model: ir.Model,
    sites: Mapping[Site, Pass],
    solutions: Mapping[Site, Any],
    offers: Sequence[Candidate],
    source: Source,
    stage: Stage,
    *,
    rows: int = 256,
    points: int = 6,
) -> list[Candidate]:
    """The same candidates with measured KL curves for losses.

    Left as they are: candidates with a forced rank, those without an entry that saves anything,
    and sites that no float output depends on.

    Args:
        model: the original, after clean-up.
        sites: every candidate's, with the pass that owns it.
        solutions: what the owner made of each site.
        offers: the candidates.
        source: the rows; the first ones are used.
        stage: told of every site.
        rows: how many of them.
        points: entries that are measured a site, at least 1; each opens the model behind the site
            and runs it over the rows.

    Raises:
        DataError: rows that the model does not take, or on which its answer is not finite.
        ModelError: no output is a float; or with a site rewritten, the answer is not finite.
    """
    if not answers_of(model.graph):
        raise ModelError(
            "planning: a KL divergence is one of float outputs, and the model has none; "
            "let it put out its logits, or plan by another sensitivity"
        )
    tried = {o.site: (o, _spread(_front(o), points)) for o in offers if o.forced is None}
    tried = {site: (o, at) for site, (o, at) in tried.items() if len(at)}
    found: dict[Site, Floats] = {}
    asked = {site: sites[site] for site in tried}
    with closing(trials(model, asked, source, rows)) as running:
        for trial in running:
            offer, entries = tried[trial.site]
            loss = _losses(trial, offer.curve, solutions[trial.site], entries)
            felt = _predicted(offer.curve)
            found[trial.site] = read_off(felt, felt[entries], loss)
            stage.advance(len(found), len(tried))
    return [_with_loss(o, found[o.site]) if o.site in found else o for o in offers]


def read_off(predicted: Floats, at: Floats, loss: Floats) -> Floats:
    """Losses for predictions, from those that were measured: rising with them, 0 where one is 0.

    Args:
        predicted: anything that rises with the loss, (k,).
        at: where it was measured, (n,), all different and above 0.
        loss: what was measured there, (n,), above 0; one that lies above that of a larger
            prediction counts as that: there is a cheaper entry that loses no more.
    """
    order = np.argsort(at)
    x, y = np.log(at[order]), np.log(np.minimum.accumulate(loss[order][::-1])[::-1])
    t = np.log(np.where(predicted > 0, predicted, 1.0))
    outside = np.minimum(t - x[0], 0) + np.maximum(t - x[-1], 0)
    return np.where(predicted > 0, np.exp(np.interp(t, x, y) + outside), 0.0)


def _front(offer: Candidate) -> Ints:
    """Entries that save something and lose less than all that cost no more, the cheapest first."""
    less, cost = saving(offer)
    felt = _predicted(offer.curve)
    kept = np.flatnonzero(less & (offer.curve.error > TRACE))
    kept = kept[np.lexsort((felt[kept], cost[kept]))]
    best = np.minimum.accumulate(np.append(np.inf, felt[kept]))[:-1]
    front: Ints = kept[felt[kept] < best]
    return front


def _predicted(curve: Curve) -> Floats:
    """What orders the entries of a site; 0 where they are exact."""
    known = (curve.loss[curve.error > TRACE] > 0).all()  # else nothing is felt of an error
    felt = curve.loss if known else curve.error
    return np.where(curve.error > 0, np.maximum(felt, 0.0), 0.0)


def _spread(front: Ints, points: int) -> Ints:
    """Some of them, both ends included."""
    places = np.linspace(0, len(front) - 1, min(points, len(front)))
    spread: Ints = front[places.round().astype(np.int64)]
    return spread


def _losses(trial: Trial, curve: Curve, solution: Any, entries: Ints) -> Floats:
    """Mean KL divergence over the rows with the site as each of the entries, (entries,)."""
    found = []
    for at in entries.tolist():
        apart = energy = 0.0
        for pairs in trial.compared(int(curve.ranks[at]), solution, curve.form(at)):
            for answer, (before, after) in pairs.items():
                apart += divergence(answer.family(before.shape), before, after)
                energy += float(np.square(before, dtype=np.float64).sum())
        # A logit that is off by a share e of itself costs at most e^2 z^2 / 2.
        found.append(max(apart, ROUNDING**2 * energy / 2, 1e-30) / trial.rows)
    return np.array(found)


def _with_loss(offer: Candidate, loss: Floats) -> Candidate:
    return dataclasses.replace(offer, curve=dataclasses.replace(offer.curve, loss=loss))
