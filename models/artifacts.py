"""What every build of the zoo writes: arrays, digests, versions and build.json.

No torch here, so tests and tools can read a model's record without it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import platform
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

MODELS = Path(__file__).resolve().parent
PACKAGES = ("torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy")
LONGEST_AGO = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip archive can state


def save_npz(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """`np.savez_compressed` with fixed time stamps: the same arrays give the same bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy", LONGEST_AGO)
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w") as stream:
                np.lib.format.write_array(stream, np.ascontiguousarray(array), allow_pickle=False)


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def described(folder: Path, names: Iterable[str]) -> dict[str, dict[str, int | str]]:
    """Size in bytes and sha256 of some files of a folder, for build.json."""
    return {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
        for name in names
    }


def versions(*more: str) -> dict[str, str]:
    """Python and package versions: the bytes of a model depend on them.

    Args:
        more: Packages that this build reads beyond those that every build uses.
    """
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in (*PACKAGES, *more):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Write build.json: every setting, number, version and digest of a build."""
    (folder / "build.json").write_text(json.dumps(report, indent=2) + "\n", "utf-8")


def predict(path: Path, images: NDArray[Any], batch_size: int = 250) -> NDArray[np.float32]:
    """Logits (rows, classes) of an ONNX classifier in ONNX Runtime, on one thread.

    Args:
        path: A model with one input and one output.
        images: (rows, channels, height, width), any dtype; cast to float32.
        batch_size: Rows a call.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (name,) = (value.name for value in session.get_inputs())
    parts = [
        np.asarray(session.run(None, {name: images[at : at + batch_size].astype(np.float32)})[0])
        for at in range(0, len(images), batch_size)
    ]
    return np.concatenate(parts)


def accuracy(logits: NDArray[np.float32], label: NDArray[np.int64]) -> float:
    """Share of rows whose largest logit is that of the label."""
    return float(np.mean(logits.argmax(axis=1) == label))
