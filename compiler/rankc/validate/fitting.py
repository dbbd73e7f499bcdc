"""Gates and batch sizes that the model cannot have, told before anything is compressed or trained.

Of metrics, only what the output's shape rules out is told here. What the labels rule out shows when
rows have been run, see `require_measured`.
"""

from __future__ import annotations

from collections.abc import Sequence

from rankc.errors import RecipeError
from rankc.recipe import Recipe
from rankc.validate.quantities import QUANTITIES
from rankc.validate.scoring import batched_inputs, scored_output
from rankrt.session import TensorSpec

_AGREEMENT = ("top1_agreement", "kl_div")
_CLASSES = ("logloss", "accuracy_top1", "accuracy_top5", *_AGREEMENT)
_CORRELATIONS = ("pearson", "spearman")
_DISTANCES = ("max_abs_err", "mean_abs_err", "cosine", "sqnr_db", "psnr")

_WITH_LABELS = {
    "score": ("auc", "grouped_auc", "logloss", "ece", *_CORRELATIONS, "mse"),
    "classes": ("ece", *_CLASSES),
    "tokens": ("perplexity", *_CLASSES),
    "pixels": ("mean_iou", *_CLASSES),
}
_WITHOUT_LABELS = {
    "score": _CORRELATIONS,
    "classes": (*_AGREEMENT, *_CORRELATIONS),
    "tokens": _CORRELATIONS,
    "pixels": _CORRELATIONS,
}


def check_gates_fit(recipe: Recipe, outputs: Sequence[TensorSpec]) -> None:
    """Refuse gates on metrics that the compared output cannot have.

    Args:
        recipe: Its gates, and whether there are labels.
        outputs: Of the original model.

    Raises:
        RecipeError: Lists every such gate, and what fits in its place.
        ModelError: There is no output of a floating type, and a gate needs one.
    """
    validation = recipe.data.validation
    asked = [
        (index, QUANTITIES[gate.metric])
        for index, gate in enumerate(recipe.gates)
        if gate.metric in QUANTITIES and QUANTITIES[gate.metric].kind == "accuracy"
    ]
    if not asked or validation is None:
        return
    name = scored_output(outputs)
    (spec,) = (spec for spec in outputs if spec.name == name)
    shaped = _kind(spec.shape)
    if not shaped:
        return
    fitting = (_WITHOUT_LABELS if validation.label is None else _WITH_LABELS)[shaped]
    known = (*fitting, *_DISTANCES)
    problems = [
        f"{_place(recipe, index)}gates[{index}]: {quantity.name} does not fit the compared output, "
        f"{spec}: {quantity.otherwise}; this one has: {', '.join(known)}"
        for index, quantity in asked
        if quantity.name not in known
    ]
    if problems:
        raise RecipeError("\n".join(problems))


def _place(recipe: Recipe, index: int) -> str:
    line = recipe.lines.get(f"gates[{index}]")
    return "" if line is None else f"{recipe.file}:{line}: "


def _kind(shape: tuple[int | str | None, ...]) -> str:
    """What `kinds_of` will make of the output; empty where free sizes leave that open."""
    sizes = shape[1:]
    if not all(isinstance(size, int) for size in sizes):
        vocabulary = sizes[-1]
        texts = len(sizes) == 2 and isinstance(vocabulary, int) and vocabulary > 1
        return "tokens" if texts else ""
    if all(size == 1 for size in sizes):
        return "score"
    if all(size == 1 for size in sizes[1:]):
        return "classes"
    return {2: "tokens", 3: "pixels"}.get(len(sizes), "")


def check_sizes_fit(sizes: Sequence[int], inputs: Sequence[TensorSpec]) -> None:
    """Refuse batch sizes to be timed that the model's fixed shapes cannot take.

    Raises:
        RecipeError: Lists the sizes, and the inputs.
    """
    if batched_inputs(inputs):
        return
    fixed = {spec.shape[0] for spec in inputs if spec.shape}
    wrong = [size for size in sizes if fixed != {size}]
    if wrong:
        listed = ", ".join(map(str, inputs))
        raise RecipeError(
            f"latency.batch_sizes: {', '.join(map(str, wrong))} cannot be run, the model's inputs "
            f"have a fixed first axis ({listed}); ask for that size only, or export with a free one"
        )
