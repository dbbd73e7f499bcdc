"""The latency harness against itself, on a machine that is kept busy.

A model is timed against itself 100 times: how often does the ratio's interval contain 1.00? And
against itself with 5 % more work a call, real work on the same core: how often does the interval
lie above 1? A process makes four runs, and two processes that never rest keep two cores busy.

    python -m benchmarks.validation.latency_self [--runs 100]

writes results/latency_self.json, every run of it, and results/latency_self.md; seven minutes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from rankc.layer_timing import processor
from rankc.recipe_lock import version_of
from rankc.report.text import markdown_table
from rankc.validate.bootstrap import median_interval
from rankc.validate.latency import LEVEL, Run, compare_latency
from rankc.validate.sampling import one_core, sample_pairs
from rankrt.session import open_model

RESULTS = Path(__file__).with_name("results")
BATCH = 32
WIDTHS = (256, 256, 256, 256, 10)
PAIRS = 64  # what `latency.repeats` asks for by default, over 8 rounds
SLOWDOWN = 0.05
BUSY = "while True: sum(range(1000))"
_SPINS = 200  # in one measurement of how long they take
RUNS_A_PROCESS = 4


def model(path: Path) -> None:
    """A classifier of four hidden layers, seeded."""
    rng, tape = np.random.default_rng(0), ir.tape.Tape()
    x = ir.val("x", ir.DataType.FLOAT, ["batch", WIDTHS[0]])
    value, weights = x, []
    for k, (n, m) in enumerate(itertools.pairwise(WIDTHS)):
        array = (rng.standard_normal((n, m)) / math.sqrt(n)).astype(np.float32)
        weights.append(ir.Value(name=f"w{k}", const_value=ir.tensor(array, name=f"w{k}")))
        value = tape.op("Relu", [tape.op("MatMul", [value, weights[-1]])])
    value.name, value.type = "y", ir.TensorType(ir.DataType.FLOAT)
    value.shape = ir.Shape(["batch", WIDTHS[-1]])
    graph = ir.Graph(
        [x], [value], nodes=tape.nodes, initializers=weights, opset_imports={"": 18}, name="net"
    )
    ir.save(ir.Model(graph, ir_version=10), path)


def one_run(path: Path) -> dict[str, Any]:
    """Both comparisons, in this process."""
    x = np.random.default_rng(1).standard_normal((BATCH, WIDTHS[0])).astype(np.float32)
    feeds = {BATCH: {"x": x}}

    def opened() -> Run:
        return open_model(path, threads=1).run

    with one_core():
        started = time.thread_time()
        same = compare_latency(opened, opened, feeds, pairs=PAIRS, seconds=12.0)[str(BATCH)]
        spent = time.thread_time() - started
        turns = _turns(SLOWDOWN * same["original"]["p50_ms"] * 1e6)

        def slowed() -> Run:
            run = open_model(path, threads=1).run

            def both(given: Mapping[str, Any]) -> None:
                run(given)
                _spin(turns)

            return both

        slow = compare_latency(opened, slowed, feeds, pairs=PAIRS, seconds=12.0)[str(BATCH)]
        single = _single(opened(), opened(), feeds[BATCH])
    return {"same": same, "single": single, "slowed": slow, "cpu_seconds": spent}


def _single(first: Run, second: Run, feeds: Mapping[str, Any]) -> dict[str, Any]:
    """What one would do without rounds: one session each, and an interval over pairs."""
    samples = sample_pairs(lambda: first(feeds), lambda: second(feeds), PAIRS, 12.0)
    ratios = samples.compressed / samples.original
    return {"ratio": float(np.median(ratios)), "interval": median_interval(ratios)}


def _spin(turns: int) -> int:
    total = 0
    for k in range(turns):
        total += k
    return total


def _turns(nanoseconds: float) -> int:
    """How many turns of `_spin` take so long: guessed, measured, and guessed again."""
    turns = 100
    for _ in range(3):
        taken = []
        for _ in range(9):
            started = time.thread_time_ns()
            for _ in range(_SPINS):
                _spin(turns)
            taken.append((time.thread_time_ns() - started) / _SPINS)
        turns = max(1, round(turns * nanoseconds / statistics.median(taken)))
    return turns


@contextmanager
def load(processes: int = 2) -> Iterator[None]:
    """Keep so many cores busy."""
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def measure(runs: int) -> list[dict[str, Any]]:
    """Runs under load, a few in each process."""
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, load():
        path = Path(folder, "model.onnx")
        model(path)
        command = [sys.executable, "-m", "benchmarks.validation.latency_self", "--one", str(path)]
        while len(found) < runs:
            wanted = min(RUNS_A_PROCESS, runs - len(found))
            done = subprocess.run(
                [*command, "--runs", str(wanted)], check=True, capture_output=True, text=True
            )
            found += json.loads(done.stdout)
            print(f"{len(found)} of {runs}: {_told(found)}", flush=True)
    return found


def contains(row: Mapping[str, Any]) -> bool:
    """Whether the interval has 1.00 in it."""
    low, high = row["interval"]
    return bool(low <= 1.0 <= high)


def detects(row: Mapping[str, Any]) -> bool:
    """Whether the interval lies above 1.00."""
    return bool(row["interval"][0] > 1.0)


def _told(runs: Sequence[Mapping[str, Any]]) -> str:
    held, seen = sum(contains(r["same"]) for r in runs), sum(detects(r["slowed"]) for r in runs)
    return f"{held} contain 1.00, {seen} detect {100 * SLOWDOWN:.0f} %"


def table(answer: Mapping[str, Any]) -> str:
    """The summary, as Markdown."""
    runs = answer["runs"]
    rows = []
    checks: tuple[tuple[str, str, Callable[[Mapping[str, Any]], bool], str], ...] = (
        ("same", "itself: interval contains 1.00", contains, "≥ 95 %"),
        (
            "single",
            "itself, one session each, 95 % bootstrap over pairs",
            contains,
            "for comparison",
        ),
        ("slowed", "itself and 5 % more work: interval above 1.00", detects, "≥ 90 %"),
    )
    for key, title, check, target in checks:
        ratios = [run[key]["ratio"] for run in runs]
        halves = [(run[key]["interval"][1] - run[key]["interval"][0]) / 2 for run in runs]
        rows.append(
            [
                title,
                f"{sum(check(run[key]) for run in runs)} of {len(runs)}",
                target,
                f"{statistics.median(ratios):.4f} ({min(ratios):.4f} to {max(ratios):.4f})",
                f"{statistics.median(halves):.4f}, at most {max(halves):.4f}",
            ]
        )
    head = ["a model against", "runs", "wanted", "ratio: median, range", "half the interval"]
    first, how = runs[0]["same"], answer["how"]
    cpu = statistics.median(run["cpu_seconds"] for run in runs)
    notes = [
        "# The latency harness against itself",
        markdown_table(head, rows),
        f"Intervals are {100 * how['level']:.0f} %, over {first['rounds']} rounds of sessions "
        f"opened afresh and {first['pairs']} pairs, which took {cpu:.2f} s of CPU time (median). "
        f"Two busy processes beside it on {how['cores']} cores; {RUNS_A_PROCESS} runs a process. "
        f"Calls of {first['original']['p50_ms']:.3f} ms.",
        "Made by `python -m benchmarks.validation.latency_self`; raw: `latency_self.json`. "
        + ", ".join(f"{name} {value}" for name, value in answer["environment"].items())
        + ".",
    ]
    return "\n\n".join(notes) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write both files, or print one run for `measure`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=100, help="how many (default: %(default)s)")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.one is not None:
        print(json.dumps([one_run(given.one) for _ in range(given.runs)]))
        return
    started = time.monotonic()
    answer = {
        "how": {"level": LEVEL, "pairs": PAIRS, "slowdown": SLOWDOWN, "cores": os.cpu_count()},
        "environment": {"cpu": processor()}
        | {name: str(version_of(name)) for name in ("numpy", "onnxruntime")},
        "runs": measure(given.runs),
    }
    answer["seconds"] = round(time.monotonic() - started, 1)
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(answer, indent=1, sort_keys=True) + "\n"
    (RESULTS / "latency_self.json").write_text(text, encoding="utf-8")
    (RESULTS / "latency_self.md").write_text(table(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
