"""Where the time goes: ONNX Runtime's trace of both models, by the layers of the original.

ONNX Runtime fuses nodes and names the kernel after one of them or after a value: `relu_1_nchwc` is
the convolution whose activated output was `relu_1`. So a kernel is looked up by node and by value,
and then upstream, through what is folded into others, to a node of its own kind. A rewritten layer
keeps its name as a prefix (`conv1.A`, `conv1.B`) or the name of its output.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from rankc.validate.schema import LayerTime
from rankrt.backends.onnxruntime import OnnxRuntimeSession
from rankrt.session import Array

OTHER = "(other)"

_WARM_UP = 2  # runs that do not count
_MIN_RUNS, _MAX_RUNS = 3, 200
_SUFFIX = "_kernel_time"
_HEAVY = ("Conv", "Gemm", "MatMul")  # what others are fused into


@dataclasses.dataclass(frozen=True, slots=True)
class Kernel:
    """What ONNX Runtime ran."""

    name: str
    op: str  # e.g. "FusedConv"
    ms: float  # of one call of the model


def layer_times(
    original: Path, compressed: Path, feeds: Mapping[str, Array], seconds: float = 0.3
) -> list[LayerTime]:
    """Wall-clock time of every layer of the original, and of what stands for it.

    Args:
        original: ONNX file.
        compressed: ONNX file with the same inputs.
        feeds: One batch.
        seconds: For each model; more if 5 runs take longer.

    Returns:
        Layers in the order of the original's graph; last, as `(other)`, what has no counterpart:
        copies between memory layouts, and nodes that stand for many layers at once.
    """
    before = _Nodes(ir.load(original).graph)
    after = _Nodes(ir.load(compressed).graph)
    source = _sources(before, after)
    order = {name: [0.0, 0.0, 0, 0] for name in [*before.names, OTHER]}
    for kernel in kernels(original, feeds, seconds):
        _add(order[before.of(kernel) or OTHER], 0, kernel.ms)
    for kernel in kernels(compressed, feeds, seconds):
        _add(order[source.get(after.of(kernel) or "", OTHER)], 1, kernel.ms)
    return [
        LayerTime(layer=name, original_ms=a, compressed_ms=b, nodes=(int(n), int(m)))
        for name, (a, b, n, m) in order.items()
        if n or m
    ]


def _add(row: list[float], which: int, ms: float) -> None:
    row[which] += ms
    row[2 + which] += 1


def kernels(model: Path, feeds: Mapping[str, Array], seconds: float) -> list[Kernel]:
    """Run a model on one thread and say what each of its kernels took, in the order they ran."""
    with tempfile.TemporaryDirectory() as folder:
        session = OnnxRuntimeSession(model, profile=Path(folder, "trace"))
        deadline, runs = time.perf_counter() + seconds, 0
        while runs < _WARM_UP + _MIN_RUNS or (
            runs < _WARM_UP + _MAX_RUNS and time.perf_counter() < deadline
        ):
            session.run(feeds)
            runs += 1
        events = json.loads(session.end_profile().read_text(encoding="utf-8"))
    return read_trace(events, runs, _WARM_UP)


def read_trace(events: Sequence[Mapping[str, Any]], runs: int, skip: int) -> list[Kernel]:
    """Kernels out of ONNX Runtime's events; of each the mean of the middle half of its runs.

    Its clock counts whole microseconds, so a median would be one, too, and a plain mean has what
    other processes took.

    Args:
        events: Of `runs` calls of a model.
        runs: How many.
        skip: Calls at the beginning that do not count.
    """
    found: dict[tuple[str, str], list[float]] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(_SUFFIX):
            key = name.removesuffix(_SUFFIX), str(event["args"].get("op_name", ""))
            found.setdefault(key, []).append(float(event["dur"]))
    return [
        Kernel(name, op, _middle(durations[skip * len(durations) // runs :], runs - skip) / 1e3)
        for (name, op), durations in found.items()
    ]


def _middle(durations: Sequence[float], runs: int) -> float:
    """Time in one call: some kernels run several times in it, as in a Loop."""
    ranked = np.sort(durations)
    cut = len(ranked) // 4
    return float(ranked[cut : len(ranked) - cut].mean()) * len(ranked) / runs


class _Nodes:
    """The nodes of a graph by name and by output; nodes without a name go by their output."""

    def __init__(self, graph: ir.Graph) -> None:
        self.by_name = {_name(node): node for node in graph}
        self.by_output = {value.name: node for node in graph for value in node.outputs}

    @property
    def names(self) -> list[str]:
        return list(self.by_name)

    def of(self, kernel: Kernel) -> str | None:
        """The node that a kernel stands for."""
        node = next(filter(None, map(self._find, _stems(kernel.name))), None)
        if node is None:
            return None
        return _name(_heaviest(node, kernel.op))

    def _find(self, stem: str) -> ir.Node | None:
        return self.by_name.get(stem) or self.by_output.get(stem)


def _name(node: ir.Node) -> str:
    return node.name or str(node.outputs[0].name)


def _stems(name: str) -> Iterator[str]:
    """What ONNX Runtime may have made a name of: `fused a`, `a_nchwc`, `a/MatMulAddFusion`."""
    name = name.removeprefix("fused ")
    yield name
    for cut in reversed(list(re.finditer(r"[_/. ]", name))):
        yield name[: cut.start()]


def _heaviest(node: ir.Node, op: str) -> ir.Node:
    """The nearest node upstream of the kernel's kind: an activation is fused into a convolution."""
    if not any(heavy in op for heavy in _HEAVY):
        return node
    todo, seen = [node], {id(node)}
    for one in todo:
        if any(heavy in one.op_type for heavy in _HEAVY):
            return one
        for value in one.inputs:
            above = None if value is None else value.producer()
            if above is not None and id(above) not in seen:
                seen.add(id(above))
                todo.append(above)
    return node


def _sources(before: _Nodes, after: _Nodes) -> dict[str, str]:
    """The original's node that each node of the compressed model stands for, where there is one."""
    found: dict[str, str] = {}
    for name, node in after.by_name.items():
        known = next((stem for stem in _prefixes(name) if stem in before.by_name), None)
        # A Split may hand out what many layers once made: then it stands for none of them.
        same = before.by_output.get(node.outputs[0].name) if len(node.outputs) == 1 else None
        known = known or (None if same is None else _name(same))
        if known is not None:
            found[name] = known
    # The original may have had no names: then the last node of a layer knows by its output what
    # the others, of the same prefix, are part of.
    by_prefix = {stem: layer for name, layer in found.items() for stem in _prefixes(name)[1:2]}
    for name in after.by_name.keys() - found.keys():
        stem = next((stem for stem in _prefixes(name)[1:] if stem in by_prefix), None)
        if stem is not None:
            found[name] = by_prefix[stem]
    return found


def _prefixes(name: str) -> list[str]:
    """`a.b.C`: itself, then `a.b`, then `a`."""
    parts = name.split(".")
    return [".".join(parts[:k]) for k in range(len(parts), 0, -1)]
