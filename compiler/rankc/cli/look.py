"""`rankc inspect` and `rankc profile`: what a model has, and how long its layers take."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rankc.cli.words import add_verb, last_line, print_json
from rankc.errors import Exit


def add(verbs: Any) -> None:
    """Put the verbs on the command line."""
    inspect = add_verb(
        verbs, "inspect", _inspect, "show a model's layers, and which passes fit where"
    )
    inspect.add_argument("model", type=Path, help="an ONNX file")
    inspect.add_argument(
        "--calibrate", metavar="DATA",
        help="rows, as in a recipe's data.calibration.path, or a recipe that names them; without, "
        "the weights alone are looked at",
    )  # fmt: skip
    inspect.add_argument("--html", metavar="FILE", type=Path, help="also draw it, on one page")
    inspect.add_argument(
        "--trust-recipe-code", action="store_true", help="run Python code that DATA names"
    )
    _add_profile(verbs)


def _add_profile(verbs: Any) -> None:
    verb = add_verb(verbs, "profile", _profile, "time a model's layers here, dense and factored")
    verb.add_argument("model", type=Path, help="an ONNX file")
    verb.add_argument(
        "--target", required=True, help="cpu, cuda (ONNX Runtime) or tensorrt: where to time"
    )
    verb.add_argument(
        "--out", type=Path, help="the table; gone on with where it is there (default in build/)"
    )
    verb.add_argument("--batch", type=int, default=1, help="rows a call (default 1)")
    verb.add_argument("--minutes", type=float, help="stop then; run it again to go on")
    verb.add_argument(
        "--pass", metavar="NAME", action="append", default=[], dest="passes",
        help="only layers of this pass; may be repeated (default: all passes)",
    )  # fmt: skip
    verb.add_argument("--quiet", action="store_true", help="print the last line only")


def _inspect(options: argparse.Namespace) -> int:
    from rankc.console import Console
    from rankc.inspection import inspect

    if options.html:
        from rankc.report.inspect_html import check_place

        check_place(options.html)
    console = Console(to_stderr=options.json)
    found = inspect(
        options.model, options.calibrate, progress=console, trust_code=options.trust_recipe_code
    )
    if options.html:
        from rankc.report.inspect_html import page
        from rankc.report.page import write_page

        write_page(page(found.to_dict()), options.html)
    if options.json:
        print_json(found.to_dict())
        return Exit.OK
    console.show_model(found)
    if options.html:
        console.say(f"  page {options.html}")
    return Exit.OK


def _profile(options: argparse.Namespace) -> int:
    from rankc.console import Console
    from rankc.profiling import default_out, profile

    console = Console(quiet=options.quiet, to_stderr=options.json)
    out = options.out or default_out(options.target, options.batch)
    try:
        found = profile(
            options.model,
            options.target,
            out,
            batch=options.batch,
            minutes=options.minutes,
            passes=options.passes,
            progress=console,
        )
    except KeyboardInterrupt:
        if not out.exists():
            raise
        line = f"FAILED | interrupted; {out} has what was timed, run it again to go on"
        return last_line(line, Exit.INTERRUPTED, options.json)
    if options.json:
        print_json(found.to_dict())
    for skip in () if options.json else found.skips:
        console.say(f"  not timed: {skip.name} ({skip.pass_name}: {skip.reason})")
    left = "" if found.done else f", {found.left} left: run it again to go on"
    line = f"PASSED | {found.layers - found.left} layers{left} | {out}"
    return last_line(line, Exit.OK, options.json)
