"""Recipe file → Recipe: every mistake is told with its line, its key, and what would be right."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib.metadata
import json
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from rankc.errors import RecipeError
from rankc.passbase import ExactPass, Pass
from rankc.passes import EXACT_PASSES, PASSES
from rankc.recipe import (
    ENERGY_ELSEWHERE,
    LABELLED,
    METRICS,
    NOT_KEYS,
    Gate,
    PassSpec,
    Recipe,
)
from rankc.recipe_yaml import Document, Steps, dotted, read

PassTypes = Sequence[type[Any]]
ALL_PASSES: PassTypes = (*EXACT_PASSES, *PASSES)
LOCKED = ("numpy", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "onnxruntime-gpu", "pillow")

_OWN_NAME = re.compile(r"[a-z][a-z0-9_]*")
_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dataclass_type": "a mapping of options",
    "dict_type": "a mapping",
}


@dataclasses.dataclass(frozen=True, slots=True)
class _Problem:
    steps: Steps
    text: str
    hint: str = ""


def load_recipe(
    path: Path, overrides: Sequence[str] = (), *, pass_types: PassTypes = ALL_PASSES
) -> Recipe:
    """Read a recipe, apply `--set` options, check everything that can be checked without the model.

    Args:
        path: the YAML file.
        overrides: `a.b=c`, the value in YAML; list entries by index, passes by name or index.
        pass_types: the pass classes that the recipe may name.

    Raises:
        RecipeError: one line a problem, each with file and line (or the override) and the key.
    """
    document = read(path)
    for option in overrides:
        document.set(option)
    data = dict(document.data)
    passes, problems = _read_passes(data.get("passes"), pass_types)
    data["passes"] = [{"name": spec.name, "options": {}} for spec in passes]
    if "passes" not in document.data:
        del data["passes"]
    problems += _unknown_keys(data, Recipe, ())
    _raise_if(problems, document)
    loaded, problems = _validate(Recipe, data, ())
    _raise_if(problems, document)
    recipe: Recipe = dataclasses.replace(
        loaded, passes=passes, folder=path.parent, file=path, lines=document.lines()
    )
    _raise_if(list(_contradictions(recipe)), document)
    return recipe


def build_passes(
    recipe: Recipe, *, pass_types: PassTypes = ALL_PASSES
) -> tuple[ExactPass | Pass, ...]:
    """Make the passes that a recipe names, options set, in the recipe's order.

    Raises:
        RecipeError: an option has the wrong type or value; cannot happen after `load_recipe`.
    """
    return tuple(_instances(recipe, pass_types))


def _instances(recipe: Recipe, pass_types: PassTypes) -> list[Any]:
    types = {kind.name: kind for kind in pass_types}
    built = []
    for index, spec in enumerate(recipe.passes):
        steps = ("passes", index, spec.name)
        instance, problems = _validate(types[spec.name], dict(spec.options), steps)
        if problems:
            raise RecipeError("; ".join(f"{dotted(p.steps)}: {p.text}" for p in problems))
        built.append(instance)
    return built


def option_types(kind: type[Any]) -> dict[str, Any]:
    """The keys that a recipe may use for a dataclass, with their types."""
    hints = get_type_hints(kind, include_extras=True)
    names = [field.name for field in dataclasses.fields(kind) if field.init]
    return {name: hints[name] for name in names if kind is not Recipe or name not in NOT_KEYS}


# --- checks ---------------------------------------------------------------------------------


def _read_passes(entries: Any, types: PassTypes) -> tuple[tuple[PassSpec, ...], list[_Problem]]:
    specs: list[PassSpec] = []
    problems: list[_Problem] = []
    if entries is not None and not isinstance(entries, list):
        return (), [_Problem(("passes",), f"expected a list of passes, got {_show(entries)}")]
    for index, entry in enumerate(entries or []):
        found = _read_pass(entry, ("passes", index), {kind.name: kind for kind in types})
        if isinstance(found, PassSpec) and found.name in {spec.name for spec in specs}:
            found = [_Problem(("passes", index), f"pass {found.name!r} is listed twice")]
        if isinstance(found, PassSpec):
            specs.append(found)
        else:
            problems += found
    return tuple(specs), problems


def _read_pass(
    entry: Any, steps: Steps, types: Mapping[str, type[Any]]
) -> PassSpec | list[_Problem]:
    if isinstance(entry, str):
        entry = {entry: None}
    if not isinstance(entry, dict) or len(entry) != 1:
        text = "expected a pass name, or one pass with its options"
        return [_Problem(steps, f"{text}; got {_show(entry)}", "like `- embedding: {int8: true}`")]
    ((name, options),) = entry.items()
    below = (*steps, name)
    if name not in types:
        return [_Problem(below, "unknown pass", _choices(name, types, "passes: "))]
    options = {} if options is None else options
    problems = list(_unknown_keys(options, types[name], below))
    if not problems:
        problems = _validate(types[name], options, below)[1]
    if not problems:
        problems = list(_bad_patterns(options, below))
    return problems or PassSpec(name, options)


def _bad_patterns(options: Mapping[str, Any], steps: Steps) -> Iterator[_Problem]:
    for key in ("targets", "ignore"):
        for index, pattern in enumerate(options.get(key, ())):
            if why := _bad_pattern(pattern):
                text = f"{_show(pattern)} is no regular expression: {why}"
                yield _Problem((*steps, key, index), text)


def _bad_pattern(pattern: str) -> str | None:
    try:
        re.compile(pattern[3:] if pattern.startswith("re:") else "")
    except re.error as error:
        return str(error)
    return None


def _unknown_keys(value: Any, kind: type[Any], steps: Steps) -> Iterator[_Problem]:
    """Unknown keys at any depth. Values of a wrong type are left to pydantic."""
    if isinstance(value, list):
        for index, entry in enumerate(value):
            yield from _unknown_keys(entry, kind, (*steps, index))
    if not isinstance(value, dict):
        return
    known = option_types(kind)
    owner = str(steps[-1]) if steps and isinstance(steps[-1], str) else kind.__name__.lower()
    for key, below in value.items():
        if key not in known:
            yield _Problem(
                (*steps, key), "unknown option", _choices(key, known, f"{owner} takes: ")
            )
        elif nested := _dataclass_in(known[key]):
            names = get_origin(known[key]) is Mapping and isinstance(below, dict)
            for at, entry in below.items() if names else [(None, below)]:
                inner = (*steps, key) if at is None else (*steps, key, str(at))
                yield from _unknown_keys(entry, nested, inner)


def _dataclass_in(hint: Any) -> type[Any] | None:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return hint
    return next((found for arg in get_args(hint) if (found := _dataclass_in(arg))), None)


def adapter(kind: type[Any]) -> TypeAdapter[Any]:
    """Pydantic's checker for a dataclass."""
    return TypeAdapter(kind)


def _validate(kind: type[Any], value: Any, steps: Steps) -> tuple[Any, list[_Problem]]:
    # By way of JSON, because there strict means what a reader of YAML means: lists are fine for
    # tuples and 1 for 1.0, but "1", true and 1.5 are no whole numbers.
    try:
        return adapter(kind).validate_json(json.dumps(value), strict=True), []
    except ValidationError as error:
        details = error.errors()
        # A list that is short of its bad entries is not another mistake.
        inner = {d["loc"][:-1] for d in details if d["loc"]}
        return None, [_translate(d, steps, value) for d in details if d["loc"] not in inner]
    except RecipeError as error:  # a pass that checks its own options
        return None, [_Problem(steps, str(error))]


def _translate(detail: ErrorDetails, steps: Steps, value: Any) -> _Problem:
    kind, got, context = detail["type"], detail["input"], detail.get("ctx", {})
    where = (*steps, *_as_written(detail["loc"], value))
    if kind in ("missing", "missing_argument"):
        return _Problem(where, "required, and not given")
    if kind == "value_error":
        return _Problem(where, str(context["error"]))
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", str(context["expected"]))
        return _Problem(where, f"unknown value {_show(got)}", _choices(got, choices, "one of: "))
    if kind in _EXPECTED:
        return _Problem(where, f"expected {_EXPECTED[kind]}, got {_show(got)}")
    text = detail["msg"].replace("Input should be", "must be").replace("Tuple should", "must")
    text = text.replace("String should", "must")
    return _Problem(where, f"{text}, got {_show(got)}")


def _as_written(steps: Steps, value: Any) -> Iterator[str | int]:
    """The steps without those into a list of one that was written as its entry."""
    for step in steps:
        if isinstance(step, str) or isinstance(value, list):
            yield step
            value = dict(enumerate(value)) if isinstance(value, list) else value
            value = value.get(step) if isinstance(value, dict) else None


def _contradictions(recipe: Recipe) -> Iterator[_Problem]:
    """Parts that are right by themselves and wrong together."""
    for name in recipe.metrics:
        if not _OWN_NAME.fullmatch(name) or name in METRICS:
            why = "is a metric already" if name in METRICS else "must be lower case letters and _"
            yield _Problem(("metrics", name), f"the name {name!r} {why}", "choose another name")
    known = (*METRICS, *recipe.metrics)
    for index, gate in enumerate(recipe.gates):
        if gate.metric not in known:
            hint = _choices(gate.metric, known, "one of: ")
            yield _Problem(("gates", index, "metric"), f"unknown value {_show(gate.metric)}", hint)
        elif problem := _undecidable(gate, recipe):
            yield _Problem(("gates", index), *problem)
    if problem := _pointless(recipe):
        yield _Problem(("search",), *problem)
    for key, names in (
        ("lower", [target.name for target in recipe.lower]),
        ("budget", [budget.unit for budget in recipe.budget]),
    ):
        for index, name in enumerate(names):
            if name in names[:index]:
                yield _Problem((key, index), f"{name} is listed twice")


def _pointless(recipe: Recipe) -> tuple[str, str] | None:
    """Why a search could not find anything, and what to do."""
    search = recipe.search
    if search is None:
        return None
    if not recipe.gates:
        return "without gates every plan passes, so there is nothing to search for", "add gates"
    if recipe.data.validation is not None:
        return None
    if search.objective == "fastest":
        return "without rows nothing is timed", "add data.validation"
    return ("there are no rows to hold out", "add data.validation") if search.holdout else None


def _undecidable(gate: Gate, recipe: Recipe) -> tuple[str, str] | None:
    """Why this recipe measures nothing to hold the gate against, and what to do."""
    validation, sizes = recipe.data.validation, recipe.latency.batch_sizes
    counted = gate.metric in ("size_bytes", "params", "macs", "nodes") or (
        gate.metric in ("size_ratio", "params_ratio", "macs_ratio")
    )
    if validation is None and not counted:
        return f"{gate.metric} needs validation data", "add data.validation"
    if validation is not None and gate.metric in LABELLED and validation.label is None:
        return f"{gate.metric} needs labels", "name their array or column: data.validation.label"
    if validation is not None and gate.metric == "grouped_auc" and validation.group is None:
        return f"{gate.metric} needs groups", "name their array or column: data.validation.group"
    if gate.metric == "energy_mj":
        return "energy_mj is not measured by compiling, which times the CPU", ENERGY_ELSEWHERE
    timed = gate.metric in ("latency_ms", "latency_ratio", "throughput")
    if timed and gate.batch not in sizes:
        asked = (
            "batch is not given" if gate.batch is None else f"batch {gate.batch} is not measured"
        )
        return asked, f"latency.batch_sizes: {', '.join(map(str, sizes))}"
    if gate.batch is not None and not timed:
        return f"{gate.metric} has no batch", "leave batch out"
    if gate.percentile is not None and gate.metric != "latency_ms":
        return f"{gate.metric} has no percentile", "leave percentile out"
    return None


# --- words ----------------------------------------------------------------------------------


def _raise_if(problems: Sequence[_Problem], document: Document) -> None:
    if problems:
        raise RecipeError("\n".join(_render(document, problem) for problem in problems))


def _render(document: Document, problem: _Problem) -> str:
    place = document.place(problem.steps)
    key = f" {dotted(problem.steps)}:" if problem.steps else ""
    hint = f"\n  {problem.hint}" if problem.hint else ""
    return f"{place}:{key} {problem.text}{hint}"


def _choices(wrong: Any, valid: Sequence[str] | Mapping[str, Any], intro: str) -> str:
    near = difflib.get_close_matches(str(wrong), valid, n=1)
    guess = f"did you mean {near[0]!r}? " if near else ""
    return f"{guess}{intro}{', '.join(valid) or 'nothing'}"


def _show(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = json.dumps(value, ensure_ascii=False)
    words = {str: "the text ", bool: "", int: "the number ", float: "the number "}
    return words.get(type(value), "") + (text if len(text) <= 60 else f"{text[:57]}...")


# --- what is kept with the bundle -----------------------------------------------------------


def resolved(recipe: Recipe, *, pass_types: PassTypes = ALL_PASSES) -> str:
    """The recipe with every default filled in, as YAML: the same recipe, the same bytes.

    Paths stay as written, relative to the recipe that was read.
    """
    tree = {k: v for k, v in dataclasses.asdict(recipe).items() if k not in NOT_KEYS}
    if len(recipe.budget) == 1:
        (tree["budget"],) = tree["budget"]
    tree["passes"] = [
        {spec.name: _options(built)}
        for spec, built in zip(recipe.passes, _instances(recipe, pass_types), strict=True)
    ]
    return yaml.safe_dump(_plain(tree), sort_keys=False, allow_unicode=True, width=100)


def _options(built: Any) -> dict[str, Any]:
    return dataclasses.asdict(built)


def _plain(value: Any) -> Any:
    """Lists for tuples, and no keys without a value: not given and null mean the same."""
    if isinstance(value, Mapping):
        return {key: _plain(below) for key, below in value.items() if below is not None}
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    return value


def lock(
    recipe: Recipe, digests: Mapping[str, str], *, pass_types: PassTypes = ALL_PASSES
) -> dict[str, Any]:
    """What has to be equal for the same bytes to come out: recipe.lock.json.

    Args:
        recipe: the recipe as loaded.
        digests: sha256 of each input, e.g. {"model": ..., "calibration": ..., "validation": ...}.
        pass_types: as for `load_recipe`.
    """
    text = resolved(recipe, pass_types=pass_types)
    return {
        "format": 1,
        "python": platform.python_version(),
        "packages": {name: found for name in ("rankc", *LOCKED) if (found := version_of(name))},
        "seed": recipe.seed,
        "sha256": {
            "recipe": hashlib.sha256(text.encode()).hexdigest(),
            **dict(sorted(digests.items())),
        },
    }


def version_of(package: str) -> str | None:
    """The installed version of a distribution; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
