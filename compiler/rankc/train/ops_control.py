"""Graphs within graphs: If, Loop and Scan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from rankc.train.registry import Builder, Function, Op, Tensor, dtype_of

if TYPE_CHECKING:
    from rankc.train.program import Program


def _ask(
    body: Program, inputs: Sequence[Tensor], names: Sequence[str], captured: Sequence[Tensor]
) -> list[Tensor]:
    known = dict(zip(names, captured, strict=True))
    return body.run(known | dict(zip(body.inputs, inputs, strict=True)))


def _if(op: Op) -> Function:
    yes, no, names = op.body("then_branch"), op.body("else_branch"), op.captured

    def branch(condition: Tensor, *captured: Tensor) -> tuple[Tensor, ...]:
        return tuple(_ask(yes if bool(condition) else no, (), names, captured))

    return branch


def _stacked(op: Op, name: str, index: int, found: list[Tensor], axis: int) -> Tensor:
    """Values that a body put out one after another, as one tensor; none at all where it may be."""
    if found:
        return torch.stack(found, axis)
    value = op.node.attributes[name].as_graph().outputs[index]
    if value.shape is None or value.dtype is None or not value.shape.is_static():
        raise op.refuse(
            f"its body never ran, and does not say what shape its output {value.name!r} has"
        )
    return torch.zeros(0, *value.shape.numpy(), dtype=dtype_of(value.dtype, op.where))


def _loop(op: Op) -> Function:
    body, names = op.body("body"), op.captured
    own = len(op.node.inputs)
    states = own - 2

    def loop(*inputs: Tensor | None) -> tuple[Tensor, ...]:
        most, condition = inputs[:2]
        carried = [one for one in inputs[2:own] if one is not None]
        captured = [one for one in inputs[own:] if one is not None]
        going, count, rows = condition is None or bool(condition), 0, list[list[Tensor]]()
        while going and (most is None or count < int(most)):
            step = torch.tensor(count), torch.tensor(True), *carried
            again, *found = _ask(body, step, names, captured)
            carried = found[:states]
            rows.append(found[states:])
            going, count = bool(again), count + 1
        scanned = range(len(body.outputs) - 1 - states)
        columns = [[row[k] for row in rows] for k in scanned]
        made = [_stacked(op, "body", 1 + states + k, columns[k], 0) for k in scanned]
        return *carried, *made

    return loop


def _scan(op: Op) -> Function:
    if op.opset < 9:
        raise op.refuse(f"opset {op.opset}; 9 and later are supported")
    body, names, own = op.body("body"), op.captured, len(op.node.inputs)
    count = op.integer("num_scan_inputs")
    states, made = own - count, len(body.outputs) - (own - count)
    axes = op.integers("scan_input_axes") or [0] * count
    backwards = op.integers("scan_input_directions") or [0] * count
    axes_out = op.integers("scan_output_axes") or [0] * made
    backwards_out = op.integers("scan_output_directions") or [0] * made

    def scan(*inputs: Tensor) -> tuple[Tensor, ...]:
        carried, read = list(inputs[:states]), inputs[states:own]
        parts = [
            x.unbind(axis)[:: -1 if back else 1]
            for x, axis, back in zip(read, axes, backwards, strict=True)
        ]
        rows: list[list[Tensor]] = []
        for step in zip(*parts, strict=True):
            found = _ask(body, (*carried, *step), names, inputs[own:])
            carried = found[:states]
            rows.append(found[states:])
        columns = [
            [row[k] for row in (reversed(rows) if backwards_out[k] else rows)] for k in range(made)
        ]
        return *carried, *(
            _stacked(op, "body", states + k, columns[k], axes_out[k]) for k in range(made)
        )

    return scan


OPERATORS: Mapping[str, Builder] = {"If": _if, "Loop": _loop, "Scan": _scan}
