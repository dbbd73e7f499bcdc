"""`rankc passes`, `rankc schema` and `rankc doctor`: what there is to write and to run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from rankc.cli.words import add_verb, print_json
from rankc.errors import Exit


def add(verbs: Any) -> None:
    """Put the verbs on the command line."""
    add_verb(verbs, "passes", _passes, "list every pass with its options")
    schema = add_verb(verbs, "schema", _schema, "print the JSON Schema of recipes")
    schema.add_argument("--out", type=Path, help="write to this file instead")
    schema.add_argument(
        "--docs",
        action="store_true",
        help="as tables in Markdown; with --out: the file's own text above its marker is kept",
    )
    schema.add_argument("--metrics", action="store_true", help="of metrics.json instead")
    add_verb(verbs, "doctor", _doctor, "say what is installed, what works, and what to install")


def _passes(options: argparse.Namespace) -> int:
    from rankc.recipe_schema import describe_passes

    described = describe_passes()
    if options.json:
        print_json(described)
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
        print_json(found.to_dict())
    else:
        print(found.to_text())
    return Exit.OK if found.ok else Exit.ENVIRONMENT
