"""`rankc compile`, `rankc search` and `rankc plan`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankc.cli.words import (
    add_recipe_options,
    add_resume_options,
    add_verb,
    command_line,
    interrupted,
    last_line,
    print_json,
    recipe_path,
    start,
    tell_github,
)
from rankc.errors import Exit

if TYPE_CHECKING:
    from rankc.console import Console
    from rankc.planning import Plan


def add(verbs: Any) -> None:
    """Put the verbs on the command line."""
    compile_ = add_verb(verbs, "compile", _compile, "compress, lower, prove, and write a bundle")
    search = add_verb(
        verbs, "search", _search, "compile to the smallest plan that keeps every gate"
    )
    plan = add_verb(
        verbs, "plan", _plan, "say what compile would do to which layer; make no bundle"
    )
    for verb in (compile_, search, plan):
        add_recipe_options(verb)
        add_resume_options(verb)
    for verb in (compile_, search):
        verb.add_argument("--out", type=Path, help="the bundle's folder (default build/<recipe>)")
        verb.add_argument(
            "--tar", action="store_true", help="also pack the bundle into one file, OUT.tar"
        )
    compile_.add_argument(
        "--dry-run", action="store_true", help="stop after the plan, make no bundle"
    )


def _compile(options: argparse.Namespace) -> int:
    return _made(options, "compile", dry_run=options.dry_run)


def _search(options: argparse.Namespace) -> int:
    return _made(options, "search", dry_run=False)


def _made(options: argparse.Namespace, verb: str, *, dry_run: bool) -> int:
    path = recipe_path(options.recipe)
    from rankc.earlier import Earlier
    from rankc.pipeline import compile_recipe

    recipe, console = start(path, options, searching=verb == "search")
    out = options.out or Path("build") / recipe.name
    try:
        result = compile_recipe(
            recipe, out, progress=console, dry_run=dry_run, trust_code=options.trust_recipe_code,
            resume=options.resume,
        )  # fmt: skip
    except KeyboardInterrupt:
        return interrupted(Earlier.beside(out), recipe, options.json)
    if options.tar and not dry_run:
        from rankc.packing import pack_tar

        pack_tar(result.out, result.out.with_name(f"{result.out.name}.tar"))
    if result.metrics is not None:
        tell_github(result.metrics, json.loads(result.plan.to_json()), recipe)
    if result.metrics is None:
        _show_plan(result.plan, console, options.json)
    elif options.json:
        print_json(result.metrics)
    else:
        console.show_result(result.metrics, result.plan, result.out)
    if result.exit_code != Exit.OK:
        return last_line(f"FAILED | {result.summary}", result.exit_code, options.json)
    line = f"PASSED | {result.seconds:.1f} s | {command_line(verb, path, options)}"
    return last_line(line, Exit.OK, options.json)


def _plan(options: argparse.Namespace) -> int:
    started = time.monotonic()
    path = recipe_path(options.recipe)
    from rankc.earlier import Earlier
    from rankc.pipeline import plan_recipe

    recipe, console = start(path, options)
    left = Earlier.beside(Path("build") / recipe.name, options.resume)
    try:
        plan = plan_recipe(
            recipe, progress=console, trust_code=options.trust_recipe_code, earlier=left
        )
    except KeyboardInterrupt:
        return interrupted(left, recipe, options.json)
    _show_plan(plan, console, options.json)
    seconds = time.monotonic() - started
    line = f"PASSED | {seconds:.1f} s | {command_line('plan', path, options)}"
    return last_line(line, Exit.OK, options.json)


def _show_plan(plan: Plan, console: Console, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(plan.to_json())
    else:
        console.show_plan(plan)
