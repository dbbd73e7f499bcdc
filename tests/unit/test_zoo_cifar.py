"""Reading a user's CIFAR folder: what is right is read exactly, what is wrong is named."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import artifacts
from models.cifar import images
from models.cifar.images import CLASSES, SIDE, FolderError
from numpy.typing import NDArray
from PIL import Image

from rankc.data import open_source
from rankc.recipe import DataSpec
from rankrt.session import TensorSpec

Arrays = dict[str, NDArray[Any]]


def flat(red: int, green: int, blue: int, side: int = SIDE, kind: str = "JPEG") -> bytes:
    """A file of one colour, which JPEG keeps to within rounding."""
    stream = io.BytesIO()
    Image.new("RGB", (side, side), (red, green, blue)).save(stream, kind, quality=95)
    return stream.getvalue()


def archive(*files: bytes, labels: list[int] | None = None) -> Arrays:
    ends = np.cumsum([0, *map(len, files)])
    return {
        "jpeg": np.frombuffer(b"".join(files), np.uint8),
        "offsets": ends.astype(np.int64),
        "labels": np.array(range(len(files)) if labels is None else labels, np.int16),
    }


def saved(path: Path, arrays: Arrays) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path.parent


def test_parts_are_read_in_order_and_decoded_channels_first(tmp_path: Path) -> None:
    saved(tmp_path / "c_train-1of2.npz", archive(flat(0, 0, 250), labels=[9]))
    saved(tmp_path / "c_train-0of2.npz", archive(flat(250, 0, 0), flat(0, 250, 0), labels=[3, 0]))
    saved(tmp_path / "c_test.npz", archive(flat(9, 9, 9)))
    found = images.load(tmp_path, "train")
    assert found.image.shape == (3, 3, SIDE, SIDE)
    assert found.image.dtype == np.uint8
    assert found.label.dtype == np.int64
    assert found.label.tolist() == [3, 0, 9]
    wanted = np.array([[250, 0, 0], [0, 250, 0], [0, 0, 250]])
    assert np.abs(found.image.mean(axis=(2, 3)) - wanted).max() < 3
    assert len(images.load(tmp_path, "test").label) == 1


def test_rows_and_columns_are_not_swapped() -> None:
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    pixels[:8] = 255  # the top
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=95)
    (found,) = images.decode("here", [stream.getvalue()])
    assert found[:, :8].mean() > 250
    assert found[:, 8:].mean() < 5


def test_grey_files_become_three_equal_channels() -> None:
    stream = io.BytesIO()
    Image.new("L", (SIDE, SIDE), 77).save(stream, "JPEG", quality=95)
    (found,) = images.decode("here", [stream.getvalue()])
    assert np.abs(found.astype(int) - 77).max() <= 1


@given(st.lists(st.binary(min_size=1, max_size=20), max_size=8))
def test_files_are_cut_where_the_offsets_say(files: list[bytes]) -> None:
    arrays = archive(*files)
    assert images.split("here", arrays["jpeg"], arrays["offsets"]) == files


@pytest.mark.parametrize(
    ("offsets", "said"),
    [
        ([0, 3, 2, 6], "must rise"),
        ([0, 3, 3, 6], "must rise"),
        ([1, 3, 6], "run from 0 to 6"),
        ([0, 3, 7], "run from 0 to 6"),
        ([0.0, 6.0], "run from 0 to 6"),
        ([], r"\(images \+ 1,\)"),
        ([[0, 6]], r"\(images \+ 1,\)"),
    ],
)
def test_offsets_that_cut_no_files_are_refused(offsets: list[Any], said: str) -> None:
    with pytest.raises(FolderError, match=said):
        images.split("here", np.arange(6, dtype=np.uint8), np.array(offsets))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": np.array([0])}, "2 images but labels"),
        ({"labels": np.array([0.0, 1.0])}, "2 images but labels"),
        ({"labels": np.array([0, len(CLASSES)])}, "labels must be 0 to 9"),
        ({"labels": np.array([-1, 0])}, "labels must be 0 to 9"),
        ({"labels": None}, "no array labels"),
        ({"jpeg": np.zeros(4, np.int64)}, "jpeg must be uint8"),
        ({"labels": np.array([{}, {}], dtype=object)}, "not an .npz of plain arrays"),
    ],
)
def test_arrays_that_are_wrong_are_named(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    arrays = archive(flat(1, 2, 3), flat(4, 5, 6)) | changes
    kept = {name: array for name, array in arrays.items() if array is not None}
    folder = saved(tmp_path / "train.npz", kept)
    with pytest.raises(FolderError, match=said) as caught:
        images.load(folder, "train")
    assert "train.npz" in str(caught.value)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"no image", "can't be decoded"),
        (flat(0, 0, 0)[:200], "can't be decoded"),
        (flat(0, 0, 0, kind="PNG"), "can't be decoded"),
        (flat(0, 0, 0, side=16), r"is \(16, 16, 3\)"),
    ],
)
def test_files_that_are_not_small_jpegs_are_named_by_number(data: bytes, said: str) -> None:
    with pytest.raises(FolderError, match=f"here: image 1 {said}"):
        images.decode("here", [flat(0, 0, 0), data])


def test_a_folder_without_the_part_is_named(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match=r"no \*train\*\.npz"):
        images.load(tmp_path, "train")
    saved(tmp_path / "train.npz", archive())
    with pytest.raises(FolderError, match="no images in its"):
        images.load(tmp_path, "train")
    (tmp_path / "train.npz").write_bytes(b"not a zip")
    with pytest.raises(FolderError, match=r"not an \.npz of plain arrays"):
        images.load(tmp_path, "train")


def test_rankc_feeds_stored_bytes_to_a_float_input(tmp_path: Path) -> None:
    """The build stores uint8, a quarter of the space; the model takes float32."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, SIDE, SIDE), dtype=np.uint8)
    artifacts.save_npz(tmp_path / "calibration.npz", {"image": pixels})
    spec = TensorSpec("image", "float32", ("batch", 3, SIDE, SIDE))
    (batch,) = open_source(DataSpec("calibration.npz"), tmp_path, [spec]).batches()
    assert batch.feeds["image"].dtype == np.float32
    np.testing.assert_array_equal(batch.feeds["image"], pixels)
