"""Small convolutional nets, and random convolutions for properties."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from builders import model_of, weight

Array = NDArray[Any]


def convnet(seed: int = 0) -> ir.Model:
    """A residual net for images (batch, 4, 9, 11) with every kind of convolution; 5 logits."""
    rng, tape = np.random.default_rng(seed), ir.tape.Tape()
    x = ir.val("x", ir.DataType.FLOAT, ["batch", 4, 9, 11])

    def conv(value: ir.Value, name: str, shape: tuple[int, ...], **attributes: Any) -> ir.Value:
        scale = 1 / np.sqrt(np.prod(shape[1:]))
        w = weight(tape, f"{name}.w", (scale * rng.normal(size=shape)).astype(np.float32))
        b = weight(tape, f"{name}.bias", rng.normal(size=shape[0]).astype(np.float32))
        return tape.op("Conv", [value, w, b], attributes=attributes, name=name)

    stem = tape.op("Relu", [conv(x, "stem", (8, 4, 3, 3), pads=[1, 1, 1, 1])])
    inner = tape.op("Relu", [conv(stem, "same", (8, 8, 3, 3), auto_pad="SAME_UPPER")])
    inner = conv(inner, "grouped", (8, 4, 3, 3), pads=[1, 1, 1, 1], group=2)
    joined = tape.op("Relu", [tape.op("Add", [inner, stem])])
    down = conv(joined, "down", (12, 8, 3, 5), strides=[2, 1], pads=[1, 0, 0, 3], dilations=[1, 2])
    deep = conv(tape.op("Relu", [down]), "depthwise", (12, 1, 3, 3), pads=[1, 1, 1, 1], group=12)
    wide = tape.op("Relu", [conv(deep, "pointwise", (16, 12, 1, 1))])
    pooled = tape.op("Flatten", [tape.op("GlobalAveragePool", [wide])])
    w = weight(tape, "fc.w", (rng.normal(size=(16, 5)) / 4).astype(np.float32))
    b = weight(tape, "fc.bias", rng.normal(size=5).astype(np.float32))
    logits = ir.val("logits", ir.DataType.FLOAT, ["batch", 5])
    tape.op("Gemm", [pooled, w, b], name="fc", output=logits)
    return model_of(tape, [x], [logits])


def images(rows: int = 48, seed: int = 1) -> Array:
    """Smooth images for `convnet` with a mean, (rows, 4, 9, 11)."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(rows, 4, 12, 14))
    smooth = sum(noise[:, :, i : i + 9, j : j + 11] for i in range(3) for j in range(3))
    mixed: Array = np.einsum("nchw,cd->ndhw", smooth / 3, rng.normal(size=(4, 4))) + 0.5
    return mixed.astype(np.float32)


def random_conv(rng: np.random.Generator) -> tuple[ir.Model, tuple[int, ...]]:
    """A net of one convolution of random kind, y (batch, ...), and the shape of its input."""
    axes = int(rng.integers(1, 4))
    groups = int(rng.choice([1, 1, 2, 3]))
    channels, outputs = groups * int(rng.integers(1, 5)), groups * int(rng.integers(1, 5))
    kernel = rng.integers(1, 5 if axes < 3 else 4, axes)
    dilations, strides = rng.integers(1, 3, axes), rng.integers(1, 4, axes)
    reach = (kernel - 1) * dilations + 1
    size = reach + rng.integers(0, 5, axes)
    attributes: dict[str, Any] = {
        "strides": strides.tolist(),
        "dilations": dilations.tolist(),
        "group": groups,
    }
    kind = rng.choice(["none", "pads", "SAME_UPPER", "SAME_LOWER", "VALID"])
    if str(kind).startswith("SAME"):
        attributes["dilations"] = [1] * axes  # ONNX Runtime takes no others with it
    if kind == "pads":
        attributes["pads"] = [int(rng.integers(0, k + 1)) for k in [*reach - 1, *reach - 1]]
    elif kind != "none":
        attributes["auto_pad"] = str(kind)
    tape, x = ir.tape.Tape(), ir.val("x", ir.DataType.FLOAT, ["batch", channels, *size.tolist()])
    shape = (outputs, channels // groups, *kernel.tolist())
    inputs = [x, weight(tape, "w", rng.normal(size=shape).astype(np.float32))]
    if rng.random() < 0.5:
        inputs.append(weight(tape, "b", rng.normal(size=outputs).astype(np.float32)))
    y = ir.val("y", ir.DataType.FLOAT, ["batch", outputs, *[None] * axes])
    tape.op("Conv", inputs, attributes=attributes, name="conv", output=y)
    return model_of(tape, [x], [y]), (channels, *size.tolist())
