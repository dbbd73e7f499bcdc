"""Rows for calibration and validation, read batch by batch in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rankc.data.arrays import NpyFolder, NpzFile
from rankc.data.every_other import EveryOther
from rankc.data.images import ImageFolder, find_images
from rankc.data.learning import Learning
from rankc.data.source import Array, Batch, InRange, Source, Wanted, refused_rows
from rankc.data.tables import CsvFile, ParquetFile
from rankc.data.user_code import CODE_PATH, UserCode
from rankc.errors import DataError, RecipeError
from rankc.recipe import DataSpec
from rankrt.session import TensorSpec

__all__ = [
    "Array",
    "Batch",
    "EveryOther",
    "InRange",
    "Learning",
    "Source",
    "open_source",
    "refused_rows",
]

KINDS = (
    "an .npz file, a folder of .npy files or of images, a .parquet or .csv file, or "
    "module.py:function"
)


def open_source(
    spec: DataSpec, folder: Path, inputs: Sequence[TensorSpec], *, trust_code: bool = False
) -> Source:
    """Open the rows that a recipe names and check all that can be checked without reading them.

    Args:
        spec: where the rows are and how many of them to read.
        folder: the recipe's; `spec.path` is relative to it.
        inputs: what the model takes; other arrays or columns of the data are ignored.
        trust_code: whether Python code that the recipe names may run.

    Raises:
        DataError: missing or unreadable data, or data that does not fit the inputs.
        RecipeError: the recipe names Python code and `trust_code` is False.
        MachineError: .parquet without pyarrow, images without Pillow.
    """
    wanted = Wanted(tuple(inputs), spec.label, spec.batch_size, spec.group)
    path = folder / spec.path
    if spec.image is not None and not path.exists():
        raise DataError(
            f"{path}: there is no such folder; put your images there, or name a folder of yours, "
            "e.g. --set data.calibration.path=/photos (validation has a path of its own)"
        )
    if spec.image is not None and not path.is_dir():
        raise DataError(
            f"{path}: no folder of images, and `image` is for one only; name one in `path`, or "
            "leave `image` out"
        )
    if match := CODE_PATH.fullmatch(spec.path):
        if not trust_code:
            raise RecipeError(
                f"the data {spec.path!r} is Python code, which a recipe may not run by itself; "
                "read it, and then allow it with --trust-recipe-code"
            )
        return UserCode(folder / match["file"], match["function"], wanted, spec.rows)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; the recipe calls it {spec.path!r}")
    if not path.is_dir() and not path.is_file():
        raise DataError(f"{path}: is a pipe or a device; give {KINDS}")
    if path.is_dir():
        return _folder(path, wanted, spec)
    kinds: dict[str, Callable[[Path, Wanted, int | None], Source]]
    kinds = {".npz": NpzFile, ".csv": CsvFile, ".parquet": ParquetFile}
    kind = kinds.get(path.suffix.lower())
    if kind is None:
        raise DataError(f"{path}: cannot read {path.suffix or 'this'!r} files; give {KINDS}")
    return kind(path, wanted, spec.rows)


def _folder(path: Path, wanted: Wanted, spec: DataSpec) -> Source:
    if spec.image is not None:
        return ImageFolder(path, wanted, spec.rows, spec.image)
    if not any(path.glob("*.npy")) and find_images(path):
        raise DataError(
            f"{path}: holds images; say how a pixel becomes what the model was trained on, e.g. "
            "`image: {mean: 0, scale: 255}` for values from 0 to 1"
        )
    return NpyFolder(path, wanted, spec.rows)
