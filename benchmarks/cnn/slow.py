"""Rewrites that save multiply-accumulates and lose time, and what rankc does about each.

Run `python -m benchmarks.cnn.slow`, three minutes; `--quick` does half. The cases are those that
users report of other tools: factored layers slower than dense ones, half the operations without
gain, odd sizes, int8 slower than float. Each is timed as a whole model against the dense one, and
so is what rankc makes of the same model. What is finished is kept in build/bench-cnn.
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when numpy is imported: costs are CPU time
os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import yaml

from benchmarks.cnn import quantization, slow_models, table
from benchmarks.cnn.common import (
    CACHE,
    RESULTS,
    Kept,
    environment,
    latency_text,
    sources,
    write_json,
)
from rankc.data import open_source
from rankc.errors import RecipeError
from rankc.pipeline import compile_recipe
from rankc.profiling import profile
from rankc.recipe import Recipe
from rankc.recipe_load import load_recipe
from rankc.serialize import save
from rankc.validate import exit_code, validate
from rankrt.session import open_model

BATCH_SIZES = (1, 32)
ROWS = 256
REPEATS, QUICK_REPEATS = 60, 10
NAIVE = ("timing={revert: false}",)
TABLE = "timing={table: table.json}"

Answer = dict[str, Any]


# --- models, recipes, compiles ----------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Bench:
    """A model in a folder of its own, with rows and a recipe that does nothing yet."""

    folder: Path
    repeats: int

    @classmethod
    def of(cls, name: str, model: ir.Model, repeats: int) -> Bench:
        """Write what a compile needs."""
        folder = CACHE / "slow" / name
        folder.mkdir(parents=True, exist_ok=True)
        save(model, folder / "model.onnx")
        np.savez(folder / "rows.npz", x=slow_models.rows_for(model, ROWS))
        data = {"path": "rows.npz", "batch_size": 64}
        recipe = {
            "name": "slow",
            "model": "model.onnx",
            "data": {"calibration": data, "validation": data},
            "passes": [],
            "latency": {"batch_sizes": list(BATCH_SIZES), "repeats": repeats},
        }
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
        return cls(folder, repeats)

    @property
    def model(self) -> Path:
        """The dense one."""
        return self.folder / "model.onnx"

    def recipe(self, *options: str) -> Recipe:
        """With `--set` options."""
        return load_recipe(self.folder / "recipe.yaml", list(options))

    def profiled(self) -> Path:
        """The latency table of the model's layers at batch 1, measured if it is not there."""
        out = self.folder / "table.json"
        profile(self.model, "cpu", out)
        return out

    def compiled(self, how: str, *options: str) -> Answer:
        """What a compile makes of the model, or the refusal."""
        out = self.folder / "bundle"
        try:
            result = compile_recipe(self.recipe(*options), out)
        except RecipeError as refusal:
            return {"how": how, "exit_code": int(refusal.exit_code), "refused": str(refusal)}
        assert result.metrics is not None
        return {
            "how": how,
            "exit_code": int(result.exit_code),
            "macs_ratio": result.metrics["ratios"].get("macs"),
            "latency": result.metrics["latency"],
            "layers": result.metrics["layers"],
            "ranks": [[c.site, c.rank, c.form] for c in result.plan.choices],
            "dense": [skip.name for skip in result.plan.skips],
            "loss": result.plan.loss,
        }

    def compared(self, how: str, other: Path, *options: str) -> Answer:
        """Another file against the dense one; gates of the options decide the exit code."""
        recipe = self.recipe(*options)
        assert recipe.data.validation is not None
        inputs = open_model(self.model).inputs
        source = open_source(recipe.data.validation, recipe.folder, inputs)
        metrics = validate(self.model, other, source, recipe)
        return {
            "how": how,
            "exit_code": int(exit_code(metrics)),
            "macs_ratio": metrics["ratios"].get("macs"),
            "latency": metrics["latency"],
        }


def passes(name: str, options: str) -> str:
    """The option that gives the recipe this pass."""
    return f"passes=[{name}: {{{options}}}]"


def budget(macs: float | None = None, ms: float | None = None) -> str:
    """The option that limits shares of both."""
    limits = [("macs", macs), ("ms", ms)]
    told = [f"{{unit: {unit}, keep_ratio: {keep!r}}}" for unit, keep in limits if keep is not None]
    return f"budget=[{', '.join(told)}]"


# --- cases ------------------------------------------------------------------------------------

FACTORED, NO_GAIN = "10: factored layers slower", "11: half the operations, no gain"
ODD, INT8 = "11: slower until rounded", "9: int8 slower than float"


def tail(repeats: int) -> list[Answer]:
    """A wide layer and narrow ones, all factored at the same share."""
    bench = Bench.of("tail", slow_models.layers([512, 512, *[64] * 13]), repeats)
    every = passes("lowrank", "round_to: 1")
    same = ("planning={strategy: uniform}", budget(0.5))
    return [
        bench.compiled("every layer at half its MACs", every, *same, *NAIVE),
        bench.compiled("rankc, the same budget", every, budget(0.5)),
    ]


def narrow(repeats: int) -> list[Answer]:
    """Narrow layers alone: nothing can be gained, and what is asked for cannot be had."""
    bench = Bench.of("narrow", slow_models.layers([64] * 17), repeats)
    bench.profiled()
    every, half = passes("lowrank", "round_to: 1"), "planning={strategy: uniform}"
    return [
        bench.compiled("every layer at half its MACs", every, half, budget(0.5), *NAIVE),
        bench.compiled("rankc, the same MACs and no more time", every, budget(0.5, 1.0), TABLE),
    ]


def tensor_train(repeats: int) -> list[Answer]:
    """A layer as a Tensor-Train matrix, and as two factors of as many MACs."""
    bench = Bench.of("tensor-train", slow_models.layers([512, 512]), repeats)
    chain = bench.folder / "chain.onnx"
    save(slow_models.tensor_train((8, 8, 8), 3), chain)
    naive = bench.compared("Reshape, MatMul and Transpose of three cores", chain)
    same = budget(1 / naive["macs_ratio"])
    ours = bench.compiled("rankc, the same MACs", passes("lowrank", "round_to: 4"), same)
    return [naive, ours]


def narrow_images(form: str, share: float, repeats: int) -> list[Answer]:
    """3 x 3 convolutions of 16 channels in one form, which is slower than dense."""
    bench = Bench.of(f"images-{form}", slow_models.images([16] * 5, 32), repeats)
    bench.profiled()
    one = passes("conv", f"forms: [{form}], round_to: 1")
    limits = budget(share, 1.0)
    return [
        bench.compiled(f"every layer as `{form}`", one, budget(share), *NAIVE),
        bench.compiled("rankc, this form only, no more time", one, limits, TABLE),
        bench.compiled("rankc, the same MACs and no more time", passes("conv", ""), limits, TABLE),
    ]


def odd_rank(form: str, rank: int, repeats: int) -> list[Answer]:
    """A rank just below a multiple of 16, that multiple, and what the time of the first buys."""
    bench = Bench.of(f"odd-{form}", slow_models.images([64] * 5, 8), repeats)
    bench.profiled()
    forced = [
        bench.compiled(f"rank {r}", passes("conv", f"forms: [{form}], rank: {r}"), *NAIVE)
        for r in (rank, multiple(rank))
    ]
    keep = min(forced[0]["latency"]["1"]["ratio"], 1.0)
    every = passes("conv", f"forms: [{form}]")
    ours = bench.compiled(f"rankc, in the time of rank {rank}", every, budget(ms=keep), TABLE)
    return [*forced, ours]


def odd_layers(rank: int, repeats: int) -> list[Answer]:
    """The same of Gemm."""
    bench = Bench.of("odd-layers", slow_models.layers([256] * 5), repeats)
    return [
        bench.compiled(f"rank {r}", passes("lowrank", f"rank: {r}"), *NAIVE)
        for r in (rank, multiple(rank))
    ]


def multiple(rank: int) -> int:
    """The next one of 16, the floats that a vector register of AVX-512 holds."""
    return -(-rank // 16) * 16


def pruned(width: int, repeats: int) -> list[Answer]:
    """Inner channels left out down to an odd number, and down to the multiple of 16 above it."""
    bench = Bench.of("pruned", slow_models.images([64] * 5, 8), repeats)
    bench.profiled()
    found = []
    for inner in (width, multiple(width)):
        other = bench.folder / f"pruned-{inner}.onnx"
        save(slow_models.images([64, inner, 64, inner, 64], 8), other)
        found.append(bench.compared(f"{inner} of 64 channels", other))
    first, second = found
    limits = budget(1 / first["macs_ratio"], min(second["latency"]["1"]["ratio"], 1.0))
    how = "rankc, the MACs of the first in the time of the second"
    return [*found, bench.compiled(how, passes("conv", ""), limits, TABLE)]


def int8(kind: str, repeats: int) -> list[Answer]:
    """A small model in int8, and a gate on latency that refuses it."""
    bench = Bench.of("int8", slow_models.layers([64] * 17), repeats)
    other = bench.folder / f"{kind}.onnx"
    if kind == "static":
        spec = bench.recipe().data.calibration
        source = open_source(spec, bench.folder, open_model(bench.model).inputs)
        quantization.static_int8(bench.model, source, other)
    else:
        quantization.dynamic_int8(bench.model, other)
    gate = "gates=[{metric: latency_ratio, goal: threshold, value: 1, batch: 1}]"
    return [bench.compared(f"ORT {kind} int8; `latency_ratio` gated at 1", other, gate)]


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """One thing that goes wrong elsewhere."""

    name: str
    complaint: str
    text: str
    run: Callable[[int], list[Answer]]
    quick: bool = False


def cases() -> list[Case]:
    """All of them, in the order of the table."""
    part = functools.partial
    return [
        Case("tail", FACTORED, "Gemm 512, then thirteen of 64", tail, True),
        Case("narrow", FACTORED, "sixteen Gemm of 64", narrow),
        Case("tensor-train", FACTORED, "Gemm 512 x 512 as a Tensor-Train", tensor_train, True),
        Case(
            "images-decoupled",
            NO_GAIN,
            "four convolutions 3x3, 16 channels, 32 x 32, decoupled",
            part(narrow_images, "decoupled", 0.4),
            True,
        ),
        Case(
            "images-channel",
            NO_GAIN,
            "the same, channel-wise at half the MACs",
            part(narrow_images, "channel", 0.5),
        ),
        *(
            Case(
                f"odd-{form}-{r}", ODD, f"{_IMAGES}, as `{form}`", part(odd_rank, form, r), r == 61
            )
            for form, r in (("vertical", 13), ("vertical", 27), ("vertical", 61), ("channel", 27))
        ),
        Case("odd-layers-61", ODD, "four Gemm of 256", part(odd_layers, 61)),
        *(Case(f"pruned-{w}", ODD, f"{_IMAGES}, two pruned", part(pruned, w)) for w in (45, 61)),
        *(Case(f"int8-{k}", INT8, _INT8, part(int8, k), True) for k in ("static", "dynamic")),
    ]


_IMAGES = "four convolutions 3x3, 64 channels, 8 x 8"
_INT8 = "sixteen Gemm of 64"


# --- the command line -------------------------------------------------------------------------


def line(answers: Sequence[Answer]) -> str:
    """What is told of a case while it runs."""
    return ", ".join(
        "refused" if "refused" in one else latency_text(one["latency"]) for one in answers
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write slow.json and table.md; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cnn.slow", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few cases; results stay in build/")
    parser.add_argument("--out", type=Path, help="where slow.json and table.md go")
    chosen = parser.parse_args(argv)
    try:
        write(chosen.out or (CACHE / "quick" if chosen.quick else RESULTS), chosen.quick)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def write(out: Path, quick: bool) -> None:
    """Every case."""
    asked = [case for case in cases() if case.quick or not quick]
    own = [Path(module.__file__ or "") for module in (quantization, slow_models)]
    kept = Kept(len(asked), sources(Path(__file__), *own))
    machine, repeats = environment(), QUICK_REPEATS if quick else REPEATS
    found = []
    for case in asked:
        told = [*machine.values(), str(repeats)]
        answers = kept(case.name, told, lambda case=case: case.run(repeats), line)  # type: ignore[misc]
        found.append(
            {
                "name": case.name,
                "complaint": case.complaint,
                "text": case.text,
                "answers": answers,
            }
        )
    raw = {
        "format": 1,
        "environment": machine,
        "rankc_sources_sha256": sources(),
        "cases": found,
    }
    write_json(out / "slow.json", raw)
    print(f"{out / 'slow.json'}\n{table.write(out)}")


if __name__ == "__main__":
    raise SystemExit(main())
