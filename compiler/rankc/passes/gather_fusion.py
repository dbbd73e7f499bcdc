"""Fewer, larger operators around embedding tables; nothing changes but float32 rounding.

An exporter emits a column slice, a Gather for every table, and a stack of the rows. Instead:
  prepare  tables that the same index reads are glued, [deep, wide], one Gather, one Split: what is
           compressed next is one table a field
  finish   tables of equal width lie on top of each other, one Gather for each width; every value
           that is affine in the looked-up rows is computed from them by few layers
With e_f = z_f D_f + mu_f the rows of a factorisation machine, s = sum e_f, and P = D K DT diagonal,
    (|sum e_f|^2 - sum |e_f|^2) / 2 = |s|^2 / 2 - sum z_f^2 diag(P_f) / 2 - z_f D_f mu_f - const,
which needs no decoder: s is as many columns of a layer as a row has, the last terms are one. The
decoder of a compressed table vanishes wherever its readers are linear.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from rankc.affine import analyse
from rankc.affine_rules import row_dims
from rankc.fusion_emit import emit
from rankc.fusion_plan import make_plans, node_cost
from rankc.graph import attribute, constant, new_initializer, only_input, reads

# JSON: for each integer input, the largest id in each column that the stacked tables can serve, or
# null. Smaller than 0 or larger, an id would read another table's row: the runtime has to check.
ID_RANGES = "rankc.id_ranges"


@dataclasses.dataclass(frozen=True, slots=True)
class GatherFusion:
    """Glue and stack embedding tables, and fold what follows them."""

    name: ClassVar[str] = "gather_fusion"
    glue: bool = True  # tables read by the same index are compressed as one

    def prepare(self, model: ir.Model) -> None:
        """Glue the tables that are read by the same index."""
        common.CommonSubexpressionEliminationPass()(model)
        alike: dict[tuple[ir.Value, int], list[ir.Node]] = {}
        for node in model.graph if self.glue else ():
            if _reads_own_table(node):
                key = only_input(node, 1), len(_table(node))
                alike.setdefault(key, []).append(node)
        for nodes in alike.values():
            if len(nodes) > 1:
                _glue(model, nodes)
        common.ShapeInferencePass()(model)

    def finish(self, model: ir.Model) -> None:
        """Stack the tables, and compute what is affine in their rows by few layers."""
        common.ShapeInferencePass()(model)
        region = analyse(model.graph)
        for plan in make_plans(region):
            if not plan.emitted:
                continue
            new = emit(region, plan, _names(model))
            if _cost(model.graph, new.replaced) < _cost(model.graph, {}):
                _apply(model, new.tape, new.replaced)
                _note_ranges(model, new.most_ids)
        common.ShapeInferencePass()(model)


def _reads_own_table(node: ir.Node) -> bool:
    """Whether this Gather reads rows of a float table that nothing else reads."""
    if node.op_type != "Gather" or attribute(node, "axis", 0):
        return False
    table = only_input(node)
    alone = len(table.uses()) == 1 and not table.is_graph_output() and not table.is_graph_input()
    return alone and constant(table, ndim=2) is not None


def _table(node: ir.Node) -> np.ndarray:
    table = constant(only_input(node))
    assert table is not None, node.name
    return table


def _glue(model: ir.Model, nodes: list[ir.Node]) -> None:
    """One Gather of the tables side by side, the widest first, and one Split."""
    first = nodes[0]
    nodes = sorted(nodes, key=lambda n: -_table(n).shape[1])
    tables = [_table(node) for node in nodes]
    name, index = str(only_input(nodes[0]).name), only_input(first, 1)
    for node in nodes:
        model.graph.initializers.pop(str(only_input(node).name))
    glued = new_initializer(model, name, np.concatenate(tables, axis=1))
    sizes = new_initializer(
        model, f"{name}.widths", np.array([t.shape[1] for t in tables], np.int64)
    )
    tape, label = ir.tape.Tape(), str(nodes[0].name)
    rows = tape.op("Gather", [glued, index], name=label)
    rows.name = f"{nodes[0].outputs[0].name}.glued"
    old = [node.outputs[0] for node in nodes]
    new = tape.op_multi_out(
        "Split",
        [rows, sizes],
        num_outputs=len(nodes),
        attributes={"axis": -1},
        name=f"{label}.parts",
    )
    ir.convenience.replace_nodes_and_values(model.graph, first, nodes, tape.nodes, old, new)


def _names(model: ir.Model) -> set[str]:
    """Of all nodes and values."""
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    values += [v for node in model.graph.all_nodes() for v in node.outputs]
    return {str(v.name) for v in values} | {str(n.name) for n in model.graph.all_nodes()}


def _cost(graph: ir.Graph, replaced: Mapping[ir.Value, ir.Value]) -> float:
    """Of all nodes that the outputs need, once values are replaced."""
    nodes: set[ir.Node] = set()
    todo: list[ir.Value] = list(graph.outputs)
    while todo:
        value = todo.pop()
        node = replaced.get(value, value).producer()
        if node is not None and node not in nodes:
            nodes.add(node)
            todo += reads(node)
    return sum(map(node_cost, nodes))


def _apply(model: ir.Model, tape: ir.tape.Tape, replaced: Mapping[ir.Value, ir.Value]) -> None:
    """Put the recorded nodes into the graph; new values take the names of the old."""
    for value in tape.initializers:
        model.graph.register_initializer(value)
    model.graph.extend(tape.nodes)
    made = {output for node in tape.nodes for output in node.outputs}
    named: set[ir.Value] = set()
    for old, new in replaced.items():
        if new not in made - named and old.is_graph_output():  # the same numbers, two names
            copy = ir.node("Identity", [new])
            model.graph.append(copy)
            new = copy.outputs[0]
            new.name = f"{old.name}.copy"
            made.add(new)
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        if new in made - named:
            old.name, new.name = new.name, old.name
            named.add(new)
    model.graph.sort()
    common.RemoveUnusedNodesPass()(model)


def _note_ranges(model: ir.Model, most: Mapping[ir.Value, Mapping[int, int]]) -> None:
    known = json.loads(model.metadata_props.get(ID_RANGES, "{}"))
    for source, limits in most.items():
        (columns,) = row_dims(source) or (0,)
        before = known.get(source.name, [None] * columns)
        both = [[m for m in (before[k], limits.get(k)) if m is not None] for k in range(columns)]
        known[str(source.name)] = [min(ms, default=None) for ms in both]
    model.metadata_props[ID_RANGES] = json.dumps(known)
