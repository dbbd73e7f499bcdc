"""Names and files of a bundle: nothing outside its folder is ever opened."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from rankrt.errors import BundleError

MANIFEST = "manifest.json"
_CHUNK = 1 << 20  # bytes read at once while hashing
_MAX_NAME = 1024  # characters; more is no file of ours


def bad_name(name: str) -> str | None:
    """Why `name` may not stand for a file inside a bundle, or None if it may.

    >>> bad_name("engines/a.plan"), bad_name("../a.plan")
    (None, 'it leaves the folder')
    """
    parts = name.split("/")
    if not name or len(name) > _MAX_NAME:
        return f"its length is {len(name)}"
    if not name.isprintable() or "\\" in name or ":" in name:
        return "it holds a backslash, a colon or an unprintable character"
    if name.startswith("/"):
        return "it is absolute"
    if ".." in parts:
        return "it leaves the folder"
    if "" in parts or "." in parts:
        return "it has an empty part"
    return None


def inside(folder: Path, name: str) -> Path:
    """The regular file `name` below `folder`, links followed.

    Raises:
        BundleError: it is missing, leads out of the folder, or is not a regular file (a pipe would
            block its reader for ever).
    """
    if reason := bad_name(name):
        raise BundleError(f"{folder}: the file name {name!r} is refused: {reason}")
    try:
        path = (folder / name).resolve(strict=True)
        regular = stat.S_ISREG(path.stat().st_mode)
        contained = path.is_relative_to(folder.resolve(strict=True))
    except FileNotFoundError as error:
        raise BundleError(
            f"{folder / name} is missing: copy the whole bundle again, or recompile the recipe"
        ) from error
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise BundleError(f"{folder / name} cannot be read: {error}") from error
    if not contained:
        raise BundleError(f"{folder / name} is a link out of the bundle's folder; refused")
    if not regular:
        raise BundleError(f"{folder / name} is not a regular file; refused")
    return path


def sha256(path: Path) -> str:
    """The file's SHA-256 in hex, read piece by piece."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def verify(folder: Path, name: str, size: int, digest: str) -> None:
    """Refuse the file unless it has that size in bytes and that SHA-256."""
    path = inside(folder, name)
    try:
        got_size = os.path.getsize(path)
        if got_size != size:
            raise BundleError(
                f"{folder / name} has {got_size} bytes, the manifest says {size}: it was cut or "
                "changed; copy the bundle again, or recompile the recipe"
            )
        got = sha256(path)
    except OSError as error:
        raise BundleError(f"{folder / name} cannot be read: {error}") from error
    if got != digest:
        raise BundleError(
            f"{folder / name}: sha256 is {got[:12]}…, the manifest says {digest[:12]}…: it was "
            "damaged or changed; copy the bundle again, or recompile the recipe"
        )
