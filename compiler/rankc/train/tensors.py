"""Where tensors are, and integers that torch cannot calculate with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from rankc.train.registry import Function, Op, Tensor

_STORED = (torch.uint16, torch.uint32, torch.uint64)  # torch holds them, and can do little more


def whole(tensor: Tensor) -> list[int]:
    """The integers of a tensor of any shape."""
    return [int(k) for k in tensor.reshape(-1).tolist()]


def reader(op: Op, index: int) -> Callable[[Tensor], list[int]]:
    """Reads the integers of an input; only once, if they are known before anything runs.

    Reading what is on an accelerator waits for all that it has been given to do.
    """
    known = op.constant(index)
    if known is None:
        return whole
    numbers = [int(k) for k in known.reshape(-1)]
    return lambda tensor: list(numbers)


def together(*tensors: Tensor) -> Sequence[Tensor]:
    """The tensors on one device: not the CPU, if one of them isn't there.

    Shapes and what is computed of them are on the CPU whatever the net runs on.
    """
    first = tensors[0].device
    if all(tensor.device == first for tensor in tensors):
        return tensors
    device = next(tensor.device for tensor in tensors if tensor.device.type != "cpu")
    return [tensor.to(device) for tensor in tensors]


def exact(function: Function, unsigned: Function) -> Function:
    """The function, or numpy's for unsigned integers of more than 8 bits."""

    def run(first: Tensor, *others: Tensor) -> Any:
        for other in others:
            if other.device != first.device:
                first, *others = together(first, *others)  # type: ignore[assignment]
                break
        if first.dtype in _STORED:
            return by_numpy(unsigned, first, *others)
        return function(first, *others)

    return run


def by_numpy(function: Function, *tensors: Tensor) -> Tensor:
    """What a numpy function of arrays gives, on the device of the first tensor."""
    found = function(*(tensor.cpu().numpy() for tensor in tensors))
    return torch.from_numpy(np.array(found)).to(tensors[0].device)


def is_stored(tensor: Tensor) -> bool:
    """Whether torch holds such integers but cannot calculate with them."""
    return tensor.dtype in _STORED
