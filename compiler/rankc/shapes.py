"""Shape and type inference over a whole model, with the gaps it leaves filled in."""

from __future__ import annotations

import math
from collections.abc import Set as AbstractSet

import onnx_ir as ir
from onnx_ir.passes import common

from rankc.errors import ModelError


def check_shapes(model: ir.Model) -> None:
    """Infer shapes, and refuse a model in which they contradict each other.

    Raises:
        ModelError: The model is not valid ONNX: its shapes or types contradict each other even
            without what the exporter noted down, or the checker has another objection.
    """
    _believe_constants(model)
    check = common.CheckerPass(full_check=True)
    try:
        check(model)
    except Exception:  # what the exporter noted may be stale: an old batch size, say
        _forget_shapes(model)
        try:
            check(model)
        except Exception as error:
            raise ModelError(first_line(error)) from error
    infer_shapes(model)


def infer_shapes(model: ir.Model) -> None:
    """Fill in the shapes and types of all values, in place, as far as they can be known.

    Not strict: ONNX Runtime runs some models that inference objects to (a vector of one element
    where a scalar is due), once constants have been folded and it sees more.
    """
    common.ShapeInferencePass(strict_mode=False, check_type=False)(model)


def _believe_constants(model: ir.Model) -> None:
    """The type and shape noted for an initializer may differ from those it has."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.type = ir.TensorType(value.const_value.dtype)
                value.shape = ir.Shape(value.const_value.shape.numpy())


def _forget_shapes(model: ir.Model) -> None:
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None


def first_line(error: BaseException) -> str:
    """What a library's error says, in one line, without the wrapping of onnx_ir's passes."""
    cause = error.__cause__ or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[0] if lines else type(cause).__name__


def name_batches(model: ir.Model) -> None:
    """Name axes that inference lost: the one unknown axis of a Reshape is its input's."""
    dims = [d for v in model.graph.inputs if v.shape is not None for d in v.shape]
    known = {d.value for d in dims if isinstance(d, ir.SymbolicDim) and d.value is not None}
    reshapes = [node for node in model.graph if node.op_type == "Reshape"]
    for _ in reshapes:  # a round names at least one of them
        named = [node for node in reshapes if _name_axis(node, known)]
        if not named:
            return
        for node in model.graph:  # what follows from a made-up name is inferred anew
            for value in node.outputs:
                if value.shape is None or value.is_graph_output():
                    continue
                if _lost(value.shape, known):
                    value.shape = None
        infer_shapes(model)


def _lost(shape: ir.Shape, known: AbstractSet[str]) -> list[int]:
    """Axes whose symbol has no name or one that shape inference made up."""
    return [
        axis
        for axis, dim in enumerate(shape)
        if isinstance(dim, ir.SymbolicDim)
        and (dim.value is None or (dim.value.startswith("unk__") and dim.value not in known))
    ]


def _name_axis(node: ir.Node, known: AbstractSet[str]) -> bool:
    """Whether the result of a Reshape has got a name for its only unknown axis."""
    source, result = node.inputs[0], node.outputs[0].shape
    if source is None or source.shape is None or result is None:
        return False
    lost = _lost(result, known)
    symbols = [d for d in source.shape if isinstance(d, ir.SymbolicDim)]
    if len(lost) != 1 or len(symbols) != 1 or _lost(source.shape, known):
        return False
    others = [d for axis, d in enumerate(result) if axis not in lost]
    if any(not isinstance(d, int) for d in others):
        return False
    sizes = [d for d in source.shape if isinstance(d, int)]
    if math.prod(sizes) != math.prod(d for d in others if isinstance(d, int)):
        return False
    named = [symbols[0] if axis in lost else d for axis, d in enumerate(result)]
    node.outputs[0].shape = ir.Shape(named)
    return True
