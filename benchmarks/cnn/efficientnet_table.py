"""The sections about EfficientNet-Lite0, see `efficientnet` and `cost`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from rankc.report.text import DASH, TIMES, markdown_table

Raw = Mapping[str, Any]
Row = Mapping[str, Any]
CALIBRATION, PLANNING = 1.6, 2.0  # times a plain run, at most
MEMORY_TIMES, MEMORY_MORE = 4, 1 << 30  # of the model's size, and bytes beside

_HOW = """\
A net with little to give: 88 % of its operations are in 1{times}1 convolutions. Images: {about};
{calibration} to calibrate on, {validation} others to compare on. *Cosine* is of the logits with the
original's, *agree* the share of images with the same likeliest class, with its 95 % interval over
images: crops of one photo are not independent, so the true one is wider. It is not accuracy:
ImageNet may not be passed on, and labels were not used. Settings were chosen with these figures in
view."""

_COST = """\
CPU time on one thread of `rankc compile efficientnet-lowrank` up to the finished model, as a
multiple of one plain run over its {images} calibration images, which opens the model and reads the
images, too: median of {repeats} interleaved runs, and the range. Memory is that of the process that
compiles."""


def section(raw: Raw) -> Iterator[str]:
    """Answers at each size."""
    images = raw["images"]
    yield "## EfficientNet-Lite0, training-free"
    yield _HOW.format(
        times=TIMES,
        about=images["about"],
        **{part: f"{images[part]['images']:,}" for part in ("calibration", "validation")},
    )
    for fewer in sorted({row["fewer"] for row in raw["rows"]}):
        yield f"### {100 * fewer:.0f} % fewer multiply-accumulates"
        yield _answers([row for row in raw["rows"] if row["fewer"] == fewer])


def _answers(rows: Sequence[Row]) -> str:
    sizes = sorted({int(size) for row in rows for size in row.get("latency", {})})
    head = ["", "fewer MACs", "cosine", "agree", *(f"time at batch {size}" for size in sizes)]
    return markdown_table(head, [[row["label"], *_cells(row, sizes)] for row in rows])


def _cells(row: Row, sizes: Sequence[int]) -> list[str]:
    if "refused" in row:
        return ["refused: no plan is so small", *[DASH] * (2 + len(sizes))]
    cosine, same = (row["metrics"][name] for name in ("cosine", "top1_agreement"))
    low, high = (100 * (1 + end) for end in same["interval"])
    return [
        f"{100 * (1 - 1 / row['ratios']['macs']):.1f} %",
        f"{cosine['compressed']:.3f}",
        f"{100 * same['compressed']:.1f} % [{low:.1f}, {high:.1f}]",
        *(f"{row['latency'][str(size)]['ratio']:.2f}" for size in sizes),
    ]


def cost(raw: Raw) -> Iterator[str]:
    """What compiling takes, beside what it may take."""
    first = raw["variants"][0]
    yield "## EfficientNet-Lite0: what compiling costs"
    yield _COST.format(images=first["images"], repeats=len(first["plain_seconds"]))
    head = ["", "calibration", "planning and rewriting", "memory"]
    allowed = [
        "at most",
        f"{CALIBRATION:g}{TIMES}",
        f"{PLANNING:g}{TIMES}",
        f"{_mib(MEMORY_TIMES * first['model_bytes'] + MEMORY_MORE)} MiB",
    ]
    yield markdown_table(head, [allowed, *(_spent(one) for one in raw["variants"])])


def _spent(one: Raw) -> list[str]:
    plain = one["plain_seconds"]
    cells = []
    for name in ("calibration_seconds", "planning_seconds"):
        ratios = [a / b for a, b in zip(one[name], plain, strict=True)]
        cells.append(f"{median(ratios):.2f}{TIMES} ({min(ratios):.2f} to {max(ratios):.2f})")
    return [one["label"], *cells, f"{_mib(one['peak_memory_bytes'])} MiB"]


def _mib(count: int) -> str:
    return f"{count / (1 << 20):,.0f}"
