"""FP16 as a graph rewrite: a strongly typed graph says in its types what every node computes in.

TensorRT 11 and TensorRT-RTX have no precision flags any more, so the casts are ours to place, and
the same file then means the same thing to every backend. Graph inputs and outputs keep their types.

A node runs in float16 when its operator allows it and none of these hold:

* it is in `KEEP_FP32`: norms, softmax, sums and powers lose the answer first;
* one of its constants is beyond 65504, or too small as a whole, to survive the narrowing;
* what it reads or makes came near 65504 on the golden inputs;
* it lies behind the last layer: a few scalars a row, and they are the answer (the sigmoid head);
* it has no float32 result: a comparison or an index near a rounding edge would flip;
* it holds or sits in a subgraph: bodies of If, Loop and Scan stay in float32 with casts outside.

Cheap nodes between two float32 nodes, and shape operators behind one, stay float32 with them, so
that no value is narrowed and widened again for nothing. 8-bit integers and booleans are exact in
float16, so their Cast goes there directly; wider integers are cast to float32 first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from rankc.errors import ModelError
from rankc.lowering.precision_rules import (
    FLOAT,
    HALF,
    KEEP_FP32,
    Nodes,
    Slots,
    is_constant,
    is_float,
    kept,
    touched,
)
from rankc.lowering.ranges import peaks
from rankrt.session import Array

__all__ = ["KEEP_FP32", "Golden", "Kept", "kept_in_fp32", "prepared", "to_fp16"]

_Uses = list[tuple[ir.Node, int]]


@dataclasses.dataclass(frozen=True, slots=True)
class Golden:
    """Inputs to measure on, (rows, ...) each, and a folder for a temporary copy of the model."""

    feeds: Mapping[str, Array]
    folder: Path

    def peaks(self, model: ir.Model) -> dict[str, float]:
        """The largest magnitude of every float32 value, by name."""
        return peaks(model, self.feeds, self.folder)


@dataclasses.dataclass(frozen=True, slots=True)
class Kept:
    """A node that stays in float32, and why."""

    name: str
    op_type: str
    reason: str


def to_fp16(model: ir.Model, golden: Golden | None = None) -> ir.Model:
    """A copy of `model` that computes in float16 where that is safe; the original is not changed.

    Constants are narrowed only when the copy is saved or read.

    Args:
        model: a float32 model.
        golden: inputs on which the magnitudes of its values are measured.

    Raises:
        ModelError: no node of the model can run in float16.
        RankrtError: ONNX Runtime refuses the model or the golden inputs.
    """
    copy = prepared(model)
    reasons = kept(copy, {} if golden is None else golden.peaks(copy))
    low = {node for node in copy.graph if node not in reasons}
    if not any(is_float(value) for node in low for value in touched(node)):
        raise ModelError(
            "nothing in this model can run in float16: it has no float32 layer or table outside"
            " of subgraphs. Ask for precision fp32"
        )
    _Narrowing(copy, low).apply()
    _fold_casts(copy.graph)
    return copy


def kept_in_fp32(model: ir.Model, golden: Golden | None = None) -> tuple[Kept, ...]:
    """The float32 nodes that `to_fp16` would leave as they are, in graph order."""
    copy = prepared(model)
    reasons = kept(copy, {} if golden is None else golden.peaks(copy))
    return tuple(
        Kept(str(node.name), node.op_type, reasons[node])
        for node in copy.graph
        if node in reasons and any(map(is_float, touched(node)))
    )


def prepared(model: ir.Model) -> ir.Model:
    """A copy whose nodes are in order and whose values have types; constants are initializers."""
    copy = model.clone()
    if copy.functions:
        common.InlinePass()(copy)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(copy)
    common.ShapeInferencePass()(copy)  # the types of all values
    copy.graph.sort()
    return copy


class _Narrowing:
    """One rewrite of one graph: `low` nodes to float16, with casts wherever the two types meet."""

    def __init__(self, model: ir.Model, low: Nodes) -> None:
        self._graph, self._low, self._slots = model.graph, low, Slots(model.opset_imports)
        values = [*self._graph.inputs, *self._graph.initializers.values()]
        self._names = {v.name for v in values}
        self._names |= {v.name for node in self._graph.all_nodes() for v in node.outputs}

    def apply(self) -> None:
        """Inputs and constants first, then results; uses are read before any of them changes."""
        constants = [v for v in self._graph.initializers.values() if is_float(v) and is_constant(v)]
        inputs = [v for v in self._graph.inputs if is_float(v)]
        results = [v for node in self._graph for v in node.outputs if is_float(v)]
        wanted = {v: self._half_uses(v) for v in (*constants, *inputs, *results)}
        for value in constants:
            self._narrow_constant(value, wanted[value])
        for value in inputs:
            self._cast_for(value, wanted[value])
        for value in results:
            if value.producer() in self._low:
                self._narrow_result(value, wanted[value])
            else:
                self._cast_for(value, wanted[value])

    def _half_uses(self, value: ir.Value) -> _Uses:
        """The uses of a value that want float16; those inside a subgraph never do."""
        return [(n, i) for n, i in value.uses() if n in self._low and self._slots.reads(n, i)]

    def _narrow_constant(self, value: ir.Value, half_uses: _Uses) -> None:
        """In place where every reader wants float16, else as a second initializer."""
        tensor = value.const_value
        if not half_uses or tensor is None:
            return
        if len(half_uses) == len(value.uses()) and not value.is_graph_output():
            value.const_value = _half_tensor(tensor, str(value.name))
            value.type = ir.TensorType(HALF)  # a new one: clones share theirs
            return
        name = self._free_name(f"{value.name}_fp16")
        half = ir.Value(name=name, type=ir.TensorType(HALF), shape=value.shape)
        half.const_value = _half_tensor(tensor, name)
        self._graph.register_initializer(half)
        _rewire(half_uses, half)

    def _cast_for(self, value: ir.Value, half_uses: _Uses) -> None:
        """One Cast for all float16 readers of a float32 value."""
        if half_uses:
            name = self._free_name(f"{value.name}_fp16")
            _rewire(half_uses, self._insert_cast(value, HALF, name))

    def _narrow_result(self, value: ir.Value, half_uses: _Uses) -> None:
        """The result of a float16 node: widened again for float32 readers and graph outputs."""
        node = value.producer()
        if node is not None and node.op_type == "Cast":
            node.attributes["to"] = ir.AttrInt64("to", HALF)
        value.type = ir.TensorType(HALF)
        wide_uses = [use for use in value.uses() if tuple(use) not in half_uses]
        if value.is_graph_output():  # the output keeps its name and type
            name, value.name = str(value.name), self._free_name(f"{value.name}_fp16")
            wide = self._insert_cast(value, FLOAT, name)
            for i, output in enumerate(self._graph.outputs):
                if output is value:
                    self._graph.outputs[i] = wide
            _rewire(wide_uses, wide)
        elif wide_uses:
            name = self._free_name(f"{value.name}_fp32")
            _rewire(wide_uses, self._insert_cast(value, FLOAT, name))

    def _insert_cast(self, value: ir.Value, to: ir.DataType, name: str) -> ir.Value:
        """A Cast right behind whatever makes the value."""
        result = ir.Value(name=name, type=ir.TensorType(to), shape=value.shape)
        cast = ir.node(
            "Cast", [value], attributes={"to": to}, outputs=[result], name=f"cast_{name}"
        )
        producer = value.producer()
        if producer is None:
            self._graph.insert_before(self._graph[0], cast)
        else:
            self._graph.insert_after(producer, cast)
        return result

    def _free_name(self, name: str) -> str:
        unique, k = name, 1
        while unique in self._names:
            unique, k = f"{name}.{k}", k + 1
        self._names.add(unique)
        return unique


def _half_tensor(tensor: ir.TensorProtocol, name: str) -> ir.LazyTensor:
    """Narrowed when it is read, so that a large model is not held twice."""

    def narrowed() -> ir.TensorProtocol:
        return ir.tensor(tensor.numpy().astype(np.float16), name=name)

    return ir.LazyTensor(narrowed, HALF, ir.Shape(tensor.shape.numpy()), name=name)


def _rewire(uses: Iterable[tuple[ir.Node, int]], value: ir.Value) -> None:
    for node, index in uses:
        node.replace_input_with(index, value)


def _fold_casts(graph: ir.Graph) -> None:
    """Skip a Cast that only widens float16 for another Cast: widening changes no value."""
    for node in [node for node in graph if node.op_type == "Cast"]:
        inner = node.inputs[0].producer() if node.inputs[0] is not None else None
        source = inner.inputs[0] if inner is not None and inner.op_type == "Cast" else None
        if inner is None or source is None or source.dtype != HALF:
            continue
        if inner.outputs[0].dtype != FLOAT:
            continue
        node.replace_input_with(0, source)
        if node.outputs[0].dtype == HALF and not node.outputs[0].is_graph_output():
            node.outputs[0].replace_all_uses_with(source)
            graph.remove(node, safe=True)
        if not inner.outputs[0].uses() and not inner.outputs[0].is_graph_output():
            graph.remove(inner, safe=True)
