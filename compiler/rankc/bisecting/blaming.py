"""From a culprit to a sentence: what is wrong with it, and what to write into the recipe."""

from __future__ import annotations

import dataclasses
import glob

from rankc.bisecting.answer import Cause, Change, Finding
from rankc.bisecting.comparing import Differences
from rankc.bisecting.rebuilding import Rebuilt
from rankc.bisecting.searching import Culprit, Harm
from rankc.recipe import Recipe
from rankc.validate.gates import number

TIMES_WORSE = 2.0  # by how much a rewrite may lose more than predicted,
AND_MORE = 0.02  # and by what share of the variance besides, before it is not as planned
_DOWN = "the bundle holds another model than its plan makes: it was changed after the compile, or"


def of_choice(culprit: Culprit, rebuilt: Rebuilt) -> Finding:
    """A rewrite that the plan chose: its rank is too low, or it does not do what it should."""
    choice = rebuilt.choices[culprit.name]
    what = f"rank {choice.rank} of {choice.full_rank}{choice.form and f' as {choice.form}'}"
    ignore = ignoring(rebuilt.job.recipe, choice.pass_name, culprit.name)
    here = rebuilt.error(culprit.name, rebuilt.job.calibration)
    assert rebuilt.job.validation is not None
    there = rebuilt.error(culprit.name, rebuilt.job.validation)
    predicted, seen = _percent(choice.error), _percent(here)
    finding = Finding(
        "graph", "rank too low", culprit.name, choice.pass_name, what,
        f"by its plan it loses {predicted} of the variance of its output",
        culprit.alone, culprit.before, culprit.after,
        (ignore, *_floor(rebuilt, culprit.name)),
        "or raise the budget",
    )  # fmt: skip
    if here > TIMES_WORSE * choice.error + AND_MORE:
        why = f"it loses {seen} of the variance of its output, and by its plan only {predicted}"
        advice = f"the pass {choice.pass_name} does not do what it says: please report it"
        return _with(finding, "pass", why, (ignore,), advice)
    if there > TIMES_WORSE * here + AND_MORE:
        why = (
            f"it loses {_percent(there)} of the variance of its output on validation rows, and "
            f"{seen} on those for calibration"
        )
        return _with(finding, "data", why, (ignore,), "or calibrate on rows like the others")
    return finding


def of_file(culprit: Culprit, found: Differences, harm: Harm, rebuilt: Rebuilt) -> Finding:
    """A layer whose tensors or nodes in the file are not what the plan makes.

    `harm` is that of names taken from the file; it tells which one of the layer it is.
    """
    names = found.of_units(frozenset(found.units))

    def without(name: str) -> float:
        return harm(names - {name})

    worst = min(found.units[culprit.name], key=without)
    choice = rebuilt.choices.get(culprit.name)
    return Finding(
        "file", "file", culprit.name, None if choice is None else choice.pass_name, worst,
        found.told(worst),
        culprit.alone, culprit.before, culprit.after, (),
        f"{_DOWN} by another version: compile again, and if it differs again report it",
    )  # fmt: skip


def ignoring(recipe: Recipe, pass_name: str, site: str) -> Change:
    """Leave a site alone, besides those that are ignored already."""
    k = next(k for k, spec in enumerate(recipe.passes) if spec.name == pass_name)
    before = recipe.passes[k].options.get("ignore") or []
    return Change(f"passes[{k}].{pass_name}.ignore", [*before, glob.escape(site)])


def _floor(rebuilt: Rebuilt, name: str) -> list[Change]:
    """A floor that this choice breaks and few others do."""
    shares = {n: c.rank / c.full_rank for n, c in rebuilt.choices.items()}
    others = sorted(share for n, share in shares.items() if n != name)
    if not others or others[0] <= shares[name]:
        return []
    floor = float(number((others[0] + shares[name]) / 2, 2))
    planning = rebuilt.job.recipe.planning
    return [Change("planning.floor", floor)] if planning.floor < floor <= planning.cap else []


def _with(
    finding: Finding, cause: Cause, why: str, changes: tuple[Change, ...], advice: str
) -> Finding:
    return dataclasses.replace(finding, cause=cause, why=why, changes=changes, advice=advice)


def _percent(share: float) -> str:
    return f"{number(100 * share, 2)} %"
