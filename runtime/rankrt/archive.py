"""A bundle as one .tar file: unpacked without trusting it."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rankrt.errors import BackendError, BundleError
from rankrt.files import MANIFEST, bad_name

MAX_MEMBERS = 4096  # ours have a dozen


def unpack(tar: Path) -> tuple[Path, Path]:
    """Unpack into a new temporary folder.

    Only plain files and folders are taken, and only from an uncompressed archive: what comes out
    is then no larger than what went in, so that no small file can fill the disk.

    Returns:
        The folder that holds the manifest, and the temporary folder; the caller removes the latter.

    Raises:
        BundleError: not a tar, cut short, or with members that a bundle never has.
        BackendError: the temporary folder cannot be written, e.g. a full disk.
    """
    try:
        temporary = Path(tempfile.mkdtemp(prefix="rankrt-"))
    except OSError as error:
        raise BackendError(f"no temporary folder for unpacking {tar}: {error}") from error
    try:
        _unpack_into(tar, temporary)
        return _root(tar, temporary), temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _unpack_into(tar: Path, folder: Path) -> None:
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in _members(tar, archive):
                _write(archive, member, folder)
    except (BundleError, BackendError):
        raise
    except Exception as error:  # tarfile raises a dozen classes on hostile headers
        raise BundleError(
            f"{tar} is not a tar that can be read ({error}): bundles are uncompressed .tar files; "
            "copy it again"
        ) from error


def _members(tar: Path, archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members in order, each of them of a kind that a bundle has."""
    end = -1
    for count, member in enumerate(archive):
        # A negative size would make tarfile read the same header for ever.
        if member.size < 0 or member.offset_data <= end or count >= MAX_MEMBERS:
            raise BundleError(f"{tar}: impossible sizes, or more than {MAX_MEMBERS} members")
        end = member.offset_data
        name = member.name.rstrip("/")
        if name == ".":
            continue
        if reason := bad_name(name.removeprefix("./")):
            raise BundleError(f"{tar}: the member {member.name!r} is refused: {reason}")
        if not (member.isdir() or member.isreg()) or member.issparse():
            raise BundleError(f"{tar}: {member.name!r} is a link or a special file; refused")
        yield member


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    path = folder / member.name
    if member.isdir():
        _make(path, member.name)
        return
    _make(path.parent, member.name)
    source = archive.extractfile(member)
    if source is None:
        raise BundleError(f"the tar's member {member.name!r} has no content; refused")
    try:
        with path.open("xb") as target:
            shutil.copyfileobj(source, target)
    except (FileExistsError, IsADirectoryError) as error:
        raise BundleError(f"the tar holds {member.name!r} twice; refused") from error
    except OSError as error:
        raise BackendError(
            f"cannot unpack {member.name!r} to {folder}: {error.strerror}; free some space, or "
            "set TMPDIR to a folder that has it"
        ) from error
    if path.stat().st_size != member.size:
        raise BundleError(f"the tar ends inside {member.name!r}: it was cut short; copy it again")


def _make(folder: Path, name: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise BundleError(f"the tar holds {name!r} both as a file and as a folder") from error
    except OSError as error:
        raise BackendError(f"cannot unpack to {folder}: {error.strerror}") from error


def _root(tar: Path, folder: Path) -> Path:
    """Where the manifest is: at the top, or in the only folder there (`tar cf b.tar bundle`)."""
    entries = list(folder.iterdir())
    candidates: list[Path] = [folder, *(entries if len(entries) == 1 else ())]
    for candidate in candidates:
        if (candidate / MANIFEST).is_file():
            return candidate
    raise BundleError(f"{tar} holds no {MANIFEST}: it is not a bundle")
