"""A fixed list of rewrites that make any exporter's graph easy to read, without changing it.

What later stages rely on afterwards: constants are initializers, nodes are in topological order
and have unique names, shapes are known as far as they can be, and nothing is there that no output
needs. Graph inputs and outputs keep their names, order, types and declared shapes.

Equal *weights* are left apart, or shared, as the exporter had them: a pass that changes a weight
has to look at every reader of it (exporters share equal initializers between layers).
"""

from __future__ import annotations

import math

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer

from rankc.errors import ModelError
from rankc.shapes import check_shapes, first_line, infer_shapes, name_batches

_FOLD_ELEMENTS = 8192  # constants above this many elements are not made nor read by folding
_INDEX_ELEMENTS = 1024


def clean(model: ir.Model) -> None:
    """Bring `model` into the form described above, in place.

    Raises:
        ModelError: A constant cannot be computed, or shapes contradict each other.
    """
    common.InlinePass()(model)
    common.TopologicalSortPass()(model)
    common.RemoveInitializersFromInputsPass()(model)  # defaults that no feed may override
    promised = _interface(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    infer_shapes(model)
    _fold_constants(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    _drop_identities(model.graph)
    common.RemoveUnusedNodesPass()(model)
    _share_equal_indices(model)
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    common.ClearMetadataAndDocStringPass()(model)  # exporters leave paths of their machine there
    common.NameFixPass()(model)
    check_shapes(model)  # folding lets inference see more, and object to it
    name_batches(model)
    _restore(model, promised)


_Interface = tuple[tuple[str | None, ir.DataType | None, ir.Shape | None], ...]


def _interface(model: ir.Model) -> tuple[_Interface, _Interface]:
    """Names, types and declared shapes of inputs and of outputs."""
    inputs, outputs = (
        tuple((v.name, v.dtype, v.shape.copy() if v.shape is not None else None) for v in side)
        for side in (model.graph.inputs, model.graph.outputs)
    )
    return inputs, outputs


def _restore(model: ir.Model, promised: tuple[_Interface, _Interface]) -> None:
    """Put declared shapes back; that names and types are as they were is our own duty."""
    for side, before in zip((model.graph.inputs, model.graph.outputs), promised, strict=True):
        now = [(value.name, value.dtype) for value in side]
        assert now == [(n, t or v.dtype) for (n, t, _), v in zip(before, side, strict=True)]
        for value, (_, _, shape) in zip(side, before, strict=True):
            if shape is not None:
                value.shape = shape


def _fold_constants(model: ir.Model) -> None:
    """Compute what is constant, unless that would make the model bigger."""
    try:
        optimizer.fold_constants(
            model,
            onnx_shape_inference=True,
            input_size_limit=_FOLD_ELEMENTS,
            output_size_limit=_FOLD_ELEMENTS,
            should_fold=_may_fold,
        )
    except RuntimeError as error:
        raise ModelError(f"a constant cannot be computed: {first_line(error)}") from error


def _may_fold(node: ir.Node) -> bool | None:
    """False where the result could be big: it is computed before its size is looked at."""
    if any(value.shape is None or not value.shape.is_static() for value in node.outputs):
        return False
    made = sum(math.prod(value.shape.numpy()) for value in node.outputs if value.shape is not None)
    read = sum(v.const_value.size for v in node.inputs if v is not None and v.const_value)
    return None if made <= max(_FOLD_ELEMENTS, read) else False


def _drop_identities(graph: ir.Graph) -> None:
    """Connect around Identity nodes.

    The pass of onnx_ir renames an output where one output is the Identity of another, and pulls
    values of the outer graph into the outputs of a branch.
    """
    for node in list(graph):
        source, result = node.inputs[0] if node.inputs else None, node.outputs[0]
        if node.op_type != "Identity" or node.domain not in ("", "ai.onnx") or source is None:
            continue
        if result.is_graph_output():
            if source.producer() is None or source.is_graph_output():
                continue  # both names are part of the interface
            position = graph.outputs.index(result)
            graph.outputs[position] = source
            source.type, source.shape = result.type, result.shape
            name, result.name = result.name, None
            source.name = name
        ir.convenience.replace_all_uses_with(result, source)
        graph.remove(node, safe=True)


def _share_equal_indices(model: ir.Model) -> None:
    """Merge equal small integer constants, so that equal nodes are seen to be equal.

    Floats are weights of some layer; those keep to themselves.
    """
    first: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
    outputs = set(model.graph.outputs)
    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or not tensor.dtype.is_integer() or tensor.size > _INDEX_ELEMENTS:
            continue
        array = tensor.numpy()
        kept = first.setdefault((str(tensor.dtype), array.shape, array.tobytes()), value)
        if kept is not value and value not in outputs:
            ir.convenience.replace_all_uses_with(value, kept)
            model.graph.initializers.pop(str(value.name))
