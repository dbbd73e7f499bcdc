"""Which layer a kernel belongs to, on what ONNX Runtime really does to small graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from rankc.validate.layer_profile import OTHER, kernels, layer_times, read_trace
from rankc.validate.schema import LayerTime

X = np.random.default_rng(0).standard_normal((4, 16, 8, 8)).astype(np.float32)


class Net:
    """A graph that is written node by node."""

    def __init__(self, channels: int = 16) -> None:
        self.tape = ir.tape.Tape()
        self.input = ir.val("x", ir.DataType.FLOAT, ["batch", channels, 8, 8])
        self._rng = np.random.default_rng(1)

    def weight(self, *shape: int) -> ir.Value:
        array = self._rng.standard_normal(shape).astype(np.float32)
        name = f"w{len(self.tape.initializers)}"
        return self.tape.initializer(ir.tensor(array, name=name))

    def conv(self, x: ir.Value, n: int, m: int, k: int, name: str, out: str = "") -> ir.Value:
        pads = {"pads": [k // 2] * 4}
        return self.op("Conv", [x, self.weight(m, n, k, k)], name, out, pads)

    def op(
        self,
        kind: str,
        inputs: list[ir.Value],
        name: str,
        out: str = "",
        attributes: dict[str, list[int]] | None = None,
    ) -> ir.Value:
        value = self.tape.op(kind, inputs, attributes, name=name)
        value.name = out or f"v{len(self.tape.nodes)}"
        return value

    def save(self, y: ir.Value, path: Path) -> Path:
        y.name, y.type = "y", ir.TensorType(ir.DataType.FLOAT)
        y.shape = ir.Shape(["batch", 16, 8, 8])
        graph = ir.Graph(
            [self.input],
            [y],
            nodes=self.tape.nodes,
            initializers=self.tape.initializers,
            opset_imports={"": 18},
            name="net",
        )
        ir.save(ir.Model(graph, ir_version=10), path)
        return path


def dense(path: Path) -> Path:
    """Two convolutions with activations and a residual sum, which ONNX Runtime fuses."""
    net = Net()
    h = net.op("Relu", [net.conv(net.input, 16, 16, 3, "stage.one", "h1")], "act", "h2")
    h = net.op("Add", [net.conv(h, 16, 16, 3, "stage.two", "h3"), net.input], "sum", "h4")
    return net.save(net.op("Relu", [h], "last"), path)


def factored(path: Path, prefix: str = "stage.one") -> Path:
    """The first of them in two."""
    net = Net()
    h = net.conv(net.input, 16, 4, 3, f"{prefix}.A", "val_1")
    h = net.conv(h, 4, 16, 1, f"{prefix}.B", "h1")
    h = net.op("Relu", [h], "act", "h2")
    h = net.op("Add", [net.conv(h, 16, 16, 3, "stage.two", "h3"), net.input], "sum", "h4")
    return net.save(net.op("Relu", [h], "last"), path)


def by_layer(rows: list[LayerTime]) -> dict[str, LayerTime]:
    return {row["layer"]: row for row in rows}


def test_fused_kernels_and_factors_find_their_layers(tmp_path: Path) -> None:
    before, after = dense(tmp_path / "a.onnx"), factored(tmp_path / "b.onnx")
    rows = by_layer(layer_times(before, after, {"x": X}, seconds=0.0))
    assert rows["stage.one"]["nodes"] == (1, 2)
    assert rows["stage.two"]["nodes"] == (1, 1)
    assert all(rows[name]["original_ms"] > 0 for name in ("stage.one", "stage.two"))
    # Only what moves between memory layouts belongs to no layer.
    heavy = [k for k in kernels(after, {"x": X}, 0.0) if "Conv" in k.op]
    assert len(heavy) == 3
    assert set(rows) <= {"stage.one", "stage.two", "sum", "last", OTHER}


def test_layers_without_a_name_go_by_their_output(tmp_path: Path) -> None:
    before = dense(tmp_path / "a.onnx")
    model = onnx.load(before)
    for node in model.graph.node:
        node.name = ""
    onnx.save(model, before)
    after = factored(tmp_path / "b.onnx", prefix="Conv_0")  # as cleaning up would name it
    rows = by_layer(layer_times(before, after, {"x": X}, seconds=0.0))
    assert rows["h1"]["nodes"] == (1, 2)  # val_1 is of Conv_0, too, whose last output is h1
    assert rows["h3"]["nodes"] == (1, 1)


def test_fused_gemms_are_told_by_the_name_within(tmp_path: Path) -> None:
    def gemms(path: Path, *names: str) -> Path:
        net = Net()
        h = net.op("Flatten", [net.input], "flat")
        width = 1024
        for name in names:
            bias = net.weight(32)
            h = net.op("Relu", [net.op("Gemm", [h, net.weight(width, 32), bias], name)], "")
            width = 32
        h = net.op("MatMul", [h, net.weight(32, 1024)], "tail")
        shape = net.tape.initializer(ir.tensor(np.array([-1, 16, 8, 8]), name="shape"))
        return net.save(net.op("Reshape", [h, shape], "picture"), path)

    before = gemms(tmp_path / "a.onnx", "fc")
    after = gemms(tmp_path / "b.onnx", "fc.A", "fc.B")
    rows = by_layer(layer_times(before, after, {"x": X}, seconds=0.0))
    assert rows["fc"]["nodes"] == (1, 2)
    assert rows["tail"]["nodes"] == (1, 1)


def test_what_stands_for_many_layers_belongs_to_none(tmp_path: Path) -> None:
    before = dense(tmp_path / "a.onnx")
    net = Net()
    wide = net.conv(net.input, 16, 32, 3, "glued")
    h1, other = net.tape.op_multi_out("Split", [wide], {"axis": 1, "num_outputs": 2}, num_outputs=2)
    h1.name, other.name = "h1", "h3"
    after = net.save(net.op("Add", [h1, other], "sum"), tmp_path / "b.onnx")
    rows = by_layer(layer_times(before, after, {"x": X}, seconds=0.0))
    assert rows["stage.one"]["nodes"] == (1, 0)
    assert rows["stage.one"]["compressed_ms"] == 0.0
    assert rows[OTHER]["nodes"][1] >= 2


def event(name: str, duration: int, category: str = "Node", op: str = "Conv") -> dict[str, object]:
    """As ONNX Runtime 1.20 and later write them; times in whole microseconds."""
    return {
        "cat": category,
        "pid": 1,
        "tid": 1,
        "dur": duration,
        "ts": 2090,
        "ph": "X",
        "name": name,
        "args": {"op_name": op, "provider": "CPUExecutionProvider", "node_index": "0"},
    }


def test_a_trace_is_read_without_warm_up_and_outliers() -> None:
    durations = [900, 800, 2, 3, 2, 3, 2, 3, 2, 500]  # cold, cold, and one was preempted
    events = [event("a_kernel_time", d) for d in durations]
    events += [event("model_run", 99, "Session"), event("a_fence_before", 50)]
    (kernel,) = read_trace(events, runs=10, skip=2)
    assert (kernel.name, kernel.op) == ("a", "Conv")
    assert kernel.ms == pytest.approx(0.0025)


def test_a_kernel_in_a_loop_counts_all_its_turns() -> None:
    events = [event("a_kernel_time", 10) for _ in range(3 * 6)]
    (kernel,) = read_trace(events, runs=6, skip=2)
    assert kernel.ms == pytest.approx(0.03)
