"""Decide which affine values are computed afresh from the looked-up rows, by an estimate of time.

An affine value that a nonlinear operator reads is either emitted (a layer on the base: the
looked-up rows side by side) or its node is kept, and its inputs are asked the same question. Costs
are in multiply-adds for one row of the batch: a few dozen rows at once are the case in mind.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from itertools import pairwise

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from rankc.affine import Region
from rankc.affine_rules import FREE, row_dims
from rankc.graph import array_of
from rankc.linalg import Floats

PASS = 16  # multiply-adds in the time that it takes to write a number
COPY = 256  # ... to copy a few neighbouring numbers of a row from or to among others
NODE = 1024  # ... to start an operator, shared by a few dozen rows
NARROW = 64  # columns; narrower layers on the same input are merged
OFF_DIAGONAL = 1e-6  # relative; float32 rounding of an orthonormal decoder is below
MOST_SECOND = 64  # columns of a value whose second-order terms are looked into
MOST_BLOCKS = 256
WINDOW = 32  # blocks that may be joined to one chunk


@dataclasses.dataclass(frozen=True, slots=True)
class Chunk:
    """Neighbouring columns of a value, made of few rows of its weight."""

    rows: NDArray[np.intp]
    start: int
    stop: int
    copied: bool  # they are those base columns themselves

    @property
    def runs(self) -> list[tuple[int, int]]:
        """Neighbouring rows, as (start, stop)."""
        ends = np.flatnonzero(np.diff(self.rows) != 1) + 1
        return [(int(run[0]), int(run[-1]) + 1) for run in np.split(self.rows, ends)]

    @property
    def cost(self) -> float:
        """Of cutting the rows out of the base, and of the layer where they are not copied."""
        runs = 1 + int(np.count_nonzero(self.rows[1:] - self.rows[:-1] != 1))
        cost: float = runs * (2 * COPY + NODE / 4)
        if not self.copied:
            cost += NODE + len(self.rows) * (self.stop - self.start)
            cost += NODE + PASS * len(self.rows) if runs > 1 else 0
        return cost


@dataclasses.dataclass(frozen=True, slots=True)
class Form:
    """value = base @ weight + bias + base^2 @ second + sum of factor^2 @ its weight."""

    weight: Floats  # (R, n)
    bias: Floats  # (n,)
    second: Floats | None  # (R, n)
    factors: tuple[tuple[ir.Value, Floats], ...]  # affine (batch, k) and (k, n)
    chunks: tuple[Chunk, ...]  # more than one, or one that is copied; empty: one dense layer
    cost: float  # of base @ weight + bias


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What to emit."""

    bases: tuple[ir.Value, ...]  # lookups first, those next to each other that share a Gather
    rows: Mapping[ir.Value, slice]  # of a base in every weight
    emitted: Mapping[ir.Value, Form]


def make_plans(region: Region) -> list[Plan]:
    """A plan for each part of the region that shares no looked-up rows with another."""
    return [_Planner(region, part).plan() for part in _parts(region)]


def _parts(region: Region) -> list[dict[ir.Value, None]]:
    """The values that are made from looked-up rows, in order, each part of the graph apart."""
    parts: list[tuple[set[ir.Value], dict[ir.Value, None]]] = []
    for value, affine in region.maps.items():
        bases = {b for b in affine.parts if b in region.lookups or b in region.squares}
        bases |= {region.lookups[b].table for b in bases if b in region.lookups}
        if not bases or value in region.free:  # free: it is there anyway
            continue
        joined: tuple[set[ir.Value], dict[ir.Value, None]] = (bases, {})
        if value in region.squares:
            bases.add(region.squares[value])
        for part in [p for p in parts if not p[0].isdisjoint(bases | {value})]:
            parts.remove(part)
            joined = (joined[0] | part[0], joined[1] | part[1])
        joined[0].add(value)
        joined[1][value] = None
        parts.append(joined)
    return [values for _, values in parts]


def node_cost(node: ir.Node) -> float:
    """What a node costs, by the constant part of its output's shape."""
    sizes = [math.prod(row_dims(v) or (0,)) for v in node.outputs]
    weight = array_of(node.inputs[1]) if node.op_type in ("MatMul", "Gemm") else None
    macs = 0
    if weight is not None and weight.ndim == 2:
        macs = sizes[0] * weight.size // max(math.prod((row_dims(node.outputs[0]) or (1,))[-1:]), 1)
    return NODE + macs + (0 if node.op_type in FREE else PASS * sum(sizes))


class _Planner:
    def __init__(self, region: Region, inside: Mapping[ir.Value, None]) -> None:
        self.region = region
        self.inside = inside
        self.wanted = {v: None for v in inside if self._is_wanted(v)}
        squared = [region.squares[v] for v in inside if v in region.squares]
        reached = dict.fromkeys(b for v in [*inside, *squared] for b in region.maps[v].parts)
        groups: dict[object, list[ir.Value]] = {}
        for base in reached:
            if base in region.lookups:
                groups.setdefault(region.lookups[base].group, []).append(base)
        bases = [b for group in sorted(groups.values(), key=self._stored) for b in group]
        bases += [b for b in reached if b in region.free and b not in region.lookups]
        ends = np.cumsum([0, *(math.prod(row_dims(b) or ()) for b in bases)]).tolist()
        self.bases = tuple(bases)
        self.rows = {b: slice(*ab) for b, ab in zip(bases, pairwise(ends), strict=True)}
        self.width: int = ends[-1]
        self.forms: dict[ir.Value, Form] = {}
        self.best_costs: dict[ir.Value, float] = {}

    def plan(self) -> Plan:
        emitted: dict[ir.Value, Form] = {}
        todo = list(self.wanted)
        for value in self.inside:  # in order, so that no recursion is deep
            self.best(value)
        for value in todo:  # grows
            if value in self.region.lookups or self.emission(value) < self.keeping(value):
                emitted[value] = self.form(value)
                more: Iterable[ir.Value | None] = (u for u, _ in self.form(value).factors)
            else:
                more = self._producer(value).inputs
            new = [v for v in more if v is not None and v in self.inside and v not in self.wanted]
            self.wanted |= dict.fromkeys(new)
            todo += dict.fromkeys(new)
        return Plan(self.bases, self.rows, emitted)

    def best(self, value: ir.Value) -> float:
        """The least cost of having a value."""
        if value in self.wanted or value not in self.inside:
            return 0.0
        if value not in self.best_costs:
            cost = self.emission(value)
            if value not in self.region.lookups:
                cost = min(cost, self.keeping(value))
            self.best_costs[value] = cost
        return self.best_costs[value]

    def keeping(self, value: ir.Value) -> float:
        node = self._producer(value)
        return node_cost(node) + sum(self.best(v) for v in node.inputs if v is not None)

    def emission(self, value: ir.Value) -> float:
        form = self.form(value)
        n, cost = form.bias.size, form.cost
        if form.second is not None:
            cost += 2 * NODE + (PASS + n) * self.width
        for factor, weight in form.factors:
            cost += self.best(factor) + 2 * NODE + PASS * len(weight) + weight.size
        return cost

    def form(self, value: ir.Value) -> Form:
        if value not in self.forms:
            self.forms[value] = self._form(value)
        return self.forms[value]

    def _form(self, value: ir.Value) -> Form:
        affine = self.region.maps[value]
        bias = affine.const.ravel().copy()
        weight, second = np.zeros((self.width, bias.size)), None
        factors: list[tuple[ir.Value, Floats]] = []
        for base, part in affine.parts.items():
            flat = part.reshape(len(part), -1)
            if base not in self.region.squares:
                weight[self.rows[base]] = flat
                continue
            squared = self.form(self.region.squares[base])
            diagonal = _diagonal(squared.weight, flat)
            if diagonal is None:
                factors.append((self.region.squares[base], flat))
                continue
            second = diagonal if second is None else second + diagonal
            weight += 2 * squared.weight @ (squared.bias[:, None] * flat)
            bias += squared.bias**2 @ flat
        chunks, cost = _chunks(weight, bias)
        return Form(weight, bias, second, tuple(factors), chunks, cost)

    def _is_wanted(self, value: ir.Value) -> bool:
        """Whether anything but an affine operator reads it."""
        users = [node for node, _ in value.uses()]
        outside = any(v not in self.region.maps for node in users for v in node.outputs)
        return outside or value.is_graph_output()

    def _stored(self, group: list[ir.Value]) -> tuple[bool, int]:
        """Codes of one type are cast together; they come first, float rows last."""
        lookup = self.region.lookups[group[0]]
        dtype = lookup.rows.dtype if lookup.source is None else lookup.table.dtype
        return dtype == ir.DataType.FLOAT, int(dtype or 0)

    @staticmethod
    def _producer(value: ir.Value) -> ir.Node:
        node = value.producer()
        assert node is not None, value.name
        return node


def _diagonal(weight: Floats, scale: Floats) -> Floats | None:
    """(R, n) with |x @ weight|^2 weighted by a column of scale = x^2 @ it, where there is one."""
    if scale.shape[1] > MOST_SECOND or np.count_nonzero(scale) * len(weight) ** 2 > 1 << 30:
        return None
    found = np.zeros((len(weight), scale.shape[1]))
    for j, column in enumerate(scale.T):
        used = weight[:, column != 0]
        rows = np.flatnonzero(used.any(axis=1))
        product = (used[rows] * column[column != 0]) @ used[rows].T
        diagonal = np.diagonal(product)
        size = np.sqrt(np.abs(diagonal))
        allowed = OFF_DIAGONAL * np.outer(size, size)  # whatever the scales of the base columns are
        np.fill_diagonal(allowed, np.inf)
        if (np.abs(product) > allowed).any():
            return None
        found[rows, j] = diagonal
    return found


def _chunks(weight: Floats, bias: Floats) -> tuple[tuple[Chunk, ...], float]:
    """The cheapest way to have base @ weight + bias: one layer (no chunks), or one for each run."""
    (total, n), blocks = weight.shape, _blocks(weight, bias)
    narrow = 2 if n < NARROW else 1  # a merged layer's output is split
    dense = NODE + total * n + PASS * n * narrow
    if (len(blocks) == 1 and not blocks[0].copied) or len(blocks) > MOST_BLOCKS:
        return (), dense
    best: list[tuple[float, tuple[Chunk, ...]]] = [(0.0, ())]
    for i in range(1, len(blocks) + 1):
        options = []
        for j in range(max(0, i - WINDOW), i):
            chunk = _joined(blocks[j:i])
            if len(chunk.rows):
                options.append((best[j][0] + chunk.cost, (*best[j][1], chunk)))
        best.append(min(options, key=lambda o: o[0], default=(np.inf, ())))
    cost, chunks = best[-1]
    if len(chunks) == 1 and chunks[0].copied and chunks[0].runs == [(0, total)]:
        return chunks, 0.0
    cost += NODE + PASS * total + (NODE + PASS * n if len(chunks) > 1 else 0)  # split, concat
    return (chunks, cost) if cost < dense else ((), dense)


def _joined(blocks: list[Chunk]) -> Chunk:
    if len(blocks) == 1:
        return blocks[0]
    copied = all(b.copied for b in blocks)
    rows = np.concatenate([b.rows for b in blocks])
    return Chunk(rows if copied else np.sort(rows), blocks[0].start, blocks[-1].stop, copied)


def _blocks(weight: Floats, bias: Floats) -> list[Chunk]:
    """Runs of columns that share no row, in order; columns without rows are constant."""
    used = weight != 0
    rows = np.flatnonzero(used.any(axis=1))
    first = used[rows].argmax(axis=1)
    end = weight.shape[1] - used[rows, ::-1].argmax(axis=1)
    order = np.argsort(first, kind="stable")
    rows, first, end = rows[order], first[order], np.maximum.accumulate(end[order])
    cuts = 1 + np.flatnonzero(first[1:] >= end[:-1])
    blocks: list[Chunk] = []
    stop = 0
    for k in np.split(np.arange(len(rows)), cuts) if len(rows) else []:
        a, b = int(first[k[0]]), int(end[k[-1]])
        if a > stop:
            blocks.append(Chunk(rows[:0], stop, a, copied=False))
        copied = len(k) == 1 == b - a and weight[rows[k[0]], a] == 1 and bias[a] == 0
        block, stop = Chunk(np.sort(rows[k]), a, b, bool(copied)), b
        merge = copied and bool(blocks) and blocks[-1].copied
        blocks.append(_joined([blocks.pop(), block]) if merge else block)
    if stop < len(bias):
        blocks.append(Chunk(rows[:0], stop, len(bias), copied=False))
    return blocks
