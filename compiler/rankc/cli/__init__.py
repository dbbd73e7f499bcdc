"""The command line. Nothing heavy is imported before the command is known."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from rankc.cli import bisect, compile, explain, family, look, proof, reference
from rankc.cli.failures import failed
from rankc.errors import RecipeError

_EPILOG = """\
exit codes: 0 done, all gates passed; 2 the recipe, the options or the data; 3 the model;
4 an accuracy gate failed; 5 a size or latency gate failed; 6 the machine lacks something;
7 an engine could not be built; 130 interrupted; 1 a bug of rankc's
"""
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
        return failed(error, as_json="--json" in argv, debug="--debug" in argv)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        "rankc",
        description="Compile an ONNX model and a recipe to a smaller, faster bundle, and prove it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    for verb in (compile, family, proof, explain, bisect, look, reference):
        verb.add(verbs)
    return parser
