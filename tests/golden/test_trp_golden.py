"""What `trp` makes of convolutions and of a layer, in every scheme: the graph before and after."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from conv_builders import convnet, images
from rankc.calibrate import calibrate
from rankc.cleanup import clean
from rankc.convolution.weights import Scheme
from rankc.passbase import Site
from rankc.passes.trp import Trp
from rankc.progress import SilentProgress
from sources import Rows

DOWN = "down = Conv(12x8x3x5, 12) pads 1 0 0 3 strides 2 1 dilations 1 2\n"
POINTWISE = "pointwise = Conv(16x12x1x1, 16)\n"
BEFORE = f"""
stem = Conv(8x4x3x3, 8) pads 1 1 1 1
same = Conv(8x8x3x3, 8)
grouped = Conv(8x4x3x3, 8) group 2 pads 1 1 1 1
{DOWN}depthwise = Conv(12x1x3x3, 12) group 12 pads 1 1 1 1
{POINTWISE}fc = Gemm(16x5, 5)
"""
# Padding, stride and dilation of an axis stay with the factor that has its taps; the last has the
# bias.
SPATIAL = """\
down.A = Conv(2x8x3x1) group 1 pads 1 0 0 0 strides 2 1 dilations 1 1
down.B = Conv(12x2x1x5, 12) group 1 pads 0 0 0 3 strides 1 1 dilations 1 2
"""
CHANNEL = """\
down.A = Conv(2x8x3x5) group 1 pads 1 0 0 3 strides 2 1 dilations 1 2
down.B = Conv(12x2x1x1, 12) group 1 pads 0 0 0 0 strides 1 1 dilations 1 1
"""
# Two pointwise kernels for each of 12 outputs, each with a kernel of its own.
DECOUPLED = """\
down.A = Conv(24x8x1x1) group 1 pads 0 0 0 0 strides 1 1 dilations 1 1
down.B = Conv(12x2x3x5, 12) group 12 pads 1 0 0 3 strides 2 1 dilations 1 2
"""
MATRIX = """\
pointwise.A = Conv(2x12x1x1) group 1 pads 0 0 0 0 strides 1 1 dilations 1 1
pointwise.B = Conv(16x2x1x1, 16) group 1 pads 0 0 0 0 strides 1 1 dilations 1 1
"""
LAYER = "fc.A = MatMul(16x2)\nfc.B = Gemm(2x5, 5)\n"


KEYS = ("group", "pads", "strides", "dilations")


def text(model: ir.Model) -> str:
    """A line a layer, in order: the shapes of its weights, and the geometry."""
    lines = []
    for node in model.graph:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        shapes = ["x".join(map(str, v.shape or [])) for v in node.inputs[1:] if v is not None]
        found = ((key, node.attributes[key]) for key in KEYS if key in node.attributes)
        geometry = [
            f" {key} {a.as_int() if key == 'group' else ' '.join(map(str, a.as_ints()))}"
            for key, a in found
        ]
        lines.append(f"{node.name} = {node.op_type}({', '.join(shapes)}){''.join(geometry)}")
    return "\n" + "\n".join(lines) + "\n"


def cleaned() -> ir.Model:
    model = convnet()
    clean(model)
    return model


def test_the_model_before() -> None:
    assert text(cleaned()) == BEFORE


@pytest.mark.parametrize(
    ("name", "scheme", "before", "after"),
    [
        pytest.param("down", "spatial", DOWN, SPATIAL, id="spatial"),
        pytest.param("down", "channel", DOWN, CHANNEL, id="channel"),
        pytest.param("down", "decoupled", DOWN, DECOUPLED, id="decoupled"),
        pytest.param("pointwise", "spatial", POINTWISE, MATRIX, id="pointwise"),
        pytest.param("fc", "decoupled", "fc = Gemm(16x5, 5)\n", LAYER, id="layer"),
    ],
)
def test_the_rewrite(name: str, scheme: Scheme, before: str, after: str) -> None:
    model, pass_ = cleaned(), Trp(min_size=64, scheme=scheme)
    site = next(s for s in pass_.match(model) if isinstance(s, Site) and s.name == name)
    with SilentProgress().stage("calibrate") as stage:
        probes = {site: pass_.probe(model, site)}
        stats = calibrate(model, probes, Rows({"x": images()}), stage).stats
    pass_.rewrite(model, site, 2, pass_.solve(model, site, stats[site]))
    assert text(model) == BEFORE.replace(before, after)
    assert f"{name}.w" not in model.graph.initializers
