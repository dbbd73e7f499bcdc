from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest

from builders import model_of, weight
from layer_builders import image_model, lowrank, random, site_named, solutions_of, stack
from rankc.errors import RecipeError
from rankc.layer_models import concrete, isolate, rewritten, solved
from rankc.passes.conv import Conv
from rankc.rewriting import Sites
from rankc.roofline import DEVICES, Device, device_named, milliseconds, roofline_times

# 1 multiply-accumulate and 1 byte take a microsecond each, a launch ten.
SLOW = Device("slow", 1e-3, 2e-3, 1e-3, 10.0, 1)


def gemm(n: int, m: int, batch: int = 1) -> ir.Model:
    x, tape = ir.val("x", ir.DataType.FLOAT, [batch, n]), ir.tape.Tape()
    y = ir.val("y", ir.DataType.FLOAT, [batch, m])
    tape.op("MatMul", [x, weight(tape, "w", random(n, m))], name="up", output=y)
    return model_of(tape, [x], [y])


def test_a_node_takes_the_longer_of_computing_and_moving() -> None:
    # 100 x 30 weights, 2 rows: 6,000 MACs; 4 (200 + 3,000 + 60) = 13,040 bytes.
    assert milliseconds(gemm(100, 30, 2), SLOW) == pytest.approx(13.040 + 0.010)
    # float16: half the bytes, twice the peak.
    assert milliseconds(gemm(100, 30, 2), SLOW, "fp16") == pytest.approx(6.520 + 0.010)
    quick = dataclasses.replace(SLOW, gbytes=1.0)
    assert milliseconds(gemm(100, 30, 2), quick) == pytest.approx(6.0 + 0.010)


def test_widths_count_in_blocks() -> None:
    blocks = dataclasses.replace(SLOW, gbytes=1e9, launch_us=0.0, multiple=8)
    assert milliseconds(gemm(16, 9), blocks) == pytest.approx(16 * 16 / 1e3)
    assert milliseconds(gemm(16, 16), blocks) == milliseconds(gemm(16, 9), blocks)


def test_a_convolution_by_hand() -> None:
    model, pass_ = image_model(), Conv()
    alone = isolate(model, pass_, site_named(model, pass_, "conv1"), 2)
    assert isinstance(alone, ir.Model)
    # 16 to 16 channels, 3 x 3, 12 x 12 to 5 x 5 with stride 2, 2 images.
    assert milliseconds(alone, dataclasses.replace(SLOW, gbytes=1e9)) == pytest.approx(
        2 * 25 * 16 * 16 * 9 / 1e3 + 0.010
    )


def test_a_layer_of_two_nodes_takes_their_sum() -> None:
    model, pass_ = stack([64, 64]), lowrank()
    site = site_named(model, pass_, "fc0")
    alone = isolate(model, pass_, site, 1)
    assert isinstance(alone, ir.Model)
    factored = rewritten(alone, pass_, site, 8, solved(pass_, alone, site))
    first, second = 4 * (64 + 64 * 8 + 8), 4 * (8 + 8 * 64 + 64 + 64)  # bytes: more than MACs
    assert milliseconds(factored, SLOW) == pytest.approx((first + second) / 1e3 + 0.020)


@pytest.mark.parametrize("name", ["lowrank", "conv"])
def test_times_are_labelled_as_not_measured_and_cover_the_curve(name: str) -> None:
    pass_ = lowrank() if name == "lowrank" else Conv()
    model = concrete(stack([256, 256]) if name == "lowrank" else image_model(), 1)
    sites = Sites.of(model, [pass_])
    solutions = solutions_of(model, sites)
    memo: dict[tuple[object, ...], float] = {}
    for site in sites.owners:
        curve = pass_.cost(site, solutions[site])
        found = roofline_times(SLOW, model, pass_, site, curve, solutions[site], memo=memo)
        assert found is not None
        assert not found.measured
        assert found.ranked.shape == curve.ranks.shape
        assert np.isfinite(found.ranked).all()
        counted = len(memo)
        again = roofline_times(SLOW, model, pass_, site, curve, solutions[site], memo=memo)
        assert again is not None
        assert len(memo) == counted
        np.testing.assert_array_equal(again.ranked, found.ranked)
        if name == "lowrank":
            assert (np.diff(found.ranked) > 0).all()
            assert found.ranked[0] < found.dense < found.ranked[-1]


def test_a_layer_of_unknown_shape_has_no_times() -> None:
    x, tape = ir.val("x", ir.DataType.FLOAT, ["batch", "tokens", 32]), ir.tape.Tape()
    y = ir.val("y", ir.DataType.FLOAT, ["batch", "tokens", 40])
    tape.op("MatMul", [x, weight(tape, "w", random(32, 40))], name="up", output=y)
    model, pass_ = model_of(tape, [x], [y]), lowrank()
    site = site_named(model, pass_, "up")
    known = stack([32, 40])
    same = site_named(known, pass_, "fc0")
    solution = solutions_of(known, Sites.of(known, [pass_]))[same]
    assert roofline_times(SLOW, model, pass_, site, pass_.cost(site, solution), solution) is None


def test_devices_are_plausible_and_found_by_name() -> None:
    assert len({device.name for device in DEVICES}) == len(DEVICES)
    for device in DEVICES:
        assert device_named(device.name) is device
        assert device.gmacs_fp16 is None or device.gmacs_fp16 >= device.gmacs_fp32
        assert 1 < device.gmacs_fp32 / device.gbytes < 100
    with pytest.raises(RecipeError, match=r"'t5' is not known; choose one of x86-avx2-core, .*l4"):
        device_named("t5")
    with pytest.raises(RecipeError, match="does not compute in fp16"):
        device_named("x86-avx2-core").gmacs("fp16")
