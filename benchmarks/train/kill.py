"""kill -9 in the middle of a training, and resume: are the final bytes those of no interruption?

Trains models/digits-resnet on its training rows, with BatchNormalization put back, crops, labels,
distillation, mean weights and a look every half epoch. Once without interruption; then
again and again, killed at random moments, some of them while a checkpoint is being written, until
it ends by itself. Every process starts from the checkpoint file alone.

    python -m benchmarks.train.kill [--kills 5] [--epochs 6]

writes results/kill.json; about five minutes on one core.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import torch  # noqa: TID253 - what is measured trains

from rankc.cleanup import clean
from rankc.data import open_source
from rankc.layer_timing import processor
from rankc.recipe import DataSpec
from rankc.recipe_training import Augment, Objective, Training
from rankc.serialize import save
from rankc.train.batch_norm import fold_batch_norms, insert_batch_norms
from rankc.train.interpreter import Interpreter
from rankc.train.loop import train
from rankc.train.rows import Rows
from rankc.train.teacher import Teacher
from rankrt.session import TensorSpec

RESULTS = Path(__file__).with_name("results")
FOLDER = Path(__file__).parents[2] / "models" / "digits-resnet"
Optimizer = Literal["sgd", "adam"]
OPTIMIZERS: tuple[Optimizer, ...] = ("sgd", "adam")


class _Told:
    """Prints the steps."""

    def advance(self, done: int, total: int | None = None) -> None:
        print(done, flush=True)

    def note(self, text: str) -> None: ...


def settings(optimizer: Optimizer, epochs: float) -> Training:
    """A checkpoint after every step, so that some kills hit it as it is written."""
    return Training(
        epochs=epochs, objective=Objective(label=1.0, distill=0.5, temperature=2.0),
        optimizer=optimizer, lr=0.02 if optimizer == "sgd" else 0.001, warmup=0.1, clip=1.0,
        average=0.95, augment=Augment(pad=1), evaluate=0.5, checkpoint=0.0,
    )  # fmt: skip


def job(folder: Path, optimizer: Optimizer, epochs: float) -> None:
    """Train in `folder`, going on from its checkpoint; writes model.onnx and done.json."""
    model = ir.load(FOLDER / "model.onnx")
    clean(model)
    original = model.clone()
    image = TensorSpec("image", "float32", ("batch", 1, 8, 8))
    source = open_source(DataSpec("training.npz", 64, label="label"), FOLDER, [image])
    insert_batch_norms(model, [batch.feeds for batch in source.batches()])
    net = Interpreter(model)
    history = train(
        net, Rows(source, batch_size=64), settings(optimizer, epochs), seed=0,
        teacher=Teacher(original), stage=_Told(), checkpoint=folder / "checkpoint", resume=True,
    )  # fmt: skip
    trained = net.to_onnx()
    fold_batch_norms(trained)
    save(trained, folder / "model.onnx")
    done = {"steps": history.steps, "resumed": history.resumed, "looks": len(history.looks)}
    (folder / "done.json").write_text(json.dumps(done))


def run(folder: Path, optimizer: Optimizer, epochs: float, kill: float | None) -> dict[str, Any]:
    """One process, killed after so many seconds of training; None: not at all."""
    words = [str(folder), optimizer, str(epochs)]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.train.kill", "--job", *words],
        stdout=subprocess.PIPE, text=True, cwd=FOLDER.parents[1],
    )  # fmt: skip
    assert process.stdout is not None
    first = process.stdout.readline()
    if kill is not None:
        time.sleep(kill)
        process.send_signal(signal.SIGKILL)
    steps = [first, *process.stdout.read().splitlines()]
    code = process.wait()
    steps = [step.strip() for step in steps if step.strip().isdigit()]
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the training ended with {code}")
    return {"killed": code != 0, "first_step": int(steps[0]), "last_step": int(steps[-1])}


def compare(optimizer: Optimizer, kills: int, epochs: float, seed: int) -> dict[str, Any]:
    """One uninterrupted training, and one that is killed so often."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as scratch:
        whole, cut = Path(scratch) / "whole", Path(scratch) / "cut"
        for folder in (whole, cut):
            folder.mkdir()
        started = time.monotonic()
        run(whole, optimizer, epochs, None)
        seconds = time.monotonic() - started
        runs = []
        for _ in range(kills):
            runs.append(run(cut, optimizer, epochs, float(rng.uniform(0, seconds / kills))))
            print(optimizer, runs[-1], flush=True)
            if not runs[-1]["killed"]:
                break
        if runs[-1]["killed"]:
            runs.append(run(cut, optimizer, epochs, None))
        left = sorted(path.name for path in cut.iterdir())
        found = [hashlib.sha256((f / "model.onnx").read_bytes()).hexdigest() for f in (whole, cut)]
        done = json.loads((cut / "done.json").read_text())
    return {
        "optimizer": optimizer, "uninterrupted": found[0], "killed_and_resumed": found[1],
        "same_bytes": found[0] == found[1], "runs": runs, "steps": done["steps"],
        "looks": done["looks"], "files_left": left,
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; returns the exit code, 1 where bytes differ."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train.kill", description=__doc__)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--epochs", type=float, default=6.0)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--job", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.job:
        folder, optimizer, epochs = options.job
        job(Path(folder), optimizer, float(epochs))
        return 0
    os.environ["OMP_NUM_THREADS"] = "1"
    rows = [compare(one, options.kills, options.epochs, options.seed) for one in OPTIMIZERS]
    report = {
        "processor": processor(), "torch": torch.__version__, "kills": options.kills,
        "epochs": options.epochs, "seed": options.seed, "trainings": rows,
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "kill.json").write_text(json.dumps(report, indent=1) + "\n")
    for row in rows:
        killed = [one["last_step"] for one in row["runs"] if one["killed"]]
        print(f"{row['optimizer']}: killed at steps {killed}, same bytes: {row['same_bytes']}")
    return 0 if all(row["same_bytes"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
