"""`rankc bisect`."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from rankc.cli.words import add_bundle_options, add_verb, last_line, print_json, recipe_of
from rankc.errors import Exit

_MORE = """\
Measures the original and the compressed model on validation rows, in float32 and, where a target
asks for it, in float16, and every engine that runs here. Then it applies the plan by halves, and
rounds to float16 by halves, until single layers are left; each is confirmed by swapping it back.
"""


def add(verbs: Any) -> None:
    """Put the verb on the command line."""
    verb = add_verb(verbs, "bisect", _bisect, "name the pass and the layer that a drop comes from")
    verb.description = f"{verb.description}\n\n{_MORE}"
    verb.formatter_class = argparse.RawDescriptionHelpFormatter
    add_bundle_options(verb)
    verb.add_argument(
        "--metric", help="count the drop by it (default: that of the gate that is missed by most)"
    )
    verb.add_argument(
        "--rows", type=int, help="of the validation data, the first ones (default 4096)"
    )


def _bisect(options: argparse.Namespace) -> int:
    from rankc.bisecting import Answer, bisect
    from rankc.console import Console

    recipe = recipe_of(options.bundle, options)
    console = Console(quiet=options.quiet, to_stderr=options.json)
    answer = Answer()
    try:
        bisect(
            options.bundle, recipe, metric=options.metric, rows=options.rows, progress=console,
            trust_code=options.trust_recipe_code, into=answer,
        )  # fmt: skip
    except KeyboardInterrupt:
        _show(answer, console, options.json)
        line = "FAILED | interrupted; above is what was known by then"
        return last_line(line, Exit.INTERRUPTED, options.json)
    _show(answer, console, options.json)
    command = shlex.join(["rankc", "bisect", str(options.bundle)])
    line = f"PASSED | {answer.seconds:.1f} s | {answer.summary()} | {command}"
    return last_line(line, Exit.OK, options.json)


def _show(answer: Any, console: Any, as_json: bool) -> None:
    if as_json:
        print_json(answer.to_dict())
        return
    for line in answer.lines():
        console.say(line)
