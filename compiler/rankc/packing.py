"""Write a bundle whole or not at all.

Everything is made in a hidden folder beside the output, which takes the output's place at the end.
Whatever happens before that (an error, Ctrl-C, a full disk, kill -9) leaves an older bundle there
as it was.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import sys
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from rankc.errors import MachineError, RecipeError
from rankrt.errors import BundleError
from rankrt.files import MANIFEST, inside, sha256
from rankrt.golden import IN, OUT, REF
from rankrt.manifest import Engine, FileInfo, Gate, Golden, Manifest
from rankrt.session import Array, TensorSpec

GOLDEN = "golden.npz"
_NEW, _OLD = ".rankc-new-", ".rankc-old-"  # after the output's name, before a random part

_HINTS = {
    errno.ENOSPC: "free some space on that disk",
    errno.EDQUOT: "free some space, your quota is used up",
    errno.EACCES: "fix the permissions",
    errno.EPERM: "fix the permissions",
    errno.EROFS: "mount that disk for writing",
}


@contextmanager
def staging(out: Path) -> Iterator[Path]:
    """A fresh folder that takes the place of `out` when the block ends without an error.

    Folders that dead runs left beside `out` are removed first; those of running ones are locked.

    Args:
        out: the bundle's folder: absent, empty, or an older bundle. Its parents are made.

    Yields:
        The folder to write into, on the same file system as `out`.

    Raises:
        RecipeError: `out` is something else than a bundle; it is not touched.
        MachineError: a file could not be written, e.g. on a full disk; `out` is as it was.
    """
    with _named_failure(out):
        out = _resolved(out)  # a link stays one, its target is replaced
        out.parent.mkdir(parents=True, exist_ok=True)
        _clean(out)
        _require_replaceable(out)
        folder, lock = _locked_folder(out)
        try:
            yield folder
            _flush(folder)
            _require_replaceable(out)
            _swap(folder, out)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            if lock is not None:
                os.close(lock)


def write_manifest(
    folder: Path,
    *,
    name: str,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    model: str = "model.onnx",
    id_ranges: Mapping[str, int | tuple[int, ...]] | None = None,
    engines: tuple[Engine, ...] = (),
    golden: Golden | None = None,
    ranks: Mapping[str, int] | None = None,
    metrics: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
    target: str = "onnxruntime",
    gates: tuple[Gate, ...] = (),
) -> Manifest:
    """Hash every file in the folder and write `manifest.json`; call it last.

    The fields are those of `rankrt.manifest.Manifest`.

    Raises:
        rankrt.BundleError: the fields contradict each other or the files.
        OSError: a file cannot be read or written.
    """
    manifest = Manifest(
        name=name,
        files=_hashed(folder),
        inputs=inputs,
        outputs=outputs,
        model=model,
        id_ranges=id_ranges or {},
        engines=engines,
        golden=golden,
        ranks=ranks or {},
        metrics=metrics or {},
        versions=versions or {},
        target=target,
        gates=gates,
    )
    text = manifest.to_json()
    Manifest.from_json(text)  # what the runtime would refuse is not written
    (folder / MANIFEST).write_text(text, encoding="ascii", newline="\n")
    return manifest


def write_golden(
    folder: Path,
    inputs: Mapping[str, Array],
    outputs: Mapping[str, Array],
    references: Mapping[str, Array] | None = None,
) -> Path:
    """Write the golden rows; the same arrays give the same bytes.

    Args:
        folder: The bundle.
        inputs: By name.
        outputs: What the bundle's model put out for them.
        references: What the original model did.

    Raises:
        BundleError: an array holds Python objects, which a bundle never does.
    """
    arrays = {f"{IN}{name}": inputs[name] for name in sorted(inputs)}
    arrays |= {f"{OUT}{name}": outputs[name] for name in sorted(outputs)}
    arrays |= {f"{REF}{name}": rows for name, rows in sorted((references or {}).items())}
    if bad := [key for key, array in arrays.items() if array.dtype.hasobject]:
        raise BundleError(f"golden rows cannot hold Python objects: {', '.join(bad)}")
    path = folder / GOLDEN
    save: Any = np.savez  # its stub takes names that are computed for its own options
    save(path, **{key: np.ascontiguousarray(array) for key, array in arrays.items()})
    return path


def pack_tar(folder: Path, tar: Path) -> None:
    """Write the bundle as one .tar; the same bundle gives the same bytes.

    Raises:
        BundleError: `folder` is not a whole bundle.
        MachineError: the tar could not be written; an older one there is as it was.
    """
    manifest = Manifest.from_json(inside(folder, MANIFEST).read_text("ascii"))
    temporary = tar.with_name(f".{tar.name}{_NEW}{secrets.token_hex(4)}")
    with _named_failure(tar):
        try:
            with temporary.open("xb") as file:
                with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
                    for name in (MANIFEST, *sorted(manifest.files)):
                        _add(archive, inside(folder, name), name)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, tar)
        finally:
            temporary.unlink(missing_ok=True)


def _add(archive: tarfile.TarFile, path: Path, name: str) -> None:
    """Without time, owner and mode of this machine."""
    member = tarfile.TarInfo(name)
    member.size = path.stat().st_size
    with path.open("rb") as file:
        archive.addfile(member, file)


def _hashed(folder: Path) -> dict[str, FileInfo]:
    files: dict[str, FileInfo] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() and not path.is_symlink():
            continue
        if name != MANIFEST:
            inside(folder, name)  # no link out of the folder, no pipe
            files[name] = FileInfo(sha256(path), path.stat().st_size)
    return files


@contextmanager
def _named_failure(out: Path) -> Iterator[None]:
    """Turn the system's errors into one that says which file, and that `out` is unharmed."""
    try:
        yield
    except BrokenPipeError:  # of a reader of our output, not of a file
        raise
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        hint = _HINTS.get(error.errno or 0, "check that path")
        raise MachineError(
            f"while making {out}:{where} {error.strerror or error}; what was there is unchanged. "
            f"To go on: {hint}, or choose another place with --out"
        ) from error


def _resolved(out: Path) -> Path:
    try:
        return out.resolve()
    except RuntimeError as error:  # before Python 3.13, later an OSError
        raise RecipeError(f"--out {out} is a link that leads to itself; remove it") from error


def _require_replaceable(out: Path) -> None:
    """Refuse to delete what is not ours."""
    if not out.exists():
        return
    if not out.is_dir():
        raise RecipeError(f"--out {out} is a file; give a folder")
    if any(out.iterdir()) and not _is_bundle(out):
        raise RecipeError(
            f"--out {out} is not empty and holds no bundle, so it is not replaced; give another "
            "folder, or remove it yourself"
        )


def _is_bundle(folder: Path) -> bool:
    """Other tools write a `manifest.json` too; ours, even a damaged one, lists hashes."""
    manifest = folder / MANIFEST
    return manifest.is_file() and (
        (folder / "model.onnx").is_file() or b'"sha256"' in manifest.read_bytes()
    )


def _locked_folder(out: Path) -> tuple[Path, int | None]:
    """A new folder beside `out`, locked so that no other run takes it for a dead one's."""
    while True:
        folder = out.with_name(f".{out.name}{_NEW}{secrets.token_hex(4)}")
        folder.mkdir()
        try:
            lock = _lock(folder, wait=True)
        except FileNotFoundError:  # another run cleaned it up before it was locked
            continue
        if folder.exists():
            return folder, lock
        if lock is not None:
            os.close(lock)


def _lock(folder: Path, *, wait: bool) -> int | None:
    """An open file that holds the lock, or None where there are no locks.

    Raises:
        BlockingIOError: another process holds it, and `wait` is False.
    """
    if sys.platform == "win32":
        return None
    import fcntl  # not on Windows

    file = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(file)
        raise
    except OSError:  # a file system without locks
        os.close(file)
        return None
    return file


def _clean(out: Path) -> None:
    """Remove what dead runs left beside `out`, and finish a swap that one of them began."""
    for old in _siblings(out, _OLD):
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(out)
    for folder in _siblings(out, _NEW):
        try:
            lock = _lock(folder, wait=False)
        except (BlockingIOError, FileNotFoundError):
            continue  # of a run that goes on, or just finished
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _siblings(out: Path, mark: str) -> list[Path]:
    start = f".{out.name}{mark}"
    return sorted(path for path in out.parent.iterdir() if path.name.startswith(start))


def _flush(folder: Path) -> None:
    """Bring all content to the disk before its name: after a power cut a bundle is whole or old."""
    if sys.platform == "win32":
        return  # folders cannot be opened there, and files only for writing
    for path in (*folder.rglob("*"), folder):
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def _swap(folder: Path, out: Path) -> None:
    """Put the folder in the place of `out`; if that fails, what was there is put back."""
    if not out.exists():
        folder.rename(out)
        return
    old = out.with_name(f".{out.name}{_OLD}{secrets.token_hex(4)}")
    try:
        out.rename(old)
        folder.rename(out)
    except BaseException:
        if old.exists() and not out.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
