"""Recurrent layers, a step at a time: RNN, GRU and LSTM.

J. Elman, "Finding structure in time", 1990; K. Cho et al., EMNLP 2014; S. Hochreiter and
J. Schmidhuber, 1997, with the peepholes of F. Gers and J. Schmidhuber, 2000.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it

from rankc.train.registry import Builder, Function, Op, Tensor

Activation = Callable[[Tensor], Tensor]
States = tuple[Tensor, ...]  # (rows, hidden) each, the first of them the output
Cell = Callable[[Tensor, States], States]  # of what the gates get from the input, and states
Cells = Callable[[int, Tensor, Tensor, Tensor | None], Cell]  # a direction's, see `_Layer.run`
_WAYS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
# of activations with parameters: alpha and beta, where the node has none
_DEFAULTS = {
    "LeakyRelu": (0.01, 0.0), "ThresholdedRelu": (1.0, 0.0), "ScaledTanh": (1.0, 1.0),
    "HardSigmoid": (0.2, 0.5), "Elu": (1.0, 0.0), "Affine": (1.0, 0.0),
}  # fmt: skip


def _activation(op: Op, name: str, alpha: float, beta: float) -> Activation:
    known: Mapping[str, Activation] = {
        "affine": lambda x: alpha * x + beta,
        "elu": lambda x: F.elu(x, alpha),
        "hardsigmoid": lambda x: torch.clamp(alpha * x + beta, 0, 1),
        "leakyrelu": lambda x: F.leaky_relu(x, alpha),
        "relu": F.relu,
        "scaledtanh": lambda x: alpha * torch.tanh(beta * x),
        "sigmoid": torch.sigmoid,
        "softplus": F.softplus,
        "softsign": F.softsign,
        "tanh": torch.tanh,
        "thresholdedrelu": lambda x: torch.where(x > alpha, x, 0),
    }
    if name.lower() not in known:
        raise op.refuse(f"activation {name!r}; known are {', '.join(known)}")
    return known[name.lower()]


def _activations(op: Op, usual: Sequence[str], ways: int) -> list[list[Activation]]:
    """Of each direction; parameters are listed for those that have some, in order."""
    names = op.texts("activations") or [*usual] * ways
    if len(names) != len(usual) * ways:
        raise op.refuse(f"{len(names)} activations; {len(usual)} for each direction are needed")
    alphas, betas = (iter(op.numbers(n) or []) for n in ("activation_alpha", "activation_beta"))
    found = []
    for name in names:
        alpha, beta = _DEFAULTS.get(name, (0.0, 0.0))
        if name in _DEFAULTS:
            alpha = next(alphas, alpha)
        if name in ("Affine", "ScaledTanh", "HardSigmoid"):
            beta = next(betas, beta)
        found.append(_activation(op, name, alpha, beta))
    return [found[k : k + len(usual)] for k in range(0, len(found), len(usual))]


@dataclasses.dataclass(frozen=True, slots=True)
class _Layer:
    """What the three have in common."""

    ways: tuple[bool, ...]  # of each direction, whether it is backwards
    batch_first: bool
    clip: float | None

    @classmethod
    def of(cls, op: Op) -> _Layer:
        way = op.text("direction", "forward")
        if way not in _WAYS:
            raise op.refuse(f"direction {way!r}; known are {', '.join(_WAYS)}")
        clip = op.number("clip", 0.0)
        return cls(_WAYS[way], bool(op.integer("layout", 0)), clip or None)

    def clipped(self, x: Tensor) -> Tensor:
        """What goes into an activation."""
        return x if self.clip is None else torch.clamp(x, -self.clip, self.clip)

    def run(
        self, x: Tensor, w: Tensor, r: Tensor, b: Tensor | None, lengths: Tensor | None,
        starts: Sequence[Tensor | None], cells: Cells,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """All outputs and the last states, laid out as the node has it.

        Args:
            x: (positions, rows, size), or rows first.
            w: (directions, gates * hidden, size).
            r: (directions, gates * hidden, hidden).
            b: (directions, 2 * gates * hidden), or None.
            lengths: (rows,) how many positions count, or None for all.
            starts: (directions, rows, hidden) states to start from, or None for zeros; or rows
                first.
            cells: makes the cell of a direction of its number, x, its r and the half of b that
                belongs to it.
        """
        x = x.transpose(0, 1) if self.batch_first else x
        first = [s.transpose(0, 1) if self.batch_first and s is not None else s for s in starts]
        zeros = x.new_zeros(x.shape[1], r.shape[2])
        outputs, last = [], []
        for k, backwards in enumerate(self.ways):
            outer, inner = (None, None) if b is None else b[k].chunk(2)
            order = _order(x, lengths) if backwards else None
            gates = _arranged(F.linear(x, w[k], outer), order)
            states = tuple(zeros if s is None else s[k] for s in first)
            y, states = _steps(gates, lengths, states, cells(k, x, r[k], inner))
            outputs.append(_arranged(y, order))
            last.append(states)
        y = torch.stack(outputs, 1)
        ends = [torch.stack(one) for one in zip(*last, strict=True)]
        if self.batch_first:
            return y.permute(2, 0, 1, 3), *(one.transpose(0, 1) for one in ends)
        return y, *ends


def _order(x: Tensor, lengths: Tensor | None) -> Tensor:
    """(positions, rows) where to find what comes k-th backwards; the rest keeps its place."""
    places = torch.arange(x.shape[0], device=x.device)[:, None].expand(x.shape[:2])
    ends = x.shape[0] if lengths is None else lengths.to(x.device, torch.int64)
    return torch.where(places < ends, ends - 1 - places, places)


def _arranged(x: Tensor, order: Tensor | None) -> Tensor:
    return x if order is None else x.gather(0, order.unsqueeze(-1).expand_as(x))


def _steps(
    gates: Tensor, lengths: Tensor | None, states: States, cell: Cell
) -> tuple[Tensor, States]:
    """Outputs of all positions, zero where a row has ended, and the states that it ended with."""
    outputs = []
    for k, one in enumerate(gates):
        after = cell(one, states)
        if lengths is None:
            states = after
            outputs.append(after[0])
            continue
        going = (lengths.to(one.device) > k).unsqueeze(-1)
        states = tuple(torch.where(going, a, s) for a, s in zip(after, states, strict=True))
        outputs.append(after[0] * going)
    return torch.stack(outputs), states


def _rnn(op: Op) -> Function:
    layer = _Layer.of(op)
    functions = _activations(op, ["Tanh"], len(layer.ways))

    def cells(way: int, x: Tensor, r: Tensor, b: Tensor | None) -> Cell:
        (f,) = functions[way]
        return lambda gates, states: (f(layer.clipped(gates + F.linear(states[0], r, b))),)

    def rnn(
        x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None,
        lengths: Tensor | None = None, h: Tensor | None = None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        return layer.run(x, w, r, b, lengths, (h,), cells)

    return rnn


def _gru(op: Op) -> Function:
    layer, late = _Layer.of(op), bool(op.integer("linear_before_reset", 0))
    functions = _activations(op, ["Sigmoid", "Tanh"], len(layer.ways))

    def cells(way: int, x: Tensor, r: Tensor, b: Tensor | None) -> Cell:
        f, g = functions[way]
        size, bias = r.shape[1], x.new_zeros(r.shape[0]) if b is None else b

        def cell(gates: Tensor, states: States) -> States:
            (h,) = states
            both = gates[:, : 2 * size] + F.linear(h, r[: 2 * size], bias[: 2 * size])
            update, reset = f(layer.clipped(both)).chunk(2, -1)
            back, add = r[2 * size :], bias[2 * size :]
            past = reset * F.linear(h, back, add) if late else F.linear(reset * h, back, add)
            new = g(layer.clipped(gates[:, 2 * size :] + past))
            return ((1 - update) * new + update * h,)

        return cell

    def gru(
        x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None,
        lengths: Tensor | None = None, h: Tensor | None = None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        return layer.run(x, w, r, b, lengths, (h,), cells)

    return gru


def _lstm(op: Op) -> Function:
    layer, coupled = _Layer.of(op), bool(op.integer("input_forget", 0))
    functions = _activations(op, ["Sigmoid", "Tanh", "Tanh"], len(layer.ways))

    def cell_of(way: int, r: Tensor, b: Tensor | None, p: Tensor | None) -> Cell:
        f, g = (_after(layer.clipped, one) for one in functions[way][:2])
        h = functions[way][2]  # of the cell, which ONNX Runtime does not clip
        look = (0.0, 0.0, 0.0) if p is None else p.chunk(3)

        def cell(gates: Tensor, states: States) -> States:
            i, o, forget, new = (gates + F.linear(states[0], r, b)).chunk(4, -1)
            c = states[1]
            i = f(i + look[0] * c)
            c = (1 - i if coupled else f(forget + look[2] * c)) * c + i * g(new)
            return f(o + look[1] * c) * h(c), c

        return cell

    def lstm(
        x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None,
        lengths: Tensor | None = None, h: Tensor | None = None, c: Tensor | None = None,
        p: Tensor | None = None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        def cells(way: int, x: Tensor, r: Tensor, b: Tensor | None) -> Cell:
            return cell_of(way, r, b, None if p is None else p[way])

        return layer.run(x, w, r, b, lengths, (h, c), cells)

    return lstm


def _after(first: Activation, then: Activation) -> Activation:
    return lambda x: then(first(x))


OPERATORS: Mapping[str, Builder] = {"GRU": _gru, "LSTM": _lstm, "RNN": _rnn}
