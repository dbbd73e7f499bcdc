"""The compressed model made again from its plan, with any part of the choices left out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from threadpoolctl import threadpool_limits

from rankc.calibrate import Calibration
from rankc.compression import refitted, study
from rankc.data import Array, Source
from rankc.errors import RecipeError
from rankc.graph import value_named, values
from rankc.job import Job
from rankc.passbase import Pass, Site
from rankc.planning import Choice, Plan
from rankc.progress import Progress, SilentProgress
from rankc.rewriting import Sites, Solutions, apply, finish, solve
from rankc.segments import open_part, run

_ROWS = 1024  # on which the error of a rewrite is measured


@dataclasses.dataclass(frozen=True, slots=True)
class Rebuilt:
    """A model after clean-up, and the recorded choices that can be carried out on it."""

    job: Job
    model: ir.Model
    sites: Sites
    known: Calibration
    solutions: Solutions  # of the chosen sites
    choices: Mapping[str, Choice]  # by site, in the order of the plan

    @classmethod
    def of(cls, job: Job, plan: Path, tell: Progress) -> Rebuilt:
        """Clean up, calibrate and decompose as the compile did; nothing is planned.

        Raises:
            RecipeError: plan.json has sites that the recipe's passes do not find.
        """
        choices = read_choices(plan)
        with threadpool_limits(limits=1, user_api="blas"):
            model, sites, known = study(job, tell)
            chosen = {s: p for s, p in sites.owners.items() if s.name in choices}
            if missing := sorted(choices.keys() - {site.name for site in chosen}):
                raise RecipeError(
                    f"{plan}: it rewrites {', '.join(missing[:3])}, which the passes of the recipe "
                    "do not find in this model; compile again, or name the recipe with --recipe"
                )
            solutions = solve(model, Sites(chosen, ()), known.stats)
        return cls(job, model, sites, known, solutions, choices)

    @property
    def groups(self) -> list[list[str]]:
        """The chosen sites of each pass, in graph order."""
        found: dict[str, list[str]] = {}
        for site in self.sites.owners:
            if site.name in self.choices:
                found.setdefault(site.pass_name, []).append(site.name)
        return list(found.values())

    def build(self, names: frozenset[str]) -> ir.Model:
        """The finished model with these choices carried out and the other sites dense."""
        chosen = tuple(choice for name, choice in self.choices.items() if name in names)
        if chosen and self.job.recipe.refit is not None:
            plan = Plan(chosen, (), (), 0.0, 0.0)
            with threadpool_limits(limits=1, user_api="blas"):
                rewritten = refitted(
                    self.job, self.model, self.sites, self.known, plan, SilentProgress()
                )
            return finish(rewritten, self.job.exact)
        return finish(self._rewritten(chosen), self.job.exact)

    def _rewritten(self, chosen: tuple[Choice, ...]) -> ir.Model:
        owners = {s: p for s, p in self.sites.owners.items() if s in self.solutions}
        plan = Plan(chosen, (), (), 0.0, 0.0)
        return apply(self.model, plan, Sites(owners, ()), self.solutions)

    def owner(self, name: str) -> tuple[Site, Pass]:
        """The site of that name and the pass that rewrites it."""
        return next((s, p) for s, p in self.sites.owners.items() if s.name == name)

    def made(self) -> dict[str, str]:
        """Which site the nodes and tensors are of that rewrites bring in, by their names."""
        before = _names(self.model)
        found: dict[str, str] = {}
        for name, choice in self.choices.items():
            after = _names(self._rewritten((choice,)))
            found |= dict.fromkeys(sorted(after - before), name)
        return found

    def error(self, name: str, source: Source) -> float:
        """Share of the variance of a site's output that its rewrite alone loses on some rows."""
        site, pass_ = self.owner(name)
        outputs = pass_.probe(self.model, site).outputs
        both = [self.model, self._rewritten((self.choices[name],))]
        sessions = [open_part(_watching(model, outputs)) for model in both]
        lost = spread = 0.0
        for feeds in _some_rows(source):
            x, y = ([run(s, feeds)[o] for o in outputs] for s in sessions if s is not None)
            for before, after in zip(x, y, strict=True):
                wrong = before.astype(np.float64) - after
                centred = before - before.mean(axis=_places(before), keepdims=True)
                lost += float(np.square(wrong).sum())
                spread += float(np.square(centred, dtype=np.float64).sum())
        return lost / max(spread, 1e-300)


def read_choices(plan: Path) -> dict[str, Choice]:
    """The choices that plan.json records, by site.

    Raises:
        RecipeError: the file is not there or not what this version writes.
    """
    try:
        found = json.loads(plan.read_text("utf-8"))["choices"]
        fields = [field.name for field in dataclasses.fields(Choice)]
        choices = [_choice({key: one[key] for key in fields}) for one in found]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError(
            f"{plan}: it cannot be read as a plan ({type(error).__name__}: {error}); compile again "
            "with this version of rankc"
        ) from error
    return {choice.site: choice for choice in choices}


def _choice(fields: dict[str, Any]) -> Choice:
    return Choice(**{**fields, "shape": tuple(fields["shape"])})


def _names(model: ir.Model) -> set[str]:
    return {str(v.name) for v in values(model)} | {str(node.name) for node in model.graph}


def _watching(model: ir.Model, outputs: tuple[str, ...]) -> ir.Model:
    """A copy that puts out these values alone."""
    copy = model.clone()
    wanted = [value_named(copy, name) for name in outputs]
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(wanted)
    return copy


def _some_rows(source: Source) -> list[dict[str, Array]]:
    found, rows = [], 0
    for batch in source.batches():
        found.append(batch.feeds)
        rows += batch.rows
        if rows >= _ROWS:
            break
    return found


def _places(array: Array) -> tuple[int, ...]:
    """All axes but that of the channels: the last one, or the second of an image."""
    channel = 1 if array.ndim == 4 else array.ndim - 1
    return tuple(axis for axis in range(array.ndim) if axis != channel)
