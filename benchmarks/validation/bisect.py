"""Does `rankc bisect` name the layer? `python -m benchmarks.validation.bisect`.

Each fault of `faults.py` is planted in each of 20 layers, each way that it can come about, and the
command line is asked. The first layer that it names has to be the one, at the level at which the
fault was planted, and it has to name no other. Ten minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.validation.faults import (
    FAULTS,
    LAYERS,
    Planted,
    faulty_pass,
    project,
    spoil_file,
)
from rankc.__main__ import main as rankc

RESULTS = Path(__file__).parent / "results"
WAYS = {
    "bias": ("file", "pass"),
    "transposed": ("file", "pass"),
    "rank": ("plan",),
    "overflow": ("model",),
}
LEVELS = {"file": "file", "pass": "graph", "plan": "graph", "model": "precision"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Plant, ask, and write bisect.json and bisect.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", nargs="*", default=LAYERS, help="by default all 20")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        rows = list(cases(Path(folder), options.layers))
    raw = {"machine": platform.machine(), "python": platform.python_version(), "cases": rows}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "bisect.json").write_text(json.dumps(raw, indent=1) + "\n", "utf-8")
    (options.out / "bisect.md").write_text(table(raw), "utf-8")
    return 0 if all(row["right"] for row in rows) else 1


def cases(folder: Path, layers: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Every fault in every layer, every way."""
    clean = project(folder / "clean")
    compiled(clean)
    for fault in FAULTS:
        for way in WAYS[fault]:
            for layer in layers:
                planted = plant(folder / "case", clean, fault, way, layer)
                with faulty_pass(layer, fault) if way == "pass" else contextlib.nullcontext():
                    row = asked(planted)
                right = row.pop("named") == [[LEVELS[way], layer]]
                row = {"fault": fault, "way": way, "layer": layer, "right": right, **row}
                print(row, file=sys.stderr)
                yield row
                shutil.rmtree(planted.folder)


def plant(folder: Path, clean: Planted, fault: str, way: str, layer: str) -> Planted:
    """A compiled bundle with the fault in it."""
    if way == "file":
        shutil.copytree(clean.folder, folder)
        spoil_file(folder / "bundle", layer, fault)
        return Planted(folder)
    made = project(folder, layer if fault == "overflow" else None)
    with contextlib.nullcontext() if fault == "overflow" else faulty_pass(layer, fault):
        compiled(made)
    return made


def compiled(planted: Planted) -> None:
    """Compile; that a gate fails is what faults are planted for."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = rankc(["compile", str(planted.recipe), "--out", str(planted.bundle), "--quiet"])
    assert code in (0, 4), out.getvalue()


def asked(planted: Planted) -> dict[str, Any]:
    """What the command line says, and how long it takes."""
    started = time.monotonic()
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()),
    ):
        words = ["bisect", str(planted.bundle), "--recipe", str(planted.recipe), "--json"]
        assert rankc(words) == 0
    seconds = time.monotonic() - started
    answer = json.loads(out.getvalue())
    findings = answer["findings"]
    return {
        "named": [[one["level"], one["layer"]] for one in findings],
        "findings": [f"{one['level']}: {one['layer']}, {one['cause']}" for one in findings],
        "drops": {name: one["drop"] for name, one in answer["drops"].items()},
        "without": findings[0]["without"] if findings else None,
        "evaluations": answer["evaluations"],
        "seconds": round(seconds, 2),
    }


def table(raw: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    rows = raw["cases"]
    lines = [
        "# Faults planted, and named by `rankc bisect`",
        "",
        "| fault | planted in | named right | evaluations | seconds, median and most |",
        "|---|---|---|---|---|",
    ]
    for fault, way in dict.fromkeys((row["fault"], row["way"]) for row in rows):
        some = [row for row in rows if (row["fault"], row["way"]) == (fault, way)]
        right = sum(row["right"] for row in some)
        seconds = sorted(row["seconds"] for row in some)
        most = max(row["evaluations"] for row in some)
        least = min(row["evaluations"] for row in some)
        lines.append(
            f"| {fault} | the {way} | {right} of {len(some)} | {least} to {most} | "
            f"{seconds[len(seconds) // 2]:.1f}, {seconds[-1]:.1f} |"
        )
    right = sum(row["right"] for row in rows)
    lines += ["", f"{right} of {len(rows)}: the layer and the level, and no other layer."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
