"""Times that nobody measured: what a device could do at best, from its data sheet.

A node takes max(multiply-accumulates / peak, bytes / bandwidth) and a launch; a layer takes the sum
over the nodes that it is written as (Williams, Waterman and Patterson, "Roofline", CACM 2009).
Widths are rounded up to the device's multiple, since its kernels compute in such blocks. Kernels
reach half of a peak, or a tenth, so these times rank layers and are no promise: `Times.measured` is
False, and whoever shows them says so.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import onnx_ir as ir

from rankc.errors import RecipeError
from rankc.graph import attribute
from rankc.layer_models import isolate, rewritten, signature
from rankc.passbase import Curve, Pass, Site, Times
from rankc.rank_grid import fill, grid

Precision = Literal["fp32", "fp16"]
Memo = dict[tuple[Any, ...], float]  # by signature, pass, form, rank, device and precision
_EVALUATED = 4  # ranks of a form: each is a rewrite, and the model is piecewise linear
_BYTES = {"fp32": 4, "fp16": 2}


@dataclasses.dataclass(frozen=True, slots=True)
class Device:
    """What a data sheet says of a device."""

    name: str
    gmacs_fp32: float  # 10^9 multiply-accumulates per second
    gmacs_fp16: float | None  # None: no float16 arithmetic
    gbytes: float  # 10^9 bytes per second to and from memory
    launch_us: float  # microseconds that an operator takes which computes nothing
    multiple: int  # widths are computed in blocks of this many

    def gmacs(self, precision: Precision) -> float:
        """The peak.

        Raises:
            RecipeError: the device does not compute in that precision.
        """
        found = self.gmacs_fp32 if precision == "fp32" else self.gmacs_fp16
        if found is None:
            raise RecipeError(f"{self.name} does not compute in {precision}; use fp32")
        return found


# GPUs: peak = cores x boost clock for fp32, dense tensor-core rate (half of the sparse one that
# NVIDIA advertises) for fp16. Launch: of a small kernel inside an engine.
# Orin: technical briefs of AGX Orin (v1.2) and of Orin NX and Nano; 1024 dense fp16
# multiply-accumulates a cycle and SM, 16 SMs at 1.3 GHz (AGX), 8 at 918 MHz (NX), 625 MHz (Nano).
# CPUs: vector units x lanes x clock. Two 256-bit FMA units at 3 GHz (Intel since Haswell, AMD since
# Zen 2); two 128-bit units of Cortex-A76 and A78 (Arm's software optimization guides) at 2.4 GHz
# (Raspberry Pi 5) and 2.0 GHz (Orin's A78AE). Bandwidth of one core, and what a launch takes
# anywhere, are estimates of ours, right to a factor of two.
DEVICES: tuple[Device, ...] = (
    Device("x86-avx2-core", 48.0, None, 12.0, 1.0, 8),
    Device("cortex-a76-core", 19.2, 38.4, 6.0, 3.0, 4),
    Device("cortex-a78-core", 16.0, 32.0, 8.0, 3.0, 4),
    Device("jetson-orin-nano-8gb", 640.0, 5_120.0, 68.0, 8.0, 8),
    Device("jetson-orin-nx-16gb", 940.0, 7_520.0, 102.4, 8.0, 8),
    Device("jetson-agx-orin", 2_660.0, 21_300.0, 204.8, 7.0, 8),
    Device("rtx-4090", 41_300.0, 82_600.0, 1_008.0, 3.0, 8),  # Ada white paper: 82.6, 165.2 TFLOPS
    Device("t4", 4_070.0, 32_500.0, 320.0, 5.0, 8),  # data sheet: 8.1 and 65 TFLOPS
    Device("l4", 15_100.0, 60_500.0, 300.0, 4.0, 8),  # data sheet: 30.3 and 121 TFLOPS, dense
)


def device_named(name: str) -> Device:
    """A device out of `DEVICES`.

    Raises:
        RecipeError: there is none of that name; lists those there are.
    """
    known = {device.name: device for device in DEVICES}
    if name not in known:
        raise RecipeError(f"device {name!r} is not known; choose one of {', '.join(known)}")
    return known[name]


def roofline_times(
    device: Device,
    model: ir.Model,
    pass_: Pass,
    site: Site,
    curve: Curve,
    solution: Any,
    *,
    batch: int = 1,
    precision: Precision = "fp32",
    memo: Memo | None = None,
) -> Times | None:
    """What the device would take for the site at best, dense and at every entry of the curve.

    A few ranks of every form are written out and counted; `rank_grid` fills in the others.

    Args:
        device: out of `DEVICES`, or one's own.
        model: after clean-up; for many sites better `concrete(model, batch)`.
        pass_: the site's owner.
        site: a layer or a table.
        curve: what `pass_.cost` said of the solution.
        solution: what `pass_.solve` made of the site.
        batch: rows.
        precision: of arithmetic and of what is moved.
        memo: of earlier calls; equal layers are then counted once.

    Returns:
        None where the site has no layer, or its shapes are unknown.

    Raises:
        RecipeError: the device does not compute in that precision.
    """
    alone = isolate(model, pass_, site, batch)
    if isinstance(alone, str):
        return None
    memo, layer = {} if memo is None else memo, (signature(alone), pass_.name)
    timed: dict[str, dict[int, float]] = {}
    for i in grid(curve, pass_.dense(model, site).macs, most=_EVALUATED):
        form, rank = curve.form(i), int(curve.ranks[i])
        key = (*layer, form, rank, device, precision)
        if key not in memo:
            factored = rewritten(alone, pass_, site, rank, solution, form)
            memo[key] = milliseconds(factored, device, precision)
        timed.setdefault(form, {})[rank] = memo[key]
    ranked = fill(curve, timed)
    assert ranked is not None, site.name  # the grid has every form
    return Times(milliseconds(alone, device, precision), ranked, measured=False)


def milliseconds(alone: ir.Model, device: Device, precision: Precision = "fp32") -> float:
    """Of all nodes of a model whose shapes are numbers, one after the other."""
    return sum(_node_ms(node, device, precision) for node in alone.graph)


def _node_ms(node: ir.Node, device: Device, precision: Precision) -> float:
    moved = sum(_size(v) for v in (*node.inputs, *node.outputs)) * _BYTES[precision]
    compute = _macs(node, device.multiple) / (device.gmacs(precision) * 1e6)
    return max(compute, moved / (device.gbytes * 1e6)) + device.launch_us / 1e3


def _macs(node: ir.Node, multiple: int) -> int:
    """Multiply-accumulates of a Conv, MatMul or Gemm, widths rounded up; 0 for other nodes."""
    produced = _shape(node.outputs[0])
    if node.op_type == "Conv":
        out, depth, *kernel = _shape(node.inputs[1])
        groups = attribute(node, "group", 1)
        wide = groups * _up(out // groups, multiple if out > groups else 1)
        deep = _up(depth, multiple if depth > 1 else 1)  # a depthwise one has no width in a group
        return produced[0] * math.prod(produced[2:]) * wide * deep * math.prod(kernel)
    if node.op_type in ("MatMul", "Gemm"):
        first = _shape(node.inputs[0])
        depth = first[0] if attribute(node, "transA", 0) else first[-1]
        return math.prod(produced[:-1]) * _up(produced[-1], multiple) * _up(depth, multiple)
    return 0


def _up(width: int, multiple: int) -> int:
    return -(-width // multiple) * multiple


def _size(value: ir.Value | None) -> int:
    return 0 if value is None else math.prod(_shape(value))


def _shape(value: ir.Value | None) -> tuple[int, ...]:
    assert value is not None and value.shape is not None, "shapes are inferred"
    return tuple(int(d) for d in value.shape.numpy())
