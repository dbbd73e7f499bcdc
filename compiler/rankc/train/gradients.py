"""Which weights a loss on the outputs reaches, and at which node its gradient ends for others."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import onnx_ir as ir
import torch
from torch import nn

from rankc.errors import ModelError
from rankc.graph import reads
from rankc.train.interpreter import Interpreter
from rankc.train.registry import Tensor

TOLD = 3  # nodes that an error names


@dataclasses.dataclass(frozen=True, slots=True)
class Blocked:
    """A weight, and the node nearest to it beyond which there is no gradient for it."""

    weight: str
    node: str  # "" where no node reads the weight
    operator: str
    why: str

    @property
    def where(self) -> str:
        """The node and what is wrong with it, for messages."""
        return f"{self.operator} node {self.node!r} ({self.why})" if self.node else self.why


@dataclasses.dataclass(frozen=True, slots=True)
class GradientReport:
    """What a loss on the outputs does to the weights that are to be trained."""

    trained: tuple[str, ...]  # those that it reaches
    blocked: tuple[Blocked, ...]  # those that it does not: they stay what they are
    zero: tuple[Blocked, ...]  # of `trained`: all zeros on these rows, as behind a dead ReLU


def gradient_report(net: Interpreter, inputs: Mapping[str, Tensor]) -> GradientReport:
    """Run the net once, and a random linear function of its float outputs backwards.

    Nothing of the net changes: BatchNormalization goes by its running statistics meanwhile.

    Args:
        net: weights that are frozen, or whose parameters ask for no gradient, are left out.
        inputs: a batch, tensors by input name, on the net's device.
    """
    sources = {name: found for name in net.weight_names if (found := _sources(net, name))}
    with _kept_as_it_is(net):
        largest, values = _gradients(net, inputs, sources)
        cut = [name for name in sources if largest[name] is None]
        zero = [name for name in sources if largest[name] == 0.0]
        lost = _find(net, zero, lambda node: _loses(node, values))
        ends = _find(net, cut, _ends(net, inputs, [p for name in cut for p in sources[name]]))
    reached = tuple(name for name in sources if largest[name] is not None)
    return GradientReport(reached, tuple(ends), tuple(lost))


def require_trainable(net: Interpreter, inputs: Mapping[str, Tensor]) -> GradientReport:
    """The report, where there is anything that training could change.

    Raises:
        ModelError: all weights are frozen, there are none, or no gradient reaches any of them; the
            message names the patterns, or the nodes at which the gradient ends.
    """
    if not any(_sources(net, name) for name in net.weight_names):
        raise ModelError(_why_nothing(net))
    report = gradient_report(net, inputs)
    if not report.trained:
        raise ModelError(
            f"an operator without gradient is on every path from the weights to the outputs: "
            f"{_told(report.blocked)}; train a model that ends before it"
        )
    if len(report.zero) == len(report.trained):
        raise ModelError(
            f"the gradient of every weight is exactly zero on the first rows: "
            f"{_told(report.zero)}; nothing can be learnt through that"
        )
    return report


def _sources(net: Interpreter, name: str) -> list[nn.Parameter]:
    """The parameters that a weight is made of, those that are trained."""
    made_of = net.computing(name).parameters() if name in net.computed_names else None
    found = [net.weight(name)] if made_of is None else list(made_of)
    return [p for p in found if isinstance(p, nn.Parameter) and p.requires_grad]


@contextlib.contextmanager
def _kept_as_it_is(net: Interpreter) -> Iterator[None]:
    """The net in inference mode; afterwards its mode and wishes for gradients are as before."""
    mode, asked = net.training, {p: p.requires_grad for p in net.parameters()}
    net.train(False)
    try:
        yield
    finally:
        net.train(mode)
        for parameter, wanted in asked.items():
            parameter.requires_grad_(wanted)


def _gradients(
    net: Interpreter,
    inputs: Mapping[str, Tensor],
    sources: Mapping[str, Sequence[nn.Parameter]],
) -> tuple[dict[str, float | None], dict[str, bool]]:
    """The largest entry of each weight's gradient, None where there is none.

    And where one is all zeros: which values have a gradient that is not.
    """
    with net.capture(*_made(net)) as seen:
        outputs = list(net.run(inputs).values())
    loss = _functional([out for out in outputs if out.requires_grad])
    parameters = [p for found in sources.values() for p in found]
    if loss is None:
        return dict.fromkeys(sources), {}
    parts = iter(_largest(loss, parameters))
    largest: dict[str, float | None] = {}
    for name, found in sources.items():
        sizes = [size for size in [next(parts) for _ in found] if size is not None]
        largest[name] = max(sizes) if sizes else None
    if 0.0 not in largest.values():
        return largest, {}
    inner = {name: value for name, value in seen.items() if value.requires_grad}
    felt = zip(inner, _largest(loss, list(inner.values())), strict=True)
    return largest, {name: bool(size) for name, size in felt}


def _made(net: Interpreter) -> list[str]:
    """Names of all that the nodes of the main graph put out."""
    return [str(value.name) for node in net.graph for value in node.outputs if value.name]


def _functional(outputs: Sequence[Tensor]) -> Tensor | None:
    """A random linear function of outputs, always the same one."""
    generator, parts = torch.Generator().manual_seed(0), []
    for out in outputs:
        by = torch.randn(out.shape, generator=generator)
        parts.append((out * by.to(out.device, out.dtype)).sum().to(torch.float32))
    return torch.stack(parts).sum() if parts else None


def _largest(loss: Tensor, tensors: Sequence[Tensor]) -> list[float | None]:
    found = torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True)
    return [None if g is None else float(g.abs().max()) if g.numel() else 0.0 for g in found]


def _ends(
    net: Interpreter, inputs: Mapping[str, Tensor], cut: Sequence[nn.Parameter]
) -> Callable[[ir.Node], str | None]:
    """What tells of a node whether the gradients of these parameters end there, and why."""
    if not cut:
        return lambda node: None
    wanted = set(cut)
    for parameter in net.parameters():
        parameter.requires_grad_(parameter in wanted)
    with net.capture(*_made(net)) as seen:
        net.run(inputs)
    carrying = {name for name, value in seen.items() if value.requires_grad}
    types = {name: str(value.dtype).removeprefix("torch.") for name, value in seen.items()}

    def end(node: ir.Node) -> str | None:
        names = [str(value.name) for value in node.outputs if value.name]
        if carrying.intersection(names):
            return None
        told = sorted({types[name] for name in names})
        whole = not any("float" in one for one in told)
        return f"puts out {' and '.join(told)}" if whole else "passes no gradient on"

    return end


def _loses(node: ir.Node, felt: Mapping[str, bool]) -> str | None:
    """Whether a node whose input has a gradient of zeros put out what has another."""
    if any(felt.get(str(value.name)) for value in node.outputs):
        return "passes only zeros back"
    return None


def _find(
    net: Interpreter, weights: Sequence[str], end: Callable[[ir.Node], str | None]
) -> list[Blocked]:
    """For each weight the first node, in the graph's order, at which its gradient ends."""
    readers: dict[str, list[ir.Node]] = {}
    for node in net.graph if weights else ():
        for name in dict.fromkeys(str(value.name) for value in reads(node)):
            readers.setdefault(name, []).append(node)
    order = {node: k for k, node in enumerate(net.graph)}
    found = []
    for weight in weights:
        ends = dict(_walk(weight, readers, end))
        if ends:
            first = min(ends, key=order.__getitem__)
            found.append(Blocked(weight, str(first.name), first.op_type, ends[first]))
        else:
            found.append(Blocked(weight, "", "", f"no output depends on {weight!r}"))
    return found


def _walk(
    weight: str, readers: Mapping[str, Sequence[ir.Node]], end: Callable[[ir.Node], str | None]
) -> Iterator[tuple[ir.Node, str]]:
    """The nodes downwards of a weight at which its gradient ends, and why."""
    todo, seen = [weight], {weight}
    while todo:
        for node in readers.get(todo.pop(), ()):
            if (why := end(node)) is not None:
                yield node, why
                continue
            names = [str(value.name) for value in node.outputs if str(value.name) not in seen]
            seen.update(names)
            todo += names


def _told(blocked: Sequence[Blocked]) -> str:
    """The nodes, each once."""
    places = list(dict.fromkeys(one.where for one in blocked))
    more = f" and {len(places) - TOLD} more" if len(places) > TOLD else ""
    return ", ".join(places[:TOLD]) + more


def _why_nothing(net: Interpreter) -> str:
    """Why a net has no weight that can be trained."""
    if net.frozen or net.weight_names:
        patterns = sorted(set(net.frozen.values()))
        by = f" by freeze: {', '.join(patterns)}" if patterns else ""
        count = len(net.frozen) + len(net.weight_names)
        return f"every weight is frozen, all {count} of them{by}; leave some out to train those"
    whole = [v for v in net.graph.initializers.values() if v.const_value is not None]
    for value in sorted(whole, key=lambda v: -v.const_value.size if v.const_value else 0):
        if value.dtype is not None and not value.dtype.is_floating_point() and value.consumers():
            reader = value.consumers()[0]
            return (
                f"a frozen graph: it has no weights of floats; its largest constant is "
                f"{value.name!r} of {value.dtype.name}, read by {reader.op_type} node "
                f"{reader.name!r}; train the model before it is quantized"
            )
    return "a frozen graph: it has no weights of floats, so there is nothing to train"
