"""Layers as the page shows them: what each lost, what it took, and how long it takes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rankc.report import text
from rankc.report.sites import percent
from rankc.report.spectrum import Figure, mark, spectrum
from rankc.validate.schema import LayerTime, Metrics, TimedLayer

Layers = Mapping[str, Any]  # the content of layers.json
Plan = Mapping[str, Any]  # the content of plan.json

FEW, COARSE = 64, 2.0  # of more directions, steps of fewer pixels are left out of a curve


@dataclasses.dataclass(frozen=True, slots=True)
class Bar:
    """A number with a bar as long as a share of the longest."""

    text: str
    note: str
    width: float  # percent


@dataclasses.dataclass(frozen=True, slots=True)
class LayerRow:
    """A line of the table of layers."""

    name: str
    about: str  # pass, form
    rank: str
    error: Bar | None
    size: str
    time: Bar | None
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class TimeRow:
    """How long a layer of the original takes in both models."""

    name: str
    original: Bar
    compressed: Bar


def entries(plan: Plan | None, layers: Layers | None) -> list[Mapping[str, Any]]:
    """What is known of each layer, the greatest predicted loss first, those left dense last."""
    if layers is not None:
        found: Sequence[Mapping[str, Any]] = layers["layers"]
    else:
        found = [] if plan is None else plan["choices"]
    return sorted(found, key=lambda one: (one["rank"] is None, -(one.get("loss") or 0.0)))


def figures(found: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """A spectrum each for those that have one."""
    return [_figure(one) for one in found if one.get("energies")]


def _figure(one: Mapping[str, Any]) -> Figure:
    energies = one["energies"]
    full = one.get("energies_of") or len(energies)
    coarse = COARSE if len(energies) > FEW else 0.0
    rank, (first, last) = one["rank"], (percent(energies[0]), percent(energies[-1]))
    words = f"Share of the energy of each of {full} directions, falling from {first} to {last}. "
    if rank is None:
        return spectrum(one["site"], words + "Left dense.", energies, full, (), coarse=coarse)
    words += f"{_chosen(one)} was chosen: {percent(one['error'])} of the output's variance is lost"
    form = one.get("form") or ""
    if form == one.get("energies_form", form):
        line = mark(f"rank {rank}", "most", min(rank, full), full)
    else:
        same = directions(energies, full, 1.0 - one["error"])
        words += f", as if {same} of these directions were kept"
        line = mark(f"rank {rank} as {form}", "few", same, full)
    return spectrum(one["site"], f"{words}.", energies, full, (line,), coarse=coarse)


def _chosen(one: Mapping[str, Any]) -> str:
    form = f" as {one['form']}" if one.get("form") else ""
    return f"Rank {one['rank']} of {one['full_rank']}{form}"


def directions(energies: Sequence[float], full: int, share: float) -> int:
    """The fewest of `full` directions that have so much of the energy.

    Args:
        energies: Of the directions, falling; or, if fewer, means of neighbours.
        full: The number of directions.
        share: Of the energy, at most 1.
    """
    cuts = [k * full // len(energies) for k in range(len(energies) + 1)]
    kept = 0.0
    for energy, start, end in zip(energies, cuts, cuts[1:], strict=False):
        if energy > 0 and kept + energy * (end - start) >= share:
            return min(start + max(math.ceil((share - kept) / energy - 1e-9), 1), end)
        kept += energy * (end - start)
    return full


def layer_rows(found: Sequence[Mapping[str, Any]], timed: Sequence[TimedLayer]) -> list[LayerRow]:
    """The lines of the table; layers that were timed and put back come last."""
    times = {one["site"]: one for one in timed}
    errors = [one["error"] for one in found if one["rank"] is not None]
    longest = max((_slowest(one) for one in timed), default=1.0)
    most, scale = max(errors, default=0.0), max(longest, 1.0)
    rows = [_row(one, times.get(one["site"]), most, scale) for one in found]
    known = {one["site"] for one in found}
    return rows + [_put_back(one, scale) for one in timed if one["site"] not in known]


def _row(one: Mapping[str, Any], timed: TimedLayer | None, most: float, scale: float) -> LayerRow:
    dense = one["rank"] is None
    error = None if dense else Bar(percent(one["error"]), "", _share(one["error"], most))
    return LayerRow(
        name=one["site"],
        about=", ".join(filter(None, (one["pass_name"], one.get("form") or ""))),
        rank="dense" if dense else f"{one['rank']} of {one['full_rank']}",
        error=error,
        size=_size(one),
        time=None if timed is None else _time(timed, scale),
        reason=one.get("reason") or "",
    )


def _put_back(timed: TimedLayer, scale: float) -> LayerRow:
    about = ", ".join(filter(None, (timed["pass_name"], timed["form"])))
    tried = f"tried at rank {timed['rank']}"
    return LayerRow(timed["site"], about, "dense", None, "", _time(timed, scale), tried)


def _size(one: Mapping[str, Any]) -> str:
    if "costs" in one:
        after, before = one["costs"]["size_bytes"], one["dense_costs"]["size_bytes"]
    else:
        after, before = one["size_bytes"], one["dense_size_bytes"]
    return f"{text.size(after)} of {text.size(before)}"


def _time(timed: TimedLayer, scale: float) -> Bar:
    """Of the largest batch; the others are in the note."""
    sizes = sorted(timed["latency"], key=int)
    found = timed["latency"][sizes[-1]]
    low, high = found["interval"]
    others = [f"b{size} {timed['latency'][size]['ratio']:.2f}" for size in sizes[:-1]]
    verdict = [] if timed["verdict"] == "kept" else [timed["verdict"]]
    note = "; ".join([*verdict, f"{low:.2f}{text.RANGE}{high:.2f}", *others])
    return Bar(f"{found['ratio']:.2f}{text.TIMES}", note, _share(found["ratio"], scale))


def _slowest(timed: TimedLayer) -> float:
    return timed["latency"][max(timed["latency"], key=int)]["ratio"]


def largest_batch(timed: Sequence[TimedLayer]) -> int | None:
    """That whose times the table shows."""
    return max((int(size) for one in timed for size in one["latency"]), default=None)


def time_rows(metrics: Metrics) -> list[TimeRow]:
    """Layers by what they took, the longest first."""
    found = metrics.get("layer_times") or []
    times = [one[key] for one in found for key in ("original_ms", "compressed_ms")]
    most = max(times, default=0.0)
    ordered = sorted(found, key=lambda one: -max(one["original_ms"], one["compressed_ms"]))
    return [_time_row(one, most) for one in ordered]


def _time_row(one: LayerTime, most: float) -> TimeRow:
    before, after = one["original_ms"], one["compressed_ms"]
    return TimeRow(
        one["layer"],
        _taken(before, one["nodes"][0], most),
        _taken(after, one["nodes"][1], most),
    )


def _taken(milliseconds: float, nodes: int, most: float) -> Bar:
    took = text.duration(milliseconds) if nodes else text.DASH
    return Bar(took, f"{nodes} node{'s' * (nodes != 1)}", _share(milliseconds, most))


def _share(value: float, of: float) -> float:
    return round(100 * value / of, 1) if of > 0 else 0.0
