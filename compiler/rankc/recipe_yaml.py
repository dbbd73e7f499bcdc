"""YAML text → plain data that remembers on which line each value stands, and `--set` on top."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from rankc.errors import RecipeError

MAX_BYTES = 1_000_000
MAX_DEPTH = 50
MAX_VALUES = 100_000  # after aliases are expanded, so that an alias bomb stays harmless

Step = str | int
Steps = tuple[Step, ...]


class _Loader(yaml.SafeLoader):
    """YAML 1.2's idea of numbers and dates: `1e-3` is a number, `2024-01-02` is text."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if not tag.endswith((":timestamp", ":float", ":merge"))
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?$|[-+]?\.inf$|\.nan$"),
    list("-+.0123456789"),
)


def dotted(steps: Steps) -> str:
    """Spell a place as users do.

    >>> dotted(("passes", 1, "lowrank", "targets"))
    'passes[1].lowrank.targets'
    """
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    return text.removeprefix(".")


@dataclasses.dataclass(slots=True)
class Document:
    """What a file says: `data` is made of dict, list, str, int, float, bool and None."""

    file: str
    data: Any
    places: dict[Steps, str]  # where a value was written, as `file:line` or as the option

    def place(self, steps: Steps) -> str:
        """Where the value at `steps` was written, or the nearest value around it."""
        for end in range(len(steps), 0, -1):
            if steps[:end] in self.places:
                return self.places[steps[:end]]
        return self.file

    def lines(self) -> dict[str, int]:
        """The line of every key, spelled as `dotted` does, that is still as in the file."""
        start = f"{self.file}:"
        found = {dotted(s): at.removeprefix(start) for s, at in self.places.items() if s}
        return {key: int(line) for key, line in found.items() if line.isdecimal()}

    def set(self, option: str) -> None:
        """Apply `a.b.0.c=value`; a pass may be addressed by its name.

        Raises:
            RecipeError: the option cannot be read, or leads through something that is no mapping.
                Whether a key exists is checked later, together with the file's keys.
        """
        key, equals, text = option.partition("=")
        names = key.split(".")
        if not equals or not all(names) or len(names) > MAX_DEPTH:
            raise RecipeError(
                f"--set {option}: expected key=value, e.g. --set budget.keep_ratio=0.1"
            )
        holder: Any = self.data
        steps: Steps = ()
        for name in names[:-1]:
            holder, steps = self._enter(holder, steps, name, option)
        last = _key(holder, steps, names[-1], option)
        if steps == ("passes",) and isinstance(last, int) and not names[-1].isdigit():
            holder, steps, last = holder[last], (*steps, last), names[-1]
        holder[last] = parse(text, f"--set {option}").data
        self._forget((*steps, last), f"--set {option}")

    def _enter(self, holder: Any, steps: Steps, name: str, option: str) -> tuple[Any, Steps]:
        step = _key(holder, steps, name, option)
        below = (*steps, step)
        if isinstance(holder, dict) and holder.get(step) is None:
            holder[step] = {}
            self._forget(below, f"--set {option}")
        if steps == ("passes",) and not name.isdigit():
            holder, below = holder[step], (*below, name)
            holder[name] = {} if holder[name] is None else holder[name]
            return holder[name], below
        return holder[step], below

    def _forget(self, steps: Steps, place: str) -> None:
        below = [known for known in self.places if known[: len(steps)] == steps]
        for known in below:
            del self.places[known]
        self.places[steps] = place


def _key(holder: Any, steps: Steps, name: str, option: str) -> Step:
    """The dict key or list index that `name` means in `holder`."""
    if isinstance(holder, dict):
        return name
    if not isinstance(holder, list):
        raise RecipeError(f"--set {option}: {dotted(steps)} is a single value, it has no {name!r}")
    if name.isdigit():
        if int(name) < len(holder):
            return int(name)
        raise RecipeError(f"--set {option}: {dotted(steps)} has {len(holder)} entries, from 0")
    if steps != ("passes",):
        raise RecipeError(
            f"--set {option}: {dotted(steps)} is a list; write its index, not {name!r}"
        )
    return _pass_index(holder, name, option)


def _pass_index(passes: list[Any], name: str, option: str) -> int:
    """Index of the pass called `name`, its entry spelled out as `{name: options}`."""
    names = [next(iter(entry), None) if isinstance(entry, dict) else entry for entry in passes]
    if name not in names:
        has = ", ".join(str(known) for known in names) or "none"
        raise RecipeError(f"--set {option}: the recipe has no pass {name!r}; it has: {has}")
    index = names.index(name)
    if not isinstance(passes[index], dict):
        passes[index] = {name: {}}
    return index


def read(path: Path) -> Document:
    """Read a recipe file.

    Raises:
        RecipeError: no such file, too large, not UTF-8, not YAML, or not a mapping.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RecipeError(f"{path}: cannot read the recipe: {error.strerror}") from error
    if len(raw) > MAX_BYTES:
        raise RecipeError(f"{path}: larger than {MAX_BYTES:,} bytes; that is no recipe")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 text (byte {error.start})") from error
    document = parse(text, str(path), lines=True)
    if not isinstance(document.data, dict):
        found = "is empty" if document.data is None else "does not hold keys with values"
        raise RecipeError(f"{path}: the recipe {found}; it needs name, model, data and passes")
    return document


def parse(text: str, source: str, *, lines: bool = False) -> Document:
    """Parse YAML from `source`; with `lines`, places are `source:line`.

    Raises:
        RecipeError: not YAML, a duplicate key, or larger or deeper than a recipe can be.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        builder = _Builder(loader, source, lines)
        return Document(source, None if node is None else builder.build(node, ()), builder.places)
    except RecursionError as error:
        raise RecipeError(f"{source}: nested deeper than {MAX_DEPTH} levels") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}:{mark.line + 1}" if lines and mark else source
        raise RecipeError(f"{place}: not valid YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a number that Python refuses
        raise RecipeError(f"{source}: not valid YAML: {error}") from error


class _Builder:
    """Copies a node tree into plain data; aliases too, so that `set` changes one place only."""

    def __init__(self, loader: _Loader, source: str, lines: bool) -> None:
        self.loader, self.source, self.lines = loader, source, lines
        self.places: dict[Steps, str] = {}
        self.values = 0

    def build(self, node: yaml.Node, steps: Steps) -> Any:
        place = f"{self.source}:{node.start_mark.line + 1}" if self.lines else self.source
        self._mark(steps, place)
        self.values += 1
        if self.values > MAX_VALUES:
            raise RecipeError(f"{place}: more than {MAX_VALUES:,} values (aliases are expanded)")
        if len(steps) > MAX_DEPTH:  # also where an alias refers to what holds it
            raise RecipeError(f"{place}: nested deeper than {MAX_DEPTH} levels")
        if isinstance(node, yaml.MappingNode) and node.tag.endswith(":map"):
            return {key: self.build(value, (*steps, key)) for key, value in self._keys(node, steps)}
        if isinstance(node, yaml.SequenceNode) and node.tag.endswith(":seq"):
            return [self.build(value, (*steps, index)) for index, value in enumerate(node.value)]
        value = self.loader.construct_object(node) if isinstance(node, yaml.ScalarNode) else node
        if (isinstance(value, float) and not math.isfinite(value)) or "\0" in str(node.value):
            raise RecipeError(f"{place}: {dotted(steps)}: {value!r} is no value that an option has")
        if value is None or isinstance(value, str | int | float):
            return value
        raise RecipeError(f"{place}: {dotted(steps)}: the YAML tag {node.tag} has no place here")

    def _mark(self, steps: Steps, place: str) -> None:
        self.places.setdefault(steps, place)  # a key comes before its value, and wins

    def _keys(self, node: yaml.MappingNode, steps: Steps) -> Iterator[tuple[str, yaml.Node]]:
        seen: dict[str, int] = {}
        for key_node, value in node.value:
            line = key_node.start_mark.line + 1
            place = f"{self.source}:{line}" if self.lines else self.source
            if not isinstance(key_node, yaml.ScalarNode):
                raise RecipeError(f"{place}: {dotted(steps)}: a key must be a word")
            key = str(key_node.value)
            if key in seen:
                first = f" (first in line {seen[key]})" if self.lines else ""
                raise RecipeError(f"{place}: {dotted((*steps, key))}: given twice{first}")
            seen[key] = line
            self._mark((*steps, key), place)
            yield key, value
