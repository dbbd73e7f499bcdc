"""The before/after table as data; the terminal and report.md only lay it out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rankc.report import text
from rankc.validate.quantities import QUANTITIES
from rankc.validate.schema import GateRow, LatencyRow, Measured, Metrics

_LABELS = {
    "size_bytes": "size",
    "params": "parameters",
    "macs": "MACs a row",
    "nodes": "nodes",
    "auc": "auc",
    "grouped_auc": "auc within groups",
    "accuracy_top1": "top-1",
    "accuracy_top5": "top-5",
    "mean_iou": "mean IoU",
    "logloss": "logloss",
    "perplexity": "perplexity",
    "ece": "calibration error",
    "mse": "squared error",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "top1_agreement": "same top-1",
    "kl_div": "KL divergence",
    "mean_abs_err": "mean |error|",
    "max_abs_err": "max |error|",
    "cosine": "cosine",
    "sqnr_db": "SQNR",
    "psnr": "PSNR",
}
_VALUES = frozenset({"auc", "grouped_auc", "logloss", "ece", "pearson", "spearman"})  # 5 digits
_OF_BOTH = frozenset({"perplexity", "mse"})  # any size
_ALWAYS = frozenset(
    {
        *("size_bytes", "auc", "accuracy_top1", "logloss", "top1_agreement", "peak_memory_bytes"),
        *("perplexity", "mean_iou", "mse"),
    }
)
_BY_LABELS = frozenset({"auc", "accuracy_top1", "mse"})
_WITHOUT_LABELS = frozenset({"mean_abs_err", "max_abs_err", "kl_div"})  # shown for want of those
_TIMED = frozenset({"latency_ms", "latency_ratio", "throughput"})
_GATED_BY = {"size_ratio": "size_bytes", "params_ratio": "params", "macs_ratio": "macs"}


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One line, every cell already written out."""

    label: str
    original: str
    compressed: str
    change: str  # with the interval as two ends
    brief: str  # the same with half its width, for a terminal
    gate: str  # "drop ≤ 0.001"; several are joined; empty: no gate
    passed: bool | None  # None: no gate
    essential: bool  # shown on the terminal
    undecided: bool = False  # what did not hold, or only warns, could not be decided


def table_rows(metrics: Metrics) -> list[Row]:
    """Every measured quantity, in the order of the report."""
    measured = metrics["metrics"]
    names = (*_LABELS, *metrics.get("own", {}))
    rows = [_metric(name, measured[name], metrics) for name in names if name in measured]
    rows += [
        _latency(int(size), row, metrics)
        for size, row in sorted(metrics["latency"].items(), key=lambda item: int(item[0]))
    ]
    if "peak_memory_bytes" in measured:
        rows.append(_memory(measured["peak_memory_bytes"], metrics))
    if (starts := metrics.get("startup")) is not None:
        before, after = starts["original"], starts["compressed"]
        rows.append(_start("load_ms", "load", before["load_ms"], after["load_ms"], metrics))
        cold = before["cold_start_ms"], after["cold_start_ms"]
        rows.append(_start("cold_start_ms", "cold start", *cold, metrics))
    return rows


def failures(metrics: Metrics) -> list[str]:
    """A sentence for each gate that does not hold: accuracy first, the undecided ones last.

    Those begin with "undecided:".
    """
    failed = [gate for gate in metrics["gates"] if not gate["passed"]]
    order = sorted(failed, key=lambda gate: (gate["kind"], gate["verdict"] == "undecided"))
    return [gate["message"] for gate in order]


def warnings(metrics: Metrics) -> list[str]:
    """A sentence for each gate that was let pass although it could not be decided."""
    gates = metrics["gates"]
    return [g["message"] for g in gates if g["passed"] and g["verdict"] == "undecided"]


def row_of(name: str, metrics: Metrics) -> Row:
    """That of one metric which was measured."""
    return _metric(name, metrics["metrics"][name], metrics)


def _metric(name: str, pair: Measured, metrics: Metrics) -> Row:
    cells = _cells(name, pair, metrics)
    brief = _brief(name, pair) or cells[2]
    gates = [g for g in metrics["gates"] if _GATED_BY.get(g["metric"], g["metric"]) == name]
    unjudged = _BY_LABELS.isdisjoint(metrics["metrics"])
    essential = name in _ALWAYS or (unjudged and name in _WITHOUT_LABELS)
    return _row(_LABELS.get(name, name), cells, brief, gates, essential)


def _cells(name: str, pair: Measured, metrics: Metrics) -> tuple[str, str, str]:
    before, after = pair["original"], pair["compressed"]
    if name == "size_bytes":
        ratio = metrics["ratios"].get("size_bytes")
        return text.size(before), text.size(after), _smaller(ratio)
    if name in ("params", "macs"):
        ratios = metrics["ratios"]
        ratio = ratios.get("params") if name == "params" else ratios.get("macs")
        return text.amount(before), text.amount(after), _smaller(ratio)
    if name == "nodes":
        return f"{before:.0f}", f"{after:.0f}", text.signed(after - before, 0)
    if name in _OF_BOTH or name in metrics.get("own", {}):
        change = text.short(pair["difference"])
        return f"{before:.5g}", f"{after:.5g}", f"{change} {_plain_interval(pair)}".rstrip()
    return _answer_cells(name, pair)


def _answer_cells(name: str, pair: Measured) -> tuple[str, str, str]:
    """Of what is judged by labels, and of distances."""
    before, after = pair["original"], pair["compressed"]
    if QUANTITIES[name].share:
        return _share_cells(name, pair)
    if name in _VALUES and not _of_itself(name, pair):
        change = text.signed(pair["difference"]) + _interval(pair)
        return f"{before:.5f}", f"{after:.5f}", change
    if name == "cosine" or name in _VALUES:
        return text.DASH, f"{after:.6f}", ""
    if name in ("sqnr_db", "psnr"):
        return text.DASH, f"{after:.2f} dB", ""
    return text.DASH, text.short(after), _plain_interval(pair)


def _of_itself(name: str, pair: Measured) -> bool:
    """Whether a correlation is that of the two models, and not of either with labels."""
    return name in ("pearson", "spearman") and pair["original"] == 1.0


def _share_cells(name: str, pair: Measured) -> tuple[str, str, str]:
    """In percent, and the change of it in points; of an agreement instead what it may be."""
    after, interval = f"{100 * pair['compressed']:.2f} %", pair["interval"]
    if name == "top1_agreement":
        low, high = (100 + 100 * end for end in interval or (0.0, 0.0))
        return text.DASH, after, f"({low:.2f} to {high:.2f} %)" if interval else ""
    change = f"{_points(pair['difference'])} points"
    if interval is not None:
        change += f" ({_points(interval[0])} to {_points(interval[1])})"
    return f"{100 * pair['original']:.2f} %", after, change


def _points(share: float) -> str:
    return text.signed(100 * share, 2)


def _brief(name: str, pair: Measured) -> str:
    """The difference and half the width of its interval; empty where the whole fits."""
    half = 0.0 if pair["interval"] is None else (pair["interval"][1] - pair["interval"][0]) / 2
    if name in _VALUES and not _of_itself(name, pair):
        change, width = text.signed(pair["difference"]), f"{half:.5f}"
    elif name != "top1_agreement" and name in QUANTITIES and QUANTITIES[name].share:
        change, width = f"{_points(pair['difference'])} points", f"{100 * half:.2f}"
    else:
        return ""
    return change if pair["interval"] is None else f"{change} \N{PLUS-MINUS SIGN}{width}"


def _smaller(ratio: float | None) -> str:
    return "" if ratio is None else text.smaller(ratio)


def _interval(pair: Measured) -> str:
    if pair["interval"] is None:
        return ""
    low, high = pair["interval"]
    return f" ({text.signed(low)} to {text.signed(high)})"


def _plain_interval(pair: Measured) -> str:
    if pair["interval"] is None:
        return ""
    low, high = pair["interval"]
    return f"({text.short(low)} to {text.short(high)})"


def _latency(size: int, row: LatencyRow, metrics: Metrics) -> Row:
    low, high = row["interval"]
    change = f"{row['ratio']:.2f}{text.TIMES} ({low:.2f}{text.RANGE}{high:.2f})"
    before, after = row["original"]["p50_ms"], row["compressed"]["p50_ms"]
    cells = (text.duration(before), text.duration(after), change)
    gates = [g for g in metrics["gates"] if g["metric"] in _TIMED]
    mine = [g for g in gates if g["batch"] == size]
    return _row(f"latency b{size}", cells, change, mine, essential=True)


def _start(metric: str, label: str, before: float, after: float, metrics: Metrics) -> Row:
    gates = [g for g in metrics["gates"] if g["metric"] == metric]
    cells = (text.duration(before), text.duration(after), f"{after / before:.2f}{text.TIMES}")
    return _row(label, cells, cells[2], gates, essential=False)


def _memory(pair: Measured, metrics: Metrics) -> Row:
    before, after = pair["original"], pair["compressed"]
    change = f"{after / before:.2f}{text.TIMES}" if before else ""
    gates = [g for g in metrics["gates"] if g["metric"] == "peak_memory_bytes"]
    cells = (text.size(before), text.size(after), change)
    return _row("peak memory", cells, change, gates, essential=True)


def _row(
    label: str, cells: tuple[str, str, str], brief: str, gates: Sequence[GateRow], essential: bool
) -> Row:
    passed = all(gate["passed"] for gate in gates) if gates else None
    promises = ", ".join(gate["text"] for gate in gates)
    unsure = any(g["verdict"] == "undecided" for g in gates)
    unsure = unsure and not any(g["verdict"] == "fail" for g in gates)
    return Row(label, *cells, brief, promises, passed, essential or bool(gates), unsure)
