from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from rankrt import golden
from rankrt.errors import BundleError


def test_rows_within_the_bound_are_counted() -> None:
    want = {"y": np.zeros((4, 3)), "z": np.zeros(4)}
    got = {"y": np.zeros((4, 3)), "z": np.array([0, 1e-7, 0, 0])}
    got["y"][2, 1] = 1e-3
    result = golden.compare(want, got, 1e-6)
    assert (result.rows, result.passed, result.ok) == (4, 3, False)
    assert result.max_abs_err == pytest.approx(1e-3)
    assert golden.compare(want, got, 1e-3).ok


@pytest.mark.parametrize(
    ("want", "got", "error"),
    [
        ([np.nan], [np.nan], 0.0),
        ([np.nan], [0.0], np.inf),
        ([0.0], [np.nan], np.inf),
        ([np.inf], [np.inf], 0.0),
        ([np.inf], [-np.inf], np.inf),
    ],
)
def test_numbers_that_are_none(want: list[float], got: list[float], error: float) -> None:
    result = golden.compare({"y": np.array(want)}, {"y": np.array(got)}, 1.0)
    assert result.max_abs_err == error
    assert result.ok == (error == 0)


def test_outputs_without_a_common_axis_are_one_row() -> None:
    result = golden.compare(
        {"y": np.zeros(3), "s": np.zeros(())}, {"y": np.ones(3), "s": np.zeros(())}, 0.5
    )
    assert (result.rows, result.passed) == (1, 0)


def test_whole_numbers_do_not_wrap_around() -> None:
    want, got = np.array([0], np.uint8), np.array([255], np.uint8)
    assert golden.compare({"y": want}, {"y": got}, 1).max_abs_err == 255


def test_other_names_or_shapes_are_refused() -> None:
    with pytest.raises(BundleError, match="'y' is none of z"):
        golden.compare({"y": np.zeros(2)}, {"z": np.zeros(2)}, 1)
    with pytest.raises(BundleError, match=r"y has shape \(3,\), the golden one has \(2,\)"):
        golden.compare({"y": np.zeros(2)}, {"y": np.zeros(3)}, 1)


def test_pickled_data_is_not_run(tmp_path: Path) -> None:
    array = np.array([pickle], dtype=object)
    array[0] = {"any": "object"}
    np.savez(tmp_path / "g.npz", **{"in:x": np.zeros(1), "out:y": array})  # type: ignore[arg-type]
    with pytest.raises(BundleError, match="does not hold plain arrays"):
        golden.read(tmp_path / "g.npz")


def test_a_small_file_that_unpacks_to_a_huge_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "g.npz"
    np.savez_compressed(path, **{"in:x": np.zeros(300_000), "out:y": np.zeros(1)})  # type: ignore[arg-type]
    assert path.stat().st_size < 10_000
    assert golden.read(path)[0]["x"].size == 300_000
    monkeypatch.setattr(golden, "MAX_BYTES", 1_000_000)
    with pytest.raises(BundleError, match="unpacks to 24"):
        golden.read(path)


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06" + b"\x00" * 18, b"\x93NUMPY" + b"x" * 50])
def test_files_that_are_no_arrays(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "g.npz").write_bytes(content)
    with pytest.raises(BundleError):
        golden.read(tmp_path / "g.npz")


def test_an_array_that_claims_to_be_huge(tmp_path: Path) -> None:
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (999999999999999,), }"
    header = header.ljust(117) + b"\n"
    with zipfile.ZipFile(tmp_path / "g.npz", "w") as archive:
        archive.writestr(
            "in:x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
        )
    with pytest.raises(BundleError, match="plain arrays"):
        golden.read(tmp_path / "g.npz")
