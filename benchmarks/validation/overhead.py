"""What streaming metrics cost beside scikit-learn. `python -m benchmarks.validation.overhead`.

A million rows of one number each, labels 0 and 1, two models, in batches of 4,096. Timed is all of
what `rankc compile` does with such outputs apart from running the models and making intervals: the
checks for NaN, auc, logloss and calibration error of both models, and the distances between them.
Beside it is scikit-learn on the same arrays, whole, of both models: roc_auc_score + log_loss, and
roc_auc_score by itself. Thread CPU time, in turn, medians. Memory is the peak of a fresh
process beyond what it had before, the rows being there.
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when numpy is imported: costs are CPU time
os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import json
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
from numpy.typing import NDArray
from sklearn.metrics import log_loss, roc_auc_score

from rankc.validate.distances import Distances
from rankc.validate.judgement import Judgement
from rankc.validate.metrics import require_finite
from rankc.validate.quantities import TIMES
from rankc.validate.scores import Scores

RESULTS = Path(__file__).parent / "results"
ROWS, BATCH, REPEATS = 1_000_000, 4096, 15
MOST_TIME, MOST_MB = 1.1, 200.0

Array = NDArray[Any]
Columns = tuple[Array, Array, Array]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write overhead.json and overhead.md; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="where results go")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--peak", choices=MEASURED, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.peak:
        print(json.dumps(peak_of(options.peak, options.rows)))
        return 0
    raw = {
        "format": 1,
        "rows": options.rows,
        "batch": BATCH,
        "environment": {
            "numpy": np.__version__,
            "python": platform.python_version(),
            "scikit-learn": sklearn.__version__,
        },
        "seconds": times(options.rows, options.repeats),
        "peak_bytes": {name: _peak(name, options.rows) for name in MEASURED},
    }
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(raw, indent=1, sort_keys=True) + "\n"
    (options.out / "overhead.json").write_text(text, encoding="utf-8", newline="\n")
    (options.out / "overhead.md").write_text(table(raw), encoding="utf-8", newline="\n")
    print(table(raw))
    return 0


def columns(rows: int) -> Columns:
    """Labels, and what a click model and its compressed copy might say; float32, as they do."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=rows).astype(np.float32) - 1
    labels = (rng.random(rows, np.float32) < _sigmoid(logits)).astype(np.int64)
    moved = logits + rng.normal(size=rows).astype(np.float32) / 50
    return labels, _sigmoid(logits), _sigmoid(moved)


def _sigmoid(logits: Array) -> Array:
    result: Array = 1 / (1 + np.exp(-logits))
    return result


def streaming(labels: Array, x: Array, y: Array) -> Judgement:
    """As in `rankc.validate.scoring`."""
    distances, scores = Distances(), Scores("p", "y", "group")
    for start in range(0, len(labels), BATCH):
        part = slice(start, start + BATCH)
        before = require_finite(x[part], "original", "p", start)
        after = require_finite(y[part], "compressed", "p", start)
        scores.add(before, after, labels[part])
        distances.add(before, after)
    found = distances.judge()
    found.update(scores.judge())
    return found


def both_calls(labels: Array, x: Array, y: Array) -> list[float]:
    """scikit-learn, of both models."""
    return [float(score(labels, p)) for p in (x, y) for score in (roc_auc_score, log_loss)]


def auc_alone(labels: Array, x: Array, y: Array) -> list[float]:
    """scikit-learn's area by itself, of both models."""
    return [float(roc_auc_score(labels, p)) for p in (x, y)]


MEASURED: Mapping[str, Callable[[Array, Array, Array], object]] = {
    "streaming": streaming,
    "roc_auc_score + log_loss": both_calls,
    "roc_auc_score": auc_alone,
}


def times(rows: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of CPU of each, in turn."""
    given = columns(rows)
    found: dict[str, list[float]] = {name: [] for name in MEASURED}
    for name in found:
        MEASURED[name](*given)  # first calls import
    for _ in range(repeats):
        for name, seconds in found.items():
            start = time.thread_time()
            MEASURED[name](*given)
            seconds.append(time.thread_time() - start)
    return found


def peak_of(name: str, rows: int) -> int:
    """Bytes that it takes at most beyond the rows themselves; Linux."""
    given = columns(rows)
    MEASURED[name](*(column[:1000] for column in given))  # imports count for nobody
    Path("/proc/self/clear_refs").write_text("5")  # the recorded peak starts again from here
    before = _status("VmRSS")
    MEASURED[name](*given)
    return _status("VmHWM") - before


def _status(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text("utf-8"))
    assert found is not None, field
    return int(found[1]) * 1024


def _peak(name: str, rows: int) -> int:
    command = [sys.executable, "-m", "benchmarks.validation.overhead"]
    done = subprocess.run(
        [*command, "--peak", name, "--rows", str(rows)], check=True, capture_output=True, text=True
    )
    return int(json.loads(done.stdout))


def table(raw: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    seconds = {name: float(np.median(one)) for name, one in raw["seconds"].items()}
    peaks, ours = raw["peak_bytes"], seconds["streaming"]
    lines = [
        "# What streaming metrics cost",
        "",
        f"{raw['rows']:,} rows, two models, batches of {raw['batch']:,}; median thread CPU time of "
        f"{len(raw['seconds']['streaming'])}; memory beyond that of the rows.",
        "",
        "| | CPU, ms | streaming takes | extra memory, MB |",
        "|---|---|---|---|",
    ]
    for name, one in seconds.items():
        pairs = zip(raw["seconds"]["streaming"], raw["seconds"][name], strict=True)
        ratio = float(np.median([a / b for a, b in pairs]))
        extra = peaks[name] / 1e6
        lines.append(f"| {name} | {1e3 * one:.0f} | {ratio:.2f}{TIMES} | {extra:.0f} |")
    ratio = ours / seconds["roc_auc_score + log_loss"]
    extra = peaks["streaming"] / 1e6
    lines += [
        "",
        f"Aims: at most {MOST_TIME}{TIMES} of scikit-learn's two calls "
        f"({'met' if ratio <= MOST_TIME else 'missed'}), less than {MOST_MB:.0f} MB "
        f"({'met' if extra < MOST_MB else 'missed'}).",
        "",
        "Streaming is everything `rankc compile` does with such outputs but running the models and "
        "making intervals: checks for NaN, auc, logloss and calibration error of both models, "
        "and six distances between them. scikit-learn's calls are of both models too.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
