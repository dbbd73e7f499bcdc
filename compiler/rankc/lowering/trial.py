"""The process that runs an engine once: `python -m rankc.lowering.trial`.

As in `worker`, a request comes as JSON on standard input, and results go to files.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rankrt.backends.tensorrt import open_engine, wrong_device
from rankrt.errors import RankrtError
from rankrt.golden import IN, OUT, read
from rankrt.manifest import Engine
from rankrt.session import Array


@dataclasses.dataclass(frozen=True, slots=True)
class Trial:
    """What to run."""

    backend: str
    precision: str
    version: str  # of the backend that built the engine
    compute_capability: tuple[str, ...]
    engine: str  # path
    golden: str  # path of an .npz with inputs and the outputs to expect
    outputs: str  # path of the .npz to write: the same inputs, and the engine's outputs
    answer: str  # path of the JSON to write: {"problem": why it did not run, or null}


def main() -> None:
    """Serve one request."""
    trial = Trial(**json.load(sys.stdin))
    Path(trial.answer).write_text(json.dumps({"problem": run(trial)}), encoding="utf-8")


def run(trial: Trial) -> str | None:
    """Run the engine on the golden inputs.

    Returns:
        Why that was not possible, or None.
    """
    engine = Engine(
        backend=trial.backend,
        precision=trial.precision,
        file=None,
        compute_capability=tuple(trial.compute_capability),
        version=trial.version,
        built=True,
        ran=False,
    )
    if problem := wrong_device(engine):
        return problem
    inputs, _ = read(Path(trial.golden))
    try:
        outputs = open_engine(Path(trial.engine), engine).run(inputs)
    except RankrtError as error:
        return str(error)
    write_golden(Path(trial.outputs), inputs, outputs)
    return None


def write_golden(path: Path, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
    """Write the .npz that `rankrt.golden.read` reads."""
    arrays: dict[str, Any] = {IN + name: array for name, array in inputs.items()}
    arrays |= {OUT + name: array for name, array in outputs.items()}
    np.savez(path, **arrays)


if __name__ == "__main__":
    main()
