"""Normalisations."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F  # noqa: N812 - as everybody calls it

from rankc.train.registry import Builder, Function, Op, Tensor


def _batch_norm(op: Op) -> Function:
    epsilon, kept, state = op.number("epsilon", 1e-5), op.number("momentum", 0.9), op.state

    def batch_norm(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        """In training by the batch's statistics, which then flow into `mean` and `var`."""
        learning = state.training and not state.fixed_statistics
        momentum = 1.0 - kept if state.momentum is None else state.momentum
        return F.batch_norm(x, mean, var, scale, bias, learning, momentum, epsilon)

    return batch_norm


def _layer_norm(op: Op) -> Function:
    axis, epsilon = op.integer("axis", -1), op.number("epsilon", 1e-5)

    def layer_norm(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.layer_norm(x, x.shape[axis % x.dim() :], scale, bias, epsilon)

    return layer_norm


OPERATORS: Mapping[str, Builder] = {
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
}
