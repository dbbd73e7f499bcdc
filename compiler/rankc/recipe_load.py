"""Recipe file → Recipe: every mistake is told with its line, its key, and what would be right."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from rankc.errors import RecipeError
from rankc.passbase import ExactPass, Pass
from rankc.passes import EXACT_PASSES, PASSES
from rankc.recipe import (
    NOT_KEYS,
    PassSpec,
    Recipe,
)
from rankc.recipe_checks import Problem, contradictions, one_of, shown
from rankc.recipe_yaml import Document, Steps, dotted, read

PassTypes = Sequence[type[Any]]
ALL_PASSES: PassTypes = (*EXACT_PASSES, *PASSES)

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
    _raise_if(list(contradictions(recipe)), document)
    return recipe


def build_passes(
    recipe: Recipe, *, pass_types: PassTypes = ALL_PASSES
) -> tuple[ExactPass | Pass, ...]:
    """Make the passes that a recipe names, options set, in the recipe's order.

    Raises:
        RecipeError: an option has the wrong type or value; cannot happen after `load_recipe`.
    """
    return tuple(instances(recipe, pass_types))


def instances(recipe: Recipe, pass_types: PassTypes) -> list[Any]:
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


def _read_passes(entries: Any, types: PassTypes) -> tuple[tuple[PassSpec, ...], list[Problem]]:
    specs: list[PassSpec] = []
    problems: list[Problem] = []
    if entries is not None and not isinstance(entries, list):
        return (), [Problem(("passes",), f"expected a list of passes, got {shown(entries)}")]
    for index, entry in enumerate(entries or []):
        found = _read_pass(entry, ("passes", index), {kind.name: kind for kind in types})
        if isinstance(found, PassSpec) and found.name in {spec.name for spec in specs}:
            found = [Problem(("passes", index), f"pass {found.name!r} is listed twice")]
        if isinstance(found, PassSpec):
            specs.append(found)
        else:
            problems += found
    return tuple(specs), problems


def _read_pass(
    entry: Any, steps: Steps, types: Mapping[str, type[Any]]
) -> PassSpec | list[Problem]:
    if isinstance(entry, str):
        entry = {entry: None}
    if not isinstance(entry, dict) or len(entry) != 1:
        text = "expected a pass name, or one pass with its options"
        return [Problem(steps, f"{text}; got {shown(entry)}", "like `- embedding: {int8: true}`")]
    ((name, options),) = entry.items()
    below = (*steps, name)
    if name not in types:
        return [Problem(below, "unknown pass", one_of(name, types, "passes: "))]
    options = {} if options is None else options
    problems = list(_unknown_keys(options, types[name], below))
    if not problems:
        problems = _validate(types[name], options, below)[1]
    if not problems:
        problems = list(_bad_patterns(options, below))
    return problems or PassSpec(name, options)


def _bad_patterns(options: Mapping[str, Any], steps: Steps) -> Iterator[Problem]:
    for key in ("targets", "ignore"):
        for index, pattern in enumerate(options.get(key, ())):
            if why := _bad_pattern(pattern):
                text = f"{shown(pattern)} is no regular expression: {why}"
                yield Problem((*steps, key, index), text)


def _bad_pattern(pattern: str) -> str | None:
    try:
        re.compile(pattern[3:] if pattern.startswith("re:") else "")
    except re.error as error:
        return str(error)
    return None


def _unknown_keys(value: Any, kind: type[Any], steps: Steps) -> Iterator[Problem]:
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
            yield Problem((*steps, key), "unknown option", one_of(key, known, f"{owner} takes: "))
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


def _validate(kind: type[Any], value: Any, steps: Steps) -> tuple[Any, list[Problem]]:
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
        return None, [Problem(steps, str(error))]


def _translate(detail: ErrorDetails, steps: Steps, value: Any) -> Problem:
    kind, got, context = detail["type"], detail["input"], detail.get("ctx", {})
    where = (*steps, *_as_written(detail["loc"], value))
    if kind in ("missing", "missing_argument"):
        return Problem(where, "required, and not given")
    if kind == "value_error":
        return Problem(where, str(context["error"]))
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", str(context["expected"]))
        return Problem(where, f"unknown value {shown(got)}", one_of(got, choices, "one of: "))
    if kind in _EXPECTED:
        return Problem(where, f"expected {_EXPECTED[kind]}, got {shown(got)}")
    text = detail["msg"].replace("Input should be", "must be").replace("Tuple should", "must")
    text = text.replace("String should", "must")
    return Problem(where, f"{text}, got {shown(got)}")


def _as_written(steps: Steps, value: Any) -> Iterator[str | int]:
    """The steps without those into a list of one that was written as its entry."""
    for step in steps:
        if isinstance(step, str) or isinstance(value, list):
            yield step
            value = dict(enumerate(value)) if isinstance(value, list) else value
            value = value.get(step) if isinstance(value, dict) else None


# --- words ----------------------------------------------------------------------------------


def _raise_if(problems: Sequence[Problem], document: Document) -> None:
    if problems:
        raise RecipeError("\n".join(_render(document, problem) for problem in problems))


def _render(document: Document, problem: Problem) -> str:
    place = document.place(problem.steps)
    key = f" {dotted(problem.steps)}:" if problem.steps else ""
    hint = f"\n  {problem.hint}" if problem.hint else ""
    return f"{place}:{key} {problem.text}{hint}"
