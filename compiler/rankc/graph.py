"""Questions and edits on an `onnx_ir` graph that several stages need. Functions, not a wrapper."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

FLOAT = ir.DataType.FLOAT
# A value keeps its last axis through these, or is laid beside others: what is linear stays linear.
_SHAPE_ONLY = {"Concat", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Split", "Slice"}


def array_of(value: ir.Value | None) -> NDArray[np.generic] | None:
    """The read-only array behind `value` when it is an initializer, else None."""
    if value is None or not value.is_initializer() or value.const_value is None:
        return None
    return value.const_value.numpy()


def constant(value: ir.Value | None, ndim: int | None = None) -> NDArray[np.float32] | None:
    """The float32 array behind `value`, of that many axes when asked; else None."""
    if value is None or value.const_value is None or value.const_value.dtype != FLOAT:
        return None
    if ndim is not None and len(value.const_value.shape) != ndim:
        return None
    array = array_of(value)
    return None if array is None else np.asarray(array, np.float32)


def node_named(model: ir.Model, name: str) -> ir.Node:
    """The node of the main graph with this name.

    Raises:
        KeyError: there is none.
    """
    for node in model.graph:
        if node.name == name:
            return node
    raise KeyError(name)


def value_named(model: ir.Model, name: str) -> ir.Value:
    """The input, initializer or node output of the main graph with this name.

    Raises:
        KeyError: there is none.
    """
    for value in values(model):
        if value.name == name:
            return value
    raise KeyError(name)


def values(model: ir.Model) -> Iterator[ir.Value]:
    """Every value of the main graph: inputs, initializers, node outputs."""
    yield from model.graph.inputs
    yield from model.graph.initializers.values()
    for node in model.graph:
        yield from node.outputs


def reads(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads, and what the bodies of an If or a Loop capture."""
    for value in node.attributes.values():
        if value.type == ir.AttributeType.GRAPH:
            for inner in value.as_graph().all_nodes():
                yield from (v for v in inner.inputs if v is not None)
    yield from (v for v in node.inputs if v is not None)


def why_shared(weight: ir.Value) -> str | None:
    """Why a weight is not one node's to be rewritten, in words; None where it is."""
    readers = len({id(node) for node, _ in weight.uses()})
    return f"its weight {weight.name!r} is shared by {readers} nodes" if readers > 1 else None


def only_input(node: ir.Node, index: int = 0) -> ir.Value:
    """Input `index` of a node that cannot do without it."""
    value = node.inputs[index]
    assert value is not None, f"{node.name} lacks input {index}"
    return value


def attribute(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute, or its default."""
    found = node.attributes.get(name)
    return default if found is None else found.as_int()


def new_initializer(model: ir.Model, name: str, array: NDArray[np.generic]) -> ir.Value:
    """Register a copy of `array` under `name`, made unique by a suffix when it is taken."""
    taken, unique, k = {value.name for value in values(model)}, name, 1
    while unique in taken:
        unique, k = f"{name}.{k}", k + 1
    tensor = ir.tensor(np.array(array, order="C"), name=unique)  # a copy of its own
    value = ir.Value(
        name=unique,
        const_value=tensor,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(array.shape),
    )
    model.graph.register_initializer(value)
    return value


def replace_node(model: ir.Model, old: ir.Node, new: Sequence[ir.Node], result: ir.Value) -> None:
    """Put `new` in the place of `old`, whose only output becomes `result`; drop dead weights."""
    inputs = [value for value in old.inputs if value is not None]
    ir.convenience.replace_nodes_and_values(
        model.graph, old, [old], new, [old.outputs[0]], [result]
    )
    drop_unused(model, inputs)


def drop_unused(model: ir.Model, candidates: Iterable[ir.Value]) -> None:
    """Remove those of the initializers that nothing reads any more."""
    outputs = {id(value) for value in model.graph.outputs}
    for value in candidates:
        if value.is_initializer() and not value.uses() and id(value) not in outputs:
            model.graph.initializers.pop(str(value.name), None)


def selected(name: str, targets: Sequence[str], ignore: Sequence[str]) -> bool:
    """Whether a site is meant: any of `targets`, none of `ignore`."""
    return any(matches(name, p) for p in targets) and not any(matches(name, p) for p in ignore)


def matches(name: str, pattern: str) -> bool:
    """A glob over the whole name, or after `re:` a regular expression searched from its start."""
    if pattern.startswith("re:"):
        return re.match(pattern[3:], name) is not None
    return fnmatch.fnmatchcase(name, pattern)


@dataclasses.dataclass(frozen=True, slots=True)
class Readers:
    """Who reads a value, through concatenations and reshapes."""

    columns: int  # of all the constant-weight layers and sums
    linear: bool  # nothing else reads it but squares that are summed: a decoder can be folded


def readers(values: Iterable[ir.Value], width: int) -> Readers:
    """What the layers that read `values`, rows of that width, would keep of each column."""
    columns, linear = 0, True
    seen: set[int] = set()
    todo = list(values)
    while todo:
        value = todo.pop()
        for node, _ in value.uses():
            if id(node) in seen:
                continue
            seen.add(id(node))
            outputs = layer_outputs(node)
            if node.op_type in _SHAPE_ONLY:
                todo += node.outputs
            elif outputs is not None:
                columns += outputs
            elif node.op_type == "ReduceSum":
                columns += width
            else:
                linear = linear and _is_square(node)
    return Readers(columns, linear)


def _is_square(node: ir.Node) -> bool:
    if node.op_type == "Pow":
        exponent = array_of(node.inputs[1])
        return exponent is not None and exponent.size == 1 and float(exponent.item()) == 2.0
    return node.op_type == "Mul" and node.inputs[0] is node.inputs[1]


def widest_split(values: Iterable[ir.Value], width: int) -> NDArray[np.bool_]:
    """The columns, of `width`, in the widest part of a Split of these values; all without one."""
    mask = np.ones(width, bool)
    for value in values:
        for node, _ in value.uses():
            sizes = [v.shape[-1] for v in node.outputs if v.shape is not None]
            whole = [size for size in sizes if isinstance(size, int)]
            if node.op_type == "Split" and sum(whole) == width and len(whole) == len(node.outputs):
                k = whole.index(max(whole))
                mask[:] = False
                mask[sum(whole[:k]) : sum(whole[: k + 1])] = True
    return mask


def layer_outputs(node: ir.Node) -> int | None:
    """Columns of the constant right operand of a MatMul or Gemm, else None."""
    if node.op_type not in ("MatMul", "Gemm"):
        return None
    weight = constant(node.inputs[1], ndim=2)
    if weight is None:
        return None
    transposed = node.op_type == "Gemm" and attribute(node, "transB", 0)
    return int(weight.shape[0 if transposed else 1])


def parameters(model: ir.Model) -> int:
    """Scalars in the initializers of the main graph, shapes and index constants left out."""
    return sum(
        value.const_value.size
        for value in model.graph.initializers.values()
        if value.const_value is not None and value.const_value.dtype != ir.DataType.INT64
    )


def initializer_bytes(model: ir.Model) -> int:
    """Bytes of all initializers of the main graph."""
    return sum(
        value.const_value.nbytes
        for value in model.graph.initializers.values()
        if value.const_value is not None
    )


def has_fixed_batch(model: ir.Model) -> bool:
    """Whether the model takes no other number of rows than its own."""
    shapes = [value.shape for value in model.graph.inputs]
    return any(shape is not None and len(shape) and isinstance(shape[0], int) for shape in shapes)
