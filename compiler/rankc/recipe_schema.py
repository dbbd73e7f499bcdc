"""What a recipe may say, for editors and for readers, out of the dataclasses and their comments."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import textwrap
import tokenize
from collections.abc import Iterator
from io import StringIO
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import TypeAdapter

from rankc.recipe import (
    Budget,
    Data,
    DataSpec,
    Gate,
    Images,
    Latency,
    OwnMetric,
    Planning,
    Profile,
    Recipe,
    Refit,
    Search,
    Target,
    Timing,
)
from rankc.recipe_load import ALL_PASSES, PassTypes, option_types
from rankc.recipe_training import Augment, Objective, Recovery, Training

_SECTIONS = (
    Recipe, Data, DataSpec, Images, Budget, Planning, Timing, Refit, Training,
    Objective, Augment, Recovery, Search, OwnMetric, Gate,
    Latency, Target, Profile
)  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Option:
    """One key of a recipe, or of a pass."""

    name: str
    type: str  # in words
    default: str | None  # None: required
    text: str  # its comment


def options(kind: type[Any]) -> tuple[Option, ...]:
    """The options of a dataclass, in the order of its fields."""
    texts: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        texts |= _comments(one) if dataclasses.is_dataclass(one) else {}
    fields = {field.name: field for field in dataclasses.fields(kind)}
    return tuple(
        Option(name, _type_words(hint), _default(fields[name]), texts.get(name, ""))
        for name, hint in option_types(kind).items()
    )


def summary(kind: type[Any]) -> str:
    """First line of the docstring."""
    return inspect.getdoc(kind).splitlines()[0] if kind.__doc__ else ""  # type: ignore[union-attr]


def _default(field: dataclasses.Field[Any]) -> str | None:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return None
    return json.dumps(_jsonable(value), ensure_ascii=False)


def _jsonable(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {k: v for k, v in dataclasses.asdict(value).items() if v not in (None, ())}
    return [_jsonable(entry) for entry in value] if isinstance(value, tuple) else value


_WORDS: dict[Any, str] = {int: "whole number", float: "number", str: "text", bool: "true, false"}


def _type_words(hint: Any) -> str:
    """A type as whoever writes YAML thinks of it: a tuple is a list, None is leaving it out."""
    arguments = get_args(hint)
    if get_origin(hint) is Annotated:
        return _type_words(arguments[0])
    if get_origin(hint) is Literal:
        return ", ".join(str(choice) for choice in arguments)
    if get_origin(hint) is tuple:
        return f"list of {_type_words(arguments[0])}"
    if arguments and type(None) in arguments:
        return " or ".join(_type_words(arg) for arg in arguments if arg is not type(None))
    return _WORDS.get(hint, "mapping")


def _comments(kind: type[Any]) -> dict[str, str]:
    """The comment of each field: behind it, else on the lines right above it."""
    source = textwrap.dedent(inspect.getsource(kind))
    tokens = tokenize.generate_tokens(StringIO(source).readline)
    notes = {t.start[0]: t for t in tokens if t.type == tokenize.COMMENT}
    lines = source.splitlines()
    found = {}
    (body,) = (node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            behind = notes.get(node.end_lineno or node.lineno)
            texts = [behind.string] if behind else []
            above = node.lineno - 1
            while not behind and above in notes and lines[above - 1].lstrip().startswith("#"):
                texts.insert(0, notes[above].string)
                above -= 1
            found[node.target.id] = " ".join(text.lstrip("# ") for text in texts)
    return found


# --- JSON Schema ----------------------------------------------------------------------------


def schema_text(*, pass_types: PassTypes = ALL_PASSES) -> str:
    """`docs/recipe.schema.json`, which the modeline of a recipe refers to."""
    schema = TypeAdapter(Recipe).json_schema()
    definitions = schema.pop("$defs")
    definitions.pop("PassSpec")
    for kind in _SECTIONS[1:]:
        _describe(definitions[kind.__name__], kind)
    _describe(schema, Recipe)
    for kind in pass_types:
        definitions[kind.__name__] = _describe(TypeAdapter(kind).json_schema(), kind)
    entries = [_pass_entry(kind) for kind in pass_types]
    names = {"enum": [kind.name for kind in pass_types]}
    schema["properties"]["passes"]["items"] = {"anyOf": [names, *entries]}
    budget = schema["properties"]["budget"]
    several = {"type": budget.pop("type"), "items": budget.pop("items")}
    budget["anyOf"] = [several["items"], several, {"type": "null"}]
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "A rankc recipe"}
    whole = {**schema, **head, "$defs": definitions}
    return json.dumps(whole, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _pass_entry(kind: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": [kind.name],
        "properties": {
            kind.name: {
                "anyOf": [{"$ref": f"#/$defs/{kind.__name__}"}, {"type": "null"}],
                "description": summary(kind),
            }
        },
    }


def _describe(schema: dict[str, Any], kind: type[Any]) -> dict[str, Any]:
    """Close the object to unknown keys, and take the words from the source."""
    known = {option.name: option for option in options(kind)}
    schema["description"] = summary(kind)
    schema["additionalProperties"] = False
    schema["properties"] = {k: v for k, v in schema["properties"].items() if k in known}
    for name, entry in schema["properties"].items():
        entry.pop("title", None)
        if known[name].text:
            entry["description"] = known[name].text
    return schema


# --- rankc passes ---------------------------------------------------------------------------


def describe_passes(*, pass_types: PassTypes = ALL_PASSES) -> list[dict[str, Any]]:
    """Every pass with its options, as `rankc passes --json` prints them."""
    return [
        {
            "name": kind.name,
            "summary": summary(kind),
            "options": [dataclasses.asdict(option) for option in options(kind)],
        }
        for kind in pass_types
    ]


# --- docs/recipe.md -------------------------------------------------------------------------


MARKER = "<!-- Below this line: generated from the source, by `make docs`. -->"


def docs_page(before: str) -> str:
    """The page with its reference renewed; what stands above the marker is somebody's prose."""
    return before.partition(MARKER)[0] + f"{MARKER}\n\n{docs_text()}"


def docs_text(*, pass_types: PassTypes = ALL_PASSES) -> str:
    """The reference tables of `docs/recipe.md`."""
    parts = [f"## {_heading(kind)}\n\n{summary(kind)}\n\n{_table(kind)}" for kind in _SECTIONS]
    parts += [f"## Pass `{kind.name}`\n\n{summary(kind)}\n\n{_table(kind)}" for kind in pass_types]
    return "\n".join(parts)


def _heading(kind: type[Any]) -> str:
    places = {
        Recipe: "Top level",
        Data: "`data`",
        DataSpec: "`data.calibration`, `.validation`, `.training`, `.holdout`",
        Images: "`data.calibration.image`, `data.validation.image`",
        Budget: "`budget`, `budget[]`",
        Planning: "`planning`",
        Timing: "`timing`",
        Refit: "`refit`",
        Training: "`train`",
        Objective: "`train.objective`, `recover.objective`",
        Augment: "`train.augment`, `recover.augment`",
        Recovery: "`recover`",
        Search: "`search`",
        OwnMetric: "`metrics.<name>`",
        Gate: "`gates[]`",
        Latency: "`latency`",
        Target: "`lower[]`",
        Profile: "`lower[].profile`",
    }
    return places[kind]


def _table(kind: type[Any]) -> str:
    return "\n".join(["| key | type | default | |", "|---|---|---|---|", *_rows(kind)]) + "\n"


def _rows(kind: type[Any]) -> Iterator[str]:
    for option in options(kind):
        default = "required" if option.default is None else f"`{option.default}`"
        default = "" if option.default == "null" else default
        cells = (f"`{option.name}`", option.type, default, option.text)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
