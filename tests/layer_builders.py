"""Layers of every kind in small models, for the tests of profiling."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx_ir as ir

from builders import Array, model_of, weight
from rankc.cleanup import clean
from rankc.latency_table import Header
from rankc.layer_models import isolate, solved
from rankc.passbase import Pass, Site
from rankc.passes.lowrank import LowRank
from rankc.rewriting import Sites

FLOAT = ir.DataType.FLOAT
HEADER = Header("cpu", 1, "a processor", "onnxruntime", "1.0", "CPU time", 1)


def random(*shape: int, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape).astype(np.float32)


def stack(widths: list[int], batch: int | str = "batch") -> ir.Model:
    """Gemm layers fc0, fc1, ... with a Relu after each, and a MatMul `last` back to widths[0]."""
    tape, x = ir.tape.Tape(), ir.val("x", FLOAT, [batch, widths[0]])
    value = x
    for k, (n, m) in enumerate(itertools.pairwise(widths)):
        w, b = weight(tape, f"w{k}", random(n, m, seed=k)), weight(tape, f"b{k}", random(m))
        value = tape.op("Relu", [tape.op("Gemm", [value, w, b], name=f"fc{k}")], name=f"relu{k}")
    y = ir.val("y", FLOAT, [batch, widths[0]])
    last = weight(tape, "last.w", random(widths[-1], widths[0]))
    tape.op("MatMul", [value, last], name="last", output=y)
    model = model_of(tape, [x], [y])
    clean(model)
    return model


def image_model(batch: int | str = "batch", layers: int = 2) -> ir.Model:
    """Convolutions `conv0` and `conv1`, 8 to 16 to 16 channels, the second with stride 2."""
    tape, x = ir.tape.Tape(), ir.val("x", FLOAT, [batch, 8, 12, 12])
    first = [x, weight(tape, "w0", random(16, 8, 3, 3)), weight(tape, "b0", random(16))]
    value = tape.op("Conv", first, {"pads": [1, 1, 1, 1]}, name="conv0")
    if layers > 1:
        second = [tape.op("Relu", [value]), weight(tape, "w1", random(16, 16, 3, 3))]
        value = tape.op("Conv", second, {"strides": [2, 2]}, name="conv1")
    y = ir.val("y", FLOAT, None)
    tape.op("Relu", [value], output=y)
    model = model_of(tape, [x], [y])
    clean(model)
    return model


def lowrank(rank: int | None = None) -> LowRank:
    return LowRank(min_size=64, rank=rank)


def site_named(model: ir.Model, pass_: Pass, name: str) -> Site:
    (found,) = [s for s in pass_.match(model) if isinstance(s, Site) and s.name == name]
    return found


def solutions_of(model: ir.Model, sites: Sites) -> dict[Site, Any]:
    """What each pass makes of its sites under white inputs."""
    found: dict[Site, Any] = {}
    for site, pass_ in sites.owners.items():
        alone = isolate(model, pass_, site, 1)
        assert not isinstance(alone, str)
        found[site] = solved(pass_, alone, site)
    return found
