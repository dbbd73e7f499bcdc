"""Losses that are part of a graph."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it

from rankc.train.registry import Builder, Function, Op, Tensor

_UNUSED = -(2**63)  # a label that nothing has


def _likelihood(op: Op) -> Function:
    """Of labels, weighted by class. In torch's own the weights have no gradient."""
    reduction, ignored = op.text("reduction", "mean"), op.integer("ignore_index", _UNUSED)
    if reduction not in ("none", "sum", "mean"):
        raise op.refuse(f"reduction is {reduction!r}; known are none, sum, mean")

    def likelihood(x: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
        labels = labels.to(x.device, torch.int64)
        kept = labels != ignored
        labels = torch.where(kept, labels, 0)
        share = kept.to(x.dtype)
        if weight is not None:
            share = share * weight.to(x.device)[labels]
        found = -x.gather(1, labels[:, None])[:, 0]
        found = torch.where(kept, found, 0.0) * share
        if reduction == "none":
            return found
        return found.sum() if reduction == "sum" else found.sum() / share.sum()

    return likelihood


def _cross_entropy(op: Op) -> Function:
    likelihood = _likelihood(op)

    def cross_entropy(
        x: Tensor, labels: Tensor, weight: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        logs = F.log_softmax(x, 1)
        loss: Tensor = likelihood(logs, labels, weight)
        return loss if op.outputs == 1 else (loss, logs)

    return cross_entropy


OPERATORS: Mapping[str, Builder] = {
    "NegativeLogLikelihoodLoss": _likelihood,
    "SoftmaxCrossEntropyLoss": _cross_entropy,
}
