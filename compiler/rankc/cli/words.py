"""What the verbs share: their common options, the recipe they open, and how they say a result."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankc.errors import Exit, RecipeError

if TYPE_CHECKING:
    from rankc.console import Console
    from rankc.earlier import Earlier
    from rankc.recipe import Recipe


def add_verb(
    verbs: Any, name: str, command: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    verb: argparse.ArgumentParser = verbs.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + "."
    )
    verb.add_argument("--json", action="store_true", help="one JSON document on standard output")
    verb.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verb.set_defaults(command=command)
    return verb


def add_recipe_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("recipe", help="a recipe file, or the name of one in recipes/")
    _add_common(verb, "override the recipe, e.g. --set budget.keep_ratio=0.1; may be repeated")


def add_resume_options(verb: argparse.ArgumentParser) -> None:
    """How to treat what an earlier run left; without them, it is gone on from if it fits."""
    which = verb.add_mutually_exclusive_group()
    which.add_argument(
        "--resume", action="store_const", const="required", dest="resume", default="auto",
        help="go on from what an interrupted run left, or fail if there is nothing (a run goes on "
        "by itself where it can)",
    )  # fmt: skip
    which.add_argument(
        "--fresh", action="store_const", const="never", dest="resume",
        help="delete what an earlier run trained or measured first",
    )  # fmt: skip


def add_bundle_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("bundle", type=Path, help="the folder that `rankc compile` wrote")
    verb.add_argument(
        "--recipe", metavar="RECIPE",
        help="the recipe that it was compiled from (default: recipes/<name>.yaml, if there)",
    )  # fmt: skip
    _add_common(verb, "override the recipe, as when it was compiled; may be repeated")


def _add_common(verb: argparse.ArgumentParser, overriding: str) -> None:
    verb.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], dest="overrides",
        help=overriding,
    )  # fmt: skip
    verb.add_argument("--quiet", action="store_true", help="print the last line only")
    verb.add_argument(
        "--trust-recipe-code", action="store_true", help="run Python code that the recipe names"
    )


def recipe_of(bundle: Path, options: argparse.Namespace) -> Recipe:
    """The recipe file that a bundle's folder was compiled from, found and compared with it.

    Raises:
        RecipeError: it is not where `--recipe` or the bundle's name say, or makes another model.
        rankrt.BundleError: the bundle has no recipe.
    """
    from rankc.recipe_bundle import find_recipe, load_of_bundle

    asked = None if options.recipe is None else recipe_path(options.recipe)
    path = find_recipe(bundle, asked)
    recipe, differing = load_of_bundle(bundle, path, options.overrides)
    if differing:
        now = f"{', '.join(differing)} changed since {bundle} was compiled"
        print(f"note: {now}; what {path} says now counts", file=sys.stderr)
    return recipe


def start(
    path: Path, options: argparse.Namespace, *, searching: bool = False
) -> tuple[Recipe, Console]:
    """The recipe, with a search where one is wanted and it has none, and where to tell of it."""
    from rankc.console import Console
    from rankc.recipe_load import load_recipe
    from rankc.recipe_lock import version_of

    recipe = load_recipe(path, options.overrides)
    if searching and recipe.search is None:
        recipe = load_recipe(path, [*options.overrides, "search={}"])
    console = Console(quiet=options.quiet, to_stderr=options.json)
    console.say(f"rankc {version_of('rankc')} · recipe {recipe.name} · model {recipe.model}")
    return recipe, console


def recipe_path(name: str) -> Path:
    """The file; a bare name is looked up in recipes/."""
    path = Path(name)
    if path.is_file() or path.suffix or len(path.parts) > 1:
        return path  # a missing file is told by whoever reads it
    known = {file.stem: file for file in sorted(Path("recipes").glob("*.yaml"))}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    guess = f"did you mean {near[0]!r}? " if near else ""
    listed = ", ".join(known) or "none in the folder recipes/ here"
    raise RecipeError(f"no recipe {name!r}\n  {guess}recipes: {listed}")


def command_line(verb: str, path: Path, options: argparse.Namespace) -> str:
    """What to type to get the same again."""
    words = ["rankc", verb, str(path)]
    for override in options.overrides:
        words += ["--set", override]
    for name in ("keep", "unit", "out"):
        if getattr(options, name, None):
            words += [f"--{name}", str(getattr(options, name))]
    words += [
        f"--{key.replace('_', '-')}" for key in ("tar", "dry_run") if getattr(options, key, False)
    ]
    if options.trust_recipe_code:
        words.append("--trust-recipe-code")
    return shlex.join(words)


def tell_github(metrics: Any, plan: Any, recipe: Recipe) -> None:
    """Annotations on standard error, and the summary of the step, where GitHub runs this."""
    from rankc.report import append_summary, place_of, report_markdown, workflow_commands

    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in workflow_commands(metrics, plan, place_of(recipe)):
            print(line, file=sys.stderr)
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        append_summary(report_markdown(metrics, plan), Path(summary))


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def interrupted(left: Earlier, recipe: Recipe, as_json: bool) -> int:
    """The last line after Ctrl-C, where something was left to go on from.

    Raises:
        KeyboardInterrupt: nothing was.
    """
    if not (told := left.told(recipe)):
        raise KeyboardInterrupt
    line = f"FAILED | interrupted; {told}, run it again to go on"
    return last_line(line, Exit.INTERRUPTED, as_json)


def last_line(text: str, code: Exit, as_json: bool) -> int:
    sys.stdout.flush()  # in order, where both streams go to one file
    print(text, file=sys.stderr if as_json else sys.stdout)
    return code
