"""`rankc family`: many bundles of one preparation."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

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
)
from rankc.errors import Exit, RecipeError

if TYPE_CHECKING:
    from rankc.family import Family
    from rankc.recipe import Recipe, Unit

_HELP = """\
Makes a bundle for every share of a list. The model is trained, calibrated and decomposed once; each
share is then planned, carried out, proved by the recipe's gates and packed in OUT/<share>, the
largest first. OUT/family.json lists all of them, OUT/family.html shows them. Gates on what the
shares set (macs_ratio, where they are of MACs) are left out; all others have to hold.

  rankc family digits-maestro --keep 0.66,0.5,0.36
  rankc family ctr-lowrank --keep 0.5,0.25,0.1 --unit bytes

A recipe may have the shares itself: `family: {keep_ratios: [0.66, 0.5, 0.36], unit: macs}`.
A member that is there and was made from the same is not made again: after Ctrl-C, or with another
share added, run it again. The exit code is that of the member that is worst off: a share that is
impossible (2), an accuracy gate (4), a size or latency gate (5), an engine (7).
"""


def add(verbs: Any) -> None:
    """Put the verb on the command line."""
    family = add_verb(verbs, "family", _family, "make a bundle for every size of a list")
    family.description, family.formatter_class = _HELP, argparse.RawDescriptionHelpFormatter
    add_recipe_options(family)
    add_resume_options(family)
    family.add_argument(
        "--keep", metavar="SHARE,...", help="shares of the original, each above 0 and up to 1"
    )
    family.add_argument(
        "--unit",
        help="what they are of: bytes, parameters, macs or ms (default: the recipe's budget's)",
    )
    family.add_argument(
        "--out", type=Path, help="the folder of the family (default build/<recipe>-family)"
    )


def _family(options: argparse.Namespace) -> int:
    started, path = time.monotonic(), recipe_path(options.recipe)
    from rankc.family import INDEX, family_left, make_family

    recipe, console = start(path, options)
    keeps, unit = _asked(recipe, options)
    out = options.out or Path("build") / f"{recipe.name}-family"
    try:
        family = make_family(
            recipe, keeps, out, unit=unit, progress=console,
            trust_code=options.trust_recipe_code, resume=options.resume,
        )  # fmt: skip
    except KeyboardInterrupt:
        return interrupted(family_left(out), recipe, options.json)
    if options.json:
        print_json(family.to_dict())
    else:
        head, rows = family.table()
        console.show_table(head, rows)
        console.say(f"  index {out / INDEX} · page {out / 'family.html'}")
    return _last(family, time.monotonic() - started, path, options)


def _asked(recipe: Recipe, options: argparse.Namespace) -> tuple[list[float], Unit | None]:
    """The shares, and what they are of.

    Raises:
        RecipeError: an option that means nothing.
    """
    from rankc.recipe import Unit

    known = recipe.family
    unit: Any = options.unit or (known.unit if known else None)
    if unit is not None and unit not in get_args(Unit):
        raise RecipeError(f"--unit {unit}: no such unit; choose {', '.join(get_args(Unit))}")
    if options.keep is None:
        return list(known.keep_ratios) if known else [], unit
    try:
        return [float(word) for word in options.keep.split(",")], unit
    except ValueError:
        raise RecipeError(f"--keep {options.keep}: expected shares like 0.66,0.5,0.36") from None


def _last(family: Family, seconds: float, path: Path, options: argparse.Namespace) -> int:
    code = family.exit_code
    if code != Exit.OK:
        failed = [f"keep {m.keep:g}: {m.summary}" for m in family.members if m.summary]
        return last_line(f"FAILED | {' | '.join(failed)}", code, options.json)
    again = command_line("family", path, options)
    line = f"PASSED | {len(family.members)} members | {seconds:.1f} s | {again}"
    return last_line(line, code, options.json)
