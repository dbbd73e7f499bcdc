"""A user's folder of CIFAR-10 as JPEGs: read, check and decode. No torch here.

The folder holds `*train*.npz` and `*test*.npz`. Each has `jpeg`, the files' bytes one after the
other (uint8); `offsets`, where each begins and the last ends (images + 1, int64); and `labels`
(images,), 0 airplane to 9 truck in the usual order.
"""

from __future__ import annotations

import io
import itertools
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

SIDE = 32
CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
NEEDED = ("jpeg", "offsets", "labels")


class FolderError(Exception):
    """The user's folder or weights are not what the build needs; the message says why."""


class Images(NamedTuple):
    """Decoded images, channels first."""

    image: NDArray[np.uint8]  # (images, 3, 32, 32), red green blue
    label: NDArray[np.int64]  # (images,), 0 to 9


def load(folder: Path, part: str) -> Images:
    """All images of one part, files in the order of their names.

    Args:
        folder: Where the .npz files are.
        part: "train" or "test".

    Raises:
        FolderError: No such file, an array is missing, or an image can't be decoded.
    """
    paths = sorted(folder.glob(f"*{part}*.npz"))
    if not paths:
        raise FolderError(f"{folder}: no *{part}*.npz; see models/cifar-resnet20/README.md")
    parts = [_read(path) for path in paths]
    label = np.concatenate([p.label for p in parts])
    if not len(label):
        raise FolderError(f"{folder}: no images in its *{part}*.npz")
    return Images(np.concatenate([p.image for p in parts]), label)


def _read(path: Path) -> Images:
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [name for name in NEEDED if name not in archive]
            if missing:
                raise FolderError(f"{path}: no array {', '.join(missing)}; needs {NEEDED}")
            data, offsets, labels = (archive[name] for name in NEEDED)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise FolderError(f"{path}: not an .npz of plain arrays: {error}") from error
    files = split(path, data, offsets)
    if labels.shape != (len(files),) or labels.dtype.kind not in "iu":
        raise FolderError(f"{path}: {len(files)} images but labels {labels.dtype} {labels.shape}")
    if len(files) and not 0 <= labels.min() <= labels.max() < len(CLASSES):
        raise FolderError(f"{path}: labels must be 0 to {len(CLASSES) - 1}")
    return Images(decode(path, files), labels.astype(np.int64))


def split(where: object, data: NDArray[Any], offsets: NDArray[Any]) -> list[bytes]:
    """The bytes of each file out of all bytes.

    Args:
        where: For messages.
        data: (bytes,), uint8.
        offsets: (files + 1,), whole numbers from 0 to bytes, rising.

    Raises:
        FolderError: The offsets don't cut `data` into files.
    """
    if data.dtype != np.uint8 or data.ndim != 1 or offsets.ndim != 1 or not offsets.size:
        raise FolderError(f"{where}: jpeg must be uint8 (bytes,) and offsets (images + 1,)")
    if offsets.dtype.kind not in "iu" or offsets[0] != 0 or offsets[-1] != len(data):
        raise FolderError(f"{where}: offsets must run from 0 to {len(data)}")
    bounds = [int(at) for at in offsets]
    if any(end <= start for start, end in itertools.pairwise(bounds)):
        raise FolderError(f"{where}: offsets must rise")
    return [data[start:end].tobytes() for start, end in itertools.pairwise(bounds)]


def decode(where: object, files: Sequence[bytes]) -> NDArray[np.uint8]:
    """Pixels (files, 3, 32, 32) of JPEG files.

    Raises:
        FolderError: A file is not a JPEG of 32 by 32 pixels.
    """
    pixels = np.empty((len(files), 3, SIDE, SIDE), np.uint8)
    for row, data in enumerate(files):
        try:
            with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
                found = np.asarray(image.convert("RGB"))
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise FolderError(f"{where}: image {row} can't be decoded: {error}") from error
        if found.shape != (SIDE, SIDE, 3):
            raise FolderError(f"{where}: image {row} is {found.shape}, not ({SIDE}, {SIDE}, 3)")
        pixels[row] = found.transpose(2, 0, 1)
    return pixels
