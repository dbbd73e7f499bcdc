"""Convolutions: a window that moves over one to three axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch.nn.functional as F  # noqa: N812 - as everybody calls it

from rankc.train.registry import Builder, Function, Op, Tensor

Pads = list[tuple[int, int]]  # before and after, an axis each

_CONV = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


def padding(op: Op) -> Function:
    """What gives the padding of each axis, `auto_pad` worked out for the input's size.

    The function takes sizes, kernel, strides and dilations, an integer for each axis.
    """
    auto, given = op.text("auto_pad", "NOTSET"), op.integers("pads")
    if auto not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise op.refuse(f"auto_pad {auto!r}; known are NOTSET, VALID, SAME_UPPER, SAME_LOWER")
    if auto.startswith("SAME") and any(d > 1 for d in op.integers("dilations") or ()):
        # ONNX Runtime refuses convolutions of that kind, and pads pools as if there were none.
        raise op.refuse(f"auto_pad {auto} with dilations; it is supported without, or with pads")

    def pads(
        size: Sequence[int], kernel: Sequence[int], strides: Sequence[int], by: Sequence[int]
    ) -> Pads:
        axes = len(kernel)
        if auto.startswith("SAME"):
            needed = [
                max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
                for n, k, s, d in zip(size, kernel, strides, by, strict=True)
            ]
            return [_halves(total, auto) for total in needed]
        if given is None or auto == "VALID":
            return [(0, 0)] * axes
        return list(zip(given[:axes], given[axes:], strict=True))

    return pads


def _halves(total: int, auto: str) -> tuple[int, int]:
    less, more = total // 2, total - total // 2
    return (less, more) if auto == "SAME_UPPER" else (more, less)


def padded(x: Tensor, pads: Pads, value: float = 0.0) -> Tensor:
    """The tensor with that many of `value` round its last axes; less of it, where negative."""
    if not any(low or high for low, high in pads):
        return x
    return F.pad(x, [n for pair in reversed(pads) for n in pair], value=value)


def _conv(op: Op) -> Function:
    groups, strides, by = op.integer("group", 1), op.integers("strides"), op.integers("dilations")
    pads_of = padding(op)

    def conv(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        axes = w.dim() - 2
        if not 1 <= axes <= 3:
            raise op.refuse(f"a window of {axes} axes; one, two or three are supported")
        stride, dilation = strides or [1] * axes, by or [1] * axes
        pads = pads_of(x.shape[2:], w.shape[2:], stride, dilation)
        if all(low == high for low, high in pads):
            even = [low for low, _ in pads]
            return _CONV[axes - 1](x, w, b, stride, even, dilation, groups)
        return _CONV[axes - 1](padded(x, pads), w, b, stride, 0, dilation, groups)

    return conv


def _conv_transpose(op: Op) -> Function:
    groups, strides, by = op.integer("group", 1), op.integers("strides"), op.integers("dilations")
    cut_of = _cutting(op)

    def conv_transpose(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        """All that the kernel reaches, of which the pads are then cut off."""
        axes = w.dim() - 2
        if not 1 <= axes <= 3:
            raise op.refuse(f"a window of {axes} axes; one, two or three are supported")
        stride, dilation = strides or [1] * axes, by or [1] * axes
        cut = cut_of(x.shape[2:], w.shape[2:], stride, dilation)
        if all(low == high >= 0 for low, high in cut):
            even = [low for low, _ in cut]
            return _TRANSPOSED[axes - 1](x, w, b, stride, even, 0, groups, dilation)
        full = _TRANSPOSED[axes - 1](x, w, None, stride, 0, 0, groups, dilation)
        y = padded(full, [(-low, -high) for low, high in cut])
        return y if b is None else y + b.reshape(-1, *[1] * axes)

    return conv_transpose


def _cutting(op: Op) -> Function:
    """What gives how much of a transposed convolution's full output is cut off, an axis each."""
    auto, given = op.text("auto_pad", "NOTSET"), op.integers("pads")
    extra, wanted = op.integers("output_padding"), op.integers("output_shape")

    def cut(
        size: Sequence[int], kernel: Sequence[int], strides: Sequence[int], by: Sequence[int]
    ) -> Pads:
        axes = len(kernel)
        more = extra or [0] * axes
        sizes = wanted[-axes:] if wanted else None
        if sizes is None and auto.startswith("SAME"):
            sizes = [n * s for n, s in zip(size, strides, strict=True)]
        if sizes is None:
            pads = given if given is not None and auto == "NOTSET" else [0] * (2 * axes)
            return [(pads[k], pads[axes + k] - more[k]) for k in range(axes)]
        found = []
        for k in range(axes):
            reach = strides[k] * (size[k] - 1) + (kernel[k] - 1) * by[k] + 1
            if (
                wanted is None and reach + more[k] < sizes[k]
            ):  # the standard fills up, ONNX Runtime does not
                raise op.refuse(f"an output of {sizes[k]}, where the kernel reaches {reach}")
            low, high = _halves(reach + more[k] - sizes[k], auto)
            found.append((low, high - more[k]))
        return found

    return cut


OPERATORS: Mapping[str, Builder] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
}
