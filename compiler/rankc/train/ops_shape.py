"""Operators that move numbers without changing them, and what they ask of shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch

from rankc.train.registry import Builder, Function, Op, Tensor
from rankc.train.tensors import reader, together


def _reshape(op: Op) -> Function:
    literal, read = bool(op.integer("allowzero", 0)), reader(op, 1)

    def reshape(x: Tensor, shape: Tensor) -> Tensor:
        wanted = read(shape)
        if not literal:
            wanted = [x.shape[k] if n == 0 else n for k, n in enumerate(wanted)]
        return x.reshape(wanted)

    return reshape


def _transpose(op: Op) -> Function:
    order = op.integers("perm")
    return lambda x: x.permute(order or list(range(x.dim()))[::-1])


def _flatten(op: Op) -> Function:
    axis = op.integer("axis", 1)

    def flatten(x: Tensor) -> Tensor:
        at = axis if axis >= 0 else axis + x.dim()
        return x.reshape(math.prod(x.shape[:at]), math.prod(x.shape[at:]))

    return flatten


def _concat(op: Op) -> Function:
    axis = op.integer("axis")
    return lambda *tensors: torch.cat(tuple(together(*tensors)), axis)


def _split(op: Op) -> Function:
    axis, count = op.integer("axis", 0), op.integer("num_outputs", op.outputs)
    read = reader(op, 1)

    def split(x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        parts = _even(x.shape[axis], count) if sizes is None else read(sizes)
        return torch.split(x, parts, axis)

    return split


def _even(size: int, count: int) -> list[int]:
    """Equal parts; where that does not work out the last one is smaller."""
    part = -(-size // count)
    return [min(part, max(size - k * part, 0)) for k in range(count)]


def _squeeze(op: Op) -> Function:
    read = reader(op, 1)

    def squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
        return x.squeeze() if axes is None else x.squeeze(tuple(read(axes)))

    return squeeze


def _unsqueeze(op: Op) -> Function:
    read = reader(op, 1)

    def unsqueeze(x: Tensor, axes: Tensor) -> Tensor:
        wanted = read(axes)
        rank = x.dim() + len(wanted)
        for axis in sorted(k % rank for k in wanted):
            x = x.unsqueeze(axis)
        return x

    return unsqueeze


def _expand(op: Op) -> Function:
    read = reader(op, 1)
    both: Callable[..., Sequence[int]] = torch.broadcast_shapes
    return lambda x, shape: x.expand(both(x.shape, tuple(read(shape))))


def _tile(op: Op) -> Function:
    read = reader(op, 1)
    return lambda x, repeats: x.repeat(read(repeats))


def _shape(op: Op) -> Function:
    start, end = op.integer("start", 0), op.node.attributes.get("end")
    stop = None if end is None else end.as_int()
    return lambda x: torch.tensor(list(x.shape)[start:stop], dtype=torch.int64)


_UNFOLDED = {"DCR": (0, 3, 4, 1, 5, 2), "CRD": (0, 1, 4, 2, 5, 3)}


def _order(op: Op) -> tuple[int, ...]:
    mode = op.text("mode", "DCR")
    if mode not in _UNFOLDED:
        raise op.refuse(f"mode is {mode!r}; known are DCR and CRD")
    return _UNFOLDED[mode]


def _depth_to_space(op: Op) -> Function:
    size, order = op.integer("blocksize"), _order(op)

    def depth_to_space(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        depth = c // size**2
        split = (n, size, size, depth, h, w) if order[1] == 3 else (n, depth, size, size, h, w)
        return x.reshape(split).permute(order).reshape(n, depth, h * size, w * size)

    return depth_to_space


def _space_to_depth(op: Op) -> Function:
    size, order = op.integer("blocksize"), _order(op)
    back = [order.index(k) for k in range(6)]

    def space_to_depth(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        blocks = x.reshape(n, c, h // size, size, w // size, size)
        return blocks.permute(back).reshape(n, c * size**2, h // size, w // size)

    return space_to_depth


OPERATORS: Mapping[str, Builder] = {
    "Concat": _concat,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": lambda op: lambda x: torch.tensor(x.numel()),
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
