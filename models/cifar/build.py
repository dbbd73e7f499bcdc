"""Build models/cifar-resnet20 from a user's images and trained weights.

Run from the root of the repository:
`python -m models.cifar.build --data FOLDER --weights FILE`.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch  # noqa: TID253 - the zoo trains; the compiler never imports this
from models import artifacts
from models.cifar import images, network
from models.cifar.images import FolderError, Images
from models.vision import export
from models.vision.training import Settings, train

SHAPE = (3, images.SIDE, images.SIDE)
FILES = ("model.onnx", "calibration.npz", "training.npz", "validation.npz")
DEFAULT = Settings(epochs=6, seed=0, lr=0.01, batch_size=128, weight_decay=1e-4, pad=4, flip=True)
TOLERANCE = 1e-4  # of a logit, between ONNX Runtime and PyTorch


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m models.cifar.build", description=__doc__)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of *train*.npz, *test*.npz"
    )
    parser.add_argument("--weights", type=Path, required=True, help="trained ResNet-20, torch.save")
    parser.add_argument("--out", type=Path, default=artifacts.MODELS / "cifar-resnet20")
    parser.add_argument("--epochs", type=int, default=DEFAULT.epochs, help="0: export as it is")
    parser.add_argument("--seed", type=int, default=DEFAULT.seed)
    parser.add_argument("--threads", type=int, default=2, help="2 is what the numbers come from")
    options = parser.parse_args(argv)
    if options.epochs < 0 or options.seed < 0 or options.threads < 1:
        parser.error("--epochs and --seed must be 0 or more, --threads 1 or more")
    return options


def write(
    out: Path, model: network.ResNet20, training: Images, test: Images, report: dict[str, Any]
) -> dict[str, Any]:
    """Write the model, the data sets and build.json; returns what build.json says.

    Raises:
        RuntimeError: ONNX Runtime's logits are not PyTorch's.
    """
    out.mkdir(parents=True, exist_ok=True)
    export.export(model, SHAPE, out / "model.onnx", "resnet20")
    # uint8 keeps every pixel in a quarter of the space; rankc casts it to the input's float32.
    artifacts.save_npz(out / "calibration.npz", {"image": training.image})
    for name, part in (("training", training), ("validation", test)):
        artifacts.save_npz(out / f"{name}.npz", {"image": part.image, "label": part.label})
    logits = artifacts.predict(out / "model.onnx", test.image)
    error = float(np.abs(logits - export.predict_torch(model, test.image)).max())
    if error > TOLERANCE:
        raise RuntimeError(f"the exported model differs from PyTorch by {error:.1e}")
    report["metrics"]["test"] = {
        "rows": len(test.label),
        "accuracy": artifacts.accuracy(logits, test.label),
        "max_abs_err_to_torch": float(f"{error:.2e}"),
    }
    report["parameters"] = sum(p.numel() for p in model.parameters())
    report["files"] = artifacts.described(out, FILES)
    report["versions"] = artifacts.versions("pillow")
    artifacts.write_report(out, report)
    return report


def build(options: argparse.Namespace) -> dict[str, Any]:
    """Read, fine-tune and write.

    Raises:
        FolderError: The data or the weights are not what they should be.
    """
    print(f"reading {options.data}", flush=True)
    training, test = images.load(options.data, "train"), images.load(options.data, "test")
    model = network.load(options.weights)
    given = artifacts.accuracy(export.predict_torch(model, test.image), test.label)
    print(f"the weights as given: {given:.2%} of {len(test.label):,} test images", flush=True)
    settings = dataclasses.replace(DEFAULT, epochs=options.epochs, seed=options.seed)
    train(model, training.image, training.label, settings)
    report = {
        "data": "user's CIFAR-10 images",
        "train_rows": len(training.label),
        "calibration_rows": len(training.label),
        "weights_sha256": artifacts.sha256(options.weights),
        "training": {**dataclasses.asdict(settings), "threads": options.threads},
        "metrics": {"before_fine_tuning": {"rows": len(test.label), "accuracy": given}},
    }
    return write(options.out, model, training, test, report)


def main(argv: Sequence[str] | None = None) -> int:
    """Build the model; returns the exit code."""
    options = arguments(argv)
    torch.set_num_threads(options.threads)
    started = time.perf_counter()
    try:
        report = build(options)
    except FolderError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    test, spent = report["metrics"]["test"], time.perf_counter() - started
    print(
        f"{options.out / 'model.onnx'}: {report['files']['model.onnx']['bytes']:,} bytes, "
        f"{test['accuracy']:.2%} of {test['rows']:,} test images, {spent:.0f} s"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
