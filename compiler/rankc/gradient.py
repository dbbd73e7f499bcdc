"""Reverse-mode differentiation of an ONNX graph as an ONNX graph.

Backward nodes are appended to the graph itself, so that the gradients come out of the same run, of
the same session, as the activations: no second framework, and cheap next to the forward run.

What is differentiated is the model's answer: its logits. Calibration wants E[J^T J] of the logits
at some intermediate value, J being the Jacobian of one row. With one logit a row that is the
gradient itself. With k of them it is estimated with Hutchinson's trick: for a vector s of
independent random signs, E[(J^T s)(J^T s)^T] = J^T J. The caller feeds s.

Rows of a batch do not depend on each other, so the gradient of the sum over all rows is, row by
row, the gradient of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from rankc import gradient_conv as images
from rankc import gradient_math as arithmetic
from rankc import gradient_shape as movement
from rankc.answers import Answer, answers_of, row_width
from rankc.gradient_tape import PREFIX, GradientTape, NoGradientError, dims
from rankc.graph import reads

Rule = Callable[[GradientTape, ir.Node, int, ir.Value], ir.Value]

RULES: Mapping[str, Rule] = {
    "Abs": arithmetic.absolute,
    "Add": arithmetic.add,
    "AveragePool": images.average_pool,
    "BatchNormalization": arithmetic.batch_norm,
    "Cast": movement.cast,
    "Clip": arithmetic.clip,
    "Concat": movement.concat,
    "Conv": images.conv,
    "ConvTranspose": images.conv_transpose,
    "Div": arithmetic.div,
    "Dropout": movement.identity,
    "Erf": arithmetic.erf,
    "Exp": arithmetic.exp,
    "Expand": movement.expand,
    "Flatten": movement.reshape,
    "Gather": movement.gather,
    "Gelu": arithmetic.gelu,
    "Gemm": arithmetic.gemm,
    "GlobalAveragePool": images.global_average_pool,
    "GlobalMaxPool": images.global_max_pool,
    "HardSigmoid": arithmetic.hard_sigmoid,
    "HardSwish": arithmetic.hard_swish,
    "Identity": movement.identity,
    "InstanceNormalization": arithmetic.instance_norm,
    "LayerNormalization": arithmetic.layer_norm,
    "LeakyRelu": arithmetic.leaky_relu,
    "Log": arithmetic.log,
    "LogSoftmax": arithmetic.log_softmax,
    "MatMul": arithmetic.matmul,
    "Max": arithmetic.clip,
    "MaxPool": images.max_pool,
    "Min": arithmetic.clip,
    "Mul": arithmetic.mul,
    "Neg": arithmetic.neg,
    "PRelu": arithmetic.prelu,
    "Pad": images.pad,
    "Pow": arithmetic.power,
    "Reciprocal": arithmetic.reciprocal,
    "ReduceL2": arithmetic.reduce_l2,
    "ReduceMean": arithmetic.reduce_mean,
    "ReduceSum": arithmetic.reduce_sum,
    "ReduceSumSquare": arithmetic.reduce_sum_square,
    "Relu": arithmetic.relu,
    "Reshape": movement.reshape,
    "Resize": images.resize,
    "Sigmoid": arithmetic.sigmoid,
    "Slice": movement.take_slice,
    "Softmax": arithmetic.softmax,
    "Softplus": arithmetic.softplus,
    "Split": movement.split,
    "Sqrt": arithmetic.sqrt,
    "Squeeze": movement.reshape,
    "Sub": arithmetic.sub,
    "Sum": arithmetic.add,
    "Tanh": arithmetic.tanh,
    "Transpose": movement.transpose,
    "Unsqueeze": movement.reshape,
    "Where": arithmetic.where,
}


@dataclass(frozen=True, slots=True)
class Unreachable:
    """A value whose gradient could not be built, and why."""

    value: str
    reason: str


@dataclass(frozen=True, slots=True)
class Gradients:
    """What `add_gradients` made."""

    outputs: Mapping[str, str]  # value -> the graph output that holds its gradient, same shape
    unreachable: tuple[Unreachable, ...]
    # An extra graph input of shape (rows, width) and the logits' type. None: there is one logit a
    # row and nothing to feed. Otherwise feed independent random signs, +1 or -1.
    cotangent: str | None
    width: int  # logits a row


def add_gradients(model: ir.Model, values: Sequence[str], *, fisher: bool = False) -> Gradients:
    """Add outputs to `model`, in place: the gradient of its logits at each of `values`.

    The logits are all float outputs; of an output that is a Sigmoid, Softmax or LogSoftmax, the
    value before it. The model should have been through `cleanup.clean`: constants lifted, nodes in
    topological order, shapes inferred. What cannot be differentiated is in `unreachable`, never an
    error; where nothing can be, the model is left as it was.

    With `fisher` the expected outer product is J^T F J, F being the Fisher information of the
    answer at its logits (see `answers`): a small change of the value by d then costs a KL
    divergence of  d^T (J^T F J) d / 2.
    """
    graph = model.graph
    found = _values_by_name(graph)
    unreachable = {n: "no such value in the graph" for n in values if n not in found}
    wanted = {n: found[n] for n in values if n in found}
    tape = GradientTape(graph)
    forward = list(graph)
    answers = answers_of(graph)
    try:
        width = _total_width(answers)
    except NoGradientError as error:
        unreachable |= dict.fromkeys(wanted, str(error))
        return Gradients({}, _as_tuple(values, unreachable), None, 0)
    depends = _descendants(forward, wanted.values())
    cotangent = _seed(tape, graph, answers, depends, width)
    if fisher:
        for answer in answers:
            if answer.logit in depends:
                tape.gradients[answer.logit] = _informed(tape, answer)
    blocked = _backward(tape, forward, depends)
    outputs: dict[str, str] = {}
    for name, value in wanted.items():
        if value in blocked:
            unreachable[name] = blocked[value]
        elif value not in tape.gradients:
            unreachable[name] = "the model's answer does not depend on it differentiably"
        else:
            outputs[name] = _publish(tape, graph, value)
    if cotangent is not None and not outputs:
        graph.inputs.remove(cotangent)
    _drop_unused(tape, graph)
    given = cotangent.name if cotangent is not None and outputs else None
    return Gradients(outputs, _as_tuple(values, unreachable), given, width)


def _as_tuple(values: Sequence[str], reasons: Mapping[str, str]) -> tuple[Unreachable, ...]:
    return tuple(Unreachable(v, reasons[v]) for v in dict.fromkeys(values) if v in reasons)


def _values_by_name(graph: ir.Graph) -> dict[str, ir.Value]:
    made = [*graph.inputs, *graph.initializers.values(), *(o for n in graph for o in n.outputs)]
    return {value.name: value for value in made if value.name}


def _is_float(value: ir.Value) -> bool:
    return value.dtype is None or value.dtype.is_floating_point()


def _descendants(forward: Sequence[ir.Node], roots: Iterable[ir.Value]) -> set[ir.Value]:
    """The roots and every float value that is computed from one."""
    depends = set(roots)
    for node in forward:
        if not depends.isdisjoint(reads(node)):
            depends.update(value for value in node.outputs if _is_float(value))
    return depends


def _total_width(answers: Sequence[Answer]) -> int:
    if not answers:
        raise NoGradientError("the model has no float output")
    return sum(row_width(answer) for answer in answers)


def _seed(
    tape: GradientTape,
    graph: ir.Graph,
    answers: Sequence[Answer],
    depends: set[ir.Value],
    width: int,
) -> ir.Value | None:
    """Start the gradients of the logits; returns the cotangent input if one is needed."""
    logits = [answer.logit for answer in answers]
    if width == 1:
        for logit in logits:
            if logit in depends:
                tape.gradients[logit] = tape.filled_like(logit, 1.0)
        return None
    dtype = logits[0].dtype
    assert dtype is not None  # or row_width would have raised
    cotangent = ir.val(f"{PREFIX}.cotangent", dtype, [dims(logits[0])[0], width])
    graph.inputs.append(cotangent)
    start = 0
    for answer in answers:
        stop = start + row_width(answer)
        if answer.logit in depends:
            tape.gradients[answer.logit] = _columns(tape, cotangent, start, stop, answer.logit)
        start = stop
    return cotangent


def _informed(tape: GradientTape, answer: Answer) -> ir.Value:
    """Random signs at a logit with the Fisher information of the answer for their covariance.

    For p = Softmax(z) that is diag(p) - p pT, the covariance of  sqrt(p) s - p sum(sqrt(p) s);
    for p = Sigmoid(z) it is p (1 - p), that of  sqrt(p (1 - p)) s.
    """
    logit, signs = answer.logit, tape.gradients[answer.logit]
    family = answer.family(dims(logit))
    if family == "normal":
        return signs
    if family == "bernoulli":
        yes, no = tape.op("Sigmoid", logit), tape.op("Sigmoid", tape.op("Neg", logit))
        return tape.op("Mul", tape.op("Sqrt", tape.op("Mul", yes, no)), signs)
    p = tape.op("Softmax", logit, axis=-1)
    drawn = tape.op("Mul", tape.op("Sqrt", p), signs)
    return tape.op("Sub", drawn, tape.op("Mul", p, tape.reduce("ReduceSum", drawn, [-1])))


def _columns(
    tape: GradientTape, cotangent: ir.Value, start: int, stop: int, logit: ir.Value
) -> ir.Value:
    part = cotangent
    if cotangent.shape is not None and cotangent.shape[1] != stop - start:
        bounds = (tape.ints([start]), tape.ints([stop]), tape.ints([1]))
        part = tape.op("Slice", cotangent, *bounds)
    if logit.dtype is not None and logit.dtype != cotangent.dtype:
        part = tape.op("Cast", part, to=int(logit.dtype))
    return part if len(dims(logit)) == 2 else tape.reshape_like(part, logit)


def _backward(
    tape: GradientTape, forward: Sequence[ir.Node], depends: set[ir.Value]
) -> dict[ir.Value, str]:
    """Walk from the logits to the roots; returns the values that have no gradient, and why."""
    blocked: dict[ir.Value, str] = {}
    for node in reversed(forward):
        reason = next((blocked[out] for out in node.outputs if out in blocked), None)
        if reason is None and not any(out in tape.gradients for out in node.outputs):
            continue
        try:
            _step(tape, node, depends, reason)
        except NoGradientError as error:
            blocked |= {v: str(error) for v in reads(node) if v in depends}
    return blocked


def _step(tape: GradientTape, node: ir.Node, depends: set[ir.Value], reason: str | None) -> None:
    """Hand the gradient of a node's output on to its inputs."""
    wanted = [(k, v) for k, v in enumerate(node.inputs) if v is not None and v in depends]
    if reason is not None:
        raise NoGradientError(reason)
    rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if rule is None:
        raise NoGradientError(f"operator {node.op_type} is not differentiated: node '{node.name}'")
    if node.op_type != "Split" and any(out in tape.gradients for out in node.outputs[1:]):
        raise NoGradientError(f"only the first output of '{node.name}' is differentiated")
    gradient = tape.gradients.get(node.outputs[0], node.outputs[0])
    for index, value in wanted:
        if _is_float(value):
            tape.accumulate(value, rule(tape, node, index, gradient))


def _publish(tape: GradientTape, graph: ir.Graph, value: ir.Value) -> str:
    """Make the gradient of `value` a graph output; returns its name."""
    gradient = tape.gradients[value]
    if gradient.is_graph_output() or gradient.is_graph_input():
        gradient = tape.op("Identity", gradient)
    gradient.name = f"{PREFIX}.of.{value.name}"
    gradient.type = value.type
    gradient.shape = value.shape
    graph.outputs.append(gradient)
    return gradient.name


def _drop_unused(tape: GradientTape, graph: ir.Graph) -> None:
    """Take out what led to no output."""
    for node in reversed(tape.nodes):
        if not any(out.uses() or out.is_graph_output() for out in node.outputs):
            graph.remove(node, safe=True)
    for value in tape.constants:
        if not value.uses() and value.name is not None:
            del graph.initializers[value.name]
