"""The section about rewrites that lose time, see `slow`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rankc.report.text import DASH, TIMES, markdown_table

Raw = Mapping[str, Any]
Answer = Mapping[str, Any]

_HOW = """\
What users report of other tools, rebuilt: fewer operations and more time, or none gained. Whole
models of random weights, each against its dense form, so losses say nothing; **bold**: slower than
dense beyond noise. *No more time* is a budget in milliseconds beside the one in MACs, by a latency
table of `rankc profile` at batch 1; *refused* is exit code 2 and a message with the smallest that
can be had, exit code 5 a gate that does not hold."""


def section(raw: Raw) -> Iterator[str]:
    """A table for each complaint."""
    yield "## Rewrites that lose time"
    yield _HOW
    for complaint, cases in itertools.groupby(raw["cases"], key=lambda case: case["complaint"]):
        yield f"### {complaint.partition(': ')[2].capitalize()}"
        yield _table(list(cases))


def _table(cases: Sequence[Raw]) -> str:
    answers = [answer for case in cases for answer in case["answers"]]
    sizes = sorted({int(size) for answer in answers for size in answer.get("latency", {})})
    head = ["", "", "fewer MACs", *(f"time at batch {size}" for size in sizes), "what became of it"]
    return markdown_table(
        head,
        [
            [case["text"] if k == 0 else "", *_cells(answer, sizes)]
            for case in cases
            for k, answer in enumerate(case["answers"])
        ],
    )


def _cells(answer: Answer, sizes: Sequence[int]) -> list[str]:
    fewer = answer.get("macs_ratio")
    timed = answer.get("latency", {})
    return [
        answer["how"],
        f"{fewer:.2f}{TIMES}" if fewer else DASH,
        *(_ratio(timed.get(str(size))) for size in sizes),
        decision(answer),
    ]


def _ratio(timed: Mapping[str, Any] | None) -> str:
    if timed is None:
        return DASH
    low, high = timed["interval"]
    text = f"{timed['ratio']:.2f} [{low:.2f}, {high:.2f}]"
    return f"**{text}**" if low > 1 else text


def decision(answer: Answer) -> str:
    """What became of the layers, in words.

    >>> decision({"refused": "budget: 1 MACs cannot be met: the least is 2; raise", "exit_code": 2})
    'refused, exit code 2: the least is 2'
    >>> decision({"ranks": [["a", 8, ""], ["b", 8, ""]], "dense": ["c"], "layers": []})
    '2 at rank 8; 1 dense'
    """
    if "refused" in answer:
        why = answer["refused"].partition("cannot be met: ")[2].partition(";")[0]
        return f"refused, exit code {answer['exit_code']}{why and f': {why}'}"
    told = []
    ranks = [(rank, form) for _, rank, form in answer.get("ranks", ())]
    for rank, form in dict.fromkeys(ranks):
        told.append(f"{ranks.count((rank, form))} at rank {rank}{form and f' as {form}'}")
    if answer.get("dense"):
        told.append(f"{len(answer['dense'])} dense")
    verdicts = [layer["verdict"] for layer in answer.get("layers", ())]
    others = [verdict for verdict in dict.fromkeys(verdicts) if verdict != "kept"]
    told += [f"{verdicts.count(verdict)} {verdict}" for verdict in others]
    if answer.get("exit_code"):
        told.append(f"exit code {answer['exit_code']}")
    return "; ".join(told)
