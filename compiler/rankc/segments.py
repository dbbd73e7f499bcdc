"""A model cut before some of its nodes, and what flows through each cut.

Running a model piece by piece, with the values at every cut kept on disk, makes it possible to
look at one layer at a time at the cost of one run of the whole, and to run only what lies behind a
layer. The nodes between two cuts come as early as they can: whatever does not need the layer at a
cut has been computed there, the other operand of an Add behind it included.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from typing_extensions import Self

from rankc.graph import reads
from rankc.serialize import save
from rankrt.session import Session, open_model

Array = NDArray[Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Cuts:
    """Where a model is cut: before its `k`-th named node, and behind its end."""

    model: ir.Model
    names: tuple[str, ...]  # of nodes, in an order in which they can run
    live: tuple[tuple[str, ...], ...]  # values that cross each cut; at last the model's outputs

    @classmethod
    def of(cls, model: ir.Model, names: Sequence[str]) -> Cuts:
        """Cut a model before each of the named nodes of its main graph."""
        pieces = _pieces(model, set(names))
        place = {v: k for k, piece in enumerate(pieces) for n in piece for v in n.outputs}
        outputs = tuple(str(v.name) for v in model.graph.outputs)
        last = dict.fromkeys(place, -1) | dict.fromkeys(model.graph.inputs, -1)
        for k, piece in enumerate(pieces):
            for node in piece:
                last |= {v: k for v in reads(node) if v in last}
        last |= {v: len(pieces) for v in model.graph.outputs}
        made = dict.fromkeys(model.graph.inputs, 0) | place
        live = tuple(
            tuple(str(v.name) for v in made if made[v] < k <= last[v])
            for k in range(1, len(pieces))
        )
        order = tuple(str(piece[0].name) for piece in pieces[1:])
        return cls(model, order, (*live, outputs))

    def before(self) -> ir.Model | None:
        """From the model's inputs to the first cut; None if nothing is computed there."""
        inputs = [str(v.name) for v in self.model.graph.inputs]
        return None if set(self.live[0]) <= set(inputs) else self._part(inputs, self.live[0])

    def part(self, first: int, last: int | None = None) -> ir.Model:
        """From one cut to another (by default to the end), without what only passes through."""
        return self._part(self.live[first], self.live[-1 if last is None else last])

    def _part(self, inputs: Sequence[str], outputs: Sequence[str]) -> ir.Model:
        wanted = [name for name in outputs if name not in inputs]
        graph = ir.convenience.extract(self.model.graph, list(inputs), wanted)
        return ir.Model(graph, ir_version=self.model.ir_version, functions=())


def _pieces(model: ir.Model, names: set[str]) -> list[list[ir.Node]]:
    """The nodes up to the first named one, from there to the second, and so on."""
    made = {*model.graph.inputs, *model.graph.initializers.values()}
    waiting = list(model.graph)
    pieces: list[list[ir.Node]] = [[]]
    while waiting:
        ready = [
            n for n in waiting if all(v in made or v.graph is not model.graph for v in reads(n))
        ]
        free = [n for n in ready if n.name not in names]
        if not free:
            free = ready[:1]
            pieces.append([])
        pieces[-1] += free
        made |= {v for n in free for v in n.outputs}
        done = {id(n) for n in free}
        waiting = [n for n in waiting if id(n) not in done]
    return pieces


class Flow:
    """The values at one cut for some batches, kept in files; a context manager."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="rankc-")
        self._batches: list[dict[str, Path]] = []
        self._written = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._folder.cleanup()

    def __iter__(self) -> Iterator[dict[str, Array]]:
        for batch in self._batches:
            yield {name: np.load(path, allow_pickle=False) for name, path in batch.items()}

    def start(self, batches: Iterator[Mapping[str, Array]]) -> None:
        """Take in the values at the first cut."""
        for batch in batches:
            self._batches.append({name: self._keep(array) for name, array in batch.items()})

    def advance(self, session: Session | None, live: Sequence[str]) -> None:
        """Run from this cut to the next, whose values are `live`."""
        for k, (kept, values) in enumerate(zip(list(self._batches), self, strict=True)):
            found = {} if session is None else run(session, values)
            self._batches[k] = {n: kept[n] if n in kept else self._keep(found[n]) for n in live}
            for name, path in kept.items():
                if name not in live:
                    path.unlink()

    def _keep(self, array: Array) -> Path:
        path = Path(self._folder.name) / f"{self._written}.npy"
        self._written += 1
        np.save(path, array)
        return path


def open_part(part: ir.Model | None) -> Session | None:
    """A session over a piece of a model; None if there is nothing to compute."""
    if part is None:
        return None
    with tempfile.TemporaryDirectory(prefix="rankc-") as folder:
        path = Path(folder) / "part.onnx"
        save(part, path)
        return open_model(path)


def run(session: Session, values: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs for those of the values that the session takes."""
    return session.run({spec.name: values[spec.name] for spec in session.inputs})
