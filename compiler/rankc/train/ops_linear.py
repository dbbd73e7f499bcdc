"""Matrix products and the determinant."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from rankc.train.registry import Builder, Function, Op, Tensor
from rankc.train.tensors import exact, together


def _gemm(op: Op) -> Function:
    alpha, beta = op.number("alpha", 1.0), op.number("beta", 1.0)
    left, right = bool(op.integer("transA", 0)), bool(op.integer("transB", 0))

    def gemm(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        a, b = a.t() if left else a, b.t() if right else b
        if c is not None and not (a.device == b.device == c.device):
            a, b, c = together(a, b, c)
        if a.is_floating_point() and c is not None:
            return torch.addmm(c, a, b, beta=beta, alpha=alpha)
        product = _scaled(_matmul(a, b), alpha)
        return product if c is None else _add(product, _scaled(c, beta))

    return gemm


def _scaled(x: Tensor, factor: float) -> Tensor:
    """In the type of `x`, of integers too."""
    if factor == 1.0:
        return x
    return factor * x if x.is_floating_point() else (factor * x.to(torch.float64)).to(x.dtype)


def _einsum(op: Op) -> Function:
    equation = op.text("equation")
    return lambda *tensors: torch.einsum(equation, *together(*tensors))


_matmul = exact(torch.matmul, np.matmul)
_add = exact(torch.add, np.add)

OPERATORS: Mapping[str, Builder] = {
    "Det": lambda op: torch.linalg.det,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "MatMul": lambda op: _matmul,
}
