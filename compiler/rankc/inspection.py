"""What is in a model, where each pass could act, and why not elsewhere."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir

from rankc.cleanup import clean
from rankc.graph import initializer_bytes, parameters
from rankc.intake import load
from rankc.passbase import Site, Skip
from rankc.passes import EXACT_PASSES, PASSES


@dataclasses.dataclass(frozen=True, slots=True)
class Inspection:
    """Facts about one model."""

    opset: int
    ir_version: int
    producer: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: dict[str, int]  # how many of each operator, the most frequent first
    parameters: int
    weight_bytes: int
    sites: tuple[Site, ...]
    skips: tuple[Skip, ...]

    def to_dict(self) -> dict[str, Any]:
        """As `rankc inspect --json` prints it."""
        return dataclasses.asdict(self)

    def lines(self) -> Iterator[str]:
        """The facts in words, without sites and skips."""
        total = sum(self.nodes.values())
        yield f"  opset {self.opset}, IR version {self.ir_version}, made by {self.producer or '?'}"
        yield f"  {self.parameters:,} parameters in {self.weight_bytes:,} bytes"
        yield f"  {total} nodes: " + ", ".join(f"{op} {n}" for op, n in self.nodes.items())
        for kind, values in (("input", self.inputs), ("output", self.outputs)):
            yield from (f"  {kind:<7} {value}" for value in values)


def inspect(path: Path) -> Inspection:
    """Read a model, and ask every pass with its default options where it could act.

    The facts are those of the file; sites are called as in a plan, after the exact rewrites.

    Raises:
        ModelError: as `rankc.intake.load`.
    """
    model = load(path).model
    found = _sites(model.clone())
    counts = Counter(node.op_type for node in model.graph.all_nodes())
    made_by = f"{model.producer_name or ''} {model.producer_version or ''}".strip()
    return Inspection(
        opset=model.opset_imports.get("", 0),
        ir_version=model.ir_version,
        producer=made_by,
        inputs=tuple(_spec(value) for value in model.graph.inputs),
        outputs=tuple(_spec(value) for value in model.graph.outputs),
        nodes=dict(counts.most_common()),
        parameters=parameters(model),
        weight_bytes=initializer_bytes(model),
        sites=tuple(entry for entry in found if isinstance(entry, Site)),
        skips=tuple(entry for entry in found if isinstance(entry, Skip)),
    )


def _sites(model: ir.Model) -> list[Site | Skip]:
    clean(model)
    for exact in EXACT_PASSES:
        exact().prepare(model)
    return [entry for kind in PASSES for entry in kind().match(model)]


def _spec(value: ir.Value) -> str:
    """Name, type and shape, e.g. `x FLOAT [batch,16]`."""
    kind = value.dtype.name if value.dtype else "?"
    shape = "?" if value.shape is None else str(value.shape)
    return f"{value.name} {kind} {shape}"
