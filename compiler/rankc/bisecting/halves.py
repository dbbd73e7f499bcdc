"""The layer that float16 hurts: rounded by itself, and left in float32 by itself."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from rankc.bisecting.answer import Change, Finding
from rankc.bisecting.blaming import ignoring
from rankc.bisecting.measuring import Bench
from rankc.bisecting.rebuilding import Rebuilt
from rankc.bisecting.searching import Culprit
from rankc.lowering.half import HalfModel
from rankc.lowering.precision_rules import HALF_MAX
from rankc.recipe import Recipe
from rankc.serialize import save
from rankc.validate.gates import number
from rankrt.session import open_model


def of_rounding(culprit: Culprit, half: HalfModel, bench: Bench, recipe: Recipe) -> Finding:
    """A layer of the original that float16 breaks, whatever is compressed."""
    peak = reaches(half, culprit.name, bench)
    over = peak > HALF_MAX
    return Finding(
        "precision", "overflow" if over else "rounding", culprit.name, None, "float16",
        f"{_told(peak)}, in the original, too: compression has no part in it",
        culprit.alone, culprit.before, culprit.after, tuple(_to_fp32(recipe)),
    )  # fmt: skip


def of_factors(
    culprit: Culprit, half: HalfModel, bench: Bench, rebuilt: Rebuilt, made: Mapping[str, str]
) -> Finding:
    """A layer of the compressed model that float16 breaks, and does not break in the original."""
    site = made.get(culprit.name, culprit.name)
    choice = rebuilt.choices.get(site)
    peak = reaches(half, culprit.name, bench)
    recipe = rebuilt.job.recipe
    changes = [] if choice is None else [ignoring(recipe, choice.pass_name, site)]
    return Finding(
        "precision", "overflow" if peak > HALF_MAX else "rounding", site,
        None if choice is None else choice.pass_name, f"{culprit.name} in float16",
        f"{_told(peak)}; the original does well in float16, so it is the rewrite's scaling",
        culprit.alone, culprit.before, culprit.after, (*changes, *_to_fp32(recipe)),
    )  # fmt: skip


def _told(peak: float) -> str:
    if peak > HALF_MAX:
        return f"it reaches {number(peak)} on these rows, and float16 ends at 65,504"
    return f"it loses too many digits in float16 (it reaches {number(peak)})"


def _to_fp32(recipe: Recipe) -> list[Change]:
    return [
        Change(f"lower[{k}].precision", "fp32")
        for k, target in enumerate(recipe.lower)
        if target.precision == "fp16"
    ]


def reaches(half: HalfModel, layer: str, bench: Bench) -> float:
    """The largest magnitude of a layer's values over all rows, in float32."""
    copy = half.model.clone()
    found = [
        value
        for node in copy.graph
        for value in node.outputs
        if half.layers[str(value.name)] == layer and value.dtype == ir.DataType.FLOAT
    ]
    if not found:
        return 0.0
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(found)
    with tempfile.TemporaryDirectory(dir=bench.folder) as folder:
        path = Path(folder) / "model.onnx"
        save(copy, path)
        session = open_model(path)
        peaks = [
            float(np.abs(array).max(initial=0.0))
            for batch in bench.rows.kept
            for array in session.run(batch.feeds).values()
        ]
    return max(peaks)
