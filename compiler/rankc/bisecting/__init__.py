"""Who is to blame for a drop: which pass, which layer, and whether graph, precision or engine.

Everything is measured on the same validation rows: the original and the compressed model, both in
float32 and, where a target asks for it, in float16, and every engine that runs here. What the
compression costs is looked for in two places. The bundle's file is compared with what its plan
makes: where they differ, the differences are put back by halves. Then the plan itself is carried
out by halves. What float16 costs is looked for by rounding the layers of one model by halves.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx_ir as ir

from rankc.bisecting.answer import Answer, Change, Finding
from rankc.bisecting.blaming import of_choice, of_file
from rankc.bisecting.comparing import Differences
from rankc.bisecting.halves import of_factors, of_rounding
from rankc.bisecting.measuring import ROWS, Bench, Seen, measure_of
from rankc.bisecting.rebuilding import Rebuilt
from rankc.bisecting.searching import Culprit, Harm, culprits
from rankc.earlier import Earlier
from rankc.errors import RecipeError
from rankc.intake import open_original
from rankc.job import Job
from rankc.lowering.half import HalfModel
from rankc.lowering.precision import Golden
from rankc.pipeline import golden_inputs, take_in
from rankc.progress import Progress, SilentProgress, Stage
from rankc.recipe import Recipe
from rankc.serialize import save
from rankc.validate.own import open_metrics
from rankrt.bundle import Contents, load, read, why_not
from rankrt.errors import RankrtError
from rankrt.session import open_model

__all__ = ["Answer", "Change", "Finding", "bisect"]

ORIGINAL_HALF, COMPRESSED, COMPRESSED_HALF = (
    "original in float16", "compressed", "compressed in float16",
)  # fmt: skip
PART = 0.2  # of the drop that a cause has to have to be looked into
SLIGHT = 1e-7  # drops below it, of metrics of order one, are rounding


def bisect(
    bundle: Path,
    recipe: Recipe,
    *,
    metric: str | None = None,
    rows: int | None = None,
    progress: Progress | None = None,
    trust_code: bool = False,
    into: Answer | None = None,
) -> Answer:
    """Find what a bundle's drop from its original comes from.

    Args:
        bundle: its folder or tar; every hash is checked.
        recipe: that it was compiled from.
        metric: by which the drop is counted; by default that of the gate that is missed by most.
        rows: of the validation data, the first ones; by default 4096, at most what 256 MiB hold.
        progress: where stages are announced.
        trust_code: allow the recipe to name Python code.
        into: filled in on the way, for whoever wants to know after an interruption what is known.

    Raises:
        RecipeError: there is no validation data, or the recipe is not the bundle's.
        DataError, ModelError, MachineError: as when compiling.
        rankrt.BundleError: the bundle is damaged.
    """
    started, tell = time.monotonic(), progress or SilentProgress()
    found, contents = Answer() if into is None else into, read(bundle)
    try:
        with tempfile.TemporaryDirectory(prefix="rankc-") as folder:
            case = _open(bundle, contents, recipe, tell, trust_code, rows, Path(folder), found)
            _measure(case, metric)
            _look(case)
    finally:
        contents.close()
        found.seconds = time.monotonic() - started
    return found


@dataclasses.dataclass(slots=True)
class _Case:
    """A bundle that is looked into."""

    path: Path
    contents: Contents
    job: Job
    bench: Bench
    tell: Progress
    found: Answer
    rebuilt: Rebuilt | None = None
    expected: int = 20  # evaluations, for the bar

    @property
    def model(self) -> Path:
        return self.contents.folder / self.contents.manifest.model

    def harm(self, seen: Seen) -> float:
        assert self.found.measure is not None
        return self.found.measure.harm(seen)

    def enough(self, harm: float) -> bool:
        """Whether so much harm needs no further culprit."""
        measure = self.found.measure
        assert measure is not None
        if measure.allowed is not None and self._fails():
            return not measure.fails(harm)
        return harm <= (1 - 4 * PART) * self.worst()

    def _fails(self) -> bool:
        measure = self.found.measure
        assert measure is not None
        return any(measure.fails(self.harm(seen)) for seen in self.found.seen.values())

    def worst(self) -> float:
        return max(map(self.harm, self.found.seen.values()))

    def remembering(self, measured: Callable[[frozenset[str]], Seen], stage: Stage) -> Harm:
        """A harm that is asked for once a set, and shows how far it is."""
        known: dict[frozenset[str], float] = {}

        def harm(names: frozenset[str]) -> float:
            if names not in known:
                known[names] = self.harm(measured(names))
                self.found.evaluations += 1
                stage.advance(len(known), max(self.expected, len(known) + 2))
            return known[names]

        return harm

    def plan(self) -> Rebuilt:
        """What the plan is, carried out when it is first needed.

        Raises:
            RecipeError: the weights were trained after it was carried out.
        """
        if self.rebuilt is None:
            _require_untrained(self.contents)
            self.rebuilt = Rebuilt.of(self.job, self.contents.folder / "plan.json", self.tell)
        return self.rebuilt


def _open(
    bundle: Path,
    contents: Contents,
    recipe: Recipe,
    tell: Progress,
    trust_code: bool,
    rows: int | None,
    folder: Path,
    found: Answer,
) -> _Case:
    if rows is not None and rows < 1:
        raise RecipeError(f"--rows {rows}: give a number of rows, 1 or more")
    own = open_metrics(recipe, trust_code=trust_code)
    made = bundle.with_suffix("") if bundle.suffix == ".tar" else bundle
    job = take_in(recipe, tell, trust_code, Earlier.beside(made))
    if job.validation is None:
        raise RecipeError("bisect compares answers on validation rows: add data.validation")
    original = open_original(job.taken)
    bench = Bench.of(
        original, job.validation, recipe, own, rows=ROWS if rows is None else rows, folder=folder
    )
    found.rows = bench.rows.count
    return _Case(bundle, contents, job, bench, tell, found)


def _measure(case: _Case, metric: str | None) -> None:
    """Every variant of the two models, and the metric to go by."""
    bench, found = case.bench, case.found
    with case.tell.stage("measure") as stage:
        own = bench.seen(bench.wanted).pairs
        seen = {COMPRESSED: bench.session(open_model(case.model))}
        if any(target.precision == "fp16" for target in case.job.recipe.lower):
            seen[ORIGINAL_HALF] = bench.model(_half(case, case.job.taken.model), as_written=True)
            compressed = _half(case, ir.load(case.model))
            seen[COMPRESSED_HALF] = bench.model(compressed, as_written=True)
        found.measure = measure_of(case.job.recipe, own, list(seen.values()), metric)
        found.seen = seen
        _engines(case)
        found.evaluations += len(found.seen)
        stage.note(f"{found.rows:,} rows, by {found.measure.name}")


def _half(case: _Case, model: ir.Model) -> ir.Model:
    return _halved(case, model).rounding()


def _halved(case: _Case, model: ir.Model) -> HalfModel:
    return HalfModel.of(model, Golden(golden_inputs(case.job), case.bench.folder))


def _engines(case: _Case) -> None:
    """Those that are no ONNX Runtime; that one computes what has been measured."""
    for engine in case.contents.manifest.engines:
        if engine.backend == "onnxruntime" or not engine.built:
            continue
        if reason := why_not(engine):
            case.found.skipped[engine.name] = reason.removeprefix(f"{engine.name}: ")
            continue
        try:
            with load(case.path, backend=engine.backend) as opened:
                if opened.engine != engine:
                    case.found.skipped[engine.name] = f"{opened.session.backend} came before it"
                    continue
                case.found.seen[engine.name] = case.bench.session(opened.session)
        except RankrtError as error:
            case.found.skipped[engine.name] = str(error).splitlines()[-1].strip()


def _look(case: _Case) -> None:
    """Into whatever has a part in the drop."""
    found, worst = case.found, case.worst()
    assert found.measure is not None
    if worst <= SLIGHT:
        found.notes.append(f"nothing to bisect: {found.measure.name} is no worse than before")
        return
    if not any(found.measure.fails(case.harm(seen)) for seen in found.seen.values()):
        found.notes.append(_no_gate_fails(case))
    graph = case.harm(found.seen[COMPRESSED])
    if _matters(case, graph):
        _look_into_graph(case)
    half = found.seen.get(COMPRESSED_HALF)
    if half is not None and _matters(case, case.harm(half) - graph):
        _look_into_half(case)
    for engine in case.contents.manifest.engines:
        if engine.name in found.seen:
            _look_at_engine(case, engine.name, half if engine.precision == "fp16" else None)
    if not found.findings:
        found.notes.append("no single layer stands out: the drop is spread; raise the budget")


def _no_gate_fails(case: _Case) -> str:
    """Said of a drop that is allowed, or is on the rows that are looked at."""
    assert case.found.measure is not None
    name, rows = case.found.measure.name, case.found.rows
    written = case.contents.folder / "metrics.json"
    gates = json.loads(written.read_text("utf-8"))["gates"] if written.exists() else []
    if any(gate["metric"] == name and not gate["passed"] for gate in gates):
        return f"the gate on {name} failed on all rows, and holds on these {rows:,}: ask for more"
    return f"no gate on {name} fails here; this is where the drop comes from"


def _require_untrained(contents: Contents) -> None:
    """Refuse weights that were trained with all layers rewritten: none can be put back alone."""
    written = contents.folder / "metrics.json"
    lessons = json.loads(written.read_text("utf-8")).get("training", []) if written.exists() else []
    if any(lesson["stage"] == "recover" and lesson["kept"] for lesson in lessons):
        trained = any(lesson["stage"] == "train" for lesson in lessons)
        rows = "" if trained else " --set data.training=null"  # which nothing else reads
        raise RecipeError(
            "bisect: the weights of this bundle were trained after layers were rewritten "
            "(recover), so none of them can be made dense again by itself; compile without it, "
            f"--set recover=null{rows} --out ANOTHER, and bisect that bundle"
        )


def _matters(case: _Case, part: float) -> bool:
    measure = case.found.measure
    assert measure is not None
    gated = measure.allowed is not None and measure.allowed >= 0 and measure.fails(part)
    return part > SLIGHT and (part >= PART * case.worst() or gated)


def _look_into_graph(case: _Case) -> None:
    rebuilt = case.plan()
    every = frozenset(rebuilt.choices)
    made = case.bench.model(rebuilt.build(every))
    by_plan, by_file = case.harm(made), case.harm(case.found.seen[COMPRESSED])
    case.found.seen["compressed, from its plan"] = made
    if abs(by_file - by_plan) > SLIGHT and by_file - by_plan >= PART * by_file:
        _look_into_file(case, rebuilt)
    if _matters(case, by_plan):
        with case.tell.stage("plan") as stage:
            _halve(
                case, rebuilt.groups, lambda names: case.bench.model(rebuilt.build(names)),
                lambda culprit, _: of_choice(culprit, rebuilt), stage,
            )  # fmt: skip


def _look_into_file(case: _Case, rebuilt: Rebuilt) -> None:
    with case.tell.stage("file") as stage:
        built = _as_read(rebuilt.build(frozenset(rebuilt.choices)), case.bench.folder)
        differing = Differences.of(built, ir.load(case.model), rebuilt.made())
        if differing.loose:
            sites = ", ".join(list(differing.units)[:5])
            case.found.notes.append(
                f"{case.model.name} has other nodes than its plan makes, at {sites}: it was "
                "changed after the compile; compile again"
            )
            return
        _halve(
            case, [list(differing.units)],
            lambda units: case.bench.model(differing.mixed(differing.of_units(units))),
            lambda culprit, _: of_file(
                culprit, differing, lambda n: case.harm(case.bench.model(differing.mixed(n))),
                rebuilt,
            ),
            stage,
        )  # fmt: skip


def _as_read(model: ir.Model, folder: Path) -> ir.Model:
    """As it is when it comes out of a file."""
    path = folder / "built.onnx"
    save(model, path)
    return ir.load(path)


def _look_into_half(case: _Case) -> None:
    """The original, where it does badly in float16 by itself; else the compressed model."""
    graph = case.harm(case.found.seen[COMPRESSED])
    part = case.harm(case.found.seen[COMPRESSED_HALF]) - graph
    original = case.harm(case.found.seen[ORIGINAL_HALF]) >= part / 2
    half = _halved(case, case.job.taken.model if original else ir.load(case.model))
    made = {} if original else case.plan().made()

    def told(culprit: Culprit, harm: Harm) -> Finding:
        if original:
            return of_rounding(culprit, half, case.bench, case.job.recipe)
        return of_factors(culprit, half, case.bench, case.plan(), made)

    with case.tell.stage("precision") as stage:
        _halve(
            case, [half.names],
            lambda names: case.bench.model(half.rounding(names.__contains__), as_written=True),
            told, stage,
        )  # fmt: skip


def _halve(
    case: _Case,
    groups: Sequence[Sequence[str]],
    measured: Callable[[frozenset[str]], Seen],
    told: Callable[[Culprit, Harm], Finding],
    stage: Stage,
) -> None:
    """Name culprits until what is left is little enough."""
    count = sum(map(len, groups))
    case.expected = 4 * max(count, 2).bit_length() + 2
    harm = case.remembering(measured, stage)
    before = case.found.evaluations
    for culprit in culprits(harm, groups, case.enough):
        case.found.findings.append(told(culprit, harm))
    stage.note(f"{case.found.evaluations - before} parts of {count} layers tried")


def _look_at_engine(case: _Case, name: str, half: Seen | None) -> None:
    """What an engine does besides what its precision does."""
    expected = case.harm(half or case.found.seen[COMPRESSED])
    harm = case.harm(case.found.seen[name])
    if not _matters(case, harm - expected):
        return
    why = "the same graph in the same precision does better in ONNX Runtime"
    advice = "build it with another version of the backend, or lower to fp32, and report it there"
    case.found.findings.append(
        Finding("engine", "engine", name, None, "", why, None, harm, expected, (), advice)
    )
