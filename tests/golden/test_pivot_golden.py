"""What the form `pivot` makes of a Gemm, of a MatMul and of a convolution, node by node."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from builders import lookup, lookup_rows, mlp, mlp_rows
from conv_builders import convnet, images
from rankc.calibrate import calibrate
from rankc.cleanup import clean
from rankc.passbase import Pass, Site
from rankc.passes.conv import Conv
from rankc.passes.lowrank import LowRank
from rankc.progress import SilentProgress
from sources import Rows

LAYER = LowRank(forms=("pivot",), min_size=64, round_to=1)
IMAGE = Conv(forms=("pivot",), min_size=64, round_to=1)

# Of 40 outputs 3 are computed from the 36 inputs, the other 37 from those 3.
GEMM = """
fc1.kept = Gemm(concat, fc1.kept[36x3], fc1.kept.b[3])
fc1.others = Gemm(fc1.kept, fc1.others[3x37], fc1.others.b[37])
fc1.joined = Concat(fc1.kept, fc1.others) axis=1
fc1.order = Gather(fc1.joined, fc1.order[40]) axis=1
"""
# A MatMul has no bias; it gets one, so that the mean output is kept.
MATMUL = """
up.kept = MatMul(x, up.kept[16x3])
up.kept.b = Add(up.kept, up.kept.b[3])
up.others = MatMul(up.kept.b, up.others[3x21])
up.others.b = Add(up.others, up.others.b[21])
up.joined = Concat(up.kept.b, up.others.b) axis=1
up.order = Gather(up.joined, up.order[24]) axis=1
"""
# Stride, padding and dilation are those of the first; the second looks at single pixels.
CONV = """
down.kept = Conv(relu, down.kept[3x8x3x5], down.kept.b[3]) dilations=1,2 group=1 kernel_shape=3,5 \
pads=1,0,0,3 strides=2,1
down.others = Conv(down.kept, down.others[9x3x1x1], down.others.b[9]) dilations=1,1 group=1 \
kernel_shape=1,1 pads=0,0,0,0 strides=1,1
down.joined = Concat(down.kept, down.others) axis=1
down.order = Gather(down.joined, down.order[12]) axis=1
"""


def text(model: ir.Model, name: str) -> str:
    """A line a node of that layer; a value is called after the node that makes it."""
    lines = [_line(node) for node in model.graph if str(node.name).startswith(f"{name}.")]
    return "\n" + "\n".join(lines) + "\n"


def _line(node: ir.Node) -> str:
    attributes = [
        f" {a.name}={','.join(map(str, np.atleast_1d(np.array(a.value))))}"
        for a in sorted(node.attributes.values(), key=lambda a: a.name)
    ]
    read = ", ".join(_called(v) for v in node.inputs if v is not None)
    return f"{node.name} = {node.op_type}({read}){''.join(attributes)}"


def _called(value: ir.Value) -> str:
    if value.const_value is not None:
        return f"{value.name}[{'x'.join(map(str, value.const_value.shape.numpy()))}]"
    producer = value.producer()
    if producer is None:
        return str(value.name)
    return str(producer.name) if producer.name else producer.op_type.lower()


def rewritten(pass_: Pass, model: ir.Model, rows: Rows, name: str, rank: int) -> ir.Model:
    (site,) = [s for s in pass_.match(model) if isinstance(s, Site) and s.name == name]
    with SilentProgress().stage("calibrate") as stage:
        stats = calibrate(model, {site: pass_.probe(model, site)}, rows, stage).stats
    pass_.rewrite(model, site, rank, pass_.solve(model, site, stats[site]), "pivot")
    return model


def cleaned(model: ir.Model) -> ir.Model:
    """With shapes; nodes that are no layers are called after their operator."""
    clean(model)
    for node in model.graph:
        node.name = node.name if node.op_type in ("Conv", "Gemm", "MatMul") else ""
    return model


@pytest.mark.parametrize(
    ("pass_", "model", "rows", "name", "after"),
    [
        pytest.param(LAYER, lookup(), Rows({"ids": lookup_rows()}), "fc1", GEMM, id="gemm"),
        pytest.param(LAYER, cleaned(mlp()), Rows({"x": mlp_rows()}), "up", MATMUL, id="matmul"),
        pytest.param(IMAGE, cleaned(convnet()), Rows({"x": images()}), "down", CONV, id="conv"),
    ],
)
def test_the_rewrite(pass_: Pass, model: ir.Model, rows: Rows, name: str, after: str) -> None:
    (node,) = [node for node in model.graph if node.name == name]
    dense = {str(value.name) for value in node.inputs[1:] if value is not None}
    assert text(rewritten(pass_, model, rows, name, 3), name) == after
    assert not dense & set(model.graph.initializers)
