"""Rows out of images: a folder of them, read with Pillow one batch at a time.

An image is made RGB (grey for a model of one channel) and resized, bicubic, so that its shorter
side has `resize` pixels; the model's height and width are cut out of the centre; and the model gets
(pixel - mean) / scale. So ImageNet classifiers are usually evaluated.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rankc.data.source import Array, Batch, Source, Wanted, checked, limited, sha256_of
from rankc.errors import DataError, MachineError
from rankc.recipe import Images
from rankrt.session import TensorSpec

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
CLASS_OF_FOLDER = "folder"  # as label: the class is that of the sub-folder

_FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
_BICUBIC = 3  # PIL.Image.Resampling.BICUBIC; Pillow is imported only when used
_BATCH_BYTES = 16 << 20  # what a net computes on the way is many times its input


@dataclass(frozen=True, slots=True)
class Frame:
    """The part of an image that the model gets, and in which form."""

    spec: TensorSpec
    channels: int
    height: int
    width: int
    channels_last: bool
    shorter: int | None  # pixels of the shorter side after resizing; None: as few as cover it
    mean: Array  # (channels,) or (1,)
    scale: Array

    @classmethod
    def of(cls, where: object, inputs: Sequence[TensorSpec], options: Images) -> Frame:
        """Read height, width and layout off the model's input.

        Raises:
            DataError: it takes no images, or images that do not fit the options.
        """
        spec, channels_last = _image_input(where, inputs)
        channels, *sides = _sizes(spec, channels_last)
        height, width = (_side(where, spec, side, options.resize) for side in sides)
        if options.resize is not None and options.resize < max(height, width):
            raise DataError(
                f"{where}: image.resize is {options.resize}, too small to cut {height} x {width} "
                f"pixels out for {spec}; give {max(height, width)} or more, or leave it out"
            )
        for name, numbers in (("mean", options.mean), ("scale", options.scale)):
            if len(numbers) not in (1, channels):
                raise DataError(
                    f"{where}: image.{name} has {len(numbers)} numbers; give one, or one for each "
                    f"of the {channels} channels of {spec}"
                )
        mean, scale = np.array(options.mean, np.float32), np.array(options.scale, np.float32)
        if np.dtype(spec.dtype).kind != "f" and (mean.any() or (scale != 1).any()):
            raise DataError(
                f"{where}: {spec} takes the pixels themselves; set image.mean to 0 and "
                "image.scale to 1"
            )
        assert isinstance(channels, int)
        return cls(spec, channels, height, width, channels_last, options.resize, mean, scale)

    @property
    def row_bytes(self) -> int:
        return self.channels * self.height * self.width * np.dtype(self.spec.dtype).itemsize

    def cut(self, image: Any) -> Any:
        """The centre of a resized Pillow image, (width, height).

        Only what is cut out is computed, so that a strip one pixel wide costs no more than others.
        """
        (width, height), (wide, high) = image.size, self.resized(*image.size)
        left, top = round((wide - self.width) / 2), round((high - self.height) / 2)
        box = (
            left * width / wide,
            top * height / high,
            (left + self.width) * width / wide,
            (top + self.height) * height / high,
        )
        return image.resize((self.width, self.height), _BICUBIC, box=box)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Size of the whole image, (width, height), before the centre is cut out."""
        if self.shorter is not None:
            part, whole = self.shorter, min(width, height)
        elif self.width * height >= self.height * width:  # the width decides
            part, whole = self.width, width
        else:
            part, whole = self.height, height
        return width * part // whole, height * part // whole

    def values(self, pixels: Array) -> Array:
        """What the model gets, in its layout; `pixels`: (height, width, channels), uint8."""
        array = pixels
        if np.dtype(self.spec.dtype).kind == "f":
            array = (pixels.astype(np.float32) - self.mean) / self.scale
        return array if self.channels_last else np.moveaxis(array, 2, 0)


def _image_input(where: object, inputs: Sequence[TensorSpec]) -> tuple[TensorSpec, bool]:
    """The input that takes images, and whether its last axis is that of the channels."""
    listed = ", ".join(map(str, inputs))
    if len(inputs) != 1:
        raise DataError(
            f"{where}: a folder of images feeds a model of one input, and it takes {listed}; "
            "use .npz or .npy files"
        )
    (spec,) = inputs
    is_number = np.dtype(spec.dtype).kind in "fiu"
    first, last = (len(spec.shape) == 4 and spec.shape[axis] in (1, 3) for axis in (1, 3))
    if not is_number or first == last:
        raise DataError(
            f"{where}: {listed} takes no images: its shape has to be (batch, channels, height, "
            "width) or (batch, height, width, channels), of 1 or 3 channels; use .npz or .npy files"
        )
    return spec, last


def _sizes(spec: TensorSpec, channels_last: bool) -> tuple[int | str | None, ...]:
    """(channels, height, width)."""
    order = (3, 1, 2) if channels_last else (1, 2, 3)
    return tuple(spec.shape[axis] for axis in order)


def _side(where: object, spec: TensorSpec, size: int | str | None, resize: int | None) -> int:
    if isinstance(size, int):
        return size
    if resize is None:
        raise DataError(
            f"{where}: {spec} leaves height and width free; say with image.resize how many pixels "
            "the square has that is cut out"
        )
    return resize


class ImageFolder(Source):
    """All images of a folder and of what lies in it, in the order of their paths."""

    def __init__(self, path: Path, wanted: Wanted, limit: int | None, options: Images) -> None:
        self.path, self._wanted = path, wanted
        self._frame = Frame.of(path, wanted.inputs, options)
        self._pillow = _pillow(path)
        found = find_images(path)
        if not found:
            raise DataError(
                f"{path}: there are no images in it or below; read are {', '.join(SUFFIXES)}"
            )
        if wanted.group is not None:
            raise DataError(
                f"{path}: group {wanted.group!r}: images have no columns; leave data.*.group out, "
                "or use .npz or .npy files"
            )
        self._files = _spread(found, limit)
        self.rows = len(self._files)
        self._classes = None if wanted.label is None else self._class_of(wanted.label)
        size, most = wanted.batch_size, max(1, _BATCH_BYTES // self._frame.row_bytes)
        fixed = isinstance(self._frame.spec.shape[0], int)
        self._batch_size = size if fixed else min(size, most)

    def batches(self) -> Iterator[Batch]:
        return checked(self.path, self._wanted, self._blocks(), None)

    def digest(self) -> str:
        """Of names and contents; with labels, also of what the classes are called."""
        files = sha256_of(self._files, self.path)
        if self._classes is None:
            return files
        return hashlib.sha256("\0".join([*self._classes, files]).encode()).hexdigest()

    def _class_of(self, label: str) -> dict[str, int]:
        """Index of each sub-folder that is a class."""
        if label != CLASS_OF_FOLDER:
            raise DataError(
                f"{self.path}: label {label!r}: images have no columns; put those of each class "
                f"into a sub-folder and write `label: {CLASS_OF_FOLDER}`"
            )
        names = sorted(
            entry.name
            for entry in self.path.iterdir()
            if entry.is_dir() and not entry.name.startswith(".")
        )
        for file in self._files:
            if file.parent == self.path:
                raise DataError(
                    f"{file}: of no class; with `label: {CLASS_OF_FOLDER}` every image lies in the "
                    "sub-folder of its class"
                )
        return {name: index for index, name in enumerate(names)}

    def _blocks(self) -> Iterator[Mapping[str, Array]]:
        for at in range(0, len(self._files), self._batch_size):
            files = self._files[at : at + self._batch_size]
            values = np.stack([self._frame.values(self._pixels(file)) for file in files])
            block = {self._frame.spec.name: values}
            if self._classes is not None:
                names = [file.relative_to(self.path).parts[0] for file in files]
                block[CLASS_OF_FOLDER] = np.array([self._classes[name] for name in names])
            yield block

    def _pixels(self, file: Path) -> Array:
        """(height, width, channels), uint8."""
        mode = "RGB" if self._frame.channels == 3 else "L"
        try:
            # Pillow only warns of an image that unpacks to more than some 90 million pixels.
            with warnings.catch_warnings():
                warnings.simplefilter("error", self._pillow.DecompressionBombWarning)
                with self._pillow.open(file, formats=_FORMATS) as image:
                    cut = np.asarray(self._frame.cut(_of_eight_bits(image).convert(mode)))
        except Exception as error:  # decoders of spoilt or hostile files fail in every way
            raise DataError(
                f"{file}: cannot be read as an image: {str(error).rstrip('.')}; mend it, make it "
                "smaller, or take it out of the folder"
            ) from error
        return cut if cut.ndim == 3 else cut[:, :, np.newaxis]


def _of_eight_bits(image: Any) -> Any:
    """The Pillow image; refuses numbers that a conversion would cut off at 255."""
    if image.mode.startswith(("I", "F")):
        raise ValueError("it has more than 8 bits a channel")
    return image


def _pillow(where: object) -> Any:
    try:
        return importlib.import_module("PIL.Image")
    except ImportError as error:
        raise MachineError(f"{where}: needs Pillow: pip install 'rankc[images]'") from error


def find_images(folder: Path) -> list[Path]:
    """Every image below a folder, sorted by path. What is hidden, `.name`, is left out.

    Raises:
        DataError: a folder cannot be read, or a link leads to a folder or out of this one.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error

    root = folder.resolve()
    found: list[Path] = []
    for where, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            if Path(where, name).is_symlink():
                raise DataError(
                    f"{Path(where, name)}: a link to a folder, which is not followed; put the "
                    "folder itself there, or name it as the data's path"
                )
        paths = (Path(where, name) for name in files if not name.startswith("."))
        images = [path for path in paths if path.suffix.lower() in SUFFIXES]
        for path in images:
            _refuse_link(path, root)
        found += images
    return sorted(found)


def _refuse_link(path: Path, root: Path) -> None:
    if path.is_symlink() and not path.resolve().is_relative_to(root):
        raise DataError(
            f"{path}: a link that leaves the folder; put a copy of the image there, or take it out"
        )
    if not path.is_file():
        raise DataError(f"{path}: a broken link or a device; put an image there, or take it out")


def _spread(files: Sequence[Path], limit: int | None) -> tuple[Path, ...]:
    """At most `limit`, evenly spaced: the first ones would all be of one class."""
    count = limited(len(files), limit)
    assert count is not None
    return tuple(files[index * len(files) // count] for index in range(count))
