"""The command line. Nothing heavy is imported before the command is known."""

from __future__ import annotations

import argparse
import difflib
import errno
import io
import json
import os
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rankc.errors import Exit, MachineError, RankcError, RecipeError

if TYPE_CHECKING:
    from rankc.console import Console
    from rankc.planning import Plan
    from rankc.recipe import Recipe

_EPILOG = """\
exit codes: 0 done, all gates passed; 2 the recipe, the options or the data; 3 the model;
4 an accuracy gate failed; 5 a size or latency gate failed; 6 the machine lacks something;
7 an engine could not be built; 130 interrupted; 1 a bug of rankc's
"""
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE}
_BROKEN_PIPE = 141  # as a shell reports a process that SIGPIPE ended


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise RecipeError(f"{message}\n  see: {self.prog} --help")


def run(argv: Sequence[str]) -> int:
    """Parse, do, and turn every error into a message, a last line and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without ✓ or Δ
    try:
        options = _parser().parse_args(argv)
        command: Callable[[argparse.Namespace], int] = options.command
        return int(command(options))
    except BrokenPipeError:  # `rankc passes | head`: whoever read has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except (Exception, KeyboardInterrupt) as error:
        return _failed(error, as_json="--json" in argv, debug="--debug" in argv)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        "rankc",
        description="Compile an ONNX model and a recipe to a smaller, faster bundle, and prove it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    compile_ = _verb(verbs, "compile", _compile, "compress, lower, prove, and write a bundle")
    plan = _verb(verbs, "plan", _plan, "say what compile would do to which layer; writes nothing")
    for verb in (compile_, plan):
        _add_recipe_options(verb)
    compile_.add_argument("--out", type=Path, help="the bundle's folder (default build/<recipe>)")
    compile_.add_argument(
        "--tar", action="store_true", help="also pack the bundle into one file, OUT.tar"
    )
    compile_.add_argument(
        "--dry-run", action="store_true", help="stop after the plan, write nothing"
    )
    inspect = _verb(verbs, "inspect", _inspect, "show a model's layers, and which passes fit where")
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
    _verb(verbs, "passes", _passes, "list every pass with its options")
    schema = _verb(verbs, "schema", _schema, "print the JSON Schema of recipes")
    schema.add_argument("--out", type=Path, help="write to this file instead")
    schema.add_argument(
        "--docs",
        action="store_true",
        help="as tables in Markdown; with --out: the file's own text above its marker is kept",
    )
    schema.add_argument("--metrics", action="store_true", help="of metrics.json instead")
    _verb(verbs, "doctor", _doctor, "say what is installed, what works, and what to install")
    return parser


def _verb(
    verbs: Any, name: str, command: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    verb: argparse.ArgumentParser = verbs.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + "."
    )
    verb.add_argument("--json", action="store_true", help="one JSON document on standard output")
    verb.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verb.set_defaults(command=command)
    return verb


def _add_profile(verbs: Any) -> None:
    verb = _verb(verbs, "profile", _profile, "time a model's layers here, dense and factored")
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


def _add_recipe_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("recipe", help="a recipe file, or the name of one in recipes/")
    verb.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], dest="overrides",
        help="override the recipe, e.g. --set budget.keep_ratio=0.1; may be repeated",
    )  # fmt: skip
    verb.add_argument("--quiet", action="store_true", help="print the last line only")
    verb.add_argument(
        "--trust-recipe-code", action="store_true", help="run Python code that the recipe names"
    )


# --- commands -------------------------------------------------------------------------------


def _compile(options: argparse.Namespace) -> int:
    path = _recipe_path(options.recipe)
    from rankc.pipeline import compile_recipe

    recipe, console = _start(path, options)
    out = options.out or Path("build") / recipe.name
    result = compile_recipe(
        recipe, out, progress=console, dry_run=options.dry_run, trust_code=options.trust_recipe_code
    )
    if options.tar and not options.dry_run:
        from rankc.packing import pack_tar

        pack_tar(result.out, result.out.with_name(f"{result.out.name}.tar"))
    if result.metrics is None:
        _show_plan(result.plan, console, options.json)
    elif options.json:
        _print_json(result.metrics)
    else:
        console.show_result(result.metrics, result.plan, result.out)
    if result.exit_code != Exit.OK:
        return _last_line(f"FAILED | {result.summary}", result.exit_code, options.json)
    line = f"PASSED | {result.seconds:.1f} s | {_command('compile', path, options)}"
    return _last_line(line, Exit.OK, options.json)


def _plan(options: argparse.Namespace) -> int:
    started = time.monotonic()
    path = _recipe_path(options.recipe)
    from rankc.pipeline import plan_recipe

    recipe, console = _start(path, options)
    plan = plan_recipe(recipe, progress=console, trust_code=options.trust_recipe_code)
    _show_plan(plan, console, options.json)
    seconds = time.monotonic() - started
    line = f"PASSED | {seconds:.1f} s | {_command('plan', path, options)}"
    return _last_line(line, Exit.OK, options.json)


def _start(path: Path, options: argparse.Namespace) -> tuple[Recipe, Console]:
    from rankc.console import Console
    from rankc.recipe_load import load_recipe, version_of

    recipe = load_recipe(path, options.overrides)
    console = Console(quiet=options.quiet, to_stderr=options.json)
    console.say(f"rankc {version_of('rankc')} · recipe {recipe.name} · model {recipe.model}")
    return recipe, console


def _show_plan(plan: Plan, console: Console, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(plan.to_json())
    else:
        console.show_plan(plan)


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
        from rankc.report.inspect_html import write_page

        write_page(found.to_dict(), options.html)
    if options.json:
        _print_json(found.to_dict())
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
        return _last_line(line, Exit.INTERRUPTED, options.json)
    if options.json:
        _print_json(found.to_dict())
    for skip in () if options.json else found.skips:
        console.say(f"  not timed: {skip.name} ({skip.pass_name}: {skip.reason})")
    left = "" if found.done else f", {found.left} left: run it again to go on"
    line = f"PASSED | {found.layers - found.left} layers{left} | {out}"
    return _last_line(line, Exit.OK, options.json)


def _passes(options: argparse.Namespace) -> int:
    from rankc.recipe_schema import describe_passes

    described = describe_passes()
    if options.json:
        _print_json(described)
        return Exit.OK
    for entry in described:
        print(f"{entry['name']}: {entry['summary']}")
        for option in entry["options"]:
            default = "required" if option["default"] is None else option["default"]
            print(f"  {option['name']:<12} {option['type']:<24} {default:<12} {option['text']}")
    return Exit.OK


def _schema(options: argparse.Namespace) -> int:
    from rankc import recipe_schema
    from rankc.validate.schema import schema_text as metrics_schema_text

    out: Path | None = options.out
    if options.docs:
        before = out.read_text(encoding="utf-8") if out and out.exists() else ""
        text = recipe_schema.docs_page(before)
    else:
        text = metrics_schema_text() if options.metrics else recipe_schema.schema_text()
    if out is None:
        sys.stdout.write(text)
    else:
        with out.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
    return Exit.OK


def _doctor(options: argparse.Namespace) -> int:
    from rankc.doctor import examine

    found = examine()
    if options.json:
        _print_json(found.to_dict())
    else:
        print(found.to_text())
    return Exit.OK if found.ok else Exit.ENVIRONMENT


# --- words ----------------------------------------------------------------------------------


def _recipe_path(name: str) -> Path:
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


def _command(verb: str, path: Path, options: argparse.Namespace) -> str:
    """What to type to get the same again."""
    words = ["rankc", verb, str(path)]
    for override in options.overrides:
        words += ["--set", override]
    if getattr(options, "out", None):
        words += ["--out", str(options.out)]
    words += [
        f"--{key.replace('_', '-')}" for key in ("tar", "dry_run") if getattr(options, key, False)
    ]
    if options.trust_recipe_code:
        words.append("--trust-recipe-code")
    return shlex.join(words)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _last_line(text: str, code: Exit, as_json: bool) -> int:
    sys.stdout.flush()  # in order, where both streams go to one file
    print(text, file=sys.stderr if as_json else sys.stdout)
    return code


def _failed(error: BaseException, *, as_json: bool, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    code, message = _explained(error)
    first, *more = message.splitlines() or [type(error).__name__]
    if code == Exit.INTERRUPTED:
        return _last_line("FAILED | interrupted; nothing was written", code, as_json)
    sys.stdout.flush()
    print("\n".join([f"error: {first}", *more]), file=sys.stderr, flush=True)
    return _last_line(f"FAILED | {first}", code, as_json)


def _explained(error: BaseException) -> tuple[Exit, str]:
    """The exit code, and what to tell the user."""
    if isinstance(error, KeyboardInterrupt):
        return Exit.INTERRUPTED, ""
    if isinstance(error, RankcError):
        return error.exit_code, str(error)
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("rankc."):
        missing = f"the Python package for {error.name!r} is not installed"
        return MachineError.exit_code, f"{missing}: pip install 'rankc[compiler,cpu]'"
    if isinstance(error, MemoryError):
        return (
            Exit.ENVIRONMENT,
            "out of memory; use a smaller batch_size of the data, or smaller latency.batch_sizes",
        )
    if isinstance(error, OSError) and error.errno in _DISK:
        where = f": {error.filename}" if error.filename else ""
        return Exit.ENVIRONMENT, f"{error.strerror}{where}; nothing was left half-written"
    text = f"{type(error).__name__}: {error}".strip(": ")
    return (
        Exit.INTERNAL,
        f"a bug in rankc: {text}\n  --debug shows where it happened; please report it",
    )
