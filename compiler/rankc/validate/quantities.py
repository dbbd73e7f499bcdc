"""The one table of what a gate can name, and in which direction it is better."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from rankc.recipe import ENERGY_ELSEWHERE
from rankc.validate.schema import Better, Kind, LatencyRow, Metrics, Percentiles

TIMES = "\N{MULTIPLICATION SIGN}"
MINUS = "\N{MINUS SIGN}"


@dataclasses.dataclass(frozen=True, slots=True)
class Quantity:
    """A row that gates can be set on."""

    name: str
    higher_is_better: bool
    kind: Kind
    unit: str = ""  # written after the number
    share: bool = False  # from 0 to 1: written in percent, and a change of it in points
    per_batch: bool = False  # the gate says at which batch size
    relative: bool = False  # compares the two models by itself: only `threshold` has a meaning
    needs: str = ""  # of the recipe's validation data: "group", "labels" or "rows"
    otherwise: str = ""  # why it is not measured where nothing else was said


_CLASSES = "the output has to have one number a class in each row, of two classes or more"
_CORRELATED = (
    "the output has to have one number a row, and so the labels, or there must be no labels"
)
_SCORE = "the output has to have one number a row, and the labels to be 0 and 1"


def _error(name: str, higher: bool, needs: str = "rows", otherwise: str = "") -> Quantity:
    return Quantity(name, higher, "accuracy", needs=needs, otherwise=otherwise)


def _share(name: str, needs: str) -> Quantity:
    return Quantity(name, True, "accuracy", share=True, needs=needs, otherwise=_CLASSES)


QUANTITIES = {
    q.name: q
    for q in (
        _error("auc", True, "labels", _SCORE),
        _error(
            "grouped_auc",
            True,
            "group",
            f"{_SCORE}, and data.validation.group to name the column of the groups",
        ),
        _error("logloss", False, "labels", _CLASSES),
        _error("ece", False, "labels", f"{_CLASSES}, or one probability a row with labels 0 and 1"),
        _share("accuracy_top1", "labels"),
        _share("accuracy_top5", "labels"),
        _error(
            "perplexity",
            False,
            "labels",
            "the output has to be (rows, tokens, vocabulary) and the labels (rows, tokens)",
        ),
        Quantity(
            "mean_iou",
            True,
            "accuracy",
            share=True,
            needs="labels",
            otherwise="the output has to be (rows, classes, height, width), or classes last, and "
            "the labels (rows, height, width)",
        ),
        _error("pearson", True, otherwise=_CORRELATED),
        _error("spearman", True, otherwise=_CORRELATED),
        _error(
            "mse", False, "labels", "the output has to have one number a row, and so the labels"
        ),
        _share("top1_agreement", "rows"),
        _error("kl_div", False, otherwise=_CLASSES),
        _error("max_abs_err", False),
        _error("mean_abs_err", False),
        _error("cosine", True),
        Quantity("sqnr_db", True, "accuracy", " dB", needs="rows"),
        Quantity("psnr", True, "accuracy", " dB", needs="rows"),
        Quantity("size_bytes", False, "performance", " bytes"),
        Quantity("params", False, "performance"),
        Quantity("macs", False, "performance"),
        Quantity("nodes", False, "performance"),
        Quantity("peak_memory_bytes", False, "performance", " bytes", needs="rows"),
        Quantity("size_ratio", True, "performance", TIMES, relative=True),
        Quantity("params_ratio", True, "performance", TIMES, relative=True),
        Quantity("macs_ratio", True, "performance", TIMES, relative=True),
        Quantity("latency_ms", False, "performance", " ms", per_batch=True, needs="rows"),
        Quantity(
            "latency_ratio",
            False,
            "performance",
            TIMES,
            per_batch=True,
            relative=True,
            needs="rows",
        ),
        Quantity("throughput", True, "performance", " rows/s", per_batch=True, needs="rows"),
        Quantity(
            "energy_mj",
            False,
            "performance",
            " mJ",
            per_batch=True,
            needs="rows",
            otherwise=ENERGY_ELSEWHERE,
        ),
        Quantity("load_ms", False, "performance", " ms", needs="rows"),
        Quantity("cold_start_ms", False, "performance", " ms", needs="rows"),
    )
}


def own_quantity(name: str, better: Better) -> Quantity:
    """A metric that a recipe brings along."""
    return _error(name, better == "higher")


def known_to(metrics: Metrics) -> Mapping[str, Quantity]:
    """Every quantity by name, those of the recipe's own among them."""
    own = metrics.get("own", {})
    return {**QUANTITIES, **{name: own_quantity(name, better) for name, better in own.items()}}


def observe(
    metrics: Metrics, name: str, batch: int | None, percentile: int | None = None
) -> tuple[float, float] | None:
    """What the original and the compressed model have of a quantity, or None if not measured.

    `percentile` is of a latency, 50 by default.

    For a relative quantity the first is 1: the original against itself.
    """
    quantity = known_to(metrics)[name]
    if name in _RATIOS:
        ratio = _ratio(metrics, name)
        return None if ratio is None else (1.0, ratio)
    if quantity.per_batch:
        row = metrics["latency"].get(str(batch))
        return None if row is None or batch is None else _timed(row, name, batch, percentile or 50)
    if name in ("load_ms", "cold_start_ms"):
        return _started(metrics, name)
    measured = metrics["metrics"].get(name)
    return None if measured is None else (measured["original"], measured["compressed"])


def _timed(row: LatencyRow, name: str, batch: int, percentile: int) -> tuple[float, float] | None:
    if name == "latency_ratio":
        return 1.0, row["ratio"]
    if name == "energy_mj":
        return row.get("energy_mj")
    times = [_PERCENTILES[percentile](of) for of in (row["original"], row["compressed"])]
    if name == "throughput":
        times = [1e3 * batch / milliseconds for milliseconds in times]
    return times[0], times[1]


_PERCENTILES: dict[int, Callable[[Percentiles], float]] = {
    50: lambda of: of["p50_ms"],
    90: lambda of: of["p90_ms"],
    95: lambda of: of["p95_ms"],
    99: lambda of: of["p99_ms"],
}


def _started(metrics: Metrics, name: str) -> tuple[float, float] | None:
    if "startup" not in metrics:
        return None
    before, after = metrics["startup"]["original"], metrics["startup"]["compressed"]
    if name == "load_ms":
        return before["load_ms"], after["load_ms"]
    return before["cold_start_ms"], after["cold_start_ms"]


_RATIOS = frozenset({"size_ratio", "params_ratio", "macs_ratio"})


def _ratio(metrics: Metrics, name: str) -> float | None:
    ratios = metrics["ratios"]
    by_name = {
        "size_ratio": ratios.get("size_bytes"),
        "params_ratio": ratios.get("params"),
        "macs_ratio": ratios.get("macs"),
    }
    return by_name[name]


def available(metrics: Metrics) -> list[str]:
    """Every quantity that was measured, as a gate would name it."""
    found = [
        name
        for name, q in known_to(metrics).items()
        if not q.per_batch and observe(metrics, name, None) is not None
    ]
    sizes = ", ".join(metrics["latency"])
    if sizes:
        found += [
            f"{name} (batch {sizes})"
            for name, q in QUANTITIES.items()
            if q.per_batch and all(observe(metrics, name, int(b)) for b in metrics["latency"])
        ]
    return found
