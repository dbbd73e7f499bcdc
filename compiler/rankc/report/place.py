"""Where in the recipe a report points at."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rankc.recipe import Recipe


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """A recipe file as a CI knows it."""

    uri: str  # relative to the current folder, which in a CI is the repository
    lines: Mapping[str, int]  # by key, see Recipe.lines
    passes: Sequence[str] = ()  # names, in the order of the recipe

    def gate(self, index: int) -> int | None:
        """The line of a gate; None where `--set` said it."""
        return self.lines.get(f"gates[{index}]")

    def pass_(self, name: str) -> int | None:
        """The line of a pass."""
        if name not in self.passes:
            return None
        return self.lines.get(f"passes[{self.passes.index(name)}]")


def place_of(recipe: Recipe) -> Place:
    """Where a recipe lies, with `/` on every system; its bare name outside the current folder."""
    file, here = recipe.file.resolve(), Path.cwd().resolve()
    uri = file.relative_to(here).as_posix() if file.is_relative_to(here) else file.name
    return Place(uri, recipe.lines, tuple(spec.name for spec in recipe.passes))


def notes(metrics: Any, plan: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """What became of layers that stay as they were: name of the pass, and a sentence."""
    back = [
        (one["pass_name"], f"{one['site']}: put back, as it was no faster than the dense layer")
        for one in metrics["layers"]
        if one["verdict"] == "put back"
    ]
    skips = [] if plan is None else plan["skips"]
    return back + [(one["pass_name"], f"{one['name']}: skipped, {one['reason']}") for one in skips]
