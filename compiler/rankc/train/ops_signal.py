"""Fourier transforms and windows; a complex number is two, at the last axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from rankc.train.registry import Builder, Function, Op, Tensor
from rankc.train.tensors import reader


def _complex(x: Tensor) -> Tensor:
    return x[..., 0] if x.shape[-1] == 1 else torch.view_as_complex(x.contiguous())


def _transform(op: Op, onesided: bool) -> Callable[[Tensor, int | None, int], Tensor]:
    inverse = bool(op.integer("inverse", 0))

    def transform(x: Tensor, length: int | None, axis: int) -> Tensor:
        if inverse and onesided:
            real: Tensor = torch.fft.irfft(_complex(x), length, axis)
            return real[..., None]
        function = torch.fft.ifft if inverse else torch.fft.rfft if onesided else torch.fft.fft
        if function is torch.fft.rfft and x.shape[-1] == 2:
            raise op.refuse("onesided of complex numbers; it is of real ones")
        return torch.view_as_real(function(_complex(x), length, axis))

    return transform


def _dft(op: Op) -> Function:
    transform = _transform(op, bool(op.integer("onesided", 0)))
    given = op.integer("axis", 1) if op.opset < 20 else -2
    read_length, read_axis = reader(op, 1), reader(op, 2)

    def dft(x: Tensor, length: Tensor | None = None, axis: Tensor | None = None) -> Tensor:
        along = (given if axis is None else read_axis(axis)[0]) % x.dim()
        return transform(x, None if length is None else read_length(length)[0], along)

    return dft


def _stft(op: Op) -> Function:
    transform = _transform(op, bool(op.integer("onesided", 1)))
    read_step, read_length = reader(op, 1), reader(op, 3)

    def stft(
        x: Tensor, step: Tensor, window: Tensor | None = None, length: Tensor | None = None
    ) -> Tensor:
        size = x.shape[1] if window is None else window.shape[0]
        if length is not None:
            (size,) = read_length(length)
        frames = x.unfold(1, size, read_step(step)[0])  # the frame comes last
        if window is not None:
            frames = frames * window.to(x.device)
        return transform(frames.movedim(-1, 2), None, 2)

    return stft


def _window(*terms: float) -> Builder:
    """A sum of cosines: of 0, 1, 2 turns over the window."""

    def build(op: Op) -> Function:
        dtype = op.dtype("output_datatype", torch.float32)
        more, read = 0 if op.integer("periodic", 1) else 1, reader(op, 0)

        def window(size: Tensor) -> Tensor:
            (count,) = read(size)
            turn = 2 * torch.pi * torch.arange(count, dtype=torch.float64) / max(count - more, 1)
            return (
                torch.stack([a * torch.cos(k * turn) for k, a in enumerate(terms)]).sum(0).to(dtype)
            )

        return window

    return build


OPERATORS: Mapping[str, Builder] = {
    "BlackmanWindow": _window(0.42, -0.5, 0.08),
    "DFT": _dft,
    "HammingWindow": _window(25 / 46, -21 / 46),
    "HannWindow": _window(0.5, -0.5),
    "STFT": _stft,
}
