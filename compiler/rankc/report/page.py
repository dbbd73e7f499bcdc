"""What the pages have in common: one file each, no script, no font, no request.

base.html.jinja has their styles. A page is written as XML, so that a missing escape cannot go
unseen. Everything that comes from a model or a recipe goes through `printable` first.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from rankc.errors import MachineError
from rankc.report.spectrum import PLOT

_NOT_XML = "^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff"
_TURNING = "\u202a-\u202e\u2066-\u2069\u200e\u200f\u061c"  # they would reorder what stands beside
_UNPRINTABLE = re.compile(f"[{_NOT_XML}]|[\x7f-\x9f{_TURNING}]")


def render(template: str, **values: Any) -> str:
    """A template of this package, filled in."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rankc", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(breakable=_breakable, code=_code)
    environment.globals["plot"] = PLOT
    return environment.get_template(template).render(**values)


def printable(value: Any) -> Any:
    """A copy in which characters that no page can hold, or that turn others round, are `?`."""
    if isinstance(value, str):
        return _UNPRINTABLE.sub("?", value)
    if isinstance(value, Mapping):
        return {printable(key): printable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [printable(inner) for inner in value]
    return value


def write_page(content: str, path: Path) -> None:
    """Write a page to `path`, whole or not at all.

    Raises:
        MachineError: it cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=".rankc-", dir=path.parent) as folder:
            whole = Path(folder) / "page.html"
            whole.write_text(content, encoding="utf-8", newline="\n")
            os.replace(whole, path)
    except OSError as error:
        raise MachineError(
            f"{path}: cannot be written: {error.strerror or error}\n"
            "  name a file in a folder that is there and that you may write to"
        ) from error


def _breakable(name: str) -> Markup:
    """A long name with places where a line may end; whichever way it is read, only it is."""
    inner = Markup("<wbr/>").join(re.split(r"(?<=[./_])", name))
    return Markup("<bdi>{}</bdi>").format(inner)


def _code(line: str) -> Markup:
    """A line of text with `code` in it."""
    parts = re.split("`([^`]*)`", line)
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if k % 2 else escape(part)
        for k, part in enumerate(parts)
    )
