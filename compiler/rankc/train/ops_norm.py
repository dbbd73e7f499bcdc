"""Normalisations."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it

from rankc.train.registry import Builder, Function, Op, Tensor

_MEAN_VARIANCE_EPSILON = 1e-9  # as the operator's function in the ONNX standard has it


def _batch_norm(op: Op) -> Function:
    epsilon, kept, state = op.number("epsilon", 1e-5), op.number("momentum", 0.9), op.state
    statistics = {str(value.name) for value in op.node.inputs[3:5] if value is not None}

    def batch_norm(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        """In training by the batch's statistics, which then flow into `mean` and `var`."""
        fixed = state.fixed_statistics or not statistics.isdisjoint(state.frozen)
        learning = state.training and not fixed
        momentum = 1.0 - kept if state.momentum is None else state.momentum
        return F.batch_norm(x, mean, var, scale, bias, learning, momentum, epsilon)

    def by_the_batch(
        x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor
    ) -> tuple[Tensor, ...]:
        """In the graph's own training mode the new running statistics are outputs."""
        along = [k for k in range(x.dim()) if k != 1]
        here, spread = x.mean(along), x.var(along, correction=0)
        y = F.batch_norm(x, None, None, scale, bias, True, 0.0, epsilon)
        return y, mean * kept + here * (1 - kept), var * kept + spread * (1 - kept)

    return by_the_batch if op.integer("training_mode", 0) else batch_norm


def _instance_norm(op: Op) -> Function:
    epsilon = op.number("epsilon", 1e-5)
    return lambda x, scale, bias: F.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


def _precision(op: Op) -> torch.dtype:
    """In which statistics are computed; numbers wider than that keep their width."""
    return op.dtype("stash_type", torch.float32)


def _axes(x: Tensor, axis: int) -> list[int]:
    return list(range(axis % x.dim(), x.dim()))


def _layer_norm(op: Op) -> Function:
    axis, epsilon, stash = op.integer("axis", -1), op.number("epsilon", 1e-5), _precision(op)

    def layer_norm(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        shape = x.shape[axis % x.dim() :]
        if scale.shape == shape and (bias is None or bias.shape == shape):
            return F.layer_norm(x, shape, scale, bias, epsilon)
        y = F.layer_norm(x, shape, None, None, epsilon) * scale
        return y if bias is None else y + bias

    def with_statistics(
        x: Tensor, scale: Tensor, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = x.to(torch.promote_types(x.dtype, stash))
        mean = wide.mean(_axes(x, axis), keepdim=True)
        away = wide - mean
        inverse = torch.rsqrt(away.square().mean(_axes(x, axis), keepdim=True) + epsilon)
        y = (away * inverse).to(x.dtype) * scale
        return y if bias is None else y + bias, mean.to(stash), inverse.to(stash)

    return with_statistics if op.outputs > 1 else layer_norm


def _rms_norm(op: Op) -> Function:
    axis, epsilon, stash = op.integer("axis", -1), op.number("epsilon", 1e-5), _precision(op)

    def rms_norm(x: Tensor, scale: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, stash))
        inverse = torch.rsqrt(wide.square().mean(_axes(x, axis), keepdim=True) + epsilon)
        return (wide * inverse).to(x.dtype) * scale

    return rms_norm


def _group_norm(op: Op) -> Function:
    """Scale and bias have a number for each group before opset 21, then one for each channel."""
    groups, epsilon = op.integer("num_groups"), op.number("epsilon", 1e-5)
    by_channel = op.opset >= 21

    def group_norm(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        if not by_channel:
            scale, bias = (w.repeat_interleave(x.shape[1] // groups) for w in (scale, bias))
        return F.group_norm(x, groups, scale, bias, epsilon)

    return group_norm


def _lp_normalization(op: Op) -> Function:
    """What is all zeros stays so."""
    axis, p = op.integer("axis", -1), op.integer("p", 2)
    if p not in (1, 2):
        raise op.refuse(f"p = {p}; 1 and 2 are supported")

    def lp_normalization(x: Tensor) -> Tensor:
        total = (x.abs() if p == 1 else x.square()).sum(axis, keepdim=True)
        some = torch.where(total > 0, total, 1)
        return x / (some if p == 1 else some.sqrt())

    return lp_normalization


def _lrn(op: Op) -> Function:
    """A. Krizhevsky et al., "ImageNet classification", NIPS 2012, section 3.3."""
    size, alpha = op.integer("size"), op.number("alpha", 1e-4)
    beta, bias = op.number("beta", 0.75), op.number("bias", 1.0)
    before, after = (size - 1) // 2, size // 2

    def lrn(x: Tensor) -> Tensor:
        around = F.pad(x.square().flatten(2).movedim(1, -1), (before, after))
        total = around.unfold(-1, size, 1).sum(-1).movedim(-1, 1).reshape(x.shape)
        return x / (bias + alpha / size * total) ** beta

    return lrn


def _mean_variance(op: Op) -> Function:
    axes = op.integers("axes") or [0, 2, 3]

    def mean_variance(x: Tensor) -> Tensor:
        """As the standard's function computes it."""
        mean = x.mean(axes, keepdim=True)
        variance = x.square().mean(axes, keepdim=True) - mean.square()
        return (x - mean) / (variance.clamp_min(0).sqrt() + _MEAN_VARIANCE_EPSILON)

    return mean_variance


OPERATORS: Mapping[str, Builder] = {
    "BatchNormalization": _batch_norm,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LRN": _lrn,
    "LayerNormalization": _layer_norm,
    "LpNormalization": _lp_normalization,
    "MeanVarianceNormalization": _mean_variance,
    "RMSNormalization": _rms_norm,
}
