from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builders import mlp_rows
from bundles import MLP_INPUTS, MLP_OUTPUTS, write_mlp_bundle, write_tables_bundle
from rankc.packing import pack_tar, write_manifest
from rankrt.bundle import Bundle, load, read
from rankrt.errors import BackendError, BundleError, FeedError
from rankrt.manifest import Engine, Golden
from rankrt.session import TensorSpec, check_array, open_model


@pytest.fixture(scope="module")
def mlp_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    write_mlp_bundle(folder)
    return folder


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundles") / "tables"
    write_tables_bundle(folder)
    return load(folder)


@pytest.fixture
def copy(mlp_folder: Path, tmp_path: Path) -> Path:
    """A bundle that a test may damage."""
    return Path(shutil.copytree(mlp_folder, tmp_path / "copy"))


def test_it_runs_what_it_holds(mlp_folder: Path) -> None:
    bundle = load(mlp_folder)
    assert (bundle.backend, bundle.refused, bundle.engine) == ("onnxruntime", (), None)
    got = bundle.run({"x": mlp_rows(3)})
    want = open_model(mlp_folder / "model.onnx").run({"x": mlp_rows(3)})
    np.testing.assert_array_equal(got["y"], want["y"])


def test_the_golden_rows_come_out_again(mlp_folder: Path) -> None:
    result = load(mlp_folder).check_golden()
    assert result is not None
    assert (result.rows, result.passed, result.bound) == (8, 8, 2e-6)


def test_a_model_that_computes_something_else_is_noticed(tmp_path: Path) -> None:
    write_mlp_bundle(tmp_path, golden=Golden("golden.npz", 0.0))
    with np.load(tmp_path / "golden.npz") as arrays:
        rows = {name: arrays[name] for name in arrays.files}
    rows["out:y"][3] += 0.5
    np.savez(tmp_path / "golden.npz", **rows)
    fields: dict[str, Any] = {"inputs": MLP_INPUTS, "outputs": MLP_OUTPUTS}
    write_manifest(tmp_path, name="x", golden=Golden("golden.npz", 1e-3), **fields)
    result = load(tmp_path).check_golden()
    assert result is not None
    assert (result.rows, result.passed) == (8, 7)
    assert result.max_abs_err == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz", "manifest.json"])
@pytest.mark.parametrize("place", [0.0, 0.37, 0.99])
def test_a_flipped_bit_in_any_file_is_refused(copy: Path, name: str, place: float) -> None:
    data = bytearray((copy / name).read_bytes())
    data[int(place * len(data))] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(BundleError):
        load(copy)


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz", "manifest.json"])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleError, match=name):
        load(copy)


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz", "manifest.json"])
def test_a_cut_file_is_refused(copy: Path, name: str) -> None:
    os.truncate(copy / name, (copy / name).stat().st_size // 2)
    with pytest.raises(BundleError):
        load(copy)


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json"])
def test_a_link_out_of_the_folder_is_refused(copy: Path, mlp_folder: Path, name: str) -> None:
    (copy / name).unlink()
    (copy / name).symlink_to(mlp_folder / name)  # the very content that is expected
    with pytest.raises(BundleError, match=r"link out of the bundle's folder"):
        load(copy)


def test_a_loop_of_links_is_refused(copy: Path) -> None:
    (copy / "model.onnx").unlink()
    (copy / "model.onnx").symlink_to(copy / "model.onnx")
    with pytest.raises(BundleError, match=r"cannot be read|is missing"):
        load(copy)


def test_a_pipe_does_not_block(copy: Path) -> None:
    (copy / "model.onnx").unlink()
    os.mkfifo(copy / "model.onnx")
    with pytest.raises(BundleError, match="not a regular file"):
        load(copy)


def test_a_folder_in_a_files_place(copy: Path) -> None:
    (copy / "model.onnx").unlink()
    (copy / "model.onnx").mkdir()
    with pytest.raises(BundleError, match="not a regular file"):
        load(copy)


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"\xff\xfe{}", "damaged"), (b"{}", "format is None"), (b" " * (9 << 20), "more than")],
)
def test_a_manifest_that_is_none(copy: Path, content: bytes, says: str) -> None:
    (copy / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match=says):
        load(copy)


def test_paths_that_are_no_bundle(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        load(tmp_path / "absent")
    with pytest.raises(BundleError, match=r"holds no manifest.json"):
        load(tmp_path)
    with pytest.raises(BundleError, match="load its folder"):
        load(copy / "model.onnx")


@pytest.mark.parametrize(
    ("feeds", "says"),
    [
        ({}, "missing inputs: x"),
        ({"x": mlp_rows(2), "y": mlp_rows(2)}, "unknown inputs: y"),
        ({"x": mlp_rows(2).astype(np.float64)}, "x is float64, the model takes float32; convert"),
        ({"x": mlp_rows(2).astype(">f4")}, "x is >f4, the model takes float32"),
        ({"x": mlp_rows(2)[0]}, r"x has shape \(16,\), the model takes x float32 \(batch, 16\)"),
        ({"x": mlp_rows(2)[:, :5]}, "axis 1 is 5, expected 16"),
    ],
)
def test_feeds_that_do_not_fit(mlp_folder: Path, feeds: dict[str, Any], says: str) -> None:
    with pytest.raises(FeedError, match=says):
        load(mlp_folder).run(feeds)


def test_every_id_within_its_range_is_taken(tables: Bundle) -> None:
    ids = np.array([[0, 0], [2, 4], [1, 3]])
    want = [[0, 3], [2, 7], [1, 6]]
    np.testing.assert_array_equal(tables.run({"ids": ids})["z"][..., 0], want)
    assert tables.run({"ids": ids[:0]})["z"].shape == (0, 2, 1)
    np.testing.assert_array_equal(tables.run({"ids": ids.T.copy().T})["z"][..., 0], want)


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        ([[0, 0], [3, 0]], r"the id 3 at \[1, 0\], valid are 0..2"),  # row 3 is the other field's
        ([[0, -1]], r"the id -1 at \[0, 1\], valid are 0..4"),  # so would row 2 be
        ([[9, 9], [0, 9]], "3 of 4 ids are wrong"),
        ([[0, 2**62]], "valid are 0..4"),
    ],
)
def test_an_id_beyond_its_field_is_refused(tables: Bundle, ids: list[list[int]], says: str) -> None:
    with pytest.raises(FeedError, match=says):
        tables.run({"ids": np.array(ids)})


def test_a_named_size_is_the_same_everywhere() -> None:
    sizes: dict[str, int] = {}
    check_array(TensorSpec("a", "float32", ("batch", None)), np.zeros((3, 9), np.float32), sizes)
    with pytest.raises(FeedError, match="axis 0 is 4, expected 3; batch is 3 in another input"):
        check_array(TensorSpec("b", "float32", ("batch",)), np.zeros(4, np.float32), sizes)


def test_a_manifest_that_promises_other_inputs(tmp_path: Path) -> None:
    write_mlp_bundle(tmp_path, inputs=(TensorSpec("w", "float32", ("batch", 16)),))
    with pytest.raises(BackendError, match=r"its inputs are x float32 .*; the manifest says w"):
        load(tmp_path)


_UNBUILT = Engine("tensorrt-rtx", "fp32", None, (), "1.7.1", False, False, "op Det is unsupported")
_PLAN = Engine("tensorrt-rtx", "fp16", "a.plan", (), "1.7.1", True, False)


@pytest.fixture
def with_engines(tmp_path: Path) -> Path:
    (tmp_path / "a.plan").write_bytes(b"not an engine")
    write_mlp_bundle(tmp_path, engines=(_UNBUILT, _PLAN))
    return tmp_path


def test_an_engine_that_cannot_be_used_leaves_its_reason(with_engines: Path) -> None:
    bundle = load(with_engines)
    assert bundle.backend == "onnxruntime"
    assert [name for name, _ in bundle.refused] == ["tensorrt-rtx-fp16", "tensorrt-rtx-fp32"]
    assert bundle.refused[1][1] == "not built: op Det is unsupported"
    assert bundle.refused[0][1]


def test_a_backend_that_was_asked_for_is_not_replaced(with_engines: Path) -> None:
    with pytest.raises(BackendError, match=r"nothing can run 'tiny' here\n  tensorrt-rtx-fp16: "):
        load(with_engines, backend="tensorrt-rtx")
    with pytest.raises(BackendError, match="tensorrt: the bundle holds no engine for it"):
        load(with_engines, backend="tensorrt")
    with pytest.raises(BackendError, match="unknown backend 'tvm'; choose one of tensorrt,"):
        load(with_engines, backend="tvm")
    assert load(with_engines, backend="onnxruntime").refused == ()


def _temporary_folders(base: Path) -> list[Path]:
    return list(base.glob("rankrt-*"))


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders go during a test."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_a_tar_runs_and_leaves_nothing_behind(
    mlp_folder: Path, tmp_path: Path, scratch: Path
) -> None:
    pack_tar(mlp_folder, tmp_path / "b.tar")
    with load(tmp_path / "b.tar") as bundle:
        assert len(_temporary_folders(scratch)) == 1
        result = bundle.check_golden()
        assert result is not None
        assert result.ok
    assert _temporary_folders(scratch) == []
    assert bundle.run({"x": mlp_rows(1)})["y"].shape == (1, 8)
    load(tmp_path / "b.tar")  # not closed, but collected at once
    assert _temporary_folders(scratch) == []


def test_a_refused_tar_leaves_nothing_behind(copy: Path, tmp_path: Path, scratch: Path) -> None:
    data = bytearray((copy / "model.onnx").read_bytes())
    pack_tar(copy, tmp_path / "b.tar")
    tar = (tmp_path / "b.tar").read_bytes()
    data[100] ^= 1
    (tmp_path / "b.tar").write_bytes(tar.replace((copy / "model.onnx").read_bytes(), bytes(data)))
    with pytest.raises(BundleError, match="sha256"):
        load(tmp_path / "b.tar")
    assert _temporary_folders(scratch) == []


def test_reading_opens_no_backend(mlp_folder: Path) -> None:
    contents = read(mlp_folder)
    assert contents.manifest.name == "tiny"
    assert contents.folder == mlp_folder
    contents.close()
    assert mlp_folder.exists()
