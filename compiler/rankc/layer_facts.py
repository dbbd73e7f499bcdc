"""layers.json: of every site what it could have become, what it became, and what a step more costs.

plan.json holds what was chosen; this holds what it was chosen from, so that a report, `rankc
explain` and `rankc bisect` need the bundle alone. Nothing is decomposed here: the solutions are
those that the plan was made of.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from typing_extensions import TypedDict

from rankc.graph import node_named, value_named
from rankc.offers import Candidate
from rankc.passbase import Dense, Floats, Pass, Site
from rankc.planning import Choice, Plan
from rankc.recipe import Unit
from rankc.rewriting import Draft, reread
from rankc.spectra import spectrum

FORMAT = 1
MOST_ENERGIES = 256  # of one site: more are drawn together
_DIGITS = 6  # a spectrum is looked at, and factors are cast to float32
_UNITS: tuple[tuple[str, Unit], ...] = (
    ("size_bytes", "bytes"),
    ("macs", "macs"),
    ("parameters", "parameters"),
)


class Costs(TypedDict):
    """What something takes, or a step saves or takes; MACs are for one row."""

    size_bytes: int
    macs: int
    parameters: int


class Smaller(TypedDict):
    """The next smaller thing that a site could have become."""

    rank: int
    form: str
    saves: Costs  # in the finished model, columns of the layers that read a table included
    loss: float  # predicted, more than what was chosen


class Larger(TypedDict):
    """The next larger one of the same form."""

    rank: int
    form: str
    takes: Costs
    loss: float  # predicted, more than what was chosen: as a rule negative


class Layer(TypedDict):
    """One site. `rank` is None where it was left dense."""

    site: str
    pass_name: str
    form: str  # empty: the pass has one form only, or the site is dense
    rank: int | None
    full_rank: int  # of the form, or of a dense site its own
    shape: tuple[int, int]  # layer: inputs, outputs; table: rows, width
    operator: str
    error: float  # share of the output's variance that is lost at the rank
    energy: float  # share that is kept: 1 - error
    energies: list[float]  # of the directions, falling, shares of 1; means where drawn together
    energies_of: int  # directions
    energies_form: str  # whose they are: the form whose last rank is the site's own
    costs: Costs  # of the site's own weights, as in plan.json
    dense_costs: Costs
    loss: float  # predicted; 0 where dense
    reason: str
    # of a dense site the rewrite that saves bytes and loses least; None: there is none
    smaller: Smaller | None
    larger: Larger | None


def layers_of(draft: Draft, plan: Plan) -> list[Layer]:
    """One entry a site, those first that a pass of the recipe has first.

    Args:
        draft: what the plan was chosen from.
        plan: names its rewrites and why the other sites are dense.
    """
    chosen = {(choice.pass_name, choice.site): choice for choice in plan.choices}
    dense = {(skip.pass_name, skip.name): skip.reason for skip in plan.skips}
    found = []
    for offer in _as_planned(draft, plan):
        key = offer.site.pass_name, offer.site.name
        owner, solution = draft.sites.owners[offer.site], draft.solutions[offer.site]
        every = every_rank(owner).cost(offer.site, solution)
        seen = spectrum(every, offer.site.full_rank)
        operator, _ = operator_of(draft.model, offer.site.name)
        choice = chosen.get(key)
        entry = _dense(offer, dense[key]) if choice is None else _rewritten(offer, choice)
        entry |= {"operator": operator, "energies": drawn_together(seen.energies)}
        entry |= {"energies_of": len(seen.energies), "energies_form": seen.form}
        found.append(cast(Layer, entry))
    return found


def _as_planned(draft: Draft, plan: Plan) -> Sequence[Candidate]:
    """The offers; what is folded into layers is folded into those that the plan leaves."""
    if all(offer.read_by is None for offer in draft.offers):
        return draft.offers
    return reread(draft, plan)


def layers_json(layers: Iterable[Layer]) -> str:
    """layers.json: sorted keys, the same bytes for the same plan."""
    tree = {"format": FORMAT, "layers": list(layers)}
    return json.dumps(tree, indent=1, sort_keys=True, allow_nan=False) + "\n"


def every_rank(pass_: Pass) -> Pass:
    """The pass with a curve of all ranks, where it would leave some out for speed."""
    assert dataclasses.is_dataclass(pass_) and not isinstance(pass_, type)
    if not any(field.name == "round_to" for field in dataclasses.fields(pass_)):
        return pass_
    finer: Any = pass_  # the protocol does not know of the option
    return cast(Pass, dataclasses.replace(finer, round_to=1))


def operator_of(model: ir.Model, name: str) -> tuple[str, tuple[int, ...]]:
    """The operator of a site, and the shape of its weight as it is stored."""
    try:
        node = node_named(model, name)
        # A table may be called like the node that reads it; its weight comes first there.
        weight = next(v for v in node.inputs if v is not None and v.const_value is not None)
    except KeyError:
        weight = value_named(model, name)
        node, _ = next(iter(weight.uses()))
    assert weight is not None and weight.shape is not None, name
    return node.op_type, tuple(int(d) for d in weight.shape.numpy())


def drawn_together(energies: Sequence[float]) -> list[float]:
    """At most MOST_ENERGIES numbers: means of neighbours, as equally many as can be."""
    parts = np.array_split(np.asarray(energies), min(len(energies), MOST_ENERGIES))
    return [float(f"{part.mean():.{_DIGITS}g}") for part in parts]


def _dense(offer: Candidate, reason: str) -> dict[str, Any]:
    whole = _whole(offer.dense)
    return {
        **_named(offer.site),
        "form": "",
        "rank": None,
        "full_rank": offer.site.full_rank,
        "error": 0.0,
        "energy": 1.0,
        "costs": whole,
        "dense_costs": whole,
        "loss": 0.0,
        "reason": reason,
        "smaller": _best_rewrite(offer),
        "larger": None,
    }


def _rewritten(offer: Candidate, choice: Choice) -> dict[str, Any]:
    below, above = _neighbours(offer, choice)
    here = offer.entry(choice.rank, choice.form)
    costs = {name: int(getattr(choice, name)) for name, _ in _UNITS}
    error = max(choice.error, 0.0)  # of a difference of large numbers, rounded
    return {
        **_named(offer.site),
        "form": choice.form,
        "rank": choice.rank,
        "full_rank": choice.full_rank,
        "error": error,
        "energy": 1.0 - error,
        "costs": costs,
        "dense_costs": _whole(offer.dense),
        "loss": choice.loss,
        "reason": choice.reason,
        "smaller": None if below is None else _step(offer, here, below, "saves"),
        "larger": None if above is None else _step(offer, here, above, "takes"),
    }


def _named(site: Site) -> dict[str, Any]:
    return {"site": site.name, "pass_name": site.pass_name, "shape": list(site.shape)}


def _whole(dense: Dense) -> dict[str, int]:
    return {name: int(getattr(dense, name)) for name, _ in _UNITS}


def _neighbours(offer: Candidate, choice: Choice) -> tuple[int | None, int | None]:
    """Entries of the same form with the next lower and the next higher rank."""
    curve = offer.curve
    same = [k for k in range(len(curve.ranks)) if curve.form(k) == choice.form]
    lower = [k for k in same if curve.ranks[k] < choice.rank]
    higher = [k for k in same if curve.ranks[k] > choice.rank]
    return max(lower, default=None), min(higher, default=None)


def _step(offer: Candidate, here: int, there: int, word: str) -> dict[str, Any]:
    curve, sign = offer.curve, 1 if word == "takes" else -1
    amounts = {
        name: round(sign * float(ranked[there] - ranked[here]))
        for name, ranked in ((name, offer.costs(unit)[1]) for name, unit in _UNITS)
    }
    return {
        "rank": int(curve.ranks[there]),
        "form": curve.form(there),
        word: amounts,
        "loss": float(curve.loss[there] - curve.loss[here]),
    }


def _best_rewrite(offer: Candidate) -> dict[str, Any] | None:
    """Of a dense site: what takes fewer bytes and loses least."""
    curve = offer.curve
    by_unit: dict[str, tuple[float, Floats]] = {n: offer.costs(unit) for n, unit in _UNITS}
    whole, ranked = by_unit["size_bytes"]
    fewer: NDArray[np.int64] = np.flatnonzero(ranked < whole)
    if not len(fewer):
        return None
    best = int(fewer[np.lexsort((ranked[fewer], curve.loss[fewer]))[0]])
    return {
        "rank": int(curve.ranks[best]),
        "form": curve.form(best),
        "saves": {
            name: round(dense - float(all_[best])) for name, (dense, all_) in by_unit.items()
        },
        "loss": float(curve.loss[best]),
    }
