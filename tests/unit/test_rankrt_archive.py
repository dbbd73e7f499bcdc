from __future__ import annotations

import io
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from bundles import write_mlp_bundle
from rankc.packing import pack_tar
from rankrt import archive
from rankrt.errors import BundleError


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def _member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = link
    return info


def _tar(path: Path, *members: tarfile.TarInfo, content: bytes = b"") -> Path:
    with tarfile.open(path, "w") as tar:
        for info in members:
            info.size = len(content) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    "info",
    [
        _member("../evil"),
        _member("/tmp-evil"),
        _member("a/../../evil"),
        _member("link", tarfile.SYMTYPE, "/etc/passwd"),
        _member("link", tarfile.SYMTYPE, "manifest.json"),
        _member("link", tarfile.LNKTYPE, "manifest.json"),
        _member("pipe", tarfile.FIFOTYPE),
        _member("disk", tarfile.BLKTYPE),
        _member("tty", tarfile.CHRTYPE),
    ],
    ids=lambda info: f"{info.name}-{info.type!r}",
)
def test_members_that_a_bundle_never_has(
    tmp_path: Path, scratch: Path, info: tarfile.TarInfo
) -> None:
    tar = _tar(tmp_path / "b.tar", _member("manifest.json"), info)
    with pytest.raises(BundleError, match="refused"):
        archive.unpack(tar)
    assert list(scratch.iterdir()) == []
    assert not (tmp_path / "evil").exists()


def test_a_name_that_comes_twice(tmp_path: Path, scratch: Path) -> None:
    tar = _tar(tmp_path / "b.tar", _member("manifest.json"), _member("manifest.json"))
    with pytest.raises(BundleError, match="twice"):
        archive.unpack(tar)
    tar = _tar(tmp_path / "b.tar", _member("a"), _member("a/b"))
    with pytest.raises(BundleError, match="both as a file and as a folder"):
        archive.unpack(tar)
    assert list(scratch.iterdir()) == []


def test_too_many_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_MEMBERS", 3)
    tar = _tar(tmp_path / "b.tar", *(_member(f"f{i}") for i in range(4)))
    with pytest.raises(BundleError, match="more than 3 members"):
        archive.unpack(tar)


def test_a_negative_size_does_not_loop_for_ever(tmp_path: Path) -> None:
    header = bytearray(_member("manifest.json").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 10 + b"\xfe\x00"  # base 256: -512
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "b.tar").write_bytes(bytes(header) + bytes(1024))
    with pytest.raises(BundleError):
        archive.unpack(tmp_path / "b.tar")


def test_a_sparse_file_is_refused(tmp_path: Path) -> None:
    """It would unpack to more than the archive holds."""
    info = _member("manifest.json")
    info.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(1 << 40)}
    with pytest.raises(BundleError, match="refused"):
        archive.unpack(_tar(tmp_path / "b.tar", info, content=b"x"))


@pytest.mark.parametrize("mode", ["w:gz", "w:xz"])
def test_a_compressed_tar_is_refused(tmp_path: Path, mode: str) -> None:
    with tarfile.open(tmp_path / "b.tar", mode) as tar:  # type: ignore[call-overload]
        tar.addfile(_member("manifest.json"))
    with pytest.raises(BundleError, match="uncompressed"):
        archive.unpack(tmp_path / "b.tar")


@pytest.mark.parametrize("content", [b"", b"\x00" * 2048, b"hello" * 500])
def test_files_that_are_no_tar(tmp_path: Path, scratch: Path, content: bytes) -> None:
    (tmp_path / "b.tar").write_bytes(content)
    with pytest.raises(BundleError):
        archive.unpack(tmp_path / "b.tar")
    assert list(scratch.iterdir()) == []


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    write_mlp_bundle(folder / "tiny")
    pack_tar(folder / "tiny", folder / "b.tar")
    return folder / "b.tar"


def test_a_tar_of_the_folder_is_taken_too(packed: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        tar.add(packed.parent / "tiny", "tiny")
    root, temporary = archive.unpack(tmp_path / "b.tar")
    assert (root.name, root.parent) == ("tiny", temporary)
    shutil.rmtree(temporary)


def _cut(data: bytearray, rng: random.Random) -> bytes:
    return bytes(data[: rng.randrange(len(data) - 1500)])  # beyond the end's padding of zeros


def _damage(data: bytearray, rng: random.Random) -> bytes:
    for _ in range(4):
        data[rng.randrange(1024)] = rng.randrange(256)  # in the manifest's header and start
    return bytes(data)


@pytest.mark.parametrize("harm", [_cut, _damage])
def test_a_damaged_tar_is_refused_or_unpacks_below_its_folder(
    packed: Path, tmp_path: Path, harm: Callable[[bytearray, random.Random], bytes], scratch: Path
) -> None:
    rng = random.Random(0)
    for _ in range(60):
        (tmp_path / "b.tar").write_bytes(harm(bytearray(packed.read_bytes()), rng))
        try:
            root, temporary = archive.unpack(tmp_path / "b.tar")
        except BundleError:
            pass
        else:
            assert root.is_relative_to(scratch)
            shutil.rmtree(temporary)
        assert list(scratch.iterdir()) == []
