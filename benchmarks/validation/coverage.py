"""How often intervals hold the truth, and how often gates are wrong, on data whose truth is known.

A row is positive with probability 0.3, and a model's score of it is normal with mean 1.5 or 0 and
variance 1 + noise^2. The two models share the score and differ in noise, so their true AUC and
accuracy are known in closed form, and logloss by quadrature. Of every draw of rows the intervals
are made that a recipe's metrics get, and a gate is set that allows exactly the true drop: it
should pass in 2.5 % of the draws and fail in 2.5 %.

    python -m benchmarks.validation.coverage [--trials 1000]

writes results/coverage.json and results/coverage.md; four minutes of one core.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import platform
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from rankc.recipe import Gate
from rankc.report.text import markdown_table
from rankc.validate.bootstrap import Interval, auc_difference, intervals, mean_of
from rankc.validate.delong import Placements, compare_aucs
from rankc.validate.estimates import BOOTSTRAP
from rankc.validate.gates import check
from rankc.validate.metrics import Floats, Labels
from rankc.validate.proportions import compare_accuracies
from rankc.validate.schema import LatencyHow, Measured, Metrics

RESULTS = Path(__file__).with_name("results")
POSITIVE = 0.3
SEPARATION = 1.5
HALF = 0.5  # above it a row counts as positive
_METRIC = {"auc": "auc", "auc, bootstrap": "auc", "accuracy": "accuracy_top1", "logloss": "logloss"}
_PHI = NormalDist().cdf
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(80)


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """One kind of draw."""

    rows: int
    noise: tuple[float, float]  # standard deviations that each model adds to the score
    bootstrap: bool = False  # also of the AUC, which takes as long as all the rest


SETTINGS = (
    Setting(500, (0.3, 0.3)),
    Setting(500, (0.0, 0.1)),
    Setting(500, (0.0, 0.4), bootstrap=True),
    Setting(2000, (0.3, 0.3)),
    Setting(2000, (0.0, 0.1)),
    Setting(2000, (0.0, 0.4), bootstrap=True),
    Setting(10_000, (0.3, 0.3)),
    Setting(10_000, (0.0, 0.1)),
    Setting(10_000, (0.0, 0.4)),
)


def truth(noise: float) -> dict[str, float]:
    """AUC, accuracy and logloss of a model over all rows that there could be."""
    deviation = math.sqrt(1 + noise * noise)
    cut = (math.log(HALF / (1 - HALF)) - _offset()) / SEPARATION
    right = (POSITIVE, (SEPARATION - cut) / deviation), (1 - POSITIVE, cut / deviation)
    weights = _WEIGHTS / _WEIGHTS.sum()
    losses = [
        share * float(weights @ np.logaddexp(0, -sign * (_logits(mean + deviation * _NODES))))
        for share, mean, sign in ((POSITIVE, SEPARATION, 1), (1 - POSITIVE, 0.0, -1))
    ]
    return {
        "auc": _PHI(SEPARATION / (deviation * math.sqrt(2))),
        "accuracy_top1": sum(share * _PHI(z) for share, z in right),
        "logloss": sum(losses),
    }


def _offset() -> float:
    return math.log(POSITIVE / (1 - POSITIVE)) - SEPARATION**2 / 2


def _logits(scores: Floats) -> Floats:
    """Of a positive row, given a score without noise."""
    logits: Floats = _offset() + SEPARATION * scores
    return logits


def draw(setting: Setting, rng: np.random.Generator) -> tuple[Labels, Floats, Floats]:
    """Labels and the probabilities that each model gives, (rows,) each."""
    labels = rng.random(setting.rows) < POSITIVE
    scores = rng.normal(size=setting.rows) + SEPARATION * labels
    noisy = (scores + noise * rng.normal(size=setting.rows) for noise in setting.noise)
    before, after = (1 / (1 + np.exp(-_logits(one))) for one in noisy)
    return labels, before, after


def measure(
    setting: Setting, seed: int, resamples: int
) -> dict[str, tuple[float, float, Interval]]:
    """Both values and the interval of their difference, by name in the table."""
    rng = np.random.default_rng(seed)
    labels, before, after = draw(setting, rng)
    losses = [-np.log(np.where(labels, p, 1 - p)) for p in (before, after)]
    right = [labels == (p > HALF) for p in (before, after)]
    statistics: dict[str, Any] = {"logloss": mean_of(losses[1] - losses[0])}
    if setting.bootstrap:
        statistics["auc, bootstrap"] = auc_difference(labels, before, after)
    found = intervals(statistics, setting.rows, resamples=resamples, seed=seed)
    found["auc"] = compare_aucs(labels, before, after).interval
    found["accuracy"] = compare_accuracies(right[0], right[1]).interval
    areas = Placements.of(labels, before).auc, Placements.of(labels, after).auc
    values = {
        "auc": areas,
        "auc, bootstrap": areas,
        "accuracy": (float(right[0].mean()), float(right[1].mean())),
        "logloss": (float(losses[0].mean()), float(losses[1].mean())),
    }
    return {name: (*values[name], one) for name, one in found.items() if one is not None}


def verdict(metric: str, drop: float, found: tuple[float, float, Interval], rows: int) -> str:
    """Of the gate that allows exactly `drop`, in the direction in which the metric is worse."""
    original, compressed, interval = found
    measured = Measured(
        original=original,
        compressed=compressed,
        difference=compressed - original,
        interval=interval,
    )
    metrics = Metrics(
        format=1, recipe="coverage", passed=False, gates=[], rows=rows, output="p",
        metrics={metric: measured}, unavailable={}, ratios={}, latency={},
        latency_how=LatencyHow(
            scope="", clock="", device="", backend="", pinned=False, level=0.95
        ),
        layers=[], memory_batch=None, backends={}, environment={},
    )  # fmt: skip
    (result,) = check([Gate(metric, "max-degradation", drop)], metrics)
    return result.ruling.verdict


def run(
    setting: Setting, trials: int, *, resamples: int = 1000, seed: int = 0
) -> list[dict[str, Any]]:
    """Coverage and verdicts of one setting, a row a method."""
    before, after = (truth(noise) for noise in setting.noise)
    covered: Counter[str] = Counter()
    verdicts: dict[str, Counter[str]] = {}
    for trial in range(trials):
        for name, found in measure(setting, seed + trial, resamples).items():
            metric = _METRIC[name]
            change = after[metric] - before[metric]
            covered[name] += found[2][0] <= change <= found[2][1]
            worse = change if metric == "logloss" else -change
            said = verdict(metric, worse, found, setting.rows)
            verdicts.setdefault(name, Counter())[said] += 1
    return [
        {
            "metric": name,
            "rows": setting.rows,
            "noise": setting.noise,
            "true_original": before[_METRIC[name]],
            "true_change": after[_METRIC[name]] - before[_METRIC[name]],
            "trials": trials,
            "covered": covered[name],
            "verdicts": dict(verdicts[name]),
        }
        for name in sorted(verdicts)
    ]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """In Markdown; shares with their Monte Carlo error, one standard deviation."""
    methods = {"auc": "DeLong", "auc, bootstrap": BOOTSTRAP, "accuracy": "Bonett-Price"}
    head = ["metric", "interval", "rows", "true change", "covered", "gate passes", "gate fails"]
    return markdown_table(
        head,
        [
            [
                row["metric"].removesuffix(", bootstrap"),
                methods.get(row["metric"], BOOTSTRAP),
                f"{row['rows']:,}",
                f"{row['true_change']:+.5f}" if row["true_change"] else "0",
                *(_share(count, row["trials"]) for count in _counts(row)),
            ]
            for row in rows
        ],
    )


def _counts(row: Mapping[str, Any]) -> Iterator[int]:
    yield row["covered"]
    for word in ("pass", "fail"):
        yield row["verdicts"].get(word, 0)


def _share(count: int, trials: int) -> str:
    share = count / trials
    return f"{100 * share:.1f} ± {100 * math.sqrt(share * (1 - share) / trials):.1f} %"


def main() -> None:
    """Run every setting and write both files."""
    parser = argparse.ArgumentParser(description="How often intervals hold the truth.")
    parser.add_argument("--trials", type=int, default=1000)
    trials = parser.parse_args().trials
    started, rows = time.process_time(), []
    for setting in SETTINGS:
        rows += run(setting, trials)
        print(f"{setting}: {time.process_time() - started:.0f} s", flush=True)
    found = {
        "trials": trials,
        "resamples": 1000,
        "cpu_seconds": round(time.process_time() - started),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "coverage.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    note = (
        f"{trials} draws each. The gate allows exactly the true drop, so it should pass in 2.5 % "
        "and fail in 2.5 %. ± is one standard deviation of the Monte Carlo."
    )
    (RESULTS / "coverage.md").write_text(f"{note}\n\n{table(rows)}\n", "utf-8")


if __name__ == "__main__":
    main()
