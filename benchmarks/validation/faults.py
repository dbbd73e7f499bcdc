"""A net of 20 layers in which each matters, and faults to plant in it, as they come about.

The net is residual, h + s V relu(U h + a) + s b, ten times over. Faults:
  bias        the first factor's or the layer's bias is negated and moved
  transposed  a factor is written in the order of its transpose
  rank        the planner is told that one layer loses nothing at any rank
  overflow    U is scaled up and V down, or V up and s down: the same function, until a row that is
              larger than the golden ones takes the value between them beyond float16
The first two are planted in a bundle's file, as if another version had compiled it, and in the pass
itself, so that the compiler makes the same mistake again whenever it is asked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import yaml
from numpy.typing import NDArray

from rankc.graph import node_named
from rankc.lowering.precision import prepared
from rankc.lowering.ranges import peaks
from rankc.packing import write_manifest
from rankc.passbase import Curve, Site
from rankc.passes.lowrank import LowRank
from rankc.serialize import save
from rankrt.bundle import read
from rankrt.session import open_model

Array = NDArray[Any]
BLOCKS, WIDTH, HIDDEN, CLASSES, ROWS = 10, 32, 64, 8, 1024
SCALE = 0.5  # of a block
OUTLIERS, LARGER = 16, 100.0  # validation rows, none of the golden ones, and how much larger
PEAK = 12000.0  # what ordinary rows reach where an outlier overflows
SCALED = 8000.0
LAYERS = tuple(f"{part}{k}" for k in range(BLOCKS) for part in ("up", "down"))
FAULTS = ("bias", "transposed", "rank", "overflow")


def net(overflow: str | None = None, factor: float = 1.0, seed: int = 0) -> ir.Model:
    """The model; `overflow` names the layer whose output is scaled up, by what factor."""
    rng, tape = np.random.default_rng(seed), ir.tape.Tape()
    x = ir.val("x", ir.DataType.FLOAT, ["batch", WIDTH])

    def weight(name: str, array: Array) -> ir.Value:
        return tape.initializer(ir.tensor(array.astype(np.float32), name=name))

    value = x
    for k in range(BLOCKS):
        up, down = _decaying(rng, WIDTH, HIDDEN), _decaying(rng, HIDDEN, WIDTH)
        a, b = rng.normal(size=HIDDEN), rng.normal(size=WIDTH)
        first = factor if overflow == f"up{k}" else 1.0
        second = factor if overflow == f"down{k}" else 1.0
        hidden = tape.op(
            "Gemm", [value, weight(f"u{k}", up * first), weight(f"a{k}", a * first)], name=f"up{k}"
        )
        hidden = tape.op("Relu", [hidden], name=f"relu{k}")
        out = tape.op(
            "Gemm",
            [hidden, weight(f"v{k}", down * (second / first)), weight(f"b{k}", b * second)],
            name=f"down{k}",
        )
        out = tape.op("Mul", [out, weight(f"s{k}", np.array(SCALE / second))], name=f"scale{k}")
        value = tape.op("Add", [value, out], name=f"add{k}")
    last = weight("w", rng.normal(size=(WIDTH, CLASSES)) / 4)
    logit = tape.op("MatMul", [value, last], name="logit")
    p = ir.val("p", ir.DataType.FLOAT, ["batch", CLASSES])
    tape.op("Softmax", [logit], attributes={"axis": 1}, name="head", output=p)
    graph = ir.Graph(
        [x], [p], nodes=tape.nodes, initializers=tape.initializers, opset_imports={"": 18},
        name="main_graph",
    )  # fmt: skip
    return ir.Model(graph, ir_version=10)


def _decaying(rng: np.random.Generator, n: int, m: int) -> Array:
    """A matrix of which half the rank holds nearly everything, (n, m)."""
    u, _, vt = np.linalg.svd(rng.normal(size=(n, m)), full_matrices=False)
    matrix: Array = (u * 0.8 ** np.arange(len(vt))) @ vt * 2.0
    return matrix


@dataclasses.dataclass(frozen=True, slots=True)
class Planted:
    """A recipe with model and data in a folder."""

    folder: Path

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.yaml"

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle"


def project(folder: Path, overflow: str | None = None, *, half: bool = False) -> Planted:
    """Write model, rows and recipe; labels are drawn from what the model says.

    With `half`, or a layer to overflow, the target is float16 and some rows are much larger.
    """
    half = half or overflow is not None
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, ROWS, WIDTH)).astype(np.float32)
    factor = 1.0 if overflow is None else PEAK / _peak(overflow, x[1], folder)
    save(net(overflow, factor), folder / "model.onnx")
    if half:
        x[1, -OUTLIERS:] *= LARGER
    p = open_model(folder / "model.onnx").run({"x": x[1]})["p"]
    labels = (p.cumsum(axis=1) < rng.random((ROWS, 1))).sum(axis=1).clip(0, CLASSES - 1)
    _savez(folder / "calibration.npz", x=x[0])
    _savez(folder / "validation.npz", x=x[1], label=labels)
    precision = "fp16" if half else "fp32"
    recipe = {
        "name": "faulty",
        "model": "model.onnx",
        "data": {
            "calibration": {"path": "calibration.npz"},
            "validation": {"path": "validation.npz", "label": "label"},
        },
        "passes": [{"lowrank": {"round_to": 1, "ignore": ["logit"]}}],
        "budget": {"keep_ratio": 0.55},
        "timing": {"revert": False},
        "gates": [{"metric": "kl_div", "goal": "threshold", "value": 0.0002}],
        "latency": {"batch_sizes": [1], "repeats": 1},
        "lower": [{"backend": "onnxruntime", "precision": precision}],
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), "utf-8")
    return Planted(folder)


def _peak(layer: str, x: Array, folder: Path) -> float:
    """The largest that a layer of the plain net puts out."""
    model = prepared(net())
    return peaks(model, {"x": x}, folder)[str(node_named(model, layer).outputs[0].name)]


def _savez(path: Path, **arrays: Any) -> None:
    savez: Any = np.savez
    savez(path, **arrays)


def spoil(model: ir.Model, layer: str, fault: str) -> None:
    """Plant a wrong bias or a transposed factor in the factors of a layer, in place.

    Or scale one factor up and the other one down: the same function, until float16.
    """
    if fault == "scaled":
        for name, factor in ((f"{layer}.A", SCALED), (f"{layer}.B", 1 / SCALED)):
            value = model.graph.initializers[name]
            assert value.const_value is not None
            array = value.const_value.numpy() * np.float32(factor)
            value.const_value = ir.tensor(array, name=name)
        return
    name = f"{layer}.b" if fault == "bias" else f"{layer}.A"
    value = model.graph.initializers[name]
    assert value.const_value is not None
    array = value.const_value.numpy()
    wrong = 1 - array if fault == "bias" else array.T.reshape(array.shape)
    value.const_value = ir.tensor(np.array(wrong, np.float32, order="C"), name=name)


def spoil_file(bundle: Path, layer: str, fault: str) -> None:
    """Plant it in the bundle's model, and hash the files again as its compiler would have.

    All weights differ a little besides, as another machine's rounding makes them.
    """
    before = read(bundle).manifest
    model = ir.load(bundle / "model.onnx")
    _round_otherwise(model)
    spoil(model, layer, fault)
    save(model, bundle / "model.onnx")
    (bundle / "manifest.json").unlink()
    fields = {f.name: getattr(before, f.name) for f in dataclasses.fields(before)}
    for computed in ("files", "format"):
        del fields[computed]
    write_manifest(bundle, **fields)


def _round_otherwise(model: ir.Model) -> None:
    rng = np.random.default_rng(2)
    for name, value in model.graph.initializers.items():
        assert value.const_value is not None
        array = value.const_value.numpy()
        near = array * (1 + 1e-6 * rng.standard_normal(array.shape))
        value.const_value = ir.tensor(np.asarray(near, np.float32), name=name)


@contextlib.contextmanager
def faulty_pass(layer: str, fault: str) -> Iterator[None]:
    """Within it the pass `lowrank` makes a mistake at one layer, every time."""
    rewrite, cost = LowRank.rewrite, LowRank.cost

    def wrong_rewrite(
        self: LowRank, model: ir.Model, site: Site, rank: int, solution: Any, form: str = ""
    ) -> None:
        rewrite(self, model, site, rank, solution, form)
        if site.name == layer:
            spoil(model, layer, fault)

    def wrong_cost(self: LowRank, site: Site, solution: Any) -> Curve:
        curve = cost(self, site, solution)
        free = np.zeros_like(curve.loss)
        return dataclasses.replace(curve, loss=free) if site.name == layer else curve

    wrong: Any = wrong_cost if fault == "rank" else wrong_rewrite
    name = "cost" if fault == "rank" else "rewrite"
    setattr(LowRank, name, wrong)
    try:
        yield
    finally:
        LowRank.rewrite, LowRank.cost = rewrite, cost  # type: ignore[method-assign]


def named(answer: str) -> list[str]:
    """The layers that `rankc bisect --json` names, the worst first."""
    return [finding["layer"] for finding in json.loads(answer)["findings"]]
