"""What recovery of ResNet-20 hangs on: one setting changed at a time, 16 epochs, the first seed.

`python -m benchmarks.train.cifar_tuning [--only NAME ...]`, once `benchmarks.train.cifar` has made
the dense net. Variants are compared by the loss of a tenth of the training images, which is held
out; where their objectives differ, by its accuracy. Accuracy on the test images is told beside it,
and nothing is chosen by it: of 5,000 images one figure is good to 0.7 points.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported

import argparse
import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from benchmarks.train import cifar
from rankc.pipeline import compile_recipe
from rankc.recipe_load import load_recipe

PATH = cifar.RESULTS / "cifar-tuning.json"
EPOCHS = 16
HALF = {"augment": {"pad": 4, "flip": True, "mix": 0.5}}
LOOSE = {"objective": {"temperature": 2, "match": {cifar.BLOCKS: 0.3}}}
CLOSED, SVD = cifar.WAYS["closed form"], cifar.WAYS["weight svd"]
SEPARABLE = ({"conv": {"forms": ["vertical", "horizontal"], "round_to": 2}},)


@dataclasses.dataclass(frozen=True, slots=True)
class Variant:
    """What is changed of a way: of its recovery, and of the recipe."""

    recover: dict[str, Any]
    way: cifar.Way = CLOSED
    recipe: dict[str, Any] = dataclasses.field(default_factory=dict)


VARIANTS = {
    "half blended": Variant({"lr": 0.01} | HALF | LOOSE),
    "half blended, lr 0.03": Variant({"lr": 0.03} | HALF | LOOSE),
    "half blended, weight svd": Variant({"lr": 0.01} | HALF | LOOSE, SVD),
    "blended, lr 0.01": Variant({"lr": 0.01} | LOOSE),
    "blended, lr 0.005": Variant({"lr": 0.005} | LOOSE),
    "blended, Adam": Variant({"lr": 0.001, "optimizer": "adam"} | LOOSE),
    "blended, batch 64": Variant({"lr": 0.005, "average": 0.995} | LOOSE, recipe={"batch": 64}),
    "blended, ranks by KL": Variant(
        {"lr": 0.005} | LOOSE, recipe={"planning": {"sensitivity": "kl", "rows": 512}}
    ),
    "blended, matched by 1, lr 0.01": Variant({"lr": 0.01}),
    "the same, constant rate": Variant({"lr": 0.005, "schedule": "constant", "average": 0.998}),
    "the same, 4096 rows refitted": Variant({"lr": 0.005}, recipe={"refit": {"rows": 4096}}),
    "the same, separable forms": Variant({}, dataclasses.replace(CLOSED, passes=SEPARABLE)),
    "the same, ranks above a floor": Variant({}, recipe={"planning": {"floor": 0.15}}),
}


def recipe_of(variant: Variant) -> dict[str, Any]:
    """The recipe, with absolute paths."""
    recipe, changes = cifar.recipe_of(variant.way, 0), dict(variant.recipe)
    if (batch := changes.pop("batch", None)) is not None:
        recipe["data"]["training"]["batch_size"] = batch
    shorter = {"epochs": EPOCHS, "holdout": 0.1, "evaluate": EPOCHS / 2}
    recipe["recover"] = recipe["recover"] | shorter | variant.recover
    return recipe | changes


def measured(name: str) -> dict[str, Any]:
    """Compile one variant, and what came of it."""
    path = cifar.written(recipe_of(VARIANTS[name]), f"tuning-{list(VARIANTS).index(name)}")
    metrics = compile_recipe(load_recipe(path), path.with_suffix("")).metrics
    assert metrics is not None
    top1 = metrics["metrics"]["accuracy_top1"]
    (lesson,) = metrics["training"]
    held_out = [
        (look["epoch"], round(look["loss"], 4), round(look["metrics"]["accuracy_top1"], 4))
        for look in lesson["looks"]
    ]
    return {"dense": top1["original"], "accuracy": top1["compressed"], "held_out": held_out}


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    raw = json.loads(PATH.read_text("utf-8")) if PATH.exists() else {}
    for name in parser.parse_args(argv).only:
        if name not in raw:
            raw[name] = measured(name)
            PATH.write_text(json.dumps(raw, indent=1) + "\n", "utf-8")
            print(name, raw[name], flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
