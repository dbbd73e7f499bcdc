"""The proof of a bundle that is there: measured again on this machine, or read as it was kept."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rankc.data import InRange, Source, open_source
from rankc.errors import Exit, RecipeError
from rankc.intake import load, open_original
from rankc.progress import Progress
from rankc.recipe import Recipe
from rankc.recipe_bundle import load_kept
from rankc.recipe_lock import resolved
from rankc.report import place_of, write_reports
from rankc.validate import (
    check_gates_possible,
    exit_code,
    open_baseline,
    processor,
    subject_of,
    target_name,
    validate,
)
from rankc.validate.baseline import identity
from rankc.validate.baseline_file import Data, Subject
from rankc.validate.own import open_metrics
from rankc.validate.schema import Metrics, check_metrics
from rankrt.bundle import Contents
from rankrt.files import inside


@dataclasses.dataclass(frozen=True, slots=True)
class Proof:
    """What was measured of a bundle, and of what."""

    metrics: Metrics
    subject: Subject
    notes: tuple[str, ...] = ()  # what is not as when the bundle was compiled

    @property
    def exit_code(self) -> Exit:
        return exit_code(self.metrics)


def kept_proof(contents: Contents) -> Proof:
    """What was measured when the bundle was compiled.

    Raises:
        RecipeError: another version of rankc measured it, in another structure.
        rankrt.BundleError: a file of it is missing.
    """
    digests = read_part(contents, "recipe.lock.json")["sha256"]
    spec, data = load_kept(contents.folder).data.validation, None
    if spec is not None:
        data = Data(
            sha256=digests["validation"], rows=spec.rows, label=spec.label, group=spec.group
        )
    try:
        metrics = check_metrics(read_part(contents, "metrics.json"))
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise RecipeError(
            f"{contents.folder}: its metrics.json is of another version of rankc (at {where}): "
            "recompile the recipe"
        ) from error
    compressed = identity(contents.folder / contents.manifest.model)
    return Proof(metrics, Subject(original=digests["model"], compressed=compressed, data=data))


def prove_again(
    contents: Contents, recipe: Recipe, tell: Progress, *, trust_code: bool = False
) -> Proof:
    """Measure a bundle's model against its original on this machine, and decide the gates.

    Nothing is compiled, and nothing written.

    Args:
        contents: the bundle, its hashes checked.
        recipe: whose gates are decided, and where model and data are found.
        tell: where stages are announced.
        trust_code: allow the recipe to name Python code.

    Raises:
        RankcError: as compiling does; also if the original is not the one that was compressed.
    """
    check_gates_possible(recipe)
    own = open_metrics(recipe, trust_code=trust_code)
    digests, notes = read_part(contents, "recipe.lock.json")["sha256"], []
    with tell.stage("intake") as stage:
        taken = load(recipe.folder / recipe.model)
        if taken.sha256 != digests["model"]:
            raise RecipeError(
                f"{taken.path} is not the model that {contents.folder} was made of: its sha256 is "
                f"{taken.sha256[:12]}…, then it was {digests['model'][:12]}…\n"
                "  bring that model back, or recompile the recipe"
            )
        source = _rows(contents, recipe, open_original(taken).inputs, trust_code)
        compressed = contents.folder / contents.manifest.model
        subject = partial(subject_of, recipe, taken.sha256, compressed, source)
        if baseline := open_baseline(recipe, subject):
            baseline.check(recipe.gates, target_name("onnxruntime", processor()))
        of = subject()
        if of["data"] is not None and of["data"]["sha256"] != digests.get("validation"):
            notes.append("the validation data are not those the bundle was compiled with")
        stage.note(f"sha256 {taken.sha256[:8]}…, as when the bundle was compiled")
    with tell.stage("validate") as stage:
        metrics = validate(taken.path, compressed, source, recipe, stage, own, baseline)
    metrics["backends"] = read_part(contents, "metrics.json")["backends"]
    return Proof(metrics, of, tuple(notes))


def write_proof(proof: Proof, contents: Contents, recipe: Recipe, out: Path) -> None:
    """Write the reports of a proof into a folder of their own.

    Raises:
        RecipeError: the folder is the bundle, or lies in it.
    """
    if out.resolve().is_relative_to(contents.folder.resolve()):
        raise RecipeError(f"--out {out} lies in the bundle, which is not changed; give another")
    out.mkdir(parents=True, exist_ok=True)
    write_reports(
        proof.metrics,
        read_part(contents, "plan.json"),
        out,
        layers=read_part(contents, "layers.json"),
        lock=read_part(contents, "recipe.lock.json"),
        recipe=resolved(recipe),
        place=place_of(recipe),
    )


def read_part(contents: Contents, name: str) -> Any:
    """The content of a JSON file of the bundle."""
    return json.loads(inside(contents.folder, name).read_text("utf-8"))


def _rows(contents: Contents, recipe: Recipe, inputs: Any, trust_code: bool) -> Source | None:
    spec = recipe.data.validation
    if spec is None:
        return None
    source = open_source(spec, recipe.folder, inputs, trust_code=trust_code)
    most = contents.manifest.id_ranges.items()
    return InRange(source, {n: (ids,) if isinstance(ids, int) else ids for n, ids in most})
