"""Gates on metrics that an output cannot have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rankc.errors import RecipeError
from rankc.recipe import METRICS, Data, DataSpec, Gate, Recipe
from rankc.validate.fitting import check_gates_fit
from rankc.validate.kinds import Names, kinds_of
from rankc.validate.quantities import QUANTITIES
from rankrt.session import TensorSpec

Shape = tuple[int | str | None, ...]
ACCURACY = [name for name in METRICS if QUANTITIES[name].kind == "accuracy"]


def recipe(*metrics: str, label: str | None = "y") -> Recipe:
    data = Data(DataSpec("c.npz"), DataSpec("v.npz", label=label))
    gates = tuple(Gate(name, "threshold", 1.0) for name in metrics)
    return Recipe("some", "m.onnx", data, (), gates=gates, file=Path("r.yaml"), lines={})


def fits(metric: str, shape: Shape, label: str | None = "y") -> bool:
    outputs = TensorSpec("ids", "int64", ("b",)), TensorSpec("p", "float32", shape)
    try:
        check_gates_fit(recipe(metric, label=label), outputs)
    except RecipeError:
        return False
    return True


@pytest.mark.parametrize(
    ("shape", "label_shape"),
    [
        ((30, 1), (30,)),
        ((30, 7), (30,)),
        ((30, 7, 1, 1), (30,)),
        ((30, 4, 7), (30, 4)),
        ((30, 7, 4, 5), (30, 4, 5)),
        ((30, 4, 5, 7), (30, 4, 5)),
    ],
)
@pytest.mark.parametrize("labelled", [True, False])
def test_what_fits_is_what_is_measured(
    shape: tuple[int, ...], label_shape: tuple[int, ...], labelled: bool
) -> None:
    rng = np.random.default_rng(0)
    x, y = (np.clip(scores, 0.01, 0.99) for scores in rng.random((2, *shape)))
    measured: set[str] = set()
    for high in (2, 7) if labelled else (0,):  # 0 and 1, and other numbers
        labels = rng.integers(0, high, label_shape) if high else None
        for kind in kinds_of(x, labels, Names("p", "y")):
            kind.add(x, y, labels, np.arange(30) % 2)
            measured |= set(kind.judge().pairs)
    distances = {"max_abs_err", "mean_abs_err", "cosine", "sqnr_db", "psnr"}
    found = {name for name in ACCURACY if fits(name, shape, "y" if labelled else None)}
    assert found - distances == measured
    assert distances <= found


@pytest.mark.parametrize(
    "shape", [("b", "n"), ("b", 3, "h", "w"), ("b", "t", "v"), (2, 3, 4, 5, 6)]
)
def test_free_sizes_leave_it_open(shape: Shape) -> None:
    assert all(fits(name, shape) for name in ACCURACY)


def test_words() -> None:
    outputs = (TensorSpec("p", "float32", ("batch", "tokens", 100)),)
    with pytest.raises(RecipeError) as caught:
        check_gates_fit(recipe("auc", "perplexity", "mean_iou", "size_bytes"), outputs)
    first, second = str(caught.value).split("\n")
    assert first == (
        "gates[0]: auc does not fit the compared output, p float32 (batch, tokens, 100): the "
        "output has to have one number a row, and the labels to be 0 and 1; this one has: "
        "perplexity, logloss, accuracy_top1, accuracy_top5, top1_agreement, kl_div, max_abs_err, "
        "mean_abs_err, cosine, sqnr_db, psnr"
    )
    assert second.startswith("gates[2]: mean_iou does not fit")
