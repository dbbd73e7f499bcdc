"""Build models/digits-resnet from nothing: data, training, ONNX, calibration and validation sets.

Run from the root of the repository: `python -m models.digits.build`.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch  # noqa: TID253 - the zoo trains; the compiler never imports this
from models import artifacts
from models.digits import data
from models.digits.network import DigitsNet
from models.vision import export
from models.vision.training import Settings, train

SHAPE = (1, data.SIDE, data.SIDE)
FILES = ("model.onnx", "calibration.npz", "training.npz", "validation.npz")
DEFAULT = Settings(epochs=60, seed=0, lr=0.05, batch_size=32, weight_decay=5e-3, pad=1, flip=False)
TOLERANCE = 1e-4  # of a logit, between ONNX Runtime and PyTorch


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m models.digits.build", description=__doc__)
    parser.add_argument("--out", type=Path, default=artifacts.MODELS / "digits-resnet")
    parser.add_argument("--epochs", type=int, default=DEFAULT.epochs)
    parser.add_argument("--seed", type=int, default=DEFAULT.seed, help="of weights and training")
    parser.add_argument(
        "--threads", type=int, default=1, help="1 is what the numbers were made with"
    )
    options = parser.parse_args(argv)
    if options.epochs < 0 or options.seed < 0 or options.threads < 1:
        parser.error("--epochs and --seed must be 0 or more, --threads 1 or more")
    return options


def evaluate(path: Path, model: DigitsNet, part: data.Digits) -> dict[str, float | int]:
    """Accuracy of the ONNX file in ONNX Runtime, and its distance from PyTorch.

    Raises:
        RuntimeError: ONNX Runtime's logits are not PyTorch's.
    """
    logits = artifacts.predict(path, part.image)
    error = float(np.abs(logits - export.predict_torch(model, part.image)).max())
    if error > TOLERANCE:
        raise RuntimeError(f"the exported model differs from PyTorch by {error:.1e}")
    return {
        "rows": len(part.label),
        "accuracy": artifacts.accuracy(logits, part.label),
        "max_abs_err_to_torch": float(f"{error:.2e}"),
    }


def write(out: Path, model: DigitsNet, parts: data.Parts) -> dict[str, Any]:
    """Write the model and the data sets; returns what build.json says of them."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "model.onnx"
    export.export(model, SHAPE, path, "digits_resnet")
    held_out, validation = parts.calibration, parts.validation
    # Held-out rows first; training rows too, as the last stage sees four pixels of an image.
    rows = np.concatenate([held_out.image, parts.train.image]).astype(np.float32)
    artifacts.save_npz(out / "calibration.npz", {"image": rows})
    for name, part in (("training", parts.train), ("validation", validation)):
        rows = part.image.astype(np.float32)
        artifacts.save_npz(out / f"{name}.npz", {"image": rows, "label": part.label})
    return {
        "metrics": {
            name: evaluate(path, model, part)
            for name, part in (
                ("train", parts.train),
                ("held_out", held_out),
                ("validation", validation),
            )
        },
        "parameters": sum(p.numel() for p in model.parameters()),
        "files": artifacts.described(out, FILES),
        "versions": artifacts.versions("scikit-learn"),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Build the model; returns the exit code."""
    options = arguments(argv)
    torch.set_num_threads(options.threads)
    started = time.perf_counter()
    parts = data.load()
    settings = dataclasses.replace(DEFAULT, epochs=options.epochs, seed=options.seed)
    torch.manual_seed(settings.seed)
    model = DigitsNet()
    train(model, parts.train.image, parts.train.label, settings)
    report = {
        "data": "scikit-learn's digits",
        "train_rows": len(parts.train.label),
        "calibration_rows": len(parts.calibration.label) + len(parts.train.label),
        "split_seed": data.SPLIT_SEED,
        "training": {**dataclasses.asdict(settings), "threads": options.threads},
        **write(options.out, model, parts),
    }
    artifacts.write_report(options.out, report)
    found = report["metrics"]["validation"]
    print(
        f"{options.out / 'model.onnx'}: {report['files']['model.onnx']['bytes']:,} bytes, "
        f"{found['accuracy']:.1%} of {found['rows']} validation images, "
        f"{time.perf_counter() - started:.0f} s"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
