"""`rankc gate`, `rankc baseline` and `rankc compare`: bundles that are there, and their figures."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankc.cli.words import (
    add_bundle_options,
    add_verb,
    last_line,
    print_json,
    recipe_of,
    recipe_path,
    tell_github,
)
from rankc.errors import Exit

if TYPE_CHECKING:
    from rankc.console import Console
    from rankc.proof import Proof


def add(verbs: Any) -> None:
    """Put the verbs on the command line."""
    gate = add_verb(
        verbs, "gate", _gate,
        "measure a bundle again on this machine and decide the recipe's gates; compile nothing",
    )  # fmt: skip
    add_bundle_options(gate)
    gate.add_argument(
        "--out", type=Path, metavar="FOLDER",
        help="write the reports there (metrics.json, report.md, junit.xml, report.sarif, ...)",
    )  # fmt: skip
    baseline: argparse.ArgumentParser = verbs.add_parser(
        "baseline",
        help="store what a bundle measured, for gates with `against: baseline`",
        description="Keep the figures of a bundle in RECIPE.baseline.json, beside the recipe.",
    )
    actions = baseline.add_subparsers(required=True, metavar="update | show")
    update = add_verb(actions, "update", _update, "store what a bundle measured")
    add_bundle_options(update)
    update.add_argument(
        "--here", action="store_true",
        help="measure again on this machine, and store its times beside those of others",
    )  # fmt: skip
    show = add_verb(actions, "show", _show, "say what the baseline of a recipe has")
    compare = add_verb(verbs, "compare", _compare, "show two bundles side by side; run nothing")
    compare.add_argument("old", type=Path, metavar="OLD", help="a bundle's folder")
    compare.add_argument("new", type=Path, metavar="NEW", help="another's")
    show.add_argument("recipe", help="a recipe file, or the name of one in recipes/")


def _gate(options: argparse.Namespace) -> int:
    from rankc.proof import prove_again, read_part, write_proof
    from rankc.report import failures
    from rankrt.bundle import read

    console = _console(options)
    contents = read(options.bundle)
    try:
        recipe = recipe_of(contents.folder, options)
        proof = prove_again(contents, recipe, console, trust_code=options.trust_recipe_code)
        if options.out:
            write_proof(proof, contents, recipe, options.out)
        tell_github(proof.metrics, read_part(contents, "plan.json"), recipe)
    finally:
        contents.close()
    if options.json:
        print_json(proof.metrics)
    else:
        _tell(proof, console)
    if proof.exit_code != Exit.OK:
        failed = "; ".join(failures(proof.metrics))
        return last_line(f"FAILED | {failed}", proof.exit_code, options.json)
    gates = len(proof.metrics["gates"])
    held = "no gates" if not gates else f"{gates} {'gate' if gates == 1 else 'gates'} held"
    return last_line(f"PASSED | {held} | {_again('gate', options)}", Exit.OK, options.json)


def _update(options: argparse.Namespace) -> int:
    from rankc.proof import kept_proof, prove_again
    from rankc.report import failures
    from rankc.validate.baseline_file import baseline_path, read_baseline, renewed, write_baseline
    from rankrt.bundle import read

    console = _console(options)
    contents = read(options.bundle)
    try:
        recipe = recipe_of(contents.folder, options)
        path = baseline_path(recipe)
        before = read_baseline(path)
        if options.here:
            bare = _without_gates(recipe)
            proof = prove_again(contents, bare, console, trust_code=options.trust_recipe_code)
        else:
            proof = kept_proof(contents)
    finally:
        contents.close()
    content = renewed(before, proof.metrics, proof.subject)
    write_baseline(path, content)
    if options.json:
        print_json(content)
    missed = len(failures(proof.metrics))
    although = f", although {missed} {'gate' if missed == 1 else 'gates'} failed" if missed else ""
    return last_line(f"PASSED | {path}{although}", Exit.OK, options.json)


def _show(options: argparse.Namespace) -> int:
    from rankc.errors import RecipeError
    from rankc.recipe_load import load_recipe
    from rankc.validate.baseline_file import baseline_path, lines_of, read_baseline

    path = baseline_path(load_recipe(recipe_path(options.recipe)))
    content = read_baseline(path)
    if content is None:
        raise RecipeError(f"there is no {path}\n  make it: rankc baseline update BUNDLE")
    if options.json:
        print_json(content)
    else:
        print("\n".join(lines_of(content)))
    return last_line(f"PASSED | {path}", Exit.OK, options.json)


def _compare(options: argparse.Namespace) -> int:
    import dataclasses

    from rankc.comparing import cells, compare, side_of
    from rankc.console import Console
    from rankrt.bundle import read

    sides = []
    for path in (options.old, options.new):
        contents = read(path)
        try:
            sides.append(side_of(contents))
        finally:
            contents.close()
    lines = compare(sides[0], sides[1])
    if options.json:
        print_json([{**dataclasses.asdict(line), "change": line.change} for line in lines])
    else:
        for part in dict.fromkeys(line.part for line in lines):
            rows = [cells(line) for line in lines if line.part == part]
            Console().show_columns((part, "old", "new", "change"), rows)
    return last_line(f"PASSED | {options.old} and {options.new} compared", Exit.OK, options.json)


def _without_gates(recipe: Any) -> Any:
    """A baseline is measured, whatever the gates against the old one say."""
    import dataclasses

    return dataclasses.replace(recipe, gates=())


def _console(options: argparse.Namespace) -> Console:
    from rankc.console import Console

    return Console(quiet=options.quiet, to_stderr=options.json)


def _tell(proof: Proof, console: Console) -> None:
    console.show_metrics(proof.metrics)
    for note in proof.notes:
        console.say(f"  note: {note}")


def _again(verb: str, options: argparse.Namespace) -> str:
    words = ["rankc", verb, str(options.bundle)]
    if options.recipe:
        words += ["--recipe", options.recipe]
    for override in options.overrides:
        words += ["--set", override]
    if getattr(options, "out", None):
        words += ["--out", str(options.out)]
    if options.trust_recipe_code:
        words.append("--trust-recipe-code")
    return shlex.join(words)
