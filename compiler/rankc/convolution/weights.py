"""Layers factored by their weights alone, as training left them, and what that costs in outputs.

The weight unfolds to one matrix (see `split`), or to one for every output (see `decoupled`), and
each is cut by its singular value decomposition U S VT: factors U sqrt(S) and sqrt(S) VT, best in
the Frobenius norm at every rank (Eckart and Young, 1936), balanced, so that both train alike.
Errors are those under the true moments of what the layer reads. A matrix layer is a kernel without
axes of space.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from rankc.convolution.chain import Chain
from rankc.convolution.decoupled import Decoupled
from rankc.convolution.kernel import Kernel
from rankc.convolution.refit import given
from rankc.convolution.split import Split, axes_of, map_of, unfold, windows
from rankc.factors import balanced
from rankc.linalg import Floats
from rankc.windows import Window

Scheme = Literal["channel", "spatial", "decoupled"]


def matrix_kernel(weight: Floats, bias: Floats | None) -> Kernel:
    """The layer y = x W + b, W (n, m), as a kernel."""
    return Kernel(weight.T[None], bias, Window((), (), (), (), (), ()))


def form_of(scheme: Scheme, kernel: Kernel) -> str:
    """What a scheme means for a kernel: where it has too few axes of taps, `channel`."""
    wide = sum(taps > 1 for taps in kernel.window.kernel)
    if scheme == "spatial" and wide > 1:
        return "vertical"
    alone = wide and kernel.weight.shape[2] > 1
    return "decoupled" if scheme == "decoupled" and alone else "channel"


def cut(form: str, kernel: Kernel, moments: Floats, felt: Floats | None) -> Chain:
    """The kernel cut at every rank.

    Args:
        form: channel, vertical or decoupled.
        kernel: of one group.
        moments: of its patches, (1, n, n).
        felt: weight of an error at its outputs, (1, m, m); of `decoupled` the diagonal counts.
    """
    if form == "decoupled":
        return _decoupled(kernel, moments[0], felt)
    axes, weight = axes_of(form, kernel), kernel.weight[0]
    a, b = windows(kernel.window, axes)
    left, right = balanced(unfold(weight, axes))
    first = left.T.reshape(len(right), weight.shape[1], -1)
    p, block = map_of(first, kernel.window.kernel, axes), math.prod(b.kernel)
    second = right.reshape(len(right), len(weight), block).transpose(1, 0, 2)
    heavy = None if felt is None else felt[0]
    second = second.reshape(len(weight), -1)
    fit = given(kernel.matrix[0], moments[0], p, second, block, heavy)
    return Split(form, kernel, (a, (first,)), (b, (fit,)), (p,))


def uncut(form: str, kernel: Kernel) -> Chain:
    """The chain without its weights: what it costs is known."""
    if form == "decoupled":
        return Decoupled(kernel, (), (), (), np.zeros(0))
    a, b = windows(kernel.window, axes_of(form, kernel))
    return Split(form, kernel, (a, ()), (b, ()), ())


def strengths(chain: Chain) -> Floats:
    """Singular values of what was cut, falling; of many matrices, the largest of them, (full,)."""
    if isinstance(chain, Decoupled):
        rows = np.stack(chain.firsts)
        return np.asarray((rows**2).sum(axis=2).max(axis=0), np.float64)
    assert isinstance(chain, Split), chain.name
    return np.asarray((chain.first[1][0] ** 2).sum(axis=(1, 2)), np.float64)


def _decoupled(kernel: Kernel, moment: Floats, felt: Floats | None) -> Decoupled:
    window, firsts, fits, maps = kernel.window, [], [], []
    for weight in kernel.weight[0]:
        left, right = balanced(weight.reshape(len(weight), -1))  # (C, T), (T, taps)
        p = map_of(left.T[:, :, None], window.kernel, ())
        flat, second = weight.reshape(1, -1), right.reshape(1, -1)
        firsts.append(left.T)
        fits.append(given(flat, moment, p, second, window.taps))
        maps.append(p)
    lost = np.stack([fit.lost for fit in fits])
    heavy = lost if felt is None else np.diagonal(felt[0])[:, None] * lost
    return Decoupled(kernel, tuple(firsts), tuple(fits), tuple(maps), heavy.sum(axis=0))
