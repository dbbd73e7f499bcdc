"""What `maestro` makes of a convolution and of a layer, in either scheme."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from conv_builders import convnet, images
from rankc.calibrate import calibrate
from rankc.cleanup import clean
from rankc.passbase import Site
from rankc.passes.maestro import Maestro
from rankc.progress import SilentProgress
from rankc.two_factors import Scheme
from sources import Rows

BEFORE = {
    "down": "down = Conv(12x8x3x5, 12) pads 1 0 0 3 strides 2 1 dilations 1 2",
    "fc": "fc = Gemm(16x5, 5)",
}
CHANNEL = """
down.A = Conv(2x8x3x5) pads 1 0 0 3 strides 2 1 dilations 1 2
down.B = Conv(12x2x1x1, 12) pads 0 0 0 0 strides 1 1 dilations 1 1
"""
SPATIAL = """
down.A = Conv(2x8x3x1) pads 1 0 0 0 strides 2 1 dilations 1 1
down.B = Conv(12x2x1x5, 12) pads 0 0 0 3 strides 1 1 dilations 1 2
"""
LAYER = """
fc.A = MatMul(16x2)
fc.B = Gemm(2x5, 5)
"""


def text(model: ir.Model, name: str) -> str:
    """A line a node that is called so: the shapes of its weights, and the geometry."""
    lines = []
    for node in model.graph:
        if str(node.name).partition(".")[0] != name:
            continue
        shapes = ["x".join(map(str, v.shape or [])) for v in node.inputs[1:] if v is not None]
        geometry = [
            f" {key} {' '.join(map(str, node.attributes[key].as_ints()))}"
            for key in ("pads", "strides", "dilations")
            if key in node.attributes
        ]
        lines.append(f"{node.name} = {node.op_type}({', '.join(shapes)}){''.join(geometry)}")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("name", "scheme", "after"),
    [
        ("down", "channel", CHANNEL),
        ("down", "spatial", SPATIAL),
        ("fc", "channel", LAYER),
        ("fc", "spatial", LAYER),
    ],
)
def test_the_rewrite(name: str, scheme: Scheme, after: str) -> None:
    model, pass_ = convnet(), Maestro(min_size=64, round_to=1, scheme=scheme)
    clean(model)
    assert text(model, name) == BEFORE[name]
    site = next(s for s in pass_.match(model) if isinstance(s, Site) and s.name == name)
    with SilentProgress().stage("calibrate") as stage:
        probes = {site: pass_.probe(model, site)}
        stats = calibrate(model, probes, Rows({"x": images()}), stage).stats
    pass_.rewrite(model, site, 2, pass_.solve(model, site, stats[site]))
    assert text(model, name) == after.strip()
    assert f"{name}.w" not in model.graph.initializers
