"""Weights that several nodes read, one of its own for each that is trained apart."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from rankc.errors import ModelError
from rankc.graph import new_initializer, reads


def unshare(
    model: ir.Model, names: Collection[str], nodes: Collection[str] | None = None
) -> list[str]:
    """Give nodes that share an initializer a copy each, in place; outputs stay as they are.

    Exporters merge equal weights, and embeddings are tied to the last layer on purpose. A method
    that writes to the weight of one node must not change another's.

    Args:
        model: cleaned up.
        names: of initializers. Of those that one node reads nothing changes.
        nodes: names of the nodes that are to have their own; by default all that read one of them.
            The first keeps the initializer where nobody else reads it. Nodes in the bodies of If,
            Loop and Scan, and outputs of the model, read it as it was.

    Returns:
        Names of the copies, `<initializer>/<node>`, in the order of `names` and of the nodes.

    Raises:
        ModelError: there is no initializer, or no node, of that name.
    """
    _check(model, names, nodes)
    return [copy for name in names for copy in _apart(model, name, nodes)]


def _check(model: ir.Model, names: Collection[str], nodes: Collection[str] | None) -> None:
    for kind, asked, known in (
        ("initializer", names, set(model.graph.initializers)),
        ("node", nodes or (), {str(node.name) for node in model.graph}),
    ):
        if missing := [name for name in asked if name not in known]:
            raise ModelError(f"no {kind} is called {missing[0]!r}; `rankc inspect` lists names")


def _apart(model: ir.Model, name: str, nodes: Collection[str] | None) -> list[str]:
    value = model.graph.initializers[name]
    assert value.const_value is not None, name
    readers = [node for node in model.graph if any(v is value for v in reads(node))]
    direct = [node for node in readers if any(v is value for v in node.inputs)]
    meant = [node for node in direct if nodes is None or str(node.name) in nodes]
    if len(meant) == len(readers) and not value.is_graph_output():
        meant = meant[1:]
    made = []
    for node in meant:
        copy = new_initializer(model, f"{name}/{node.name}", np.array(value.const_value.numpy()))
        copy.meta.update(value.meta)
        for k, read in enumerate(node.inputs):
            if read is value:
                node.replace_input_with(k, copy)
        made.append(str(copy.name))
    return made
