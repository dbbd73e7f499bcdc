"""Ways to train ResNet-20 at 2.8 times fewer MACs, with equal epochs.

`python -m benchmarks.train.cifar --data FOLDER --weights FILE`, as `models.cifar.build` takes them.

For each seed the net is fine-tuned on the user's images first (6 epochs): that is the baseline.
Then, every way with the same number of epochs on the same images, the same objective (the
original's answers and what its blocks put out, images blended with one another; no labels) and the
same budget of the net's MACs:

  closed form  `conv`, refitted layer by layer, then recovered, at half the learning rate
  weight svd   `conv` by weights alone, columns and rows, then recovered
  trp spatial, trp channel   trained towards low rank, cut, then recovered
  maestro      trained in order, cut, then recovered

And one training of Maestro cut at six budgets, beside the SVD of the dense net at the same, both
with matched variances and nothing trained afterwards. Accuracy on the test images, which nothing is
chosen by. Hours on one core; `--seeds` and `--ways` do a part, and a run that was cut off goes on.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported

import argparse
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from models.cifar import build

from benchmarks.cnn.common import environment
from rankc.family import make_family
from rankc.pipeline import compile_recipe
from rankc.recipe_load import load_recipe

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"
FOLDER = ROOT / "build" / "bench-train" / "cifar"
KEEP = 0.357  # of the MACs: 2.8 times fewer
EPOCHS, SEEDS = 32, (0, 1, 2)
CURVE = (1.5, 2.0, 2.8, 3.5, 4.5, 6.0)  # times fewer MACs
BLOCKS = r"re:relu_(2|4|6|8|10|12|14|16|18)$"  # outputs of the nine residual blocks
MATCHED = {"weights": False, "variance": True}


def loop(epochs: float, **more: Any) -> dict[str, Any]:
    """How all are trained."""
    return {
        "epochs": epochs,
        "lr": 0.01,
        "warmup": 0.1,
        "average": 0.99,
        "precision": "bf16",
        "augment": {"pad": 4, "flip": True, "mix": 1.0},
        "objective": {"temperature": 2, "match": {BLOCKS: 1.0}},
        "holdout": 0.02,
        "evaluate": 4,
    } | more


def recovered(epochs: float, **more: Any) -> dict[str, Any]:
    """The same after compressing; what was trained is kept, so that ways can be compared."""
    return loop(epochs, guard=False, **more)


@dataclasses.dataclass(frozen=True, slots=True)
class Way:
    """How a net is compressed and trained."""

    passes: tuple[Any, ...]
    train: dict[str, Any] | None
    recover: dict[str, Any] | None
    refit: dict[str, Any] | None = None


def trp(scheme: str) -> Way:
    """A few epochs of truncations, most of them after the cut."""
    passes = ({"trp": {"scheme": scheme, "keep": 0.36, "anneal": 0.8, "period": 20}},)
    return Way(passes, loop(EPOCHS / 4), recovered(3 * EPOCHS / 4))


WAYS = {
    "closed form": Way(
        ({"conv": {"round_to": 4}},), None, recovered(EPOCHS, lr=0.005), {"rows": 1024}
    ),
    "weight svd": Way(
        ({"conv": {"method": "svd", "forms": ["vertical"], "round_to": 4}},),
        None,
        recovered(EPOCHS),
        MATCHED,
    ),
    "trp spatial": trp("spatial"),
    "trp channel": trp("channel"),
    "maestro": Way(("maestro",), loop(EPOCHS / 2), recovered(EPOCHS / 2), MATCHED),
}
CURVES = {
    "curve maestro": Way(("maestro",), loop(EPOCHS / 2), None, MATCHED),
    "curve svd": Way(
        ({"conv": {"method": "svd", "forms": ["vertical"], "round_to": 4}},), None, None, MATCHED
    ),
}


def recipe_of(way: Way, seed: int) -> dict[str, Any]:
    """The recipe, with absolute paths."""
    made = FOLDER / f"dense-{seed}"
    data: dict[str, Any] = {
        "calibration": {"path": str(made / "calibration.npz"), "batch_size": 64, "rows": 1024},
        "validation": {
            "path": str(made / "validation.npz"),
            "label": "label",
            "batch_size": 250,
        },
    }
    recipe: dict[str, Any] = {
        "name": "cifar",
        "model": str(made / "model.onnx"),
        "data": data,
        "passes": list(way.passes),
        "budget": {"unit": "macs", "keep_ratio": KEEP},
        "timing": {"revert": False},
        "latency": {"batch_sizes": [1], "repeats": 3},
        "seed": seed,
    }
    for key in ("train", "recover", "refit"):
        if (value := getattr(way, key)) is not None:
            recipe[key] = value
    if way.train or way.recover:
        data["training"] = {
            "path": str(made / "training.npz"),
            "label": "label",
            "batch_size": 128,
        }
    return recipe


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, write cifar.json and cifar.md; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of images, see models/cifar-resnet20")
    parser.add_argument("--weights", type=Path, help="trained ResNet-20")
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS)
    parser.add_argument("--ways", nargs="*", default=[*WAYS, *CURVES], choices=[*WAYS, *CURVES])
    parser.add_argument("--out", type=Path, default=RESULTS, help="where results go")
    parser.add_argument("--table", action="store_true", help="write the table again, run nothing")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.table:
        if options.data is None or options.weights is None:
            parser.error("--data and --weights are needed")
        for way, seed in _wanted(options):
            path = options.out / "cifar" / f"{way.replace(' ', '-')}-{seed}.json"
            if not path.exists():
                _build(options, seed)
                found = curve(way, seed) if way in CURVES else measured(way, seed)
                path.parent.mkdir(exist_ok=True)
                path.write_text(json.dumps(found | {"environment": environment()}, indent=1) + "\n")
                print(way, seed, found, flush=True)
    (options.out / "cifar.md").write_text(table(options.out / "cifar"), "utf-8")
    return 0


def _wanted(options: argparse.Namespace) -> Iterator[tuple[str, int]]:
    return ((way, seed) for seed in options.seeds for way in options.ways)


def _build(options: argparse.Namespace, seed: int) -> None:
    """The dense net of a seed, where it is not there yet."""
    out = FOLDER / f"dense-{seed}"
    if not (out / "build.json").exists():
        words = ["--data", options.data, "--weights", options.weights, "--out", out]
        if build.main([*map(str, words), "--seed", str(seed), "--threads", "1"]):
            raise SystemExit(2)


def written(recipe: dict[str, Any], name: str) -> Path:
    """The recipe as a file."""
    path = FOLDER / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), "utf-8")
    return path


def measured(name: str, seed: int) -> dict[str, Any]:
    """Compile one way, and what came of it."""
    path = written(recipe_of(WAYS[name], seed), f"{name.replace(' ', '-')}-{seed}")
    metrics = compile_recipe(load_recipe(path), path.with_suffix("")).metrics
    assert metrics is not None
    top1 = metrics["metrics"]["accuracy_top1"]
    return {
        "dense": top1["original"],
        "accuracy": top1["compressed"],
        "interval": top1["interval"],
        "macs_ratio": metrics["ratios"]["macs"],
        "training": metrics.get("training", []),
    }


def curve(name: str, seed: int) -> dict[str, Any]:
    """Cut one net at every budget."""
    path = written(recipe_of(CURVES[name], seed), f"{name.replace(' ', '-')}-{seed}")
    out = path.with_suffix("")
    make_family(load_recipe(path), [1 / times for times in CURVE], out)
    found: dict[str, Any] = {}
    for member in sorted(out.glob("*/metrics.json")):
        metrics = json.loads(member.read_text("utf-8"))
        top1 = metrics["metrics"]["accuracy_top1"]
        found[member.parent.name] = {
            "dense": top1["original"],
            "accuracy": top1["compressed"],
            "macs_ratio": metrics["ratios"]["macs"],
        }
    return {"members": found}


def table(folder: Path) -> str:
    """What there is so far, in Markdown."""
    lines = [
        "| way | MACs | accuracy, by seed | points lost, by seed | mean |",
        "|---|---|---|---|---|",
    ]
    for name in WAYS:
        found = _all(folder, name)
        if found:
            lost = [100 * (one["dense"] - one["accuracy"]) for one in found]
            cells = (
                name,
                f"{found[0]['macs_ratio']:.2f}x fewer",
                " / ".join(f"{100 * one['accuracy']:.2f}" for one in found),
                " / ".join(f"{points:.2f}" for points in lost),
                f"{sum(lost) / len(lost):.2f}",
            )
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| one training, cut at | " + " | ".join(f"{t:g}x" for t in CURVE) + " |"]
    lines += ["|---" * (len(CURVE) + 1) + "|"]
    for name in CURVES:
        for one in _all(folder, name):
            members = sorted(one["members"].values(), key=lambda each: each["macs_ratio"])
            values = [f"{100 * each['accuracy']:.2f}" for each in members]
            lines.append(f"| {name.removeprefix('curve ')} | " + " | ".join(values) + " |")
    return "\n".join(lines) + "\n"


def _all(folder: Path, name: str) -> list[dict[str, Any]]:
    paths = sorted(folder.glob(f"{name.replace(' ', '-')}-*.json"))
    return [json.loads(path.read_text("utf-8")) for path in paths]


if __name__ == "__main__":
    raise SystemExit(main())
