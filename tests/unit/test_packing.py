from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from bundles import MLP_INPUTS, MLP_OUTPUTS, write_mlp_bundle
from rankc import packing
from rankc.errors import MachineError, RecipeError
from rankc.packing import pack_tar, staging, write_golden, write_manifest
from rankrt.bundle import load
from rankrt.errors import BundleError
from rankrt.manifest import Golden


def _content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def _only(parent: Path, *names: str) -> bool:
    """Whether nothing else is in `parent`, hidden or not."""
    return sorted(p.name for p in parent.iterdir()) == sorted(names)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "build" / "ctr"


@pytest.fixture
def old(out: Path) -> dict[str, bytes]:
    """An older bundle is there."""
    write_mlp_bundle(out, name="old")
    return _content(out)


def test_a_new_bundle_appears_whole(out: Path) -> None:
    with staging(out) as folder:
        write_mlp_bundle(folder)
        assert folder.parent == out.parent  # the same file system, so that renaming works
        assert not out.exists()
    assert load(out).manifest.name == "tiny"
    assert _only(out.parent, "ctr")


def test_an_old_bundle_is_replaced(out: Path, old: dict[str, bytes]) -> None:
    with staging(out) as folder:
        write_mlp_bundle(folder)
        assert _content(out) == old
    assert load(out).manifest.name == "tiny"
    assert _only(out.parent, "ctr")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, BrokenPipeError])
def test_an_error_leaves_the_old_bundle_and_no_trace(
    out: Path, old: dict[str, bytes], error: type[BaseException]
) -> None:
    with pytest.raises(error), staging(out) as folder:
        (folder / "model.onnx").write_bytes(b"half")
        raise error
    assert _content(out) == old
    assert _only(out.parent, "ctr")


def test_a_full_disk_is_named(out: Path, old: dict[str, bytes]) -> None:
    with pytest.raises(MachineError) as caught, staging(out) as folder:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / "model.onnx"))
    text = str(caught.value)
    assert str(out) in text
    assert "model.onnx No space left on device; what was there is unchanged" in text
    assert "free some space" in text
    assert _content(out) == old
    assert _only(out.parent, "ctr")


def test_a_really_full_disk(out: Path) -> None:
    """/dev/full answers every write as a full disk does."""
    with pytest.raises(MachineError, match="No space left"), staging(out) as folder:
        (folder / "model.onnx").symlink_to("/dev/full")
        (folder / "model.onnx").write_bytes(b"x")
    assert not out.exists()


@pytest.mark.parametrize("step", [0, 1])
def test_a_swap_that_fails_puts_the_old_bundle_back(
    out: Path, old: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    rename, calls = Path.rename, 0

    def flaky(self: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == step + 1:
            raise OSError(errno.EIO, "input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", flaky)
    with pytest.raises(MachineError, match="input/output error"), staging(out) as folder:
        write_mlp_bundle(folder)
    assert _content(out) == old
    assert _only(out.parent, "ctr")


def test_ctrl_c_between_the_two_renames(
    out: Path, old: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        result = rename(self, target)
        if self == out:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), staging(out) as folder:
        write_mlp_bundle(folder)
    assert _content(out) == old
    assert _only(out.parent, "ctr")


def test_what_is_no_bundle_is_not_deleted(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"meow")
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "manifest.json").write_text('{"short_name": "app"}')
    (tmp_path / "file").write_text("x")
    before = _content(tmp_path)
    for name, says in (("photos", "holds no bundle"), ("web", "no bundle"), ("file", "is a file")):
        with pytest.raises(RecipeError, match=says), staging(tmp_path / name):
            pytest.fail("nothing may be made that could not be put there")
    assert _content(tmp_path) == before
    assert _only(tmp_path, "photos", "web", "file")


def test_what_appears_meanwhile_is_not_deleted(out: Path) -> None:
    with pytest.raises(RecipeError, match="holds no bundle"), staging(out) as folder:
        write_mlp_bundle(folder)
        out.mkdir()
        (out / "thesis.tex").write_text("x")
    assert _only(out.parent, "ctr")
    assert _only(out, "thesis.tex")


def test_an_empty_folder_and_a_damaged_bundle_are_replaced(out: Path) -> None:
    out.mkdir(parents=True)
    with staging(out) as folder:
        write_mlp_bundle(folder)
    (out / "manifest.json").write_text("{damaged")
    with staging(out) as folder:
        write_mlp_bundle(folder, name="again")
    assert load(out).manifest.name == "again"


def test_a_link_to_a_bundle_stays_one(out: Path, old: dict[str, bytes], tmp_path: Path) -> None:
    link = tmp_path / "latest"
    link.symlink_to(out)
    with staging(link) as folder:
        write_mlp_bundle(folder)
    assert link.is_symlink()
    assert load(out).manifest.name == "tiny"


_DYING = """
import os, signal, sys
from pathlib import Path
from rankc import packing
out, when = Path(sys.argv[1]), sys.argv[2]
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
with packing.staging(out) as folder:
    (folder / "manifest.json").write_text('"sha256"')
    if when == "inside":
        die()
    rename = Path.rename
    Path.rename = lambda self, target: (rename(self, target), die())
"""


def _dies(out: Path, when: str) -> None:
    done = subprocess.run([sys.executable, "-c", _DYING, str(out), when], check=False)
    assert done.returncode == -signal.SIGKILL


def test_the_remains_of_a_killed_run_are_removed(out: Path, old: dict[str, bytes]) -> None:
    _dies(out, "inside")
    assert _content(out) == old
    assert len(list(out.parent.iterdir())) == 2
    with staging(out) as folder:
        assert _only(out.parent, "ctr", folder.name)
        write_mlp_bundle(folder)
    assert _only(out.parent, "ctr")


def test_a_run_killed_between_the_renames_is_made_good(out: Path, old: dict[str, bytes]) -> None:
    _dies(out, "swap")
    assert not out.exists()
    with pytest.raises(ValueError, match="stop"), staging(out):
        raise ValueError("stop")
    assert _content(out) == old
    assert _only(out.parent, "ctr")


def test_a_run_that_goes_on_keeps_its_folder(out: Path) -> None:
    with staging(out) as first:
        (first / "model.onnx").write_bytes(b"first")
        with pytest.raises(ValueError, match="stop"), staging(out) as second:
            assert second != first
            raise ValueError("stop")
        assert (first / "model.onnx").read_bytes() == b"first"
        write_mlp_bundle(first)
    assert load(out).manifest.name == "tiny"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(MachineError, match="fix the permissions"), staging(tmp_path / "out"):
        pytest.fail("there is no folder to work in")
    tmp_path.chmod(0o700)


def test_a_file_in_the_place_of_the_parent(tmp_path: Path) -> None:
    (tmp_path / "build").write_text("x")
    with pytest.raises(MachineError, match="build"), staging(tmp_path / "build" / "ctr"):
        pytest.fail("there is no folder to work in")


def test_every_file_is_listed_with_its_hash(tmp_path: Path) -> None:
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "a.plan").write_bytes(b"abc")
    files = write_mlp_bundle(tmp_path).files
    assert sorted(files) == ["engines/a.plan", "golden.npz", "model.onnx"]
    info = files["engines/a.plan"]
    assert info.size_bytes == 3
    assert info.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_same_bundle_is_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_mlp_bundle(tmp_path / name)
        pack_tar(tmp_path / name, tmp_path / f"{name}.tar")
        os.utime(tmp_path / name / "model.onnx", (0, 0))
    assert _content(tmp_path / "a") == _content(tmp_path / "b")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert _only(tmp_path, "a", "b", "a.tar", "b.tar")


def test_a_tar_tells_nothing_of_its_maker(tmp_path: Path) -> None:
    write_mlp_bundle(tmp_path / "a")
    pack_tar(tmp_path / "a", tmp_path / "a.tar")
    with tarfile.open(tmp_path / "a.tar") as tar:
        members = tar.getmembers()
    assert [m.name for m in members] == ["manifest.json", "golden.npz", "model.onnx"]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in members} == {(0, 0, 0, "", 0o644)}


def test_only_a_bundle_is_packed(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"manifest.json is missing"):
        pack_tar(tmp_path, tmp_path / "a.tar")
    assert _only(tmp_path)


def test_a_tar_that_cannot_be_written(tmp_path: Path) -> None:
    write_mlp_bundle(tmp_path / "a")
    with pytest.raises(MachineError, match="absent"):
        pack_tar(tmp_path / "a", tmp_path / "absent" / "a.tar")


def test_a_manifest_that_contradicts_the_files_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"'model.onnx' is used but is not one of its files"):
        write_manifest(tmp_path, name="x", inputs=MLP_INPUTS, outputs=MLP_OUTPUTS)
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(BundleError, match="'g' is used"):
        write_manifest(
            tmp_path, name="x", inputs=MLP_INPUTS, outputs=MLP_OUTPUTS, golden=Golden("g", 0.0)
        )
    with pytest.raises(BundleError, match="NaN"):
        write_manifest(
            tmp_path, name="x", inputs=MLP_INPUTS, outputs=MLP_OUTPUTS, metrics={"auc": np.nan}
        )
    assert _only(tmp_path, "model.onnx")


def test_a_link_out_of_the_folder_is_not_packed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "model.onnx").symlink_to(tmp_path / "secret")
    with pytest.raises(BundleError, match="link out of"):
        write_manifest(tmp_path / "b", name="x", inputs=MLP_INPUTS, outputs=MLP_OUTPUTS)


def test_objects_are_no_golden_rows(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="Python objects: in:x"):
        write_golden(tmp_path, {"x": np.array([{}])}, {"y": np.zeros(1)})
    assert _only(tmp_path)


def test_a_file_system_without_locks_still_works(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_lock", lambda folder, wait: None)
    (out.parent / ".ctr.rankc-new-0000").mkdir(parents=True)
    with staging(out) as folder:
        write_mlp_bundle(folder)
    assert load(out).manifest.name == "tiny"
    assert _only(out.parent, "ctr", ".ctr.rankc-new-0000")  # it may be a running one's
