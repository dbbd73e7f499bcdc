"""The before/after table as data; the terminal and report.md only lay it out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rankc.report import text
from rankc.validate.schema import GateRow, LatencyRow, Measured, Metrics

_LABELS = {
    "size_bytes": "size",
    "params": "parameters",
    "macs": "MACs a row",
    "nodes": "nodes",
    "auc": "auc",
    "logloss": "logloss",
    "mean_abs_err": "mean |error|",
    "max_abs_err": "max |error|",
    "cosine": "cosine",
}
_ALWAYS = frozenset({"size_bytes", "auc", "logloss", "peak_memory_bytes"})
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


def table_rows(metrics: Metrics) -> list[Row]:
    """Every measured quantity, in the order of the report."""
    measured = metrics["metrics"]
    rows = [_metric(name, measured[name], metrics) for name in _LABELS if name in measured]
    rows += [
        _latency(int(size), row, metrics)
        for size, row in sorted(metrics["latency"].items(), key=lambda item: int(item[0]))
    ]
    if "peak_memory_bytes" in measured:
        rows.append(_memory(measured["peak_memory_bytes"], metrics))
    return rows


def failures(metrics: Metrics) -> list[str]:
    """A sentence for each gate that failed, accuracy first."""
    failed = [gate for gate in metrics["gates"] if not gate["passed"]]
    return [gate["message"] for gate in sorted(failed, key=lambda gate: gate["kind"])]


def _metric(name: str, pair: Measured, metrics: Metrics) -> Row:
    cells = _cells(name, pair, metrics)
    brief = _brief(pair) if name in ("auc", "logloss") else cells[2]
    gates = [g for g in metrics["gates"] if _GATED_BY.get(g["metric"], g["metric"]) == name]
    essential = name in _ALWAYS or ("auc" not in metrics["metrics"] and name.endswith("abs_err"))
    return _row(_LABELS[name], cells, brief, gates, essential)


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
    if name in ("auc", "logloss"):
        change = text.signed(pair["difference"]) + _interval(pair)
        return f"{before:.5f}", f"{after:.5f}", change
    if name == "cosine":  # of the original with itself it is 1, and the distances below are 0
        return text.DASH, f"{after:.6f}", ""
    return text.DASH, text.short(after), _plain_interval(pair)


def _brief(pair: Measured) -> str:
    """The difference and half the width of its interval."""
    change = text.signed(pair["difference"])
    if pair["interval"] is None:
        return change
    low, high = pair["interval"]
    return f"{change} \N{PLUS-MINUS SIGN}{(high - low) / 2:.5f}"


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
    cells = (text.duration(row["original_ms"]), text.duration(row["compressed_ms"]), change)
    gates = [g for g in metrics["gates"] if g["metric"].startswith("latency_")]
    mine = [g for g in gates if g["batch"] == size]
    return _row(f"latency b{size}", cells, change, mine, essential=True)


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
    return Row(label, *cells, brief, promises, passed, essential or bool(gates))
