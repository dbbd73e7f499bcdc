"""Raw data → table.md: the same data, the same bytes. `python -m benchmarks.cnn.table`.

Each script of this folder has a file of raw data, and a section here or in a module of its own.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cnn import efficientnet_table, slow_table
from benchmarks.cnn.resnet20_targets import DEVIATION, PAYS, layer_shares, share, targets
from rankc.report.text import DASH, TIMES, markdown_table, signed

RESULTS = Path(__file__).with_name("results")

Raw = Mapping[str, Any]
Row = Mapping[str, Any]


def render(found: Mapping[str, Raw]) -> str:
    """The whole of table.md, of the raw data that there is, by name of its file."""
    parts = ["# Convolutional nets: what was measured", _HOW]
    for name, section in SECTIONS.items():
        if name in found:
            parts += section(found[name])
            parts.append(_machine(found[name]))
    return "\n\n".join(parts) + "\n"


_HOW = """\
Made from the `.json` files beside it; do not edit. Every figure is computed from emitted ONNX files
in ONNX Runtime. *Time* is CPU time of one call on one thread / the original's, median over
interleaved pairs, with a 95 % interval: 0.5 is twice as fast."""


# --- ResNet-20 --------------------------------------------------------------------------------


def resnet20(raw: Raw) -> Iterator[str]:
    """Accuracy and time, layer by layer too, and predicted against measured errors."""
    rows = raw["rows"]
    first = rows[0]["metrics"]["accuracy_top1"]["original"]
    yield "## ResNet-20, training-free"
    yield _RESNET.format(accuracy=100 * first, images=rows[0]["rows"])
    for ratio in sorted({row["ratio"] for row in rows}):
        mine = [row for row in rows if row["ratio"] == ratio]
        yield "### As it is" if ratio == 1 else f"### {ratio:g}{TIMES} fewer multiply-accumulates"
        yield accuracy_table(mine)
    yield "## ResNet-20: do the layers pay?"
    yield _PAYS
    for row in rows:
        if row["variant"] == "ours" and "refused" not in row:
            yield f"### {row['ratio']:g}{TIMES} fewer multiply-accumulates"
            yield layer_table(row["layers"])
            yield pays(row)
    yield "## ResNet-20: predicted errors"
    yield _PREDICTIONS
    yield predictions(raw["predictions"])
    yield "## ResNet-20: targets"
    lines = [[target.text, target.seen, target.verdict] for target in targets(raw)]
    yield markdown_table(["target", "measured", "holds"], lines)


_RESNET = """\
`recipes/cifar-lowrank.yaml` with `--set` options, on a net that reaches {accuracy:.2f} % of the
{images:,} test images; *points* are the change against that, with paired 95 % intervals over
images. MACs are of the whole model. Ranks of rankc come in steps of 4 unless a row says otherwise.
Baselines take any rank, have no statistics and no refit, and keep what is slower; *greedy* scores
every layer by itself at ten ratios, by the divergence of the answers. *Share*: how much of what the
operations promise the clock gives, (1 / time) / (MACs ratio), at batch 1 and 32. *Budgets in ms*
are of the convolutions at batch 32, by a table of `rankc profile`. *Compile*: wall clock, without
validation."""

_PAYS = """\
Layers that the plan of `cifar-lowrank` rewrites, each by itself against the dense one. *Share* as
above. Kernels compute in blocks of 16 channels (AVX-512) and small convolutions have a fixed cost,
so halving 16 channels saves operations and little time; layers of 64 channels come closer."""

_PREDICTIONS = """\
All sites, all forms, each at the rank that is nearest to half of the layer's MACs: share of the
output's variance that is lost, predicted by the pass and measured at all positions of the same
images. *All positions*: the moments are of all positions, too. *Sampled*: as calibration takes
them, 64 positions an image; the difference is then sampling noise."""


def accuracy_table(rows: Sequence[Row]) -> str:
    """One line a variant."""
    sizes = sorted({int(size) for row in rows for size in row.get("latency", {})})
    batches = " / ".join(map(str, sizes))
    head = ["", "fewer MACs", "smaller", "points [95 %]", f"time at batch {batches}", "share"]
    return markdown_table([*head, "compile"], [_accuracy_line(row, sizes) for row in rows])


def _accuracy_line(row: Row, sizes: Sequence[int]) -> list[str]:
    if "refused" in row:
        why = row["refused"].partition(": ")[2].partition(";")[0]
        return [row["label"], DASH, DASH, f"refused: {why}", DASH, DASH, DASH]
    ratios, times = row["ratios"], [row["latency"][str(size)]["ratio"] for size in sizes]
    return [
        row["label"],
        f"{ratios['macs']:.2f}{TIMES}",
        f"{ratios['size_bytes']:.2f}{TIMES}",
        points(row["metrics"]["accuracy_top1"]),
        " / ".join(f"{time:.2f}" for time in times),
        " / ".join(percent(share(ratios["macs"], time)) for time in times if row["floats"]) or DASH,
        f"{row['seconds']['wall']:.0f} s" if row["stages"] else DASH,
    ]


def points(accuracy: Mapping[str, Any]) -> str:
    """A difference in top-1 as points, with its interval."""
    low, high = accuracy["interval"]
    found = [signed(100 * value, 2) for value in (accuracy["difference"], low, high)]
    return f"{found[0]} [{found[1]}, {found[2]}]"


def percent(value: float) -> str:
    """Without decimals."""
    return f"{100 * value:.0f} %"


def layer_table(layers: Sequence[Row]) -> str:
    """One line a layer that the plan rewrites; those put back come last."""
    sizes = sorted({int(size) for layer in layers for size in layer["latency"]})
    head = ["layer", "rank", "fewer MACs", *(f"time at batch {size}" for size in sizes), "share"]
    return markdown_table([*head, ""], [_layer_line(layer, sizes) for layer in layers])


def _layer_line(layer: Row, sizes: Sequence[int]) -> list[str]:
    timed = layer["latency"]
    known = [size for size in sizes if str(size) in timed]
    fewer, shares = DASH, DASH
    if "macs" in layer:
        ratio = layer["dense_macs"] / layer["macs"]
        fewer = f"{ratio:.2f}{TIMES}"
        shares = " / ".join(percent(share(ratio, timed[str(s)]["ratio"])) for s in known) or DASH
    return [
        layer["site"],
        f"{layer['rank']} as {layer['form']}" if layer["form"] else str(layer["rank"]),
        fewer,
        *(interval(timed.get(str(size))) for size in sizes),
        shares,
        "" if layer["verdict"] in ("", "kept") else f"**{layer['verdict']}**",
    ]


def interval(timed: Mapping[str, Any] | None) -> str:
    """A ratio of times with its interval; bold where all of that is above 1."""
    if timed is None:
        return DASH
    low, high = timed["interval"]
    text = f"{timed['ratio']:.2f} [{low:.2f}, {high:.2f}]"
    return f"**{text}**" if low > 1 else text


def pays(row: Row) -> str:
    """How many layers gain, and how many gain what they promise."""
    kept = [layer for layer in row["layers"] if layer["latency"] and "macs" in layer]
    sizes = sorted({size for layer in kept for size in layer["latency"]}, key=int)
    told = []
    for size in sizes:
        gained = sum(layer["latency"][size]["interval"][1] < 1 for layer in kept)
        full = sum(one >= PAYS for one in layer_shares(row, size))
        told.append(
            f"at batch {size}, {gained} of {len(kept)} are faster beyond noise, and {full} give "
            f"{percent(PAYS)} or more of what their MACs promise"
        )
    return f"Of the rewritten layers, {'; '.join(told)}." if told else "No layer was timed."


def predictions(found: Mapping[str, Sequence[Row]]) -> str:
    """Deviations of measured from predicted errors, form by form."""
    names = {"exact": "all positions", "sampled": "sampled"}
    forms = list(dict.fromkeys(family(one["form"]) for one in found["exact"]))
    head = ["form", "cases", *(f"{said}: worst" for said in names.values())]
    head += ["sampled: median", f"sampled: within {percent(DEVIATION)}"]
    lines = []
    for form in [*forms, ""]:
        both = {
            kind: [one for one in found[kind] if form in ("", family(one["form"]))]
            for kind in names
        }
        deviations = {kind: sorted(one["deviation"] for one in both[kind]) for kind in names}
        sampled = deviations["sampled"]
        lines.append(
            [
                form or "all",
                str(len(both["exact"])),
                *(f"{deviations[kind][-1]:.1e}" for kind in names),
                f"{sampled[len(sampled) // 2]:.1e}",
                f"{sum(one <= DEVIATION for one in sampled)} of {len(sampled)}",
            ]
        )
    return markdown_table(head, lines)


def family(form: str) -> str:
    """`tucker` of `tucker-8`."""
    return form.partition("-")[0]


# --- everything -------------------------------------------------------------------------------

Section = Callable[[Raw], Iterator[str]]
SECTIONS: dict[str, Section] = {
    "resnet20": resnet20,
    "efficientnet": efficientnet_table.section,
    "cost": efficientnet_table.cost,
    "slow": slow_table.section,
}


def _machine(raw: Raw) -> str:
    told = ", ".join(f"{key} {value}" for key, value in sorted(raw["environment"].items()))
    return f"Measured on: {told}."


def write(results: Path = RESULTS) -> Path:
    """Render what raw data lies in `results` beside it."""
    found = {
        name: json.loads((results / f"{name}.json").read_text(encoding="utf-8"))
        for name in SECTIONS
        if (results / f"{name}.json").exists()
    }
    path = results / "table.md"
    path.write_text(render(found), encoding="utf-8", newline="\n")
    return path


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cnn.table", description=__doc__)
    parser.add_argument("results", nargs="?", type=Path, default=RESULTS, help="with raw data")
    print(write(parser.parse_args().results))


if __name__ == "__main__":
    main()
