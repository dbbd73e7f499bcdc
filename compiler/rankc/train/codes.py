"""Tables of int8 codes in training: the codes themselves, and what reads them.

A code is a whole number up to 127, and what reads it is as much smaller. A step of one size for
all weights, as Adam's, would be nothing to the one and everything to the other; so both are trained
as numbers of about one size that are scaled to what they are:  c = round(m u),  W = s w,  with u of
root mean square 1, and a row of w of 0.35, so that under Adam readers move three times as fast as
codes. The function is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir
import torch
from torch import nn

from rankc.graph import attribute, constant, matches
from rankc.train.interpreter import Interpreter

Tensor = torch.Tensor
_MOVES = ("Concat", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Identity")
_READERS = 0.35  # root mean square of what reads codes, as it is trained; of codes it is 1
_ON_THE_WAY = (*_MOVES, "Cast", "Mul", "Pow", "Split", "ReduceSum", "Add", "Sub")


class Codes(nn.Module):
    """A table of int8 as the numbers that it rounds, gradients straight through the rounding."""

    def __init__(self, codes: Tensor) -> None:
        """Args: the table, int8."""
        super().__init__()
        exact = codes.detach().to(torch.float32)
        self.size: Tensor
        self.register_buffer("size", exact.square().mean().sqrt().clamp_min(1.0))
        self.plain = nn.Parameter(exact / self.size)

    def forward(self) -> Tensor:
        """Whole numbers from -127 to 127, as floats."""
        scaled = (self.plain * self.size).clamp(-127.0, 127.0)
        return scaled + (scaled.round() - scaled).detach()


class Sized(nn.Module):
    """A weight whose rows, those along an axis, are scaled to one root mean square."""

    def __init__(self, weight: Tensor, axis: int) -> None:
        """Args: the weight; its axis of inputs."""
        super().__init__()
        rest = [k for k in range(weight.dim()) if k != axis]
        square = weight.detach().square()
        size = (square.mean(dim=rest, keepdim=True) if rest else square).sqrt() / _READERS
        self.size: Tensor
        self.register_buffer("size", torch.where(size > 0, size, torch.ones_like(size)))
        self.plain = nn.Parameter(weight.detach() / self.size)

    def forward(self) -> Tensor:
        """The weight as it is now."""
        return self.plain * self.size


def modules_of_codes(net: Interpreter, frozen: Sequence[str] = ()) -> dict[str, nn.Module]:
    """What the tables of codes and their readers are to be computed by, by initializer."""
    tables = tables_of_codes(net.graph, frozen)
    found: dict[str, nn.Module] = {name: Codes(net.weight(name)) for name in tables}
    for name, axis in readers_of(net.graph, tables):
        if name in net.weight_names:
            found[name] = Sized(net.weight(name), axis)
    return found


def tables_of_codes(graph: ir.Graph, frozen: Sequence[str] = ()) -> list[str]:
    """Initializers of int8 whose rows are looked up and then become floats, and nothing else."""
    return [
        str(name)
        for name, value in graph.initializers.items()
        if value.dtype == ir.DataType.INT8
        and not any(matches(name, pattern) for pattern in frozen)
        and _becomes_float(value, gathered=False)
    ]


def _becomes_float(value: ir.Value, *, gathered: bool) -> bool:
    """Whether all that is made of the value is a Cast to floats, through moves alone."""

    def fits(node: ir.Node, index: int) -> bool:
        if gathered and node.op_type == "Cast":
            return ir.DataType(node.attributes["to"].as_int()).is_floating_point()
        moved = node.op_type in _MOVES if gathered else node.op_type == "Gather" and index == 0
        return moved and _becomes_float(node.outputs[0], gathered=True)

    uses = list(value.uses())
    return bool(uses) and not value.is_graph_output() and all(fits(*use) for use in uses)


def readers_of(graph: ir.Graph, tables: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Float weights that codes are multiplied by before anything else, with the axis of inputs."""
    todo = [node.outputs[0] for name in tables for node, _ in graph.initializers[name].uses()]
    seen: set[ir.Node] = set()
    told: set[str] = set()
    while todo:
        for node, _ in todo.pop().uses():
            if node in seen:
                continue
            seen.add(node)
            for value, axis in _multiplied(node):
                if str(value.name) not in told:
                    told.add(str(value.name))
                    yield str(value.name), axis
            if node.op_type in _ON_THE_WAY:
                todo += node.outputs


def _multiplied(node: ir.Node) -> Iterator[tuple[ir.Value, int]]:
    """The weight of a layer, or what a Mul has beside the codes."""
    if node.op_type in ("Gemm", "MatMul") and (weight := node.inputs[1]) is not None:
        if (array := constant(weight)) is not None and array.ndim == 2:
            yield weight, 1 if node.op_type == "Gemm" and attribute(node, "transB", 0) else 0
    elif node.op_type == "Mul":
        for value in node.inputs:
            if value is not None and (array := constant(value)) is not None and array.ndim:
                yield value, array.ndim - 1
