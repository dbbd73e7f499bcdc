"""Emit what a fusion plan says: few Gathers, the base, few layers on it.

ids -> (columns) -> + offsets -> Gather, once per width of rows -> base = rows side by side
base -> one layer for all narrow values, one for each wide value, chunks where it pays
base^2 @ second + layer: the second-order term of a factorisation machine
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, groupby, pairwise
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from rankc.affine import Lookup, Region
from rankc.affine_rules import row_dims
from rankc.fusion_plan import NARROW, Chunk, Form, Plan
from rankc.graph import array_of
from rankc.linalg import Floats

FLOAT = ir.DataType.FLOAT


class Recorder:
    """Records nodes on a tape, every value (batch, *dims) with its shape and a name of its own."""

    def __init__(self, batch: int | ir.SymbolicDim, taken: set[str]) -> None:
        self.batch = batch
        self.taken = taken
        self.tape = ir.tape.Tape()

    def unique(self, name: str) -> str:
        found, k = name, 1
        while found in self.taken:
            found, k = f"{name}.{k}", k + 1
        self.taken.add(found)
        return found

    def constant(self, name: str, array: NDArray[Any]) -> ir.Value:
        name = self.unique(name)
        return self.tape.initializer(ir.tensor(np.ascontiguousarray(array), name=name), name=name)

    def op(
        self,
        kind: str,
        inputs: Sequence[ir.Value],
        dims: Sequence[int],
        name: str,
        dtype: ir.DataType | None = FLOAT,
        **attributes: int,
    ) -> ir.Value:
        """One node, its output (batch, *dims)."""
        name = self.unique(name)
        output = ir.val(name, dtype, ir.Shape([self.batch, *dims]))
        return self.tape.op(kind, inputs, attributes=attributes, name=name, output=output)

    def split(
        self, value: ir.Value, sizes: Sequence[int], name: str, names: Sequence[str] = ()
    ) -> list[ir.Value]:
        """Pieces along axis 1, by default numbered."""
        if len(sizes) == 1:
            return [value]
        name = self.unique(name)
        outputs = [
            ir.val(self.unique(piece), value.dtype, ir.Shape([self.batch, size]))
            for piece, size in zip(
                names or [f"{name}.{k}" for k in range(len(sizes))], sizes, strict=True
            )
        ]
        inputs = [value, self.constant(f"{name}.sizes", np.array(sizes, np.int64))]
        self.tape.op_multi_out("Split", inputs, {"axis": 1}, outputs=outputs, name=name)
        return outputs

    def join(self, values: Sequence[ir.Value], name: str) -> ir.Value:
        """Side by side, (batch, sum n)."""
        if len(values) == 1:
            return values[0]
        width = sum(columns(value) for value in values)
        return self.op("Concat", values, [width], name, values[0].dtype, axis=1)

    def reshape(self, value: ir.Value, dims: Sequence[int], name: str) -> ir.Value:
        """The same rows as (batch, *dims)."""
        if row_dims(value) == tuple(dims):
            return value
        shape = self.constant(f"{name}.shape", np.array([0, *dims], np.int64))
        return self.op("Reshape", [value, shape], dims, name, value.dtype)

    def flatten(self, value: ir.Value) -> ir.Value:
        """The same rows as (batch, n)."""
        return self.reshape(value, [math.prod(row_dims(value) or ())], f"{value.name}.flat")

    def layer(self, x: ir.Value, weight: Floats, bias: Floats, name: str) -> ir.Value:
        """X @ weight + bias."""
        inputs = [x, self.constant(f"{name}.weight", weight.astype(np.float32))]
        if not bias.any():
            return self.op("MatMul", inputs, [len(bias)], f"{name}.layer")
        inputs.append(self.constant(f"{name}.bias", bias.astype(np.float32)))
        return self.op("Gemm", inputs, [len(bias)], f"{name}.layer")

    def add_squares(self, to: ir.Value, x: ir.Value, weight: Floats, name: str) -> ir.Value:
        """To + x^2 @ weight."""
        squared = self.op("Mul", [x, x], [len(weight)], f"{x.name}.squared")
        matrix = self.constant(f"{name}.second", weight.astype(np.float32))
        return self.op("Gemm", [squared, matrix, to], [weight.shape[1]], f"{name}.sum")


def columns(value: ir.Value) -> int:
    """N of a value (batch, n)."""
    dims = row_dims(value)
    assert dims is not None and len(dims) == 1, value.name
    return dims[0]


@dataclasses.dataclass(frozen=True, slots=True)
class Emitted:
    """Nodes that are not in the graph yet."""

    tape: ir.tape.Tape
    replaced: Mapping[ir.Value, ir.Value]  # old: new
    most_ids: Mapping[ir.Value, Mapping[int, int]]  # of an input's columns, that tables can serve


def emit(region: Region, plan: Plan, taken: set[str]) -> Emitted:
    """Record what the plan says; the graph is not touched."""
    batch = plan.bases[0].shape
    assert batch is not None
    recorder = Recorder(batch[0], taken)
    tables = Tables(recorder)
    found, others = _bases(recorder, tables, region, plan)
    if any(form.second is not None for form in plan.emitted.values()):
        found = [recorder.join(found, "rows")]  # to be squared without the others
    rows, base = found[0], recorder.join([*found, *others], "base")
    flat = _chunked(recorder, base, plan) | _layers(recorder, base, plan)
    for value, form in plan.emitted.items():
        if form.second is not None:
            n, name = columns(rows), str(value.name)
            x, n = (base, columns(base)) if form.second[n:].any() else (rows, n)
            flat[value] = recorder.add_squares(flat[value], x, form.second[:n], name)
    for value, form in plan.emitted.items():
        for factor, weight in form.factors:
            x = flat[factor] if factor in flat else recorder.flatten(factor)
            flat[value] = recorder.add_squares(flat[value], x, weight, str(value.name))
    shaped = {
        value: recorder.reshape(new, row_dims(value) or (), f"{value.name}.shaped")
        for value, new in flat.items()
    }
    return Emitted(recorder.tape, shaped, tables.most_ids)


def _bases(
    recorder: Recorder, tables: Tables, region: Region, plan: Plan
) -> tuple[list[ir.Value], list[ir.Value]]:
    """The looked-up rows, in the order of the plan, and the other bases."""
    lookups = [region.lookups[b] for b in plan.bases if b in region.lookups]
    found: list[ir.Value] = []
    for dtype, gathered in groupby(tables.gather(lookups), key=lambda value: value.dtype):
        if dtype == FLOAT:
            found += gathered
            continue
        codes = recorder.join(list(gathered), "codes")
        found.append(recorder.op("Cast", [codes], [columns(codes)], "codes.float", to=int(FLOAT)))
    others = [recorder.flatten(b) for b in plan.bases if b not in region.lookups]
    assert sum(map(columns, [*found, *others])) == sum(r.stop - r.start for r in plan.rows.values())
    return found, others


class Tables:
    """Tables of equal width and type on top of each other, read by one Gather."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.most_ids: dict[ir.Value, dict[int, int]] = {}

    def gather(self, lookups: Sequence[Lookup]) -> Iterator[ir.Value]:
        """Rows for each group of lookups, (batch, sum of widths)."""
        by_source: dict[ir.Value | None, list[Lookup]] = {}
        for lookup in lookups:
            by_source.setdefault(lookup.source, []).append(lookup)
        indices = {s: self._indices(s, some) for s, some in by_source.items() if s is not None}
        for _, group in groupby(lookups, key=lambda lookup: lookup.group):
            fields = list(group)
            source, rows = fields[0].source, fields[0].rows
            if source is None:
                yield self.recorder.flatten(rows)
            else:
                yield self._rows(fields, next(indices[source]))

    def _rows(self, fields: Sequence[Lookup], index: ir.Value) -> ir.Value:
        arrays = _distinct(fields)
        table = np.concatenate(list(arrays.values()))
        width, dtype = table.shape[1], fields[0].table.dtype
        stacked = self.recorder.constant(f"table.{width}", table)
        dims = [len(fields), width]
        rows = self.recorder.op("Gather", [stacked, index], dims, f"rows.{width}", dtype)
        return self.recorder.flatten(rows)

    def _indices(self, source: ir.Value, fields: Sequence[Lookup]) -> Iterator[ir.Value]:
        """Row numbers in the stacked tables, for each group of lookups, (batch, fields)."""
        groups = [list(group) for _, group in groupby(fields, key=lambda f: f.group)]
        offsets: list[int] = []
        for group in groups:
            tables = _distinct(group)
            ends = accumulate(len(table) for table in tables.values())
            starts = dict(zip(tables, [0, *ends], strict=False))
            offsets += [starts[f.table] for f in group]
        self._note(source, fields)
        taken = np.array([f.column for f in fields], np.int64)
        assert source.dtype is not None
        index, n, name = source, len(fields), str(source.name)
        if row_dims(source) != (n,) or (taken != np.arange(n)).any():
            which = self.recorder.constant(f"{name}.columns", taken)
            index = self.recorder.op(
                "Gather", [index, which], [n], f"{name}.taken", source.dtype, axis=1
            )
        if any(offsets):
            added = self.recorder.constant(
                f"{name}.offsets", np.array(offsets, source.dtype.numpy())
            )
            index = self.recorder.op("Add", [index, added], [n], f"{name}.rows", source.dtype)
        return iter(self.recorder.split(index, [len(g) for g in groups], f"{name}.groups"))

    def _note(self, source: ir.Value, fields: Iterable[Lookup]) -> None:
        most = self.most_ids.setdefault(source, {})
        for field in fields:
            array = array_of(field.table)
            assert array is not None
            limit = len(array) - 1
            most[field.column] = min(limit, most.get(field.column, limit))


def _distinct(fields: Iterable[Lookup]) -> dict[ir.Value, NDArray[Any]]:
    """Each table once: several fields may read it."""
    arrays = {f.table: array_of(f.table) for f in fields}
    return {table: array for table, array in arrays.items() if array is not None}


def _chunked(recorder: Recorder, base: ir.Value, plan: Plan) -> dict[ir.Value, ir.Value]:
    """Runs of base columns, copied or decoded, side by side, for the values that want them."""
    chunked = {v: f for v, f in plan.emitted.items() if f.chunks}
    runs = [run for f in chunked.values() for chunk in f.chunks for run in chunk.runs]
    ends = sorted({0, columns(base), *(end for run in runs for end in run)})
    pieces = recorder.split(base, np.diff(ends).tolist(), "base.pieces")
    parts = dict(zip(pairwise(ends), pieces, strict=True))
    found = {}
    for value, form in chunked.items():
        found[value] = recorder.join(
            [v for chunk in form.chunks for v in _chunk(recorder, parts, form, chunk, value)],
            f"{value.name}.joined",
        )
    return found


def _chunk(
    recorder: Recorder,
    parts: Mapping[tuple[int, int], ir.Value],
    form: Form,
    chunk: Chunk,
    value: ir.Value,
) -> list[ir.Value]:
    pieces = [
        piece
        for start, stop in chunk.runs
        for (a, b), piece in parts.items()
        if start <= a and b <= stop
    ]
    if chunk.copied:
        return pieces
    name, span = f"{value.name}.{chunk.start}", slice(chunk.start, chunk.stop)
    x = recorder.join(pieces, f"{name}.rows")
    return [recorder.layer(x, form.weight[chunk.rows, span], form.bias[span], name)]


def _layers(recorder: Recorder, base: ir.Value, plan: Plan) -> dict[ir.Value, ir.Value]:
    """One layer on the base for each wide value, one for all narrow ones."""
    forms = {v: f for v, f in plan.emitted.items() if not f.chunks}
    found = {
        v: recorder.layer(base, f.weight, f.bias, str(v.name))
        for v, f in forms.items()
        if f.bias.size >= NARROW
    }
    narrow = {v: f for v, f in forms.items() if v not in found}
    if narrow:
        weight = np.concatenate([f.weight for f in narrow.values()], axis=1)
        bias = np.concatenate([f.bias for f in narrow.values()])
        name = "narrow" if len(narrow) > 1 else str(next(iter(narrow)).name)
        value = recorder.layer(base, weight, bias, name)
        sizes, names = [f.bias.size for f in narrow.values()], [f"{v.name}.part" for v in narrow]
        pieces = recorder.split(value, sizes, f"{name}.parts", names)
        found |= dict(zip(narrow, pieces, strict=True))
    return found
