"""A graph as a list of steps that run one after another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from rankc.errors import ModelError
from rankc.train.operators import OPERATORS
from rankc.train.registry import Function, Op, State, Tensor, as_torch

Tap = Callable[[Tensor], Tensor]


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One node: what it reads and writes, by name, and what nothing reads afterwards."""

    name: str
    function: Function
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]
    done: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Program:
    """A graph that can be run."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    steps: tuple[Step, ...]
    constants: Mapping[str, Tensor]  # initializers of a body; those of the main graph are weights

    def run(self, known: dict[str, Tensor], taps: Mapping[str, Tap] | None = None) -> list[Tensor]:
        """What the graph puts out.

        Args:
            known: values by name: inputs, weights, what a body captures. Is changed.
            taps: what becomes of an inner value before anything reads it.
        """
        known.update(self.constants)
        for step in self.steps:
            found = step.function(*(None if i is None else known[i] for i in step.inputs))
            if isinstance(found, tuple | list):
                known.update(zip(step.outputs, found, strict=False))
            else:
                known[step.outputs[0]] = found
            if taps:
                for name in step.outputs:
                    if name in taps:
                        known[name] = taps[name](known[name])
            for name in step.done:
                del known[name]
        return [known[name] for name in self.outputs]


def program_of(graph: ir.Graph, opset: int, state: State) -> Program:
    """The steps of a graph, bodies of its nodes included.

    Raises:
        ModelError: it has operators that are not known here, or uses one in a way that is not.
    """
    _refuse_unknown(graph)
    kept = {str(value.name) for value in graph.outputs}
    nodes = list(graph)
    last: dict[str, int] = {}
    for k, node in enumerate(nodes):
        for name in (*_names(node.inputs), *_captured(node), *_written(node)):
            last[str(name)] = k
    own = {str(v.name) for node in nodes for v in node.outputs}
    done: list[list[str]] = [[] for _ in nodes]
    for name, k in last.items():
        if name in own and name not in kept:
            done[k].append(name)
    return Program(
        inputs=tuple(str(v.name) for v in graph.inputs if not v.is_initializer()),
        outputs=tuple(str(value.name) for value in graph.outputs),
        steps=tuple(_step(n, opset, state, d) for n, d in zip(nodes, done, strict=True)),
        constants={},
    )


def _step(node: ir.Node, opset: int, state: State, done: Sequence[str]) -> Step:
    def build(graph: ir.Graph) -> Program:
        inner = program_of(graph, opset, state)
        constants = {
            str(name): as_torch(value.const_value, f"initializer {name!r}")
            for name, value in graph.initializers.items()
            if value.const_value is not None
        }
        return dataclasses.replace(inner, constants=constants)

    captured = tuple(_captured(node))
    function = OPERATORS[node.op_type](Op(node, opset, state, build, captured))
    return Step(
        str(node.name),
        function,
        (*_names(node.inputs), *captured),
        tuple(_written(node)),
        tuple(done),
    )


def _names(values: Sequence[ir.Value | None]) -> list[str | None]:
    return [None if value is None else str(value.name) for value in values]


def _written(node: ir.Node) -> list[str]:
    """Names of the outputs; one that is left out, "", keeps its place."""
    return [str(value.name) for value in node.outputs]


def _captured(node: ir.Node) -> list[str]:
    """What the bodies of a node read from outside, each once."""
    found: dict[str, None] = {}
    for attribute in node.attributes.values():
        if attribute.type != ir.AttributeType.GRAPH:
            continue
        graph = attribute.as_graph()
        inside = {id(v) for n in graph.all_nodes() for v in n.outputs}
        for inner in [graph, *(g for n in graph.all_nodes() for g in _bodies(n))]:
            inside |= {id(v) for v in (*inner.inputs, *inner.initializers.values())}
        read = [v for n in graph.all_nodes() for v in n.inputs if v is not None]
        found |= {str(v.name): None for v in (*read, *graph.outputs) if id(v) not in inside}
    return list(found)


def _bodies(node: ir.Node) -> list[ir.Graph]:
    kinds = ir.AttributeType.GRAPH
    return [a.as_graph() for a in node.attributes.values() if a.type == kinds]


def _refuse_unknown(graph: ir.Graph) -> None:
    missing = [n for n in graph if n.domain not in ("", "ai.onnx") or n.op_type not in OPERATORS]
    if missing:
        told = ", ".join(
            f"{n.domain and n.domain + '.'}{n.op_type} ({n.name})" for n in missing[:5]
        )
        more = f" and {len(missing) - 5} more nodes" if len(missing) > 5 else ""
        raise ModelError(
            f"cannot be trained: no torch form of {told}{more}; the operators that can: "
            f"{', '.join(sorted(OPERATORS))}"
        )
