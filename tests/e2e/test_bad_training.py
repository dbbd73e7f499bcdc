"""What cannot be trained is refused by name, saying where; no bundle, checkpoint or traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from builders import model_of, weight
from conv_builders import images
from projects import Refusal, save
from rankc.errors import Exit
from training_projects import CONV, LABELS, ROWS, TRP, label, trained

TRAIN = {"epochs": 2, "lr": 0.01}


def rounded() -> ir.Model:
    """Images to 5 logits that are rounded: behind a Round there is no gradient."""
    rng, tape = np.random.default_rng(0), ir.tape.Tape()
    x = ir.val("x", ir.DataType.FLOAT, ["batch", 4, 9, 11])
    wide = weight(tape, "wide.w", rng.normal(size=(396, 24)).astype(np.float32))
    low = weight(tape, "low.w", rng.normal(size=(24, 5)).astype(np.float32))
    hidden = tape.op("MatMul", [tape.op("Flatten", [x], name="flat"), wide], name="wide")
    score = tape.op("MatMul", [hidden, low], name="low")
    y = ir.val("logits", ir.DataType.FLOAT, ["batch", 5])
    tape.op("Round", [score], name="to_whole", output=y)
    return model_of(tape, [x], [y])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch makes a folder when it is imported, in the one for temporary files if told no other."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))


@pytest.mark.parametrize(("key", "how"), [("train", TRP), ("recover", CONV)])
def test_a_learning_rate_that_is_too_high(
    tmp_path: Path, refused: Refusal, key: str, how: Any
) -> None:
    made = trained(tmp_path / "project", how).set(**{key: {"epochs": 20, "lr": 1e30, "clip": None}})
    refused(made, Exit.USAGE, "training diverged at", "the loss is not finite", "Lower lr")


def test_a_label_that_there_is_not(tmp_path: Path, refused: Refusal) -> None:
    made = trained(tmp_path / "project", TRP, train={**TRAIN, "objective": LABELS})
    label(made, "training", images(ROWS), row37=9)
    where = "training.npz: row 37: label 9 is none of the multiclass answer 'logits'"
    refused(made, Exit.USAGE, where, "valid are whole numbers from 0 to 4")


@pytest.mark.parametrize(("key", "how"), [("train", TRP), ("recover", CONV)])
def test_everything_is_frozen(tmp_path: Path, refused: Refusal, key: str, how: Any) -> None:
    made = trained(tmp_path / "project", how).set(**{key: {**TRAIN, "freeze": ["*"]}})
    refused(made, Exit.MODEL, "every weight is frozen", "by freeze: *")


@pytest.mark.parametrize("batch_size", [ROWS, 4 * ROWS])
def test_fewer_rows_than_a_step_takes(tmp_path: Path, refused: Refusal, batch_size: int) -> None:
    made = trained(tmp_path / "project", CONV, recover=TRAIN)
    made.edit(lambda tree: tree["data"]["training"].update(batch_size=batch_size))
    refused(made, Exit.USAGE, "training.npz", f"a step takes batch_size = {batch_size}")


def test_an_operator_without_a_gradient_on_every_path(tmp_path: Path, refused: Refusal) -> None:
    made = trained(
        tmp_path / "project", {"lowrank": {"min_size": 64, "round_to": 1}}, model=rounded(),
        recover=TRAIN, budget={"keep_ratio": 0.6},
    )  # fmt: skip
    refused(made, Exit.MODEL, "Round node 'to_whole'")


def test_factors_of_a_model_that_has_none(tmp_path: Path, refused: Refusal) -> None:
    made = trained(tmp_path / "project", {"conv": {"min_size": 1_000_000}}, budget=None)
    made.set(recover={**TRAIN, "parameters": "factors"})
    refused(made, Exit.MODEL, "no low-rank layer", "set it to all")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": "training"}, ("there are no rows to train on", "data.training")),
        ({"label": True}, ("label", "data.training.label")),
        ({"holdout": "training"}, ("data.holdout", "these rows are trained on")),
        ({"holdout": "validation"}, ("data.holdout", "these rows decide the gates")),
        ({"validation": "training"}, ("data.training", "these rows decide the gates")),
        ({"train": None}, ("is missing, and trp learns", "train: {}")),
    ],
)
def test_recipes_that_cannot_train(
    tmp_path: Path, refused: Refusal, change: dict[str, Any], words: tuple[str, ...]
) -> None:
    made = trained(tmp_path / "project", TRP)
    if "data" in change:
        made.edit(lambda tree: tree["data"].pop("training"))
    if "label" in change:
        made.edit(lambda tree: tree["data"]["training"].pop("label"))
        made.set(train={**TRAIN, "objective": LABELS})
    for name in ("holdout", "validation"):
        if name in change:
            path = f"{change[name]}.npz"
            made.edit(lambda tree, n=name, p=path: tree["data"].setdefault(n, {}).update(path=p))  # type: ignore[misc]
    if "train" in change:
        made.edit(lambda tree: tree.pop("train"))
    refused(made, Exit.USAGE, *words)


@pytest.mark.parametrize("path", ["./training.npz", "sub/../training.npz", "link.npz"])
def test_one_file_under_two_names(tmp_path: Path, refused: Refusal, path: str) -> None:
    """Rows that decide the gates would be trained on."""
    made = trained(tmp_path / "project", CONV, recover=TRAIN)
    (made.folder / "link.npz").symlink_to(made.folder / "training.npz")
    made.edit(lambda tree: tree["data"]["validation"].update(path=path))
    refused(made, Exit.USAGE, "data.training", "these rows decide the gates")


def test_a_device_that_is_not_there(tmp_path: Path, refused: Refusal) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is one")
    made = trained(tmp_path / "project", CONV, recover={**TRAIN, "device": "cuda"})
    refused(made, Exit.ENVIRONMENT, "device is cuda", "set it to auto")


def test_rows_whose_loss_is_not_finite_from_the_start(tmp_path: Path, refused: Refusal) -> None:
    made = trained(tmp_path / "project", CONV, recover=TRAIN)
    rows = images(ROWS)
    rows[3:9] = 1e38
    save(made.folder / "training.npz", {"x": rows, "label": np.zeros(ROWS, np.int64)})
    refused(made, Exit.USAGE, "is not finite or too large on the data")
    made.edit(lambda tree: tree["recover"].update(batch_norm=False, holdout=0.5))
    refused(made, Exit.USAGE, "before any training, at epoch 0: the loss is not finite")


@pytest.mark.parametrize(("key", "how"), [("train", TRP), ("recover", CONV)])
def test_a_pattern_that_freezes_nothing(
    tmp_path: Path, refused: Refusal, key: str, how: Any
) -> None:
    """A slip of the pen would train what was to stay. Weights that were rewritten count."""
    made = trained(tmp_path / "project", how).set(**{key: {**TRAIN, "freeze": ["sten.*"]}})
    refused(made, Exit.USAGE, f"{key}.freeze: 'sten.*' fits no weight; there are ", "fc.bias")


@pytest.mark.parametrize("how", ["trp", "maestro"])
def test_no_layer_that_a_pass_could_train(tmp_path: Path, refused: Refusal, how: str) -> None:
    made = trained(tmp_path / "project", {how: {"min_size": 10**7}}, train=TRAIN, budget=None)
    refused(made, Exit.MODEL, f"{how}: no layer is left to be trained")


def test_classes_that_are_one_hot(tmp_path: Path, refused: Refusal) -> None:
    made = trained(tmp_path / "project", CONV, recover={**TRAIN, "objective": LABELS})
    classes = np.eye(5, dtype=np.int64)[np.arange(ROWS) % 5]
    save(made.folder / "training.npz", {"x": images(ROWS), "label": classes})
    refused(made, Exit.USAGE, "look like classes, one-hot", "as a whole number")


def test_copies_after_the_plan(tmp_path: Path, refused: Refusal) -> None:
    made = trained(tmp_path / "project", CONV).set(recover={**TRAIN, "unshare": ["*"]})
    refused(made, Exit.USAGE, "unshare is for `train`", "add to what was planned")


def test_a_row_that_judges_and_is_no_number(tmp_path: Path, refused: Refusal) -> None:
    """Whichever half of the rows held out it falls into."""
    for row in (0, 1):
        made = trained(tmp_path / f"project{row}", CONV).set(recover=TRAIN)
        rows = images(8, seed=5)
        rows[row] = 3e38
        label(made, "holdout", rows)
        made.edit(lambda tree: tree["data"].update(holdout={"path": "holdout.npz"}))
        refused(made, Exit.USAGE, "before any training, at", "the loss is not finite")
