"""Photos out of wheels: crops of one side never show what the other side does."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from models.efficientnet import photos
from PIL import Image


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stand in for the downloads: wheels of the same names, with noise for photos."""
    folder, rng = tmp_path_factory.mktemp("wheels"), np.random.default_rng(0)
    for package, (inside, names) in photos.PHOTOS.items():
        with zipfile.ZipFile(folder / f"{package}-py3-none-any.whl", "w") as wheel:
            for name in names:
                noise = rng.integers(0, 256, (10, 14, 3), dtype=np.uint8)
                file = io.BytesIO()
                Image.fromarray(noise).save(file, "PNG")
                wheel.writestr(f"{inside}/{name}", file.getvalue())
    return folder


def test_the_sides_share_no_photo_and_repeat_exactly(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photos, "CROPS", 2)
    for out in ("a", "b"):
        assert photos.write(wheels, tmp_path / out) == 48
    sides = []
    for part in photos.PARTS:
        files = sorted((tmp_path / "a" / part).iterdir())
        assert {file.name for file in files} == photos.names(part)
        for file in files:
            with Image.open(file) as image:
                assert image.size == (photos.SIDE, photos.SIDE)
            assert file.read_bytes() == (tmp_path / "b" / part / file.name).read_bytes()
        sides.append({file.name.partition("-")[2] for file in files})
    assert not sides[0] & sides[1]
    assert [len(side) for side in sides] == [24, 24]
    with pytest.raises(photos.PhotosError, match="calibration holds something already"):
        photos.write(wheels, tmp_path / "a")


@pytest.mark.parametrize(("width", "height"), [(40, 30), (30, 40), (256, 256), (7, 5)])
def test_crops_lie_in_the_photo(width: int, height: int) -> None:
    red, green = np.mgrid[:height, :width].astype(np.uint8)
    whole = Image.fromarray(np.dstack([red, green, np.full_like(red, 200)]))
    found = list(photos.crops(whole, np.random.default_rng(1)))
    assert len(found) == photos.CROPS
    for crop in found:
        blue = np.asarray(crop)[:, :, 2]
        assert crop.size == (photos.SIDE, photos.SIDE) and (blue == 200).all()


def test_a_wheel_that_is_missing_or_empty_is_named(tmp_path: Path) -> None:
    with pytest.raises(photos.PhotosError, match=r"no foolbox-3\.3\.4-\*\.whl; .*README"):
        photos.write(tmp_path, tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "foolbox-3.3.4-py3-none-any.whl", "w"):
        pass
    assert photos.main([str(tmp_path), "--out", str(tmp_path / "more")]) == 2
