"""Operators that make a tensor of few numbers."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from rankc.train.registry import Builder, Function, Op, Tensor
from rankc.train.tensors import reader, together

_VALUES = {
    "value_int": torch.int64,
    "value_ints": torch.int64,
    "value_float": torch.float32,
    "value_floats": torch.float32,
}


def _constant(op: Op) -> Function:
    found = op.tensor("value")
    for name, dtype in _VALUES.items():
        if (value := op.node.attributes.get(name)) is not None:
            found = torch.tensor(value.value, dtype=dtype)
    if found is None:
        known = ", ".join(("value", *_VALUES))
        raise op.refuse(f"holds {', '.join(op.node.attributes)}; known are {known}")
    return lambda: found


def _constant_of_shape(op: Op) -> Function:
    given = op.tensor("value")
    value, read = torch.zeros(()) if given is None else given.reshape(()), reader(op, 0)
    return lambda shape: value.expand(read(shape)).clone()


def _range(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    start, limit, delta = together(start, limit, delta)
    first, last, step = start.item(), limit.item(), delta.item()
    if start.is_floating_point():
        count = max(-int((first - last) // step), 0)
    else:
        count = max(-(-(int(last) - int(first)) // int(step)), 0)
    kind = torch.float32 if start.dtype in (torch.float16, torch.bfloat16) else start.dtype
    places = torch.arange(count, dtype=kind, device=start.device)
    return (start.to(kind) + places * delta.to(kind)).to(start.dtype)


def _eye_like(op: Op) -> Function:
    dtype = op.dtype("dtype") if "dtype" in op.node.attributes else None
    k = op.integer("k", 0)

    def eye_like(x: Tensor) -> Tensor:
        rows, columns = (torch.arange(n, device=x.device) for n in x.shape)
        return (columns == rows[:, None] + k).to(dtype or x.dtype)

    return eye_like


OPERATORS: Mapping[str, Builder] = {
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "EyeLike": _eye_like,
    "Range": lambda op: _range,
}
