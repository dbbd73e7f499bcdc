"""Models of one node, to be run by the interpreter and by others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


def one_node(
    operator: str,
    inputs: Sequence[NDArray[Any] | None],
    attributes: Mapping[str, Any] | None = None,
    *,
    opset: int = 20,
    outputs: int = 1,
    constants: Sequence[int] = (),
) -> ir.Model:
    """A model of one node.

    Args:
        operator: its name in ONNX.
        inputs: a sample of each; None is left out.
        attributes: of the node; arrays are tensors.
        opset: of the model.
        outputs: how many the node has.
        constants: which inputs are initializers; the others are the graph's inputs.
    """
    tape = ir.tape.Tape()
    read: list[ir.Value | None] = []
    asked: list[ir.Value] = []
    stored: list[ir.Value] = []
    for k, sample in enumerate(inputs):
        if sample is None:
            read.append(None)
        elif k in constants:
            read.append(tape.initializer(ir.tensor(sample), name=f"x{k}"))
            stored.append(read[-1])  # type: ignore[arg-type]
        else:
            kind = ir.TensorType(ir.DataType.from_numpy(sample.dtype))
            read.append(ir.Value(name=f"x{k}", shape=ir.Shape(sample.shape), type=kind))
            asked.append(read[-1])  # type: ignore[arg-type]
    kept = {k: _attribute(v) for k, v in (attributes or {}).items()}
    found = tape.op_multi_out(operator, read, kept, num_outputs=outputs, name="node")
    for k, value in enumerate(found):
        value.name = f"y{k}"
    graph = ir.Graph(
        asked, found, nodes=tape.nodes, initializers=stored, opset_imports={"": opset}, name="g"
    )
    return ir.Model(graph, ir_version=10)


def _attribute(value: Any) -> Any:
    return ir.tensor(value) if isinstance(value, np.ndarray) else value
