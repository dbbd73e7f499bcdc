"""raw.json → table.md: the same raw data, the same bytes. `python -m benchmarks.ctr.table`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.ctr.targets import targets
from rankc.report.text import DASH, TIMES, markdown_table, signed

RESULTS = Path(__file__).with_name("results")
NAMES = {"deepfm": "DeepFM", "dcn": "DCN-v2"}

Row = Mapping[str, Any]
Raw = Mapping[str, Any]


def render(raw: Raw) -> str:
    """The whole of table.md."""
    parts = ["# Click models: what was measured", _HOW, *_tables(raw), *_retraining(raw)]
    parts += ["## Targets", _targets(raw), "## Costs of a compile", _costs(raw), _machine(raw)]
    return "\n\n".join(parts) + "\n"


_HOW = """\
Made by `make bench` from `raw.json`; do not edit. Every metric is computed from the emitted ONNX
file in ONNX Runtime on all test rows; nothing is fine-tuned. Differences are against the reference
model of the same seed, with paired 95 % intervals over test rows.

- *size*: bytes of the reference's file / bytes of this one, the smallest over the seeds.
- *time*: CPU time of one call on one thread / the reference's, median over interleaved pairs, for
  seed 0.
- ORT's `quantize_dynamic` takes the range of each activation from the batch at hand, so its answers
  depend on which rows share a batch: one outlier costs all of them. The answers of the other rows
  below do not depend on the batch.
- No row claims a better AUC than its reference has."""


def _tables(raw: Raw) -> Iterator[str]:
    for arch, name in NAMES.items():
        rows = [row for row in raw["rows"] if row["arch"] == arch]
        if rows:
            yield f"## {name}"
            yield _references(raw, arch)
            yield _table(rows)


def _references(raw: Raw, arch: str) -> str:
    rows = [row for row in raw["rows"] if row["arch"] == arch]
    by_seed = {row["seed"]: row for row in rows}
    size = int(rows[0]["metrics"]["size_bytes"]["original"])
    told = [
        f"seed {seed}: AUC {row['metrics']['auc']['original']:.5f}, logloss "
        f"{row['metrics']['logloss']['original']:.5f}"
        for seed, row in sorted(by_seed.items())
    ]
    return f"Reference: {size:,} bytes; {rows[0]['rows']:,} test rows; {'; '.join(told)}."


def _table(rows: Sequence[Row]) -> str:
    """One line a variant, in the order of the rows."""
    seeds = sorted({row["seed"] for row in rows})
    names = list(dict.fromkeys(row["variant"] for row in rows))
    head = ["", "size", *(f"ΔAUC, seed {seed} [95 %]" for seed in seeds)]
    head += ["ΔAUC, mean", "Δlogloss, mean", f"time at batch {_batches(rows)}"]
    lines = []
    for name in names:
        mine = {row["seed"]: row for row in rows if row["variant"] == name}
        first = next(iter(mine.values()))
        smallest = min(row["ratios"]["size_bytes"] for row in mine.values())
        lines.append(
            [
                first["label"],
                f"{smallest:.2f}{TIMES}",
                *(_difference(mine.get(seed)) for seed in seeds),
                _mean("auc", mine.values()),
                _mean("logloss", mine.values()),
                _times(mine.values()),
            ]
        )
    return markdown_table(head, lines)


def _difference(row: Row | None) -> str:
    if row is None:
        return DASH
    auc = row["metrics"]["auc"]
    low, high = auc["interval"]
    return f"{signed(auc['difference'])} [{signed(low)}, {signed(high)}]"


def _mean(metric: str, rows: Iterable[Row]) -> str:
    return signed(fmean(row["metrics"][metric]["difference"] for row in rows))


def _batches(rows: Sequence[Row]) -> str:
    sizes = sorted({int(batch) for row in rows for batch in row["latency"]})
    return " / ".join(map(str, sizes)) or DASH


def _times(rows: Iterable[Row]) -> str:
    timed: Mapping[str, Any] = next((row["latency"] for row in rows if row["latency"]), {})
    return " / ".join(f"{timed[key]['ratio']:.2f}" for key in sorted(timed, key=int)) or DASH


def _retraining(raw: Raw) -> Iterator[str]:
    """How the competitor that is trained smaller was tuned."""
    if not raw["retraining"]:
        return
    yield "## Tuning of the retrained model"
    yield (
        "Embedding 4, one epoch, seed 0; the best by validation AUC was trained on every seed. "
        "The test split has no part in the choice."
    )
    head = ["batch", "Adam: first rate, last rate", "initial deviation", "validation AUC", ""]
    lines = []
    for tried in raw["retraining"]:
        setting = tried["training"]
        rates = f"{setting['lr']:g}, {setting['lr'] * setting['final_lr']:g}"
        lines.append(
            [
                str(setting["batch_size"]),
                rates,
                f"{setting['init_std']:g}",
                f"{tried['validation']['auc']:.5f}",
                "chosen" if tried["chosen"] else "",
            ]
        )
    yield markdown_table(head, lines)


def _targets(raw: Raw) -> str:
    lines = [[target.text, target.seen, target.verdict] for target in targets(raw)]
    return markdown_table(["target", "seen", "holds"], lines)


STAGES = ("intake", "cleanup", "calibrate", "plan", "lower", "validate")


def _costs(raw: Raw) -> str:
    """Stages of the compiles in fresh processes, wall-clock seconds."""
    compiles = raw["checks"]["compiles"]
    head = ["BLAS threads", *STAGES, "all", "peak memory", "children, at most"]
    lines = [
        [
            str(one["blas_threads"] or "NumPy's choice"),
            *(f"{one['stages'][stage]['wall_seconds']:.1f} s" for stage in STAGES),
            f"{one['seconds']:.1f} s",
            f"{one['peak_memory_bytes'] / 1e6:.0f} MB",
            f"{one['children_peak_memory_bytes'] / 1e6:.0f} MB",
        ]
        for one in compiles
    ]
    models = [one["sha256"]["model.onnx"] for one in compiles]
    same = (
        "the same bytes"
        if len(set(models)) == 1
        else "other bytes: sums are rounded in another order"
    )
    return f"{markdown_table(head, lines)}\n\n{_COSTS_NOTE.format(same=same)}"


_COSTS_NOTE = """\
The shipped recipe, engines included, wall clock. With one BLAS thread `model.onnx` has {same}.
TensorRT-RTX builds in processes of its own, which the peak leaves out: *children* is the largest of
them as the system tells it, which counts what the compiler held when it started them."""


def _machine(raw: Raw) -> str:
    told = ", ".join(f"{key} {value}" for key, value in sorted(raw["environment"].items()))
    return f"Measured on: {told}."


def write(results: Path) -> Path:
    """Render `results`/raw.json beside it."""
    raw = json.loads((results / "raw.json").read_text(encoding="utf-8"))
    path = results / "table.md"
    path.write_text(render(raw), encoding="utf-8", newline="\n")
    return path


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ctr.table", description=__doc__)
    parser.add_argument("results", nargs="?", type=Path, default=RESULTS, help="with raw.json")
    print(write(parser.parse_args().results))


if __name__ == "__main__":
    main()
