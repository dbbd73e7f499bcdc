"""What is wrong with a recipe whose parts are right by themselves."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rankc.recipe import ENERGY_ELSEWHERE, LABELLED, METRICS, Gate, Recipe
from rankc.recipe_yaml import Steps

LEARNING = ("trp", "maestro")  # passes that train the model before they rewrite it
_OWN_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """A mistake, where it is, and what would be right."""

    steps: Steps
    text: str
    hint: str = ""


def contradictions(recipe: Recipe) -> Iterator[Problem]:
    """Parts that are right by themselves and wrong together."""
    for name in recipe.metrics:
        if not _OWN_NAME.fullmatch(name) or name in METRICS:
            why = "is a metric already" if name in METRICS else "must be lower case letters and _"
            yield Problem(("metrics", name), f"the name {name!r} {why}", "choose another name")
    known = (*METRICS, *recipe.metrics)
    for index, gate in enumerate(recipe.gates):
        if gate.metric not in known:
            hint = one_of(gate.metric, known, "one of: ")
            yield Problem(("gates", index, "metric"), f"unknown value {shown(gate.metric)}", hint)
        elif problem := _undecidable(gate, recipe):
            yield Problem(("gates", index), *problem)
    if problem := _pointless(recipe):
        yield Problem(("search",), *problem)
    yield from _untrainable(recipe)
    for key, names in (
        ("lower", [target.name for target in recipe.lower]),
        ("budget", [budget.unit for budget in recipe.budget]),
    ):
        for index, name in enumerate(names):
            if name in names[:index]:
                yield Problem((key, index), f"{name} is listed twice")


def _untrainable(recipe: Recipe) -> Iterator[Problem]:
    """Why this recipe cannot be trained as it says."""
    learning = [spec.name for spec in recipe.passes if spec.name in LEARNING]
    if learning and recipe.train is None:
        yield Problem(("train",), f"is missing, and {learning[0]} learns", "add `train: {}`")
    if recipe.train is not None and not learning:
        hint = f"add one of {', '.join(LEARNING)}, or train after compressing, with `recover`"
        yield Problem(("train",), "no pass of this recipe learns", hint)
    rows = recipe.data.training
    for key, training in (("train", recipe.train), ("recover", recipe.recover)):
        if training is None:
            continue
        if rows is None:
            yield Problem((key,), "there are no rows to train on", "add data.training")
        elif training.objective.label and rows.label is None:
            yield Problem(
                (key, "objective", "label"),
                "the task's loss needs labels",
                "name their array or column, data.training.label, or set this to 0",
            )
    if rows is not None and recipe.train is None and recipe.recover is None:
        yield Problem(("data", "training"), "nothing is trained", "add `recover: {}`")
    yield from _rows_twice(recipe)


def _rows_twice(recipe: Recipe) -> Iterator[Problem]:
    """Where rows that judge would be rows that teach."""
    data = recipe.data
    rows, held, judging = (
        None if spec is None else (recipe.folder / spec.path).resolve()
        for spec in (data.training, data.holdout, data.validation)
    )
    leave = "name others, or leave holdout out: a share of data.training is then held out"
    if held is not None and held == judging:
        why = "these rows decide the gates, so they may not decide the training"
        yield Problem(("data", "holdout"), why, leave)
    if held is not None and held == rows:
        why = "these rows are trained on, so they cannot tell whether training helps"
        yield Problem(("data", "holdout"), why, leave)
    if rows is not None and rows == judging:
        why = "these rows decide the gates, so they may not be trained on"
        yield Problem(("data", "training"), why, "name others")


def _pointless(recipe: Recipe) -> tuple[str, str] | None:
    """Why a search could not find anything, and what to do."""
    search = recipe.search
    if search is None:
        return None
    if not recipe.gates:
        return "without gates every plan passes, so there is nothing to search for", "add gates"
    if recipe.data.validation is not None:
        return None
    if search.objective == "fastest":
        return "without rows nothing is timed", "add data.validation"
    return ("there are no rows to hold out", "add data.validation") if search.holdout else None


def _undecidable(gate: Gate, recipe: Recipe) -> tuple[str, str] | None:
    """Why this recipe measures nothing to hold the gate against, and what to do."""
    validation, sizes = recipe.data.validation, recipe.latency.batch_sizes
    counted = gate.metric in ("size_bytes", "params", "macs", "nodes") or (
        gate.metric in ("size_ratio", "params_ratio", "macs_ratio")
    )
    if validation is None and not counted:
        return f"{gate.metric} needs validation data", "add data.validation"
    if validation is not None and gate.metric in LABELLED and validation.label is None:
        return f"{gate.metric} needs labels", "name their array or column: data.validation.label"
    if validation is not None and gate.metric == "grouped_auc" and validation.group is None:
        return f"{gate.metric} needs groups", "name their array or column: data.validation.group"
    if gate.metric == "energy_mj":
        return "energy_mj is not measured by compiling, which times the CPU", ENERGY_ELSEWHERE
    timed = gate.metric in ("latency_ms", "latency_ratio", "throughput")
    if timed and gate.batch not in sizes:
        asked = (
            "batch is not given" if gate.batch is None else f"batch {gate.batch} is not measured"
        )
        return asked, f"latency.batch_sizes: {', '.join(map(str, sizes))}"
    if gate.batch is not None and not timed:
        return f"{gate.metric} has no batch", "leave batch out"
    if gate.percentile is not None and gate.metric != "latency_ms":
        return f"{gate.metric} has no percentile", "leave percentile out"
    return None


def one_of(wrong: Any, valid: Sequence[str] | Mapping[str, Any], intro: str) -> str:
    near = difflib.get_close_matches(str(wrong), valid, n=1)
    guess = f"did you mean {near[0]!r}? " if near else ""
    return f"{guess}{intro}{', '.join(valid) or 'nothing'}"


def shown(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = json.dumps(value, ensure_ascii=False)
    words = {str: "the text ", bool: "", int: "the number ", float: "the number "}
    return words.get(type(value), "") + (text if len(text) <= 60 else f"{text[:57]}...")
