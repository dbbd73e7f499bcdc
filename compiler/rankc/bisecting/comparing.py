"""A model's file against what its plan makes: which tensors and nodes differ, and of which site."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir


@dataclasses.dataclass(frozen=True, slots=True)
class Differences:
    """What differs, gathered by the site that it belongs to, in the order of the graph."""

    built: ir.Model  # from the plan
    file: ir.Model
    units: Mapping[str, tuple[str, ...]]  # site, or own name of what is of no site: names
    loose: bool  # the two have other nodes or tensors, so no part of one fits into the other

    @classmethod
    def of(cls, built: ir.Model, file: ir.Model, made: Mapping[str, str]) -> Differences:
        """Compare by name; `made` tells the site of what rewrites brought in."""
        tensors, nodes = (_tensors(built), _tensors(file)), (_nodes(built), _nodes(file))
        loose = any(a.keys() != b.keys() for a, b in (tensors, nodes))
        names = [
            name
            for mine, theirs in (nodes, tensors)
            for name in dict.fromkeys((*mine, *theirs))
            if _differ(mine, theirs, name)
        ]
        units: dict[str, tuple[str, ...]] = {}
        for name in names:
            unit = made.get(name, name)
            units[unit] = (*units.get(unit, ()), name)
        return cls(built, file, units, loose)

    def mixed(self, names: frozenset[str]) -> ir.Model:
        """What the plan makes, with these tensors and nodes as they are in the file."""
        copy = self.built.clone()
        theirs = {node.name: node for node in self.file.graph}
        for name, value in copy.graph.initializers.items():
            if name in names:
                tensor = self.file.graph.initializers[name].const_value
                assert tensor is not None
                value.const_value = tensor
                value.type, value.shape = (
                    ir.TensorType(tensor.dtype),
                    ir.Shape(tensor.shape.numpy()),
                )
        known = {str(v.name): v for v in _values(copy)}
        for node in copy.graph:
            if node.name in names:
                other = theirs[node.name]
                node.op_type = other.op_type
                node.attributes.clear()
                node.attributes.update(other.attributes)
                for k, read in enumerate(other.inputs):
                    node.replace_input_with(k, None if read is None else known[str(read.name)])
        return copy

    def of_units(self, units: frozenset[str]) -> frozenset[str]:
        """The names that differ in these units."""
        return frozenset(name for unit in units for name in self.units[unit])

    def told(self, name: str) -> str:
        """How a tensor or node differs, in words."""
        built, file = (_tensors(model).get(name) for model in (self.built, self.file))
        if built is None or file is None:
            return f"{name} is not the node that the plan makes"
        if built.shape != file.shape:
            return f"{name} has shape {file.shape}, by the plan it is {built.shape}"
        wrong = int(np.count_nonzero(built != file))
        return f"{name} differs from what the plan makes in {wrong:,} of {built.size:,} numbers"


def _values(model: ir.Model) -> list[ir.Value]:
    graph = model.graph
    results = [value for node in graph for value in node.outputs]
    return [*graph.inputs, *graph.initializers.values(), *results]


def _tensors(model: ir.Model) -> dict[str, Any]:
    found = {n: v.const_value for n, v in model.graph.initializers.items()}
    return {name: tensor.numpy() for name, tensor in found.items() if tensor is not None}


def _nodes(model: ir.Model) -> dict[str, Any]:
    return {str(node.name): _signature(node) for node in model.graph}


def _signature(node: ir.Node) -> tuple[Any, ...]:
    attributes = {
        name: ir.serde.serialize_attribute(one).SerializeToString(deterministic=True)
        for name, one in node.attributes.items()
    }
    inputs = tuple(None if value is None else value.name for value in node.inputs)
    outputs = tuple(value.name for value in node.outputs)
    return node.domain, node.op_type, inputs, outputs, sorted(attributes.items())


def _differ(built: Mapping[str, Any], file: Mapping[str, Any], name: str) -> bool:
    a, b = built.get(name), file.get(name)
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype != b.dtype or not np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    return a is None or b is None or a != b
