"""A training in a process of its own, to be killed: `python training_job.py FOLDER OPTIMIZER`.

Writes the step to stdout after every one, a checkpoint as often, and at the end `final`: the hash
of the trained model. Goes on from a checkpoint that is there.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rankc.recipe_training import Augment, Objective, Training
from rankc.train.interpreter import Interpreter
from rankc.train.loop import train
from rankc.train.teacher import Teacher
from train.nets import Noisy, convnet, digest, image_rows


class _Told:
    def advance(self, done: int, total: int | None = None) -> None:
        print(done, flush=True)

    def note(self, text: str) -> None: ...


def settings(optimizer: str) -> Training:
    """Everything at once that has a state."""
    return Training(
        epochs=3, objective=Objective(label=1.0, distill=0.5), lr=0.02, clip=1.0, average=0.9,
        optimizer="sgd" if optimizer == "sgd" else "adam", warmup=0.1, checkpoint=0.0,
        evaluate=0.3, augment=Augment(pad=1, flip=True),
    )  # fmt: skip


def main(folder: Path, optimizer: str) -> None:
    """Train, and write the hash."""
    net = Interpreter(convnet())
    history = train(
        net, image_rows(memory_mb=1), settings(optimizer), seed=3, teacher=Teacher(convnet(1)),
        hooks=[Noisy()], stage=_Told(), checkpoint=folder / "checkpoint", resume=True,
    )  # fmt: skip
    (folder / "final").write_text(f"{digest(net)} {history.hooks} {history.looks}")
    (folder / "resumed").write_text(history.resumed)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
