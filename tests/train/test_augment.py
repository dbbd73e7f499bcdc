"""Every row gets a crop and a flip of its own, and the original sees the same ones."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

from builders import model_of, weight
from rankc.errors import RecipeError
from rankc.progress import SilentProgress
from rankc.recipe_training import Augment, Objective, Training
from rankc.train.augment import augmented
from rankc.train.interpreter import Interpreter
from rankc.train.loop import train
from rankc.train.rows import Rows
from rankc.train.teacher import Teacher
from sources import Rows as Arrays
from train.nets import digest

IMAGES = torch.from_numpy(np.random.default_rng(0).normal(size=(40, 3, 5, 7))).float()


def candidates(image: torch.Tensor, how: Augment) -> list[torch.Tensor]:
    """All that may become of an image (channels, height, width)."""
    height, width = image.shape[1:]
    bordered = torch.full((len(image), height + 2 * how.pad, width + 2 * how.pad), how.fill)
    bordered[:, how.pad : how.pad + height, how.pad : how.pad + width] = image
    crops = [
        bordered[:, y : y + height, x : x + width]
        for y in range(2 * how.pad + 1)
        for x in range(2 * how.pad + 1)
    ]
    return crops + [crop.flip(2) for crop in crops if how.flip]


@pytest.mark.parametrize(
    "how", [Augment(pad=2, fill=7.5, flip=True), Augment(pad=1), Augment(flip=True)]
)
def test_every_row_is_one_of_its_crops(how: Augment) -> None:
    found = augmented({"x": IMAGES}, how, 0, 3)["x"]
    drawn = []
    for image, changed in zip(IMAGES, found, strict=True):
        fitting = [k for k, c in enumerate(candidates(image, how)) if torch.equal(c, changed)]
        assert len(fitting) == 1
        drawn += fitting
    assert len(set(drawn)) > min(10, len(candidates(IMAGES[0], how)) // 2)


def test_all_is_drawn_from_the_seed_and_the_step() -> None:
    how = Augment(pad=2, flip=True)
    one, again, step, seed = (
        augmented({"x": IMAGES}, how, *draw)["x"] for draw in ((0, 0), (0, 0), (0, 1), (1, 0))
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, step)
    assert not torch.equal(one, seed)


def test_no_change_asked_for_is_none() -> None:
    assert torch.equal(augmented({"x": IMAGES}, Augment(), 0, 0)["x"], IMAGES)


def test_other_inputs_stay() -> None:
    found = augmented({"x": IMAGES, "ids": torch.arange(40)}, Augment(pad=1), 0, 0)
    assert torch.equal(found["ids"], torch.arange(40))
    with pytest.raises(RecipeError, match=r"change images, .* the model takes ids \(40,\)"):
        augmented({"ids": torch.arange(40)}, Augment(pad=1), 0, 0)


def linear() -> ir.Model:
    tape, x = ir.tape.Tape(), ir.val("x", ir.DataType.FLOAT, ["batch", 3, 5, 7])
    w = np.random.default_rng(0).normal(size=(105, 4)).astype(np.float32)
    y = ir.val("y", ir.DataType.FLOAT, ["batch", 4])
    flat = tape.op("Flatten", [x])
    tape.op("MatMul", [flat, weight(tape, "w", w)], output=y)
    return model_of(tape, [x], [y])


def test_the_original_sees_the_same_images() -> None:
    """Distilled from itself, a model has no gradient, unless the two see different images."""
    net, before = Interpreter(linear()), digest(Interpreter(linear()))
    settings = Training(
        epochs=2, lr=0.1, weight_decay=0.0, augment=Augment(pad=2, flip=True), optimizer="sgd"
    )
    rows = Rows(Arrays({"x": IMAGES.numpy()}), batch_size=9)
    with SilentProgress().stage("train") as stage:
        history = train(net, rows, settings, seed=0, teacher=Teacher(linear()), stage=stage)
    assert [look.loss for look in history.looks] == [0.0] * len(history.looks)
    assert digest(net) == before


def test_mixed_ids_are_those_of_their_column_and_numbers_of_a_row_stay_together() -> None:
    rows = torch.arange(500)
    ids = torch.stack([rows, rows + 1000, rows + 2000], dim=1)
    dense = torch.stack([rows, -rows], dim=1).float()
    found = augmented({"ids": ids, "dense": dense}, Augment(mix=0.2), 0, 0)
    for column in range(3):
        assert (found["ids"][:, column] // 1000 == column).all(), "another column's"
    changed = (found["ids"] != ids).float()
    assert changed.mean().item() == pytest.approx(0.2, abs=0.03)
    of_a_row = changed.sum(dim=1)
    assert {0.0, 1.0, 2.0} <= set(of_a_row.tolist()), "columns of a row come from several"
    assert torch.equal(found["dense"][:, 0], -found["dense"][:, 1])
    assert 0.1 < (found["dense"][:, 0] != dense[:, 0]).float().mean().item() < 0.3
    again = augmented({"ids": ids, "dense": dense}, Augment(mix=0.2), 0, 0)
    assert all(torch.equal(found[name], again[name]) for name in found)


def test_blended_images_lie_between_two() -> None:
    image = torch.arange(400.0)[:, None, None, None].expand(400, 1, 2, 2).contiguous()
    found = augmented({"x": image}, Augment(mix=0.5), 0, 0)["x"]
    assert torch.equal(found[:, :, :1, :1].expand_as(found), found), "pixels go together"
    changed = (found != image).any(dim=(1, 2, 3)).float().mean().item()
    assert changed == pytest.approx(0.5, abs=0.08)
    assert (found.min() >= 0.0) and (found.max() <= 399.0)
    assert len(set(found[:, 0, 0, 0].tolist())) > 390, "by shares of their own"


def test_what_is_neither_cannot_be_mixed() -> None:
    with pytest.raises(RecipeError, match=r"mix changes columns, .* takes x \("):
        augmented({"x": torch.zeros(4, 3, 2)}, Augment(mix=0.1), 0, 0)


def test_mixed_rows_have_no_labels() -> None:
    with pytest.raises(ValueError, match=r"set objective\.label to 0"):
        Training(augment=Augment(mix=0.1), objective=Objective(label=0.5))
