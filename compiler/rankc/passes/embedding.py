"""Embedding tables: keep the few directions of the rows that are read and that the answer feels.

Row v is read with probability p_v (calibration counts, smoothed). With mu = sum p_v e_v, C the
covariance under p, and M = E[g gT] the weight of the logit's gradient at the looked-up row:
    encode, decode = directions(C, M)      z_v = encode.T (e_v - mu)      e_v ~ decode z_v + mu
The codes z replace the table, V x r instead of V x d; `decode` is emitted as a MatMul, which
`gather_fusion` folds into the layers that read it. Expected error = the tail of the spectrum.
Codes are uncorrelated, so int8 with one scale a column costs next to nothing.
  * rows never read keep a pseudo-count of `smoothing`: they are projected, not forgotten
  * a table with an all-zero (padding) row keeps mu = 0, so that the row stays exactly zero
  * the decoder is orthonormal on the columns that a second-order term (FM) reads, which then needs
    no decoder: |decode z|^2 = |z|^2
PCA of looked-up vectors: Yu et al., KDD 2024 (ADS), arXiv 2405.18146; weight, smoothing, int8 ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import numpy as np
import onnx_ir as ir
from annotated_types import Ge, Le

from rankc.codebook import Codebook, Coded, probabilities
from rankc.graph import (
    Readers,
    attribute,
    constant,
    new_initializer,
    only_input,
    readers,
    replace_node,
    selected,
    value_named,
    widest_split,
)
from rankc.linalg import Floats, share_lost
from rankc.passbase import Curve, Dense, Probe, Site, SiteStats, Skip

MAX_RANKS = 32  # of wider tables, that many ranks are considered


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """A table ready to be coded at any rank."""

    book: Codebook
    read: Floats  # probability of each row in the calibration rows, not smoothed, (V,)
    felt: Floats | None  # weight of an error, (d, d)
    gathers: int  # nodes that read the table


@dataclasses.dataclass(frozen=True, slots=True)
class Embedding:
    """Compress the tables that Gather nodes read."""

    name: ClassVar[str] = "embedding"
    targets: tuple[str, ...] = ("*",)  # names of tables: globs, or re: patterns
    ignore: tuple[str, ...] = ()  # tables to leave alone, the same way
    rank: Annotated[int, Ge(1)] | None = None  # one for all; by default what the budget allows
    int8: bool = False  # store the codes as int8 with a scale a column
    method: Literal["pca", "svd"] = "pca"  # svd is the baseline: the table alone, not its reads
    weighted: bool = True  # by the logit's gradient; False: plain PCA. Not for `svd`
    smoothing: Annotated[float, Ge(0), Le(1e9)] = 1.0  # pseudo-count of every row
    min_rows: Annotated[int, Ge(0)] = 2  # leave smaller tables alone

    def match(self, model: ir.Model) -> Iterator[Site | Skip]:
        for table in model.graph.initializers.values():
            name, nodes = str(table.name), [node for node, _ in table.uses()]
            array = constant(table, ndim=2)
            if array is None or not any(n.op_type == "Gather" for n in nodes):
                continue
            if not selected(name, self.targets, self.ignore):
                continue
            reason = self._refusal(table, array.shape, nodes)
            if reason:
                yield Skip(self.name, name, reason)
            else:
                yield Site(self.name, name, (array.shape[0], array.shape[1]))

    def _refusal(self, table: ir.Value, shape: tuple[int, ...], nodes: list[ir.Node]) -> str | None:
        if any(n.op_type != "Gather" or attribute(n, "axis", 0) for n in nodes):
            return "it is also read by other operators than a Gather of rows"
        if len({id(n.graph) for n in nodes}) > 1 or nodes[0].graph is not table.graph:
            return "it is read inside the body of an If or a Loop"
        if any(only_input(n, 1).const_value is not None for n in nodes):
            return "its indices are constant: it is no lookup table"
        if shape[0] < self.min_rows:
            return f"{shape[0]} rows are fewer than min_rows = {self.min_rows}"
        if shape[1] == 1 and not self.int8:
            return "one column has no lower rank"
        return None

    def probe(self, model: ir.Model, site: Site) -> Probe:
        nodes = gathers(model, site)
        return Probe(
            indices=tuple(str(only_input(node, 1).name) for node in nodes),
            outputs=tuple(str(node.outputs[0].name) for node in nodes),
        )

    def dense(self, model: ir.Model, site: Site) -> Dense:
        scalars = site.shape[0] * site.shape[1]
        return Dense(parameters=scalars, macs=0, size_bytes=4 * scalars)

    def read_by(self, model: ir.Model, site: Site) -> Readers:
        return readers([n.outputs[0] for n in gathers(model, site)], site.shape[1])

    def solve(self, model: ir.Model, site: Site, stats: SiteStats, form: str = "") -> Solution:
        table, nodes = constant(value_named(model, site.name), ndim=2), gathers(model, site)
        assert table is not None and stats.counts is not None, site.name
        weight = stats.output_weight
        felt = weight if isinstance(weight, np.ndarray) else None
        if isinstance(weight, float):
            felt = weight * np.eye(site.shape[1])
        plain = self.method == "svd"
        book = Codebook.of(
            table.astype(np.float64),
            probabilities(stats.counts * (not plain), self.smoothing),
            felt if self.weighted and not plain else None,
            widest_split([n.outputs[0] for n in nodes], site.shape[1]),
            self.int8,
            centred=not plain,
        )
        read = probabilities(stats.counts, 0.0)
        return Solution(book, read, felt, len(nodes))

    def settle(
        self, site: Site, stats: SiteStats, solution: Solution, rank: int, form: str
    ) -> Solution:
        return solution  # every rank is the best there is

    def cost(self, site: Site, solution: Solution) -> Curve:
        (rows, width), table, read = site.shape, solution.book.table, solution.read
        step = -(-site.full_rank // MAX_RANKS)
        asked = min(self.rank or site.full_rank, site.full_rank)
        ranks = np.unique([*range(step, site.full_rank, step), asked, site.full_rank])
        coded = [solution.book.at(int(rank)) for rank in ranks]
        error, loss = np.transpose([lost(table, c, read, solution.felt) for c in coded])
        energy = read @ np.square(table).sum(axis=1)
        variance = read @ np.square(table - read @ table).sum(axis=1)
        decoder = np.array([c.decoder.size + (width if c.mean.any() else 0) for c in coded])
        return Curve(
            ranks=ranks,
            error=share_lost(error, variance, energy),
            loss=loss,
            parameters=rows * ranks + decoder,
            macs=solution.gathers * ranks * width,
            size_bytes=rows * ranks * (1 if self.int8 else 4) + 4 * decoder,
            decoder=decoder,
        )

    def rewrite(
        self, model: ir.Model, site: Site, rank: int, solution: Solution, form: str = ""
    ) -> None:
        emit(model, site, solution.book.at(rank))


def gathers(model: ir.Model, site: Site) -> list[ir.Node]:
    """The Gather nodes that read the table."""
    return [node for node, _ in value_named(model, site.name).uses()]


def lost(table: Floats, coded: Coded, read: Floats, weight: Floats | None) -> tuple[float, float]:
    """Expected |e - e'|^2 and (g . (e - e'))^2 of a read, from the rows as they will be stored."""
    wrong = table - coded.decoded()  # (V, d)
    moment = (wrong * read[:, None]).T @ wrong
    squared = float(np.trace(moment))
    return squared, squared if weight is None else float(np.sum(weight * moment))


def emit(model: ir.Model, site: Site, coded: Coded) -> None:
    """Gather codes and decode them, in the place of every Gather of the table."""
    nodes, name = gathers(model, site), site.name
    codes = new_initializer(model, f"{name}.codes", coded.codes)
    decoder = new_initializer(model, f"{name}.decoder", coded.decoder)
    mean = new_initializer(model, f"{name}.mean", coded.mean) if coded.mean.any() else None
    for node in nodes:
        tape, label = ir.tape.Tape(), str(node.name)
        out = tape.op("Gather", [codes, only_input(node, 1)], name=f"{label}.codes")
        if coded.codes.dtype == np.int8:
            to = {"to": int(ir.DataType.FLOAT)}
            out = tape.op("Cast", [out], attributes=to, name=f"{label}.cast")
        out = tape.op("MatMul", [out, decoder], name=f"{label}.decode")
        if mean is not None:
            out = tape.op("Add", [out, mean], name=f"{label}.mean")
        replace_node(model, node, tape.nodes, out)
