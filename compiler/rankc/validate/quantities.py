"""The one table of what a gate can name, and in which direction it is better."""

from __future__ import annotations

import dataclasses

from rankc.validate.schema import Kind, Metrics

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
    needs: str = ""  # of the recipe's validation data: "labels" or "rows"
    otherwise: str = ""  # why it is not measured where nothing else was said


_ONE_NUMBER = "the output has to have one number a class in each row, of two classes or more"

QUANTITIES = {
    q.name: q
    for q in (
        Quantity("auc", True, "accuracy", needs="labels"),
        Quantity("logloss", False, "accuracy", needs="labels"),
        Quantity(
            "accuracy_top1", True, "accuracy", share=True, needs="labels", otherwise=_ONE_NUMBER
        ),
        Quantity(
            "accuracy_top5", True, "accuracy", share=True, needs="labels", otherwise=_ONE_NUMBER
        ),
        Quantity(
            "top1_agreement", True, "accuracy", share=True, needs="rows", otherwise=_ONE_NUMBER
        ),
        Quantity("kl_div", False, "accuracy", needs="rows", otherwise=_ONE_NUMBER),
        Quantity("max_abs_err", False, "accuracy", needs="rows"),
        Quantity("mean_abs_err", False, "accuracy", needs="rows"),
        Quantity("cosine", True, "accuracy", needs="rows"),
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
    )
}


def observe(metrics: Metrics, name: str, batch: int | None) -> tuple[float, float] | None:
    """What the original and the compressed model have of a quantity, or None if not measured.

    For a relative quantity the first is 1: the original against itself.
    """
    if name.endswith("_ratio") and not QUANTITIES[name].per_batch:
        ratio = _ratio(metrics, name)
        return None if ratio is None else (1.0, ratio)
    if QUANTITIES[name].per_batch:
        row = metrics["latency"].get(str(batch))
        if row is None:
            return None
        if name == "latency_ratio":
            return 1.0, row["ratio"]
        return row["original"]["p50_ms"], row["compressed"]["p50_ms"]
    measured = metrics["metrics"].get(name)
    return None if measured is None else (measured["original"], measured["compressed"])


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
        for name, q in QUANTITIES.items()
        if not q.per_batch and observe(metrics, name, None) is not None
    ]
    sizes = ", ".join(metrics["latency"])
    if sizes:
        found += [f"{name} (batch {sizes})" for name, q in QUANTITIES.items() if q.per_batch]
    return found
