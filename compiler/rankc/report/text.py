"""Numbers as people read them. Signs are the typographic ones; units are decimal."""

from __future__ import annotations

from collections.abc import Sequence

TIMES = "\N{MULTIPLICATION SIGN}"
MINUS = "\N{MINUS SIGN}"
DASH = "\N{EM DASH}"
RANGE = "\N{EN DASH}"
_MICRO = "\N{MICRO SIGN}"


def size(count: float) -> str:
    """Bytes: `15.18 MB`."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count:.0f} B"


def amount(count: float) -> str:
    """A number of things: `3.77 M`."""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count:.0f}"


def duration(milliseconds: float) -> str:
    """Three digits: `92.1 µs`, `3.20 ms`."""
    if milliseconds < 1:
        return f"{_three(milliseconds * 1e3)} {_MICRO}s"
    if milliseconds < 1e3:
        return f"{_three(milliseconds)} ms"
    return f"{_three(milliseconds / 1e3)} s"


def _three(value: float) -> str:
    """Three digits without an exponent."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def signed(value: float, digits: int = 5) -> str:
    """`+0.00005` or, with a real minus, the other; a rounded zero has no sign."""
    text = f"{abs(value):.{digits}f}"
    if not text.strip("0."):
        return text
    return f"{MINUS if value < 0 else '+'}{text}"


def short(value: float) -> str:
    """Three digits of anything, `2.1e-07` where small."""
    return f"{value:.3g}".replace("-", MINUS, 1) if value < 0 else f"{value:.3g}"


def smaller(ratio: float) -> str:
    """Twelve times smaller, say, from original / compressed."""
    if ratio >= 1:
        return f"{ratio:.2f}{TIMES} smaller" if ratio > 1 else "the same"
    return f"{1 / ratio:.2f}{TIMES} larger"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A GitHub table; bars and line breaks in cells are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
