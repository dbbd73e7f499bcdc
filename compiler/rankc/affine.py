"""Which values are affine functions, row by row of the batch, of a few base values.

Abstract interpretation. A value of shape (batch, *dims) is carried as one array (w, *dims) for
every base value of w columns: what the value's linear part makes of each unit vector. An operator
that is linear and leaves the batch alone acts on these arrays as it would act on a batch of w rows,
so the rules below are the operators themselves, in float64.

Bases are the rows that Gathers look up in constant tables, graph inputs with constant row shapes,
and whatever else is joined to them. The square of an affine value is a new base: a second-order
term (FM) is then affine too, and `squares` says what was squared.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from rankc.affine_rules import RULES, Linear, row_dims
from rankc.graph import array_of, attribute, reads
from rankc.linalg import Floats

LIMIT = 1 << 22  # float64 entries that describe one value: 32 MB


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """sum over bases of base @ part + const, for a value of shape (batch, *dims)."""

    parts: Mapping[ir.Value, Floats]  # (columns of the base, *dims); bases that matter, in order
    const: Floats  # dims

    @classmethod
    def of_base(cls, base: ir.Value, dims: tuple[int, ...]) -> Affine:
        width = math.prod(dims)
        return cls({base: np.eye(width).reshape(width, *dims)}, np.zeros(dims))


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Lookup:
    """Rows of a constant table, (batch, width), looked up by one integer per row of the batch."""

    rows: ir.Value  # the looked-up rows, after the Cast where the table is not float
    gather: ir.Node
    table: ir.Value  # (rows, width)
    source: ir.Value | None = None  # the (batch, fields) input whose column is the index
    column: int = 0  # without a source the lookup stays as it is

    @property
    def group(self) -> tuple[ir.Value | None, ir.DataType | None, int]:
        """Lookups that have this in common can be one Gather."""
        width = math.prod(row_dims(self.rows) or ())
        return self.source, self.table.dtype, width if self.source else id(self)


@dataclasses.dataclass(slots=True, eq=False)
class Region:
    """What is known of a graph."""

    maps: dict[ir.Value, Affine] = dataclasses.field(default_factory=dict)
    lookups: dict[ir.Value, Lookup] = dataclasses.field(default_factory=dict)  # by their rows
    squares: dict[ir.Value, ir.Value] = dataclasses.field(default_factory=dict)  # of what
    free: set[ir.Value] = dataclasses.field(default_factory=set)  # bases that are there anyway


def analyse(graph: ir.Graph) -> Region:
    """Interpret the main graph, whose nodes are sorted and whose values have shapes."""
    region = Region()
    shapes = [v.shape for v in graph.inputs if v.shape is not None and len(v.shape)]
    if not shapes or shapes[0][0] == ir.SymbolicDim(None):
        return region  # an axis without a name cannot be told from any other
    interpreter = _Interpreter(region, shapes[0][0])
    for value in graph.inputs:
        interpreter.adopt(value, integer=True)
    for node in graph:
        interpreter.visit(node)
    _leave_shared(region)
    return region


def _leave_shared(region: Region) -> None:
    """A table that must stay where it is, for another reader, is not stacked on others as well."""
    movable = {lookup.gather for lookup in region.lookups.values() if lookup.source is not None}
    for rows, lookup in list(region.lookups.items()):
        others = any(node not in movable for node, _ in lookup.table.uses())
        if others or lookup.table.is_graph_output():
            region.lookups[rows] = Lookup(rows, lookup.gather, lookup.table)
            region.free.add(rows)


class _Interpreter:
    def __init__(self, region: Region, batch: int | ir.SymbolicDim) -> None:
        self.region = region
        self.batch = batch
        self.tainted: set[ir.Value] = set()  # computed from looked-up rows: no base

    def adopt(self, value: ir.Value, *, integer: bool = False) -> bool:
        """Make a base of a value that is available without any lookup."""
        dims, dtype = self._rows(value), value.dtype
        if dims is None or dtype is None or math.prod(dims) ** 2 > LIMIT or value in self.tainted:
            return False
        if dtype != ir.DataType.FLOAT and not (integer and dtype.is_integer()):
            return False
        self.region.maps[value] = Affine.of_base(value, dims)
        self.region.free.add(value)
        return True

    def _rows(self, value: ir.Value) -> tuple[int, ...] | None:
        """`row_dims` of a value that has the model's batch."""
        dims = row_dims(value)
        if dims is None or value.shape is None or value.shape[0] != self.batch:
            return None
        return dims

    def visit(self, node: ir.Node) -> None:
        if any(v in self.tainted for v in reads(node)):
            self.tainted.update(node.outputs)
        if node.domain not in ("", "ai.onnx") or self._lookup(node):
            return
        found = self._square(node) or self._apply(node) or []
        for value, affine in zip(node.outputs, found, strict=False):
            size = sum(part.size for part in affine.parts.values())
            if row_dims(value) == affine.const.shape and size <= LIMIT:
                self.region.maps[value] = affine

    def _apply(self, node: ir.Node) -> list[Affine] | None:
        rule = RULES.get(node.op_type)
        if rule is None or not any(v in self.region.maps for v in node.inputs):
            return None
        linear = rule(node, [array_of(v) for v in node.inputs])
        if linear is None:
            return None
        moving = [v for v in node.inputs if v is not None and array_of(v) is None]
        if not all(v in self.region.maps or self.adopt(v) for v in moving):
            return None
        return _on(linear, [self.region.maps[v] for v in moving])

    def _lookup(self, node: ir.Node) -> bool:
        """Whether the node looks up a row of a table for each row of the batch."""
        table = node.inputs[0] if node.op_type == "Gather" else None
        array = array_of(table)
        if table is None or array is None or array.ndim != 2 or attribute(node, "axis", 0):
            return False
        rows = node.outputs[0]
        users = [user for user, _ in rows.uses()]
        if table.dtype != ir.DataType.FLOAT and len(users) == 1 and users[0].op_type == "Cast":
            rows = users[0].outputs[0]
        dims = self._rows(rows)
        if dims is None or math.prod(dims) != array.shape[1] or rows.dtype != ir.DataType.FLOAT:
            return False
        self.tainted.add(rows)
        if not array.shape[1]:  # nothing is left of the table: a constant
            self.region.maps[rows] = Affine({}, np.zeros(dims))
            return True
        self.region.maps[rows] = Affine.of_base(rows, dims)
        self.region.lookups[rows] = Lookup(rows, node, table, *self._column(node.inputs[1]))
        return True

    def _column(self, index: ir.Value | None) -> tuple[ir.Value | None, int]:
        """Which column of which input an index is.

        Nothing may be added to it: below zero a Gather counts from the end of its own table, which
        is another place once tables are stacked.
        """
        affine = self.region.maps.get(index) if index is not None else None
        if affine is None or affine.const.size != 1 or affine.const.any() or len(affine.parts) != 1:
            return None, 0
        ((source, part),) = affine.parts.items()
        column = int(np.argmax(part))
        one_hot = np.count_nonzero(part) == 1 and part.flat[column] == 1
        if not one_hot or source.shape is None or len(source.shape) != 2:
            return None, 0
        return source, column

    def _square(self, node: ir.Node) -> list[Affine] | None:
        x = node.inputs[0] if node.inputs else None
        known = self.region.maps.get(x) if x is not None else None
        if x is None or known is None or not any(b in self.region.lookups for b in known.parts):
            return None
        power = array_of(node.inputs[1]) if node.op_type == "Pow" else None
        twice = power is not None and power.size == 1 and power.item() == 2
        twice |= node.op_type == "Mul" and node.inputs[1] is x
        if not twice or known.const.size**2 > LIMIT:
            return None
        if any(base in self.region.squares for base in known.parts):
            return None
        self.region.squares[node.outputs[0]] = x
        return [Affine.of_base(node.outputs[0], known.const.shape)]


def _on(linear: Linear, operands: Sequence[Affine]) -> list[Affine] | None:
    """What the operator makes of its varying inputs."""
    if len({len(o.const.shape) for o in operands}) != 1:
        return None  # broadcasting would mix the batch with another axis
    widths = {base: len(part) for o in operands for base, part in o.parts.items()}
    consts = [c[0] + linear.shift for c in linear.batch([o.const[None] for o in operands])]
    rows = [_stacked(operand, widths) for operand in operands]
    parts: list[dict[ir.Value, Floats]] = [{} for _ in consts]
    ends = np.cumsum(list(widths.values()))[:-1]
    for out, const, found in zip(parts, consts, linear.batch(rows) if widths else [], strict=False):
        whole = np.broadcast_to(found, (len(found), *const.shape))
        out |= {b: p for b, p in zip(widths, np.split(whole, ends), strict=True) if p.any()}
    return [Affine(p, c) for p, c in zip(parts, consts, strict=True)]


def _stacked(operand: Affine, widths: Mapping[ir.Value, int]) -> Floats:
    """The parts for all bases, one below the other."""
    found = np.zeros((sum(widths.values()), *operand.const.shape))
    start = 0
    for base, width in widths.items():
        if base in operand.parts:
            found[start : start + width] = operand.parts[base]
        start += width
    return found
