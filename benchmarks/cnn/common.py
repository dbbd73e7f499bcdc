"""What the scripts of this folder share: answers that are kept, digests, the machine."""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.ctr.measure import sha256, write_json
from benchmarks.ctr.references import ROOT
from rankc.layer_timing import processor
from rankc.recipe_lock import version_of

__all__ = [
    "CACHE",
    "RESULTS",
    "ROOT",
    "Answer",
    "Kept",
    "environment",
    "latency_text",
    "sha256",
    "sources",
    "write_json",
]

CACHE = ROOT / "build" / "bench-cnn"
RESULTS = Path(__file__).with_name("results")
PACKAGES = ("numpy", "onnx", "onnx-ir", "onnxruntime", "onnxscript")

Answer = Any  # what JSON holds


@functools.cache
def sources(*files: Path) -> str:
    """Hex digest of the compiler, the runtime and these files of the benchmark."""
    found = hashlib.sha256()
    code = [*(ROOT / "compiler" / "rankc").rglob("*.py"), *(ROOT / "runtime").rglob("*.py")]
    for file in sorted([*code, *files, Path(__file__)]):
        found.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes())
    return found.hexdigest()


def environment() -> dict[str, str]:
    """The processor, and the versions of what the numbers depend on."""
    known = {name: version_of(name) for name in PACKAGES}
    return {"cpu": processor()} | {name: version for name, version in known.items() if version}


def latency_text(latency: Mapping[str, Mapping[str, Any]], digits: int = 2) -> str:
    """Ratios of CPU time at every batch size, the smallest first: `0.76 / 0.75`."""
    return " / ".join(f"{latency[size]['ratio']:.{digits}f}" for size in sorted(latency, key=int))


class Kept:
    """Answers that are kept under a key of all that decides them, so that a run can be stopped."""

    def __init__(self, steps: int, code: str, folder: Path = CACHE) -> None:
        """How many steps there will be, and the digest of the code that answers."""
        self._steps, self._code, self._folder = steps, code, folder
        self._done, self._measured, self._spent = 0, 0, 0.0

    def __call__(
        self,
        title: str,
        told: Iterable[str],
        measure: Callable[[], Answer],
        line: Callable[[Answer], str] = lambda _: "",
    ) -> Answer:
        """The answer, from an earlier run if nothing changed since, and a line about it.

        Args:
            title: of the step; a part of the key, too.
            told: what else the answer depends on.
            measure: makes the answer, which JSON can hold.
            line: what to print of it.
        """
        path = self.path(title, told)
        started, known = time.monotonic(), path.exists()
        if not known:
            write_json(path, measure())
            self._measured += 1
            self._spent += time.monotonic() - started
        answer = json.loads(path.read_text(encoding="utf-8"))
        self._done += 1
        how = "kept" if known else f"{time.monotonic() - started:.1f} s"
        step = f"[{self._done}/{self._steps}] {title}"
        print(f"{step:<44} {line(answer)}  {how}{self._left()}", flush=True)
        return answer

    def path(self, title: str, told: Iterable[str]) -> Path:
        """Where the answer of a step is kept once there is one."""
        key = hashlib.sha256("\n".join((title, self._code, *told)).encode())
        return self._folder / "kept" / f"{key.hexdigest()}.json"

    def _left(self) -> str:
        """By the steps so far; what was kept took no time, and will not."""
        rest = self._steps - self._done
        if not rest or not self._measured:
            return ""
        return f", at most {self._spent / self._measured * rest / 60:.0f} min left"
