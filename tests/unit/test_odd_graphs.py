"""Graphs that people make, if not exporters of click models: rewritten right, or left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from builders import model_of, weight
from rankc.calibrate import calibrate
from rankc.cleanup import clean
from rankc.passbase import Pass, Site, Skip
from rankc.passes.embedding import Embedding
from rankc.passes.gather_fusion import ID_RANGES, GatherFusion
from rankc.passes.lowrank import LowRank
from rankc.progress import SilentProgress
from rankc.rewriting import finish
from rankrt.session import open_model
from sources import Rows

Array = NDArray[Any]
Feeds = dict[str, Array]
ROWS = 64
FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64


class Net:
    """A graph in the making: tables and layers of seeded noise."""

    def __init__(self) -> None:
        self.tape, self.rng, self.count = ir.tape.Tape(), np.random.default_rng(0), 0
        self.inputs: list[ir.Value] = []
        self.outputs: list[ir.Value] = []
        self.feeds: Feeds = {}

    def const(self, array: Any) -> ir.Value:
        self.count += 1
        return weight(self.tape, f"c{self.count}", np.asarray(array))

    def noise(self, *shape: int) -> ir.Value:
        return self.const(self.rng.normal(size=shape).astype(np.float32))

    def op(self, kind: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        return self.tape.op(kind, inputs, attributes=attributes or None)

    def ids(self, name: str, size: int, columns: int | None) -> ir.Value:
        """An input of ids below `size`; columns None: (batch,)."""
        self.inputs.append(ir.val(name, INT64, ["batch", *([columns] if columns else [])]))
        self.feeds[name] = self.rng.integers(0, size, (ROWS, columns) if columns else ROWS)
        return self.inputs[-1]

    def field(self, ids: ir.Value, k: int) -> ir.Value:
        return self.op("Gather", ids, self.const(np.int64(k)), axis=1)

    def head(self, x: ir.Value, width: int) -> None:
        """p = relu(x W + b) V, (batch, 1)."""
        hidden = self.op("Relu", self.op("Gemm", x, self.noise(width, 8), self.noise(8)))
        self.outputs.append(ir.val("p", FLOAT, ["batch", 1]))
        self.tape.op("MatMul", [hidden, self.noise(8, 1)], output=self.outputs[-1])

    def model(self) -> ir.Model:
        made = model_of(self.tape, self.inputs, self.outputs)
        clean(made)
        return made


def stacked_and_not() -> Net:
    """Two tables by column, one by an input of its own: only the first two can be stacked."""
    net = Net()
    ids, user = net.ids("ids", 9, 2), net.ids("user", 20, None)
    rows = [net.op("Gather", net.noise(20, 6), user)]
    rows += [net.op("Gather", net.noise(9, 6), net.field(ids, k)) for k in range(2)]
    net.head(net.op("Concat", *rows, axis=1), 18)
    return net


def square_of_a_lookup() -> Net:
    net = Net()
    row = net.op("Gather", net.noise(20, 6), net.ids("user", 20, None))
    net.head(net.op("Mul", row, row), 6)
    return net


def shifted_ids() -> Net:
    """Id 0 of the first field is the last row of its table: ids - 1 wraps."""
    net = Net()
    ids = net.ids("ids", 9, 2)
    first = net.op("Sub", net.field(ids, 0), net.const(np.int64(1)))
    rows = [net.op("Gather", net.noise(9, 6), index) for index in (first, net.field(ids, 1))]
    net.head(net.op("Concat", *rows, axis=1), 12)
    return net


def factorisation_of_income(scale: float) -> Net:
    """An FM over two lookups and a number of that scale with a small weight."""
    net = Net()
    ids = net.ids("ids", 9, 2)
    net.inputs.append(ir.val("income", FLOAT, ["batch", 1]))
    net.feeds["income"] = (scale * net.rng.normal(size=(ROWS, 1))).astype(np.float32)
    rows = [net.op("Gather", net.noise(9, 4), net.field(ids, k)) for k in range(2)]
    factors = (net.rng.normal(size=(1, 4)) / scale).astype(np.float32)
    rows.append(net.op("MatMul", net.inputs[-1], net.const(factors)))
    axis = net.const(np.array([1], np.int64))
    stack = net.op("Concat", *(net.op("Unsqueeze", row, axis) for row in rows), axis=1)
    total = net.op("ReduceSum", stack, axis, keepdims=0)
    parts = net.op("ReduceSum", net.op("Mul", stack, stack), axis, keepdims=0)
    net.head(net.op("Sub", net.op("Mul", total, total), parts), 4)
    return net


def rows_as_an_output() -> Net:
    net = Net()
    row = net.op("Gather", net.noise(20, 6), net.ids("user", 20, None))
    row.name, row.shape, row.type = "row", ir.Shape(["batch", 6]), ir.TensorType(FLOAT)
    net.outputs.append(row)
    halves = net.op("Reshape", row, net.const(np.array([-1, 2, 3])))
    net.head(net.op("Sigmoid", net.op("Reshape", halves, net.const(np.array([-1, 6])))), 6)
    return net


def chunked_gate() -> Net:
    """A Split without sizes: a gate on half of the row."""
    net = Net()
    row = net.op("Gather", net.noise(20, 6), net.field(net.ids("ids", 20, 1), 0))
    a, b = net.tape.op_multi_out("Split", [row], {"axis": 1, "num_outputs": 2}, num_outputs=2)
    net.head(net.op("Mul", a, net.op("Sigmoid", b)), 3)
    return net


def captured_by_a_body() -> Net:
    """An If, on a scalar input, whose bodies read looked-up rows and, once more, the table."""
    net = Net()
    index = net.field(net.ids("ids", 20, 2), 0)
    table, flag = net.noise(20, 6), ir.val("flag", ir.DataType.BOOL, [])
    net.inputs.append(flag)
    net.feeds["flag"] = np.array(True)
    row = net.op("Gather", table, index)
    bodies = []
    for k, kind in enumerate(("Relu", "Neg")):
        tape = ir.tape.Tape()
        again = tape.op("Gather", [table, index])
        out = tape.op(kind, [tape.op("Add", [row, again])])
        out.name, out.shape, out.type = f"o{k}", ir.Shape(["batch", 6]), ir.TensorType(FLOAT)
        bodies.append(ir.Graph([], [out], nodes=tape.nodes, name=f"body{k}"))
    chosen = net.op("If", flag, then_branch=bodies[0], else_branch=bodies[1])
    other = net.op("Gather", net.noise(20, 6), net.field(net.inputs[0], 1))
    net.head(net.op("Concat", row, chosen, other, axis=1), 18)
    return net


NETS: list[Callable[[], Net]] = [
    stacked_and_not,
    square_of_a_lookup,
    shifted_ids,
    lambda: factorisation_of_income(1e4),
    rows_as_an_output,
    chunked_gate,
    captured_by_a_body,
]
NAMES = ["unstacked", "square", "shifted", "income", "output", "chunk", "if"]
EVERY_NET = pytest.mark.parametrize("make", NETS, ids=NAMES)


def run(model: ir.Model, feeds: Feeds) -> Feeds:
    return open_model(ir.to_proto(model).SerializeToString()).run(feeds)


def same(got: Feeds, want: Feeds) -> None:
    assert list(got) == list(want)
    for name, array in want.items():
        np.testing.assert_allclose(got[name], array, atol=1e-5 * max(1.0, abs(array).max()))


def rewritten(model: ir.Model, pass_: Pass, feeds: Feeds) -> ir.Model:
    """Every site at rank 3, decoders still there."""
    sites = [site for site in pass_.match(model) if isinstance(site, Site)]
    probes = {site: pass_.probe(model, site) for site in sites}
    with SilentProgress().stage("calibrate") as stage:
        stats = calibrate(model, probes, Rows(feeds, ROWS), stage).stats
    changed = model.clone()
    for site in sites:
        pass_.rewrite(changed, site, 3, pass_.solve(model, site, stats[site]))
    return changed


@EVERY_NET
def test_exact_rewrites_are_exact(make: Callable[[], Net]) -> None:
    net = make()
    model = net.model()
    want = run(model, net.feeds)
    fusion = GatherFusion()
    fusion.prepare(model)
    same(run(model, net.feeds), want)
    same(run(finish(model, [fusion]), net.feeds), want)


@EVERY_NET
@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
def test_decoders_are_folded_exactly(make: Callable[[], Net], int8: bool) -> None:
    net = make()
    model, feeds = net.model(), {k: v for k, v in net.feeds.items() if v.ndim}
    if len(feeds) < len(net.feeds):
        assert skipped(model, Embedding(int8=int8)) == {
            "it is read inside the body of an If or a Loop"
        }
        return
    feeds = {k: np.maximum(v, 1) if v.dtype == np.int64 else v for k, v in feeds.items()}
    fusion = GatherFusion()
    fusion.prepare(model)
    changed = rewritten(model, Embedding(int8=int8), feeds)
    same(run(finish(changed, [fusion]), feeds), run(changed, feeds))


def skipped(model: ir.Model, pass_: Pass) -> set[str]:
    return {skip.reason for skip in pass_.match(model) if isinstance(skip, Skip)}


def test_shifted_ids_leave_no_wrong_range_behind() -> None:
    net = shifted_ids()
    finished = finish(net.model(), [GatherFusion()])
    assert "8, 8" not in finished.metadata_props.get(ID_RANGES, "")


def test_an_axis_without_a_name_is_not_taken_for_the_batch() -> None:
    model = stacked_and_not().model()
    for value in model.graph.inputs:
        assert value.shape is not None
        value.shape = ir.Shape([None, *value.shape[1:]])
    before = len(model.graph)
    assert len(finish(model, [GatherFusion()]).graph) == before


# --- layers ---------------------------------------------------------------------------------


def gemm(bias: Array | None, batch: int | str = "batch", n: int = 40, m: int = 48) -> ir.Model:
    net = Net()
    x = ir.val("x", FLOAT, [batch, n])
    net.inputs.append(x)
    inputs = [x, net.noise(n, m), *([] if bias is None else [net.const(bias)])]
    net.outputs.append(ir.val("y", FLOAT, [batch, m]))
    net.tape.op("Gemm", inputs, name="layer", output=net.outputs[0])
    return model_of(net.tape, net.inputs, net.outputs)


@pytest.mark.parametrize("shape", [(48, 1), (48, 48)])
def test_a_bias_for_each_row_of_the_batch_is_refused(shape: tuple[int, int]) -> None:
    model = gemm(np.ones(shape, np.float32), batch=48)
    assert skipped(model, LowRank()) == {"its bias is not one constant row"}


@pytest.mark.parametrize("bias", [None, np.float32(2), np.ones(48, np.float32)])
def test_full_rank_is_the_identity_beyond_the_calibration_rows(bias: Array | None) -> None:
    """Half of the inputs are dead in calibration; the layer still does what it did with them."""
    model, rng = gemm(bias), np.random.default_rng(0)
    seen = rng.normal(size=(256, 40)).astype(np.float32)
    dead = seen * (np.arange(40) < 20)
    for method in ("pca", "whitened", "svd"):
        pass_ = LowRank(method=method)
        (site,) = (s for s in pass_.match(model) if isinstance(s, Site))
        with SilentProgress().stage("calibrate") as stage:
            rows = Rows({"x": dead.astype(np.float32)})
            stats = calibrate(model, {site: pass_.probe(model, site)}, rows, stage).stats
        changed = model.clone()
        pass_.rewrite(changed, site, site.full_rank, pass_.solve(model, site, stats[site]))
        want = run(model, {"x": seen})["y"]
        np.testing.assert_allclose(run(changed, {"x": seen})["y"], want, atol=2e-4)


def test_a_rank_that_is_asked_for_is_the_rank() -> None:
    """Not the next multiple of `round_to`, nor of the steps of a wide table."""
    wide = Net()
    wide.head(wide.op("Gather", wide.noise(200, 128), wide.ids("user", 200, None)), 128)
    dense = {"x": np.random.default_rng(0).normal(size=(64, 40)).astype(np.float32)}
    cases: list[tuple[Pass, ir.Model, Feeds]] = [
        (LowRank(rank=5), gemm(None), dense),
        (Embedding(rank=5), wide.model(), wide.feeds),
    ]
    for pass_, model, feeds in cases:
        (site,) = (s for s in pass_.match(model) if isinstance(s, Site))
        with SilentProgress().stage("calibrate") as stage:
            stats = calibrate(model, {site: pass_.probe(model, site)}, Rows(feeds), stage).stats
        assert 5 in pass_.cost(site, pass_.solve(model, site, stats[site])).ranks
