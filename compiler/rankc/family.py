"""One preparation, many bundles: a model at every budget of a list, the largest first.

What does not depend on the budget is done once: training, calibration, decomposition. For every
share the plan is then made, carried out, proved and packed as a compile would do it, in a folder of
its own; a member that is there already, made from the same, is not made again. A model that was
trained by `maestro` holds all members: their factors are the first columns of the same ones
(Horvath et al., "Maestro", ICML 2024: train once, deploy everywhere).
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from rankc.compression import Prepared, choose, prepare
from rankc.earlier import Earlier, Resume, training_folder
from rankc.errors import Exit, RecipeError
from rankc.job import Job
from rankc.packing import staging
from rankc.pipeline import locked, take_in, write_bundle
from rankc.planning import BudgetError
from rankc.progress import Progress, SilentProgress
from rankc.recipe import Budget, Recipe, Unit
from rankc.report import failures
from rankc.report.family_html import family_html, family_table
from rankc.report.page import write_page
from rankc.search_points import Trial, points_of
from rankc.searching import trial_of
from rankc.validate import exit_code
from rankc.validate.own import Own, open_metrics
from rankc.validate.schema import Metrics, Point, check_metrics
from rankrt.bundle import read
from rankrt.errors import BundleError

# Gates that are about the one budget of a compile: of a family the shares say it.
_SET: Mapping[Unit, tuple[str, ...]] = {
    "bytes": ("size_bytes", "size_ratio"),
    "parameters": ("params", "params_ratio"),
    "macs": ("macs", "macs_ratio"),
    "ms": (),
}
INDEX, PAGE = "family.json", "family.html"
_WORST = (Exit.USAGE, Exit.ACCURACY, Exit.PERFORMANCE, Exit.BUILD, Exit.OK)  # what is told first


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """One budget, and what became of it."""

    keep: float  # share of the unit
    folder: Path  # of the bundle
    state: Literal["made", "kept", "impossible"]  # kept: it was there already
    exit_code: Exit
    summary: str  # of what failed; empty when nothing did
    metrics: Metrics | None = None  # the content of metrics.json; None: impossible
    plan: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # the content of plan.json

    @property
    def ranks(self) -> dict[str, int]:
        """Of every layer that was rewritten."""
        return {choice["site"]: choice["rank"] for choice in self.plan.get("choices", ())}

    def to_dict(self) -> dict[str, Any]:
        """As family.json lists it."""
        measured = {} if self.metrics is None else self.metrics["metrics"]
        return {
            "keep": self.keep,
            "folder": self.folder.name,
            "passed": self.exit_code == Exit.OK,
            "exit_code": int(self.exit_code),
            "failed": self.summary,
            "metrics": {
                name: [float(pair["original"]), float(pair["compressed"])]
                for name, pair in measured.items()
                if name != "peak_memory_bytes"  # differs from run to run
            },
            "ranks": self.ranks,
        }


@dataclasses.dataclass(frozen=True, slots=True)
class Family:
    """All members, by falling budget."""

    recipe: str  # name of it
    unit: Unit
    members: tuple[Member, ...]

    @property
    def exit_code(self) -> Exit:
        """Of the member that is worst off."""
        return min((m.exit_code for m in self.members), key=_WORST.index)

    @property
    def nested(self) -> bool:
        """Whether no layer has a higher rank in a member than in the next larger one."""
        pairs = pairwise(m for m in self.members if m.metrics is not None)
        return all(
            rank <= larger.ranks[site]
            for larger, smaller in pairs
            for site, rank in smaller.ranks.items()
            if site in larger.ranks
        )

    @property
    def points(self) -> list[Point]:
        """Costs and worths, by rising budget; those marked that no other member beats."""
        trials = [trial for member in self.members if (trial := self._trial(member)) is not None]
        found = points_of(trials, self.unit, trials[0]) if trials else []
        return [Point(**{**point, "chosen": False}) for point in found]

    def _trial(self, member: Member) -> Trial | None:
        if member.metrics is None:
            return None
        (limit,) = [one for one in member.plan["limits"] if one["unit"] == self.unit]
        budget, loss = limit["budget"], member.plan["loss"]
        return trial_of(member.metrics, member.keep, budget, f"{member.keep:g}", loss)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """The head and the lines of a table for people."""
        return family_table(self.to_dict(), [member.metrics for member in self.members])

    def to_dict(self) -> dict[str, Any]:
        """The content of family.json."""
        members = [member.to_dict() for member in self.members]
        head = {"format": 1, "recipe": self.recipe, "unit": self.unit, "nested": self.nested}
        return {**head, "members": members}


def make_family(
    recipe: Recipe,
    keeps: Sequence[float],
    out: Path,
    *,
    unit: Unit | None = None,
    progress: Progress | None = None,
    trust_code: bool = False,
    resume: Resume = "auto",
) -> Family:
    """Make a bundle for every share of the original, and an index of them.

    Args:
        recipe: its budget of that unit is replaced, and gates on that unit are left out, for the
            shares say it; others hold. `search` is left out, too.
        keeps: shares in (0, 1].
        out: a folder for all of them, `out/<share>` for each; the index is written after each.
        unit: what the shares are of; by default what the first budget counts, or bytes.
        progress: where stages are announced; silent by default.
        trust_code: allow the recipe to name Python code.
        resume: go on from what an earlier run finished in `out` or trained beside it; `required`:
            it is an error if there is nothing; `never`: make and train everything anew.

    Raises:
        RecipeError: no shares, or some that are none.
        RankcError: anything else that the user can mend; members that were finished are kept.
    """
    unit = unit or (recipe.budget[0].unit if recipe.budget else "bytes")
    left, tell = family_left(out, resume), progress or SilentProgress()
    return _Making(recipe, _sorted(keeps), out, unit, tell, trust_code, left).family()


def family_left(out: Path, resume: Resume = "auto") -> Earlier:
    """What an earlier run left of a family."""
    return Earlier(training_folder(out), out / INDEX, resume, family=True)


def _sorted(keeps: Sequence[float]) -> list[float]:
    if wrong := [keep for keep in keeps if not 0 < keep <= 1]:
        raise RecipeError(f"a family is of shares above 0 and up to 1, not {wrong[0]:g}")
    if not keeps:
        raise RecipeError(
            "a family of what sizes? name shares of the original, e.g. --keep 0.66,0.5,0.36, or "
            "`family: {keep_ratios: [0.66, 0.5, 0.36]}` in the recipe"
        )
    return sorted(set(keeps), reverse=True)


@dataclasses.dataclass(slots=True)
class _Making:
    """A family under way."""

    recipe: Recipe
    keeps: list[float]
    out: Path
    unit: Unit
    tell: Progress
    trust_code: bool
    left: Earlier

    def family(self) -> Family:
        """All members, made or found."""
        gates = tuple(g for g in self.recipe.gates if g.metric not in _SET[self.unit])
        recipe = dataclasses.replace(self.recipe, search=None, family=None, gates=gates)
        own = open_metrics(recipe, trust_code=self.trust_code)
        self.left.settle(recipe)
        job = take_in(recipe, self.tell, self.trust_code, self.left)
        members: list[Member] = []
        prepared: Prepared | None = None
        for keep in self.keeps:
            mine = self._job(job, keep)
            member = self._found(mine, keep)
            if member is None:
                prepared = prepared or prepare(job, self.tell)
                member = self._made(mine, prepared, own, keep)
            members.append(member)
            self._write(members)
        self.left.forget_recoveries()  # the training serves more members
        return self._write(members)

    def _job(self, job: Job, keep: float) -> Job:
        """Of one member."""
        others = tuple(budget for budget in job.recipe.budget if budget.unit != self.unit)
        budgets = (Budget(self.unit, keep_ratio=keep), *others)
        return dataclasses.replace(job, recipe=dataclasses.replace(job.recipe, budget=budgets))

    def _found(self, job: Job, keep: float) -> Member | None:
        """A member that an earlier run finished, from the same."""
        folder = self._folder(keep)
        if self.left.resume == "never":
            return None
        try:
            read(folder).close()
        except BundleError:
            return None
        same = _read(folder / "recipe.lock.json") == locked(job.recipe, job)
        if not same or self._listed().get(f"{keep:g}") == Exit.BUILD:  # which is tried again
            return None
        metrics = check_metrics(_read(folder / "metrics.json"))
        failed = "; ".join(failures(metrics))
        code = exit_code(metrics) if failed else Exit.OK
        with self.tell.stage(f"keep {keep:g}") as stage:
            stage.note(f"{folder} is there, made from the same")
        return Member(keep, folder, "kept", code, failed, metrics, _read(folder / "plan.json"))

    def _listed(self) -> dict[str, int]:
        """How an earlier run ended, by folder."""
        try:
            members = _read(self.out / INDEX)["members"]
            return {member["folder"]: member["exit_code"] for member in members}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def _made(self, job: Job, prepared: Prepared, own: Sequence[Own], keep: float) -> Member:
        folder = self._folder(keep)
        with self.tell.stage(f"keep {keep:g}") as stage:
            stage.note(f"of the {self.unit}, to {folder}")
        try:
            found = choose(prepared, self.tell, job.recipe.budget)
        except BudgetError as refusal:
            return Member(keep, folder, "impossible", Exit.USAGE, str(refusal))
        with staging(folder) as staged:
            metrics, code, summary = write_bundle(job, own, found, staged, self.tell)
        plan = json.loads(found.plan.to_json())
        return Member(keep, folder, "made", code, summary, metrics, plan)

    def _folder(self, keep: float) -> Path:
        return self.out / f"{keep:g}"

    def _write(self, members: Sequence[Member]) -> Family:
        """The index of what is finished so far."""
        family = Family(self.recipe.name, self.unit, tuple(members))
        self.out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(family.to_dict(), indent=2, sort_keys=True, allow_nan=False) + "\n"
        whole = self.out / f".{INDEX}-{secrets.token_hex(4)}"
        try:
            whole.write_text(text, encoding="utf-8", newline="\n")
            os.replace(whole, self.out / INDEX)
        finally:
            whole.unlink(missing_ok=True)
        measured = [member.metrics for member in members]
        page = family_html(family.to_dict(), measured, family.points)
        write_page(page, self.out / PAGE)
        return family


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
