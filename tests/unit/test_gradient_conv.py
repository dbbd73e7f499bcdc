"""Backward rules of image operators, over every way in which a window can slide.

Sliding windows are linear but for the maximum, so their slopes are taken with steps of 1 and whole
numbers, and agree to the last digit although ONNX Runtime slides in float32 only.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from builders import Array, model_of
from gradient_builders import (
    Build,
    c,
    differentiable,
    inferred,
    op,
    op_ints,
    run,
    slope_of_row,
)
from rankc.gradient import add_gradients

RUNTIMES_DIFFER = re.compile("lies in the padding|leaves pixels out")  # tests of their own, below


@dataclasses.dataclass(frozen=True)
class Slide:
    """A random window over an image of (channels, *size)."""

    size: tuple[int, ...]
    attributes: dict[str, Any]
    groups: int
    seed: int

    @property
    def kernel(self) -> tuple[int, ...]:
        return tuple(self.attributes["kernel_shape"])

    def whole(self, *shape: int) -> Array:
        """Whole numbers, of which float32 adds up many without rounding."""
        return np.random.default_rng(self.seed).integers(-4, 5, size=shape).astype(np.float64)


@st.composite
def slides(draw: st.DrawFn, auto: bool = True) -> Slide:
    rank = draw(st.integers(1, 3))
    most = 7 if rank < 3 else 4

    def each(low: int, high: int, n: int = rank) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=n, max_size=n))

    size, kernel, strides = each(1, most), each(1, 3), each(1, 4)
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": strides}
    kind = draw(
        st.sampled_from(["explicit", "VALID", "SAME_UPPER", "SAME_LOWER"][: 4 if auto else 1])
    )
    if kind == "explicit":
        attributes["pads"] = [
            min(p, kernel[k % rank] - 1) for k, p in enumerate(each(0, 2, 2 * rank))
        ]
    else:
        attributes["auto_pad"] = kind
    if not kind.startswith("SAME"):  # which ONNX Runtime does not dilate
        attributes["dilations"] = each(1, 3)
    return Slide(tuple(size), attributes, draw(st.integers(1, 3)), draw(st.integers(0, 99)))


def fits(slide: Slide) -> bool:
    """Whether there is a window at all."""
    pads = slide.attributes.get("pads", [0] * (2 * len(slide.size)))
    dilations = slide.attributes.get("dilations", [1] * len(slide.size))
    return slide.attributes.get("auto_pad", "").startswith("SAME") or all(
        n + a + b >= d * (k - 1) + 1
        for n, a, b, d, k in zip(
            slide.size, pads, pads[len(slide.size) :], dilations, slide.kernel, strict=False
        )
    )


def in_float(op_type: str, *constants: Array, **attributes: Any) -> Build:
    """In float32, which is what ONNX Runtime has kernels for."""

    def build(tape: ir.tape.Tape, xs: list[ir.Value]) -> ir.Value:
        x = tape.op("Cast", [xs[0]], {"to": int(ir.DataType.FLOAT)})
        y = tape.op(op_type, [x, *(c(tape, k, np.float32) for k in constants)], attributes)
        return tape.op("Cast", [y], {"to": int(ir.DataType.DOUBLE)})

    return build


def check(
    build: Build, row: Array, step: float = 1.0, tolerance: float = 1e-6, opset: int = 20
) -> None:
    """The gradient at two equal rows is the slope at one."""
    model = differentiable(build, [row.shape], opset)
    forward = model.clone()
    gradients = add_gradients(model, ["x0"])
    assume(not any(RUNTIMES_DIFFER.search(u.reason) for u in gradients.unreachable))
    assert not gradients.unreachable
    expected = slope_of_row(forward, row, step)
    found = run(model, {"x0": np.stack([row, row])})[gradients.outputs["x0"]]
    scale = max(1.0, float(abs(expected).max()))
    np.testing.assert_allclose(found, np.stack([expected] * 2), atol=tolerance * scale)


@settings(max_examples=25)
@given(slide=slides(), depth=st.integers(1, 2), width=st.integers(1, 2), bias=st.booleans())
def test_convolution(slide: Slide, depth: int, width: int, bias: bool) -> None:
    assume(fits(slide))
    weight = slide.whole(width * slide.groups, depth, *slide.kernel)
    more = [slide.whole(len(weight))] if bias else []
    build = in_float("Conv", weight, *more, group=slide.groups, **slide.attributes)
    check(build, slide.whole(depth * slide.groups, *slide.size))


@settings(max_examples=25)
@given(slide=slides(auto=False), depth=st.integers(1, 2), width=st.integers(1, 2), data=st.data())
def test_transposed_convolution(slide: Slide, depth: int, width: int, data: st.DataObject) -> None:
    strides, dilations = slide.attributes["strides"], slide.attributes["dilations"]
    added = [data.draw(st.integers(0, s - 1)) for s in strides]
    weight = slide.whole(depth * slide.groups, width, *slide.kernel)
    attributes = slide.attributes | {"output_padding": added, "group": slide.groups}
    made = [
        (n - 1) * s + d * (k - 1) + 1 + more - a - b
        for n, s, d, k, more, a, b in zip(
            slide.size, strides, dilations, slide.kernel, added,
            slide.attributes["pads"], slide.attributes["pads"][len(added) :], strict=False
        )
    ]  # fmt: skip
    assume(min(made) > 0)
    check(in_float("ConvTranspose", weight, **attributes), slide.whole(len(weight), *slide.size))


@settings(max_examples=25)
@given(slide=slides(), ceil=st.booleans(), padding_counts=st.booleans())
def test_average_pool(slide: Slide, ceil: bool, padding_counts: bool) -> None:
    assume(fits(slide))
    attributes = slide.attributes | {"ceil_mode": int(ceil)}
    build = in_float("AveragePool", count_include_pad=int(padding_counts), **attributes)
    check(build, slide.whole(2, *slide.size))


@settings(max_examples=25)
@given(slide=slides(), ceil=st.booleans(), opset=st.sampled_from([13, 20]))
def test_max_pool(slide: Slide, ceil: bool, opset: int) -> None:
    assume(fits(slide))
    rng = np.random.default_rng(slide.seed)
    count = 2 * int(np.prod(slide.size))
    row = rng.permutation(count).reshape(2, *slide.size).astype(np.float64)  # no ties
    build = op("MaxPool", ceil_mode=int(ceil), **slide.attributes)
    check(build, row, step=0.25, tolerance=1e-12, opset=opset)


@settings(max_examples=20)
@given(data=st.data(), rank=st.integers(1, 3))
def test_constant_padding_and_cropping(data: st.DataObject, rank: int) -> None:
    size = data.draw(st.lists(st.integers(2, 4), min_size=rank, max_size=rank))
    pads = data.draw(st.lists(st.integers(-1, 2), min_size=2 * rank, max_size=2 * rank))
    assume(all(n + a + b > 0 for n, a, b in zip(size, pads, pads[rank:], strict=False)))
    whole = [0, *pads[:rank], 0, *pads[rank:]]
    row = np.arange(float(np.prod(size))).reshape(size)
    check(op_ints("Pad", whole), row, tolerance=1e-12)


@pytest.mark.parametrize("how", ["asymmetric floor", "half_pixel round_prefer_floor"])
@settings(max_examples=10)
@given(data=st.data(), rank=st.integers(1, 3))
def test_enlarging_by_nearest_neighbours(how: str, data: st.DataObject, rank: int) -> None:
    factors = data.draw(st.lists(st.integers(1, 4), min_size=rank, max_size=rank))
    mode, nearest = how.split()
    build = in_float(
        "Resize",
        np.zeros(0),
        np.array([1, 1, *factors]),
        coordinate_transformation_mode=mode,
        nearest_mode=nearest,
    )
    check(build, np.arange(2.0 * 3**rank).reshape(2, *([3] * rank)))


def gradient_of(build: Build, row: Array, opset: int = 20) -> Array:
    model = differentiable(build, [row.shape], opset)
    gradients = add_gradients(model, ["x0"])
    found: Array = run(model, {"x0": row[None]})[gradients.outputs["x0"]][0]
    return found


@pytest.mark.parametrize("opset", [13, 20])
def test_of_equal_pixels_one_wins_a_window(opset: int) -> None:
    build = op("MaxPool", kernel_shape=[2, 2], strides=[1, 1])
    found = gradient_of(build, np.zeros((1, 3, 3)), opset)
    mix = np.random.default_rng(0).normal(size=4)
    np.testing.assert_allclose(found, [[[mix[0], mix[1], 0], [mix[2], mix[3], 0], [0, 0, 0]]])


def test_equal_pixels_share_a_global_maximum() -> None:
    found = gradient_of(in_float("GlobalMaxPool"), np.array([[[1.0, 3.0], [3.0, 0.0]]]))
    share = np.random.default_rng(0).normal() / 2
    np.testing.assert_allclose(found, [[[0, share], [share, 0]]], rtol=1e-6)


REFUSALS: list[tuple[Build, tuple[int, ...], str]] = [
    (
        in_float("Conv", np.ones((1, 1, 1)), strides=[4], auto_pad="SAME_UPPER"),
        (1, 4),
        "leaves pixels out where the runtime likes to",
    ),
    (
        in_float("ConvTranspose", np.ones((1, 1, 2)), strides=[2], auto_pad="SAME_LOWER"),
        (1, 4),
        "leaves its padding to the runtime",
    ),
    (
        op("MaxPool", kernel_shape=[1], strides=[2], ceil_mode=1),
        (1, 2),
        "lies in the padding",
    ),
    (op_ints("Pad", [0, 0, 1, 0, 0, 1], mode="edge"), (1, 4), "pads by what it reads (mode edge)"),
    (in_float("Resize", np.zeros(0), np.array([1, 1, 1.5])), (1, 4), "by whole factors"),
    (
        in_float("Resize", np.zeros(0), np.array([1, 1, 2]), mode="linear"),
        (1, 4),
        "only nearest neighbours",
    ),
]


@pytest.mark.parametrize(("build", "shape", "reason"), REFUSALS)
def test_what_runtimes_or_rules_do_not_agree_on_is_refused(
    build: Build, shape: tuple[int, ...], reason: str
) -> None:
    model = differentiable(build, [shape])
    (refused,) = add_gradients(model, ["x0"]).unreachable
    assert reason in refused.reason


def test_parameters_are_not_differentiated() -> None:
    def build(tape: ir.tape.Tape, xs: list[ir.Value]) -> ir.Value:
        weight = tape.op("ReduceSum", [xs[0], c(tape, [0], np.int64)], {"keepdims": 0})
        weight = tape.op("Cast", [weight], {"to": int(ir.DataType.FLOAT)})
        image = c(tape, np.ones((1, 2, 5)), np.float32)
        y = tape.op("Conv", [image, weight], {"kernel_shape": [3]})
        return tape.op("Cast", [y], {"to": int(ir.DataType.DOUBLE)})

    model = differentiable(build, [(4, 2, 3)])
    (refused,) = add_gradients(model, ["x0"]).unreachable
    assert "the parameters of" in refused.reason


def residual_net(size: int | str = 9, pool: str = "AveragePool") -> ir.Model:
    """Two convolutions, a shortcut, a pool, a mean over space, 3 logits."""
    values = np.random.default_rng(5)
    x, tape = ir.val("x", ir.DataType.FLOAT, ["batch", 2, size, size]), ir.tape.Tape()

    def normal(*shape: int) -> ir.Value:
        return c(tape, values.normal(size=shape), np.float32)

    pads = {"pads": [1] * 4}
    stem = tape.op("Conv", [x, normal(4, 2, 3, 3)], pads, output=ir.Value(name="stem"))
    norm = [c(tape, values.uniform(1, 2, 4), np.float32) for _ in range(4)]
    a = tape.op("Tanh", [tape.op("BatchNormalization", [stem, *norm])])
    b = tape.op("Conv", [a, normal(4, 2, 3, 3), normal(4)], pads | {"group": 2})
    both = tape.op("Tanh", [tape.op("Add", [a, b])])
    pooled = tape.op(pool, [both], {"kernel_shape": [3, 3], "strides": [2, 2]})
    flat = tape.op("Flatten", [tape.op("GlobalAveragePool", [pooled])])
    y = ir.val("y", ir.DataType.FLOAT, ["batch", 3])
    tape.op("MatMul", [flat, normal(4, 3)], output=y)
    return inferred(model_of(tape, [x], [y]))


def test_a_residual_net_at_a_convolution_inside() -> None:
    """The gradient at `stem` through the rest, against that rest fed with `stem` itself."""
    model = residual_net()
    x = np.random.default_rng(1).normal(size=(2, 2, 9, 9)).astype(np.float32)
    signs = np.array([[1, -1, 1], [-1, -1, 1]], np.float32)
    gradients = add_gradients(model, ["stem"])
    assert (gradients.width, gradients.unreachable) == (3, ())
    assert gradients.cotangent is not None
    found = run(model, {"x": x, gradients.cotangent: signs})[gradients.outputs["stem"]]
    expected = _slope_behind_stem(x, signs)
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=2e-4)


def _slope_behind_stem(x: Array, signs: Array) -> Array:
    """Central differences of signs . y by the output of the first convolution."""
    model = residual_net()
    stem = next(v for node in model.graph for v in node.outputs if v.name == "stem")
    model.graph.outputs.append(stem)
    at = run(model, {"x": x})["stem"]
    fed = ir.val("x0", ir.DataType.FLOAT, ["batch", 4, 9, 9])
    stem.replace_all_uses_with(fed, replace_graph_outputs=True)
    model.graph.outputs.pop()
    model.graph.inputs[0] = fed
    producer = stem.producer()
    assert producer is not None
    model.graph.remove(producer, safe=True)
    slopes = []
    for row, sign in zip(at, signs, strict=True):
        moves = 1e-2 * np.eye(row.size, dtype=np.float32).reshape(-1, *row.shape)
        up, down = (run(model, {"x0": row + way * moves})["y"] for way in (1, -1))
        slopes.append(((up - down) @ sign).reshape(row.shape) / 2e-2)
    return np.stack(slopes)


def test_images_of_any_size_where_windows_move_by_one_pixel() -> None:
    fixed, free = residual_net(9, "MaxPool"), residual_net("size", "MaxPool")
    rows = np.random.default_rng(1).normal(size=(2, 2, 9, 9)).astype(np.float32)
    found = []
    for model in (fixed, free):
        gradients = add_gradients(model, ["stem"])
        assert gradients.cotangent is not None
        feeds = {"x": rows, gradients.cotangent: np.ones((2, 3), np.float32)}
        found.append(run(model, feeds)[gradients.outputs["stem"]])
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
