"""`rankc explain`: why a layer of a bundle is what it is."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rankc.cli.words import add_verb, print_json
from rankc.errors import Exit


def add(verbs: Any) -> None:
    """Put the verb on the command line."""
    verb = add_verb(
        verbs, "explain", _explain, "say why a layer of a bundle got its rank, or was left alone"
    )
    verb.add_argument("bundle", type=Path, help="a bundle's folder, or a .tar of it")
    verb.add_argument("node", nargs="?", help="the layer; left out, a table of all of them")


def _explain(options: argparse.Namespace) -> int:
    from rankc.console import Console
    from rankc.explaining import HEAD, Explained
    from rankrt.bundle import read

    contents = read(options.bundle)
    try:
        found = Explained.of(contents)
    finally:
        contents.close()
    if options.json:
        one = None if options.node is None else found.about(options.node)
        print_json(one or {"layers": list(found.layers), "skips": list(found.skips)})
        return Exit.OK
    console = Console()
    if options.node is None:
        console.show_table(HEAD, found.rows())
        console.say(f"  loss: predicted, {found.loss}")
        return Exit.OK
    for line in found.lines(options.node):
        console.say(f"  {line}")
    return Exit.OK
