"""`rankc profile`: fill a latency table for the layers of a model, on the machine it runs on.

Every layer is taken out of the model and timed dense and factored, in each form that a pass offers,
at a few ranks up to where factoring stops saving multiply-accumulates. The table is saved after
every layer, and what it has is not timed again: stop it, or bound its minutes, and go on later.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

import onnx_ir as ir
from threadpoolctl import threadpool_limits

from rankc.cleanup import clean
from rankc.errors import DataError, RecipeError
from rankc.intake import load as load_model
from rankc.latency_table import Header, LatencyTable, Ranked
from rankc.latency_table import load as load_table
from rankc.layer_models import concrete, isolate, rewritten, signature, solved
from rankc.layer_timing import Bench, Call, Compared, bench_of, compare, empty_call_ns
from rankc.passbase import Pass, Site, Skip
from rankc.passes import EXACT_PASSES, PASSES
from rankc.progress import Progress, SilentProgress, Stage
from rankc.rank_grid import grid
from rankc.recipe_checks import LEARNING

SECONDS = 0.12  # a rank of a form, its dense partner included


@dataclasses.dataclass(frozen=True, slots=True)
class Profile:
    """What became of a profile."""

    out: Path
    layers: int  # different ones
    sites: int  # places in the model where they stand
    timed: int  # layers of which something was timed now
    known: int  # layers that the table had
    left: int  # layers that are still to do
    skips: tuple[Skip, ...]  # sites that cannot be timed, and why

    @property
    def done(self) -> bool:
        return not self.left

    def to_dict(self) -> dict[str, Any]:
        """As `rankc profile --json` prints it."""
        return {**dataclasses.asdict(self), "out": str(self.out), "done": self.done}


@dataclasses.dataclass(frozen=True, slots=True)
class _Task:
    """One layer, one pass."""

    key: str
    alone: ir.Model
    pass_: Pass
    site: Site
    macs: int  # of the layer left dense


def default_out(target: str, batch: int) -> Path:
    """Where a table goes when nobody says: one for all models of this machine."""
    return Path("build") / f"latency-{target}-b{batch}.json"


def profile(
    path: Path,
    target: str = "cpu",
    out: Path | None = None,
    *,
    batch: int = 1,
    minutes: float | None = None,
    passes: Sequence[str] = (),
    progress: Progress | None = None,
    bench: Bench | None = None,
) -> Profile:
    """Time the layers of a model and add them to a table.

    Args:
        path: an ONNX file.
        target: `cpu`, `cuda` or `tensorrt`.
        out: the table, made or gone on with; by default `default_out`.
        batch: rows a call; no effect where the model fixes their number.
        minutes: stop after that long, with what there is by then.
        passes: names of passes; by default every one that has layers.
        progress: where to tell how far it is.
        bench: where to time; by default the target, here.

    Raises:
        RecipeError: no such target or pass, a number that means nothing, or nothing to time.
        ModelError: as `rankc.intake.load`.
        DataError: `out` is something else, or a table of another machine or batch size.
        MachineError: the target is not here, or the table cannot be written.
    """
    deadline = _checked(batch, minutes)
    chosen = _passes(passes)
    tell, out = progress or SilentProgress(), out or default_out(target, batch)
    bench = bench or bench_of(target)
    table = _opened(out, target, batch, bench)
    with tell.stage("intake") as stage:
        tasks, skips, sites = _tasks(_prepared(path), chosen, batch)
        stage.note(f"{len(tasks)} different layers at {sites} sites, batch {batch}")
    if not tasks:
        names = ", ".join(pass_.name for pass_ in chosen)
        raise RecipeError(
            f"{path}: {names}: no layer that could be timed; `rankc inspect` says why not"
        )
    with tell.stage("profile") as stage, threadpool_limits(limits=1, user_api="blas"):
        work = _Work(bench, table, out, deadline, stage)
        timed, known, left = work.run(tasks)
        stage.note(_said(timed, known, left, out))
    return Profile(out, len(tasks), sites, timed, known, left, skips)


def _said(timed: int, known: int, left: int, out: Path) -> str:
    had = f", {known} were in the table already" if known else ""
    rest = f", {left} left: run it again to go on" if left else ""
    return f"{timed} layers timed{had}{rest} → {out}"


def _checked(batch: int, minutes: float | None) -> float:
    """The moment to stop at."""
    if batch < 1:
        raise RecipeError(f"--batch is {batch}; it must be 1 or more")
    if minutes is not None and not minutes > 0:
        raise RecipeError(f"--minutes is {minutes}; it must be more than 0")
    return float("inf") if minutes is None else time.monotonic() + 60 * minutes


def _passes(names: Sequence[str]) -> tuple[Pass, ...]:
    """Passes in every form that they have, those of that name or all."""
    known = {kind.name: kind for kind in PASSES}
    if unknown := [name for name in names if name not in known]:
        raise RecipeError(f"--pass {unknown[0]}: no such pass; choose among {', '.join(known)}")
    asked = names or [name for name in known if name not in LEARNING]
    return tuple(_in_every_form(known[name]) for name in known if name in asked)


def _in_every_form(kind: type[Any]) -> Pass:
    """A pass with its default options, but every form, those too that have to be asked for."""
    forms = get_type_hints(kind).get("forms")
    pass_: Pass = kind() if forms is None else kind(forms=get_args(get_args(forms)[0]))
    return pass_


def _prepared(path: Path) -> ir.Model:
    """As a compile would have it before calibration, so that layers are called as in a plan."""
    model = load_model(path).model
    clean(model)
    for exact in EXACT_PASSES:
        exact().prepare(model)
    return model


def _tasks(
    model: ir.Model, passes: Sequence[Pass], batch: int
) -> tuple[list[_Task], tuple[Skip, ...], int]:
    """The different layers, the sites that cannot be timed, and at how many sites layers are."""
    fixed = concrete(model, batch)
    tasks: dict[tuple[str, str], _Task] = {}
    skips: list[Skip] = []
    sites = 0
    for pass_, site in _layers(model, passes):
        alone = isolate(fixed, pass_, site, batch)
        if isinstance(alone, str):
            skips.append(Skip(site.pass_name, site.name, alone))
            continue
        sites += 1
        key = signature(alone)
        macs = pass_.dense(model, site).macs
        tasks.setdefault((key, pass_.name), _Task(key, alone, pass_, site, macs))
    return list(tasks.values()), tuple(skips), sites


def _layers(model: ir.Model, passes: Sequence[Pass]) -> Iterator[tuple[Pass, Site]]:
    for pass_ in passes:
        for site in pass_.match(model):
            if isinstance(site, Site) and pass_.probe(model, site).inputs is not None:
                yield pass_, site


def _opened(out: Path, target: str, batch: int, bench: Bench) -> LatencyTable:
    """The table to go on with, or an empty one.

    Raises:
        DataError: it was measured elsewhere: times of two machines do not mix.
    """
    header = Header(target, batch, **dataclasses.asdict(bench.machine))
    if not out.exists():
        return LatencyTable(header)
    table = load_table(out, target)
    for name, now in dataclasses.asdict(header).items():
        if (then := getattr(table.header, name)) != now:
            raise DataError(
                f"{out}: was measured with {name} {then!r}, and here it is {now!r}; times of the "
                "two do not mix: choose another --out, or remove the file"
            )
    return table


@dataclasses.dataclass(frozen=True, slots=True)
class _Missing:
    """What the table lacks of a layer."""

    solution: Any
    entries: Sequence[tuple[str, int]]  # form and rank


@dataclasses.dataclass(slots=True)
class _Work:
    """Timing, layer after layer."""

    bench: Bench
    table: LatencyTable
    out: Path
    deadline: float
    stage: Stage
    empty_ns: float | None = None

    def run(self, tasks: Sequence[_Task]) -> tuple[int, int, int]:
        """How many layers were timed, were known, and are left."""
        timed = known = 0
        if not self.out.exists():
            self.table.save(self.out)  # a place that cannot be written is told before the work
        for k, task in enumerate(tasks):
            self.stage.advance(k, len(tasks))
            missing = None if self._late() else self._missing(task)
            if missing is None:
                return timed, known, len(tasks) - k
            if not missing.entries:
                known += 1
            elif self._time(task, missing):
                timed += 1
            else:
                return timed, known, len(tasks) - k
        self.stage.advance(len(tasks), len(tasks))
        return timed, known, 0

    def _late(self) -> bool:
        return time.monotonic() >= self.deadline

    def _missing(self, task: _Task) -> _Missing:
        solution = solved(task.pass_, task.alone, task.site)
        curve = task.pass_.cost(task.site, solution)
        wanted = [(curve.form(i), int(curve.ranks[i])) for i in grid(curve, task.macs)]
        name = task.pass_.name
        return _Missing(solution, [w for w in wanted if not self.table.has(task.key, name, *w)])

    def _time(self, task: _Task, missing: _Missing) -> bool:
        """Time a layer and save the table; False: the time was up before it was whole."""
        found: list[tuple[str, int, Compared]] = []
        dense = self.bench.open(task.alone)
        try:
            for form, rank in missing.entries:
                if self._late():
                    return False
                found.append((form, rank, self._compare(task, dense, missing.solution, form, rank)))
        finally:  # an interrupt, too, leaves what was timed by then
            self._record(task, found)
        return True

    def _compare(self, task: _Task, dense: Call, solution: Any, form: str, rank: int) -> Compared:
        if self.empty_ns is None:
            self.empty_ns = empty_call_ns(self.bench)
        factored = rewritten(task.alone, task.pass_, task.site, rank, solution, form)
        return compare(self.bench, dense, self.bench.open(factored), SECONDS, self.empty_ns)

    def _record(self, task: _Task, found: Sequence[tuple[str, int, Compared]]) -> None:
        if found:
            dense_ms = statistics.median(one.dense_ms for _, _, one in found)
            for form, rank, one in found:
                ranked = Ranked(form, rank, one.ratio)
                self.table.record(task.key, dense_ms, task.pass_.name, ranked)
            self.table.save(self.out)
