"""What is compared: rankc at several sizes, and what people would do instead.

A variant of rankc is the shipped recipe with `--set` options, so each of them is
`rankc compile recipes/ctr-lowrank.yaml --set ... --set ...`.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir
from onnxruntime.quantization import quantize_dynamic

from benchmarks.ctr.references import ROOT
from rankc.data import open_source
from rankc.lowering.precision import Golden, to_fp16
from rankc.pipeline import compile_recipe
from rankc.recipe import Recipe
from rankc.recipe_load import load_recipe
from rankc.report.text import TIMES
from rankc.serialize import save
from rankrt.session import open_model

RECIPE = ROOT / "recipes" / "ctr-lowrank.yaml"
# Nothing of these changes the compressed model: gates, engines and proofs are not needed here.
# Recovery has a benchmark of its own, `benchmarks.train.ctr`.
WITHOUT_RECOVERY = ("recover=null", "data.training=null")
BARE = (
    "gates=[]",
    "lower=[{backend: onnxruntime}]",
    "data.validation=null",
    *WITHOUT_RECOVERY,
)

FLOAT = "passes.embedding.int8=false"
UNBUDGETED = "budget=null"
HIDDEN = "rank: 64, round_to: 4, targets: [mlp.3, mlp.6]"  # layers 2 and 3 of the MLP

Tool = Literal["rankc", "ort-int8", "ort-int8-tables", "fp16", "none"]


@dataclasses.dataclass(frozen=True, slots=True)
class Variant:
    """One row of the table."""

    name: str
    label: str
    tool: Tool = "rankc"
    options: tuple[str, ...] = ()  # what follows `--set`, for rankc
    arch: str = "deepfm"
    retrained: bool = False  # starts from the model of narrower embeddings
    baseline: bool = False
    scored_at: int = 4096  # rows a batch when accuracy is measured; matters to ORT's int8 alone
    timed: bool = True


def keep(ratio: float) -> str:
    """A budget as a share of the original's bytes."""
    return f"budget.keep_ratio={ratio:g}"


def only(*passes: str) -> str:
    """The option that replaces the recipe's passes."""
    return f"passes=[{', '.join(passes)}]"


EXACT = (only("gather_fusion"), UNBUDGETED)
# Tables at rank 2 and layers 2 and 3 at rank 64, from the weights alone.
WEIGHT_SVD = (
    only(
        "gather_fusion: {glue: false}",
        "embedding: {method: svd, rank: 2}",
        f"lowrank: {{method: svd, centred: false, {HIDDEN}}}",
    ),
    UNBUDGETED,
)
# The same ranks by access-frequency PCA and by PCA of the layers' outputs, as published: no weight
# by the gradient, no smoothing. (AFM adds nothing between the factors where nothing is fine-tuned.)
AFM = (
    only(
        "gather_fusion: {glue: false}",
        "embedding: {weighted: false, smoothing: 0.0, rank: 2}",
        f"lowrank: {{weighted: false, {HIDDEN}}}",
    ),
    UNBUDGETED,
)
# As many bytes as the shipped setting makes of the wider model (15,088,449 bytes x 0.083).
SAME_BYTES = "budget={max: 1252341}"


def dynamic(name: str, label: str, batches: Sequence[int], **more: Any) -> tuple[Variant, ...]:
    """ORT's `quantize_dynamic`, scored at some batch sizes; timed at the first of them, once.

    It takes the range of every activation from the batch at hand, so one row with an outlier costs
    all others of its batch their accuracy.
    """
    return tuple(
        Variant(
            f"{name}-b{batch}",
            f"{label}, scored at batch {batch}",
            "ort-int8",
            baseline=True,
            scored_at=batch,
            timed=batch == batches[0],
            **more,
        )
        for batch in batches
    )


ORT, ORT_TABLES = "ORT `quantize_dynamic`", "ORT `quantize_dynamic`, tables only"
RETRAINED = "retrained, embedding 4"
SVD_LABEL = "weight SVD, tables at rank 2, layers 2 and 3 at 64"
AFM_LABEL = "AFM, uniform: tables at rank 2, layers 2 and 3 at 64"
EVERY_BATCH, FEW_BATCHES = (1, 32, 256, 4096), (1, 4096)

VARIANTS = (
    Variant("exact", "rankc, exact rewrites only", options=EXACT),
    Variant("float-3x", f"rankc, float, 3{TIMES}", options=(FLOAT, keep(0.333))),
    Variant("float-5x", f"rankc, float, 5{TIMES}", options=(FLOAT, keep(0.2))),
    Variant("float-8x", f"rankc, float, 8{TIMES}", options=(FLOAT, keep(0.125))),
    Variant("int8-12x", f"**rankc, int8 tables, 12{TIMES} (`ctr-lowrank`)**"),
    Variant("int8-16x", f"rankc, int8 tables, 16{TIMES}", options=(keep(0.0625),)),
    Variant("svd-5x", SVD_LABEL, options=WEIGHT_SVD, baseline=True),
    Variant("afm-5x", AFM_LABEL, options=AFM, baseline=True),
    *dynamic("ort-int8", ORT, EVERY_BATCH),
    Variant("ort-int8-tables", ORT_TABLES, "ort-int8-tables", baseline=True),
    Variant("fp16", "FP16 (our conversion)", "fp16", baseline=True),
    Variant("dim4", RETRAINED, "none", retrained=True, baseline=True),
    *dynamic("dim4-ort-int8", f"{RETRAINED}, then {ORT}", FEW_BATCHES, retrained=True),
    Variant(
        "dim4-ort-int8-tables",
        f"{RETRAINED}, then {ORT_TABLES}",
        "ort-int8-tables",
        retrained=True,
        baseline=True,
    ),
    Variant(
        "dim4-int8",
        f"{RETRAINED}, then rankc to the bytes of `ctr-lowrank`",
        options=(SAME_BYTES,),
        retrained=True,
    ),
    Variant("float-4.5x", f"rankc, float, 4.5{TIMES}", options=(FLOAT, keep(0.2222)), arch="dcn"),
    Variant("int8-12x", f"rankc, int8 tables, 12{TIMES}", arch="dcn"),
    *dynamic("ort-int8", ORT, EVERY_BATCH, arch="dcn"),
    Variant("ort-int8-tables", ORT_TABLES, "ort-int8-tables", arch="dcn", baseline=True),
    Variant("fp16", "FP16 (our conversion)", "fp16", arch="dcn", baseline=True),
)


def recipe_for(model: Path, options: tuple[str, ...]) -> Recipe:
    """The shipped recipe on another model, with `--set` options."""
    return load_recipe(RECIPE, [f"model={json.dumps(str(model))}", *BARE, *options])


def make(variant: Variant, model: Path, folder: Path) -> Path:
    """Make the variant of `model` and give its ONNX file.

    Args:
        variant: what to do.
        model: what it starts from.
        folder: of its own; replaced.
    """
    shutil.rmtree(folder, ignore_errors=True)
    made = folder / "model.onnx"
    if variant.tool == "rankc":
        compile_recipe(recipe_for(model, variant.options), folder)
        return made
    folder.mkdir(parents=True)
    if variant.tool.startswith("ort-int8"):
        logging.getLogger().setLevel(logging.ERROR)  # it advises shape inference; there are shapes
        kinds = ["Gather"] if variant.tool == "ort-int8-tables" else None
        quantize_dynamic(model, made, op_types_to_quantize=kinds)
    elif variant.tool == "fp16":
        save(to_fp16(ir.load(model), _golden(model, folder)), made)
    else:
        shutil.copyfile(model, made)
    return made


def _golden(model: Path, folder: Path) -> Golden:
    """The first calibration rows, on which magnitudes are measured."""
    recipe = recipe_for(model, ())
    source = open_source(recipe.data.calibration, recipe.folder, open_model(model).inputs)
    (batch,) = itertools.islice(source.batches(), 1)
    return Golden(batch.feeds, folder)
