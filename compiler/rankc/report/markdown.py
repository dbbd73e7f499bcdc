"""report.md: the verdict, what changed, what was done to each site and why not to the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rankc.reasons import measured
from rankc.report import text, training
from rankc.report.rows import Row, failures, table_rows, warnings
from rankc.report.search import search_section
from rankc.validate.schema import Backend, GateRow, LayerTime, Metrics, Split, TimedLayer

Plan = Mapping[str, Any]  # the content of plan.json
_LONGEST = 10
_LOSS = {
    "gradient": "mean squared change of the logit",
    "perturbation": "mean squared change of the logit",
    "fisher": "change of the answer, twice the KL divergence in nats,",
    "kl": "KL divergence of the answer, in nats, added up over sites,",
}


def report_markdown(metrics: Metrics, plan: Plan | None = None) -> str:
    """The whole report.

    Args:
        metrics: The content of metrics.json.
        plan: The content of plan.json. None: the recipe has exact passes only, and there is
            nothing to tell.
    """
    parts = [_verdict(metrics)]
    if metrics["gates"]:
        parts += ["## Gates", _gates(metrics["gates"])]
    parts += ["## Before and after", _before_after(metrics)]
    parts += search_section(metrics)
    parts += training.section(metrics)
    if plan is not None:
        parts += ["## Sites", _sites(plan), "## Skipped", _skipped(plan)]
    if splits := metrics.get("split"):
        parts += ["## Where the change comes from", _splits(splits)]
    if metrics["layers"]:
        parts += ["## Layers timed", _timed(metrics["layers"])]
    if layers := metrics.get("layer_times"):
        parts += ["## Where the time goes", _longest(layers, metrics)]
    parts += ["## Backends", _backends(metrics["backends"])]
    parts += ["## How it was measured", how_measured(metrics)]
    parts += ["## Environment", _environment(metrics)]
    return "\n\n".join(parts) + "\n"


def _verdict(metrics: Metrics) -> str:
    gates, failed = metrics["gates"], failures(metrics)
    lines = [f"# {metrics['recipe']}: {'PASSED' if metrics['passed'] else 'FAILED'}", ""]
    if failed:
        lines.append(f"{len(failed)} of {len(gates)} gates failed{_unsure(failed)}:")
        lines += ["", *(f"- {message}" for message in failed)]
    elif gates:
        lines.append("The only gate held." if len(gates) == 1 else f"All {len(gates)} gates held.")
    else:
        lines.append("The recipe sets no gates, so nothing was asked of the result.")
    lines += [line for message in warnings(metrics) for line in ("", f"Warning: {message}.")]
    return "\n".join(lines)


def _gates(gates: Sequence[GateRow]) -> str:
    """The failures first; what was seen has its interval."""
    marks = {"pass": "pass", "fail": "**FAIL**", "undecided": "**undecided**"}
    order = {"fail": 0, "undecided": 1, "pass": 2}
    rows = [
        [
            gate["metric"] + ("" if gate["batch"] is None else f" b{gate['batch']}"),
            gate["text"],
            marks[gate["verdict"]] + (", warning" if _warned(gate) else ""),
            gate["message"],
            f"{needed:,}" if (needed := gate.get("rows_needed")) else "",
            f"{line}" if (line := gate.get("line")) else "",
        ]
        for gate in sorted(gates, key=lambda gate: order[gate["verdict"]])
    ]
    head = ["metric", "gate", "verdict", "seen", "rows that would decide", "line"]
    return text.markdown_table(head, rows)


def _warned(gate: GateRow) -> bool:
    return gate["verdict"] == "undecided" and gate["passed"]


def _unsure(failed: Sequence[str]) -> str:
    unsure = sum(message.startswith("undecided:") for message in failed)
    return f", {unsure} of them undecided" if unsure else ""


def _splits(splits: Mapping[str, Mapping[str, Split]]) -> str:
    """Targets of one precision share one table: their graphs are the same."""
    (found, *_), targets = splits.values(), ", ".join(splits)
    rows = [
        [
            name,
            _part(one["floor"], one["floor_interval"]),
            _part(one["compression"], one["compression_interval"]),
            _part(one["lowering"], one["lowering_interval"]),
            _part(one["total"], one["total_interval"]),
        ]
        for name, one in found.items()
    ]
    head = ["", "float16 alone", "compression", "lowering", "both"]
    note = (
        f"Changes from the original in float32, for {targets}. Float16 alone is the original in "
        "float16, the floor of noise; lowering is what float16 adds to the compressed model. Its "
        "graphs are those that are lowered, run by ONNX Runtime on this CPU, which computes many "
        "operators in float32 between roundings; an engine may differ."
    )
    return "\n\n".join([text.markdown_table(head, rows), note])


def _part(value: float, interval: tuple[float, float] | None) -> str:
    if interval is None:
        return text.short(value)
    return f"{text.short(value)} ({text.short(interval[0])} to {text.short(interval[1])})"


def _mark(row: Row) -> str:
    if row.passed is None:
        return ""
    if row.undecided:
        return "undecided, warning" if row.passed else "**undecided**"
    return "pass" if row.passed else "**FAIL**"


def _before_after(metrics: Metrics) -> str:
    table = text.markdown_table(
        ["", "original", "compressed", "change", "gate", ""],
        [
            [row.label, row.original, row.compressed, row.change, row.gate, _mark(row)]
            for row in table_rows(metrics)
        ],
    )
    notes = [f"- {name}: {note}" for name, note in sorted(metrics.get("notes", {}).items())]
    reasons = [f"- {name}: {why}" for name, why in sorted(metrics["unavailable"].items())]
    parts = [table, "\n".join(notes)]
    if reasons:
        parts += ["Not measured:", "\n".join(reasons)]
    return "\n\n".join(filter(None, parts))


def _sites(plan: Plan) -> str:
    summary = plan_summary(plan)
    if not plan["choices"]:
        return f"No site was rewritten. {summary}".rstrip()
    rows = [
        [
            str(choice["site"]),
            str(choice["pass_name"]),
            f"{choice['rank']} of {choice['full_rank']}",
            f"{100 * choice['error']:.3g} %",
            f"{choice['size_bytes']:,} of {choice['dense_size_bytes']:,}",
            str(choice["reason"]),
        ]
        for choice in plan["choices"]
    ]
    head = ["site", "pass", "rank", "predicted error", "bytes", "why"]
    note = "Predicted error: the share of the variance of the site's output that is lost."
    return "\n\n".join(filter(None, [summary, text.markdown_table(head, rows), note]))


def plan_summary(plan: Plan) -> str:
    """What was planned, in a sentence."""
    parts = []
    for limit in plan["limits"]:
        unit = limit["unit"]
        parts.append(f"planned {measured(unit, limit['planned'])}")
        if limit["budget"] is not None:
            parts.append(f"budget {measured(unit, limit['budget'])}")
    parts.append(f"predicted {_LOSS[plan['sensitivity']]} {text.short(plan['loss'])}")
    if plan["times"]:
        parts.append(f"times of layers {plan['times']}")
    if plan["strategy"] != "optimal":
        parts.append(f"ranks chosen by the strategy {plan['strategy']}")
    if plan["exact"]:
        parts.append("by the same predictions no other plan within the budget loses less")
    else:
        parts.append(f"at most {100 * plan['gap']:.2g} % of that could be saved by another plan")
    joined = "; ".join(parts)
    return f"{joined[:1].upper()}{joined[1:]}."


def _skipped(plan: Plan) -> str:
    if not plan["skips"]:
        return "Nothing was skipped."
    rows = [[str(s["name"]), str(s["pass_name"]), str(s["reason"])] for s in plan["skips"]]
    return text.markdown_table(["site", "pass", "reason"], rows)


def _longest(layers: Sequence[LayerTime], metrics: Metrics) -> str:
    """The layers that take longest in either model."""
    ranked = sorted(layers, key=lambda one: -max(one["original_ms"], one["compressed_ms"]))
    rows = [
        [one["layer"], text.duration(one["original_ms"]), text.duration(one["compressed_ms"])]
        for one in ranked[:_LONGEST]
    ]
    before, after = (sum(one[key] for one in layers) for key in ("original_ms", "compressed_ms"))
    rows.append([f"all {len(layers)}", text.duration(before), text.duration(after)])
    note = (
        f"Layers of the original at batch {max(map(int, metrics['latency']))}, wall clock, one "
        "thread, by ONNX Runtime's trace. `(other)`: what belongs to no layer, or to many."
    )
    return "\n\n".join([text.markdown_table(["layer", "original", "compressed"], rows), note])


def _timed(layers: Sequence[TimedLayer]) -> str:
    """Every rewritten layer by itself against the dense one; the losers in bold."""
    sizes = sorted({int(size) for layer in layers for size in layer["latency"]})
    back = sum(layer["verdict"] == "put back" for layer in layers)
    rows = [
        [
            layer["site"],
            f"{layer['rank']}{layer['form'] and ' as ' + layer['form']}",
            *(_layer_ratio(layer, size) for size in sizes),
            layer["verdict"] if layer["verdict"] == "kept" else f"**{layer['verdict']}**",
        ]
        for layer in layers
    ]
    head = ["layer", "rank", *(f"time b{size}" for size in sizes), ""]
    note = (
        f"Rewritten / dense, each layer by itself on this machine; {back} put back. A rewrite is "
        "put back that is no faster at any batch size, and the plan is made again without it."
    )
    return "\n\n".join([text.markdown_table(head, rows), note])


def _layer_ratio(layer: TimedLayer, size: int) -> str:
    found = layer["latency"].get(str(size))
    if found is None:
        return ""
    low, high = found["interval"]
    return f"{found['ratio']:.2f}{text.TIMES} ({low:.2f}{text.RANGE}{high:.2f})"


def _backends(backends: Mapping[str, Backend]) -> str:
    if not backends:
        return "None."
    rows = [
        [name, b["precision"], state_of(b), _size(b), b.get("note", "")]
        for name, b in sorted(backends.items())
    ]
    return text.markdown_table(["backend", "precision", "state", "size", "note"], rows)


def _size(backend: Backend) -> str:
    return text.size(backend["size_bytes"]) if backend["built"] else text.DASH


def state_of(backend: Backend) -> str:
    """How far it came."""
    if not backend["built"]:
        return "not built"
    return "built and run" if backend["ran"] else "built, not run"


def how_measured(metrics: Metrics) -> str:
    """What the figures mean: a list, in Markdown."""
    lines = [f"- {metrics['rows']:,} validation rows; output compared: `{metrics['output']}`."]
    if not metrics["rows"]:
        lines = ["- No validation data: nothing that needs rows was measured."]
    lines.append(
        "- Intervals are 95 %: of differences by a paired bootstrap (1000 resamples, both models "
        "on the same rows)."
    )
    how = metrics["latency_how"]
    lines.append(
        f"- Latency: on {how['device']}, {how['backend']}, and nowhere else; {how['clock']}, "
        f"{'kept on one core' if how['pinned'] else 'on no core in particular'}, around "
        f"`{how['scope']}`; both opened afresh in every round, in turn, alternating which goes "
        f"first. Times are p50; intervals of ratios are {100 * how['level']:.3g} %, over rounds. "
        "It says nothing about wall-clock time on a busy machine or with several threads."
    )
    elsewhere = [name for name, one in sorted(metrics["backends"].items()) if not one["ran"]]
    if elsewhere:
        lines.append(f"- Not run here, so no time and no gate is of them: {', '.join(elsewhere)}.")
    for size, row in sorted(metrics["latency"].items(), key=lambda item: int(item[0])):
        before, after = row["calls_per_sample"]
        p95 = " and ".join(
            text.duration(times["p95_ms"]) for times in (row["original"], row["compressed"])
        )
        counts = f"{row['pairs']} pairs of samples"
        counts += f" in {row['rounds']} rounds" if "rounds" in row else ""
        counts += f", {before} and {after} calls a sample"
        lines.append(f"- Batch {size}: {counts}; p95 over samples {p95}.")
    if metrics["memory_batch"] is not None:
        lines.append(
            f"- Peak memory: what opening the model and running one batch of "
            f"{metrics['memory_batch']} rows adds to a fresh process; load and cold start are wall "
            "clock, opening the model and from the start of that process to its first answer."
        )
    return "\n".join(lines)


def _environment(metrics: Metrics) -> str:
    return text.markdown_table(
        ["", ""], [[name, value] for name, value in sorted(metrics["environment"].items())]
    )
