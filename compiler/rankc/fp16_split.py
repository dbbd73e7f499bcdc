"""What float16 does to the answers, told apart from what the compression does to them.

The original and the compressed model are rounded where every float16 target's are, and all four run
over the validation rows; see `rankc.validate.split` and, for the rounding, `rankc.lowering.half`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from rankc.data import Array, Source
from rankc.errors import ModelError
from rankc.lowering.half import HalfModel
from rankc.lowering.precision import Golden
from rankc.progress import Progress
from rankc.recipe import Recipe
from rankc.serialize import save
from rankc.validate.schema import Metrics, Split
from rankc.validate.split import beyond_floor, split_changes
from rankrt.errors import RankrtError

UNAVAILABLE = "split"  # its key in metrics.json's `unavailable`


def add_split(
    metrics: Metrics,
    models: tuple[Path, Path],
    source: Source | None,
    recipe: Recipe,
    golden: Mapping[str, Array],
    tell: Progress,
) -> None:
    """Fill in `split`, or why there is none; nothing to do where no target is in float16.

    Args:
        metrics: What was measured; it gets the split.
        models: ONNX files of the original and of the compressed model.
        source: Validation rows.
        recipe: Its targets, gates, column names and seed are used.
        golden: Inputs on which the magnitudes of values are measured for the conversion.
        tell: Where the stage is announced.
    """
    targets = [target.name for target in recipe.lower if target.precision == "fp16"]
    if not targets or source is None:
        return
    with tell.stage("split") as stage:
        try:
            found = _split(models, source, recipe, golden)
        except (ModelError, RankrtError) as error:
            metrics["unavailable"][UNAVAILABLE] = f"float16: {error}"
            stage.note(f"none: {error}")
            return
        metrics["split"] = dict.fromkeys(targets, found)
        stage.note(_told(found))


def _split(
    models: Sequence[Path], source: Source, recipe: Recipe, golden: Mapping[str, Array]
) -> dict[str, Split]:
    with tempfile.TemporaryDirectory(prefix=".split-", dir=models[1].parent) as folder:
        halves = [Path(folder) / f"{name}.onnx" for name in ("original", "compressed")]
        for path, half in zip(models, halves, strict=True):
            model = HalfModel.of(ir.load(path), Golden(golden, half.parent))
            if not model.low:
                raise ModelError(f"nothing in the {half.stem} model can run in it")
            save(model.rounding(), half)
        return split_changes([*models, *halves], source, recipe)


def _told(found: Mapping[str, Split]) -> str:
    """The metrics that lowering moves further than it may move the original."""
    beyond = [
        f"float16 moves {name} by {one['lowering']:+.2g}, the original by {one['floor']:+.2g}"
        for name, one in found.items()
        if beyond_floor(one)
    ]
    if beyond:
        return f"beyond the floor of the dense model: {'; '.join(beyond)}"
    return f"float16 moves {', '.join(found)} no further than in the dense model"
