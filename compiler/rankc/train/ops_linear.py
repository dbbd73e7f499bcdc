"""Matrix products."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from rankc.train.registry import Builder, Function, Op, Tensor


def _gemm(op: Op) -> Function:
    alpha, beta = op.number("alpha", 1.0), op.number("beta", 1.0)
    left, right = bool(op.integer("transA", 0)), bool(op.integer("transB", 0))

    def gemm(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        a, b = a.t() if left else a, b.t() if right else b
        if c is not None:
            return torch.addmm(c, a, b, beta=beta, alpha=alpha)
        product = a @ b
        return product if alpha == 1.0 else alpha * product

    return gemm


def _einsum(op: Op) -> Function:
    equation = op.text("equation")
    return lambda *tensors: torch.einsum(equation, *tensors)


OPERATORS: Mapping[str, Builder] = {
    "Einsum": _einsum,
    "Gemm": _gemm,
    "MatMul": lambda op: torch.matmul,
}
