"""What a model weighs: bytes on disk, parameters, multiply-accumulates, nodes.

* size_bytes: the ONNX file and every external data file that it names.
* params: scalars in initializers and in Constant nodes, except int64, bool and string tensors,
  which hold shapes, axes and offsets.
* macs: multiply-accumulates for one row, see `rankc.macs`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from rankc.macs import count_macs, graphs

_NOT_PARAMETERS = frozenset({ir.DataType.INT64, ir.DataType.BOOL, ir.DataType.STRING})


@dataclasses.dataclass(frozen=True, slots=True)
class Footprint:
    size_bytes: int
    params: int
    nodes: int
    macs: int | None  # for one row; None where shape inference fails, and then
    unknown: str = ""  # which node is to blame


def footprint(path: Path) -> Footprint:
    """Measure an ONNX file without running it.

    Args:
        path: Of a model that loads; big tensors stay on disk.
    """
    model = ir.load(path)
    size = path.stat().st_size + sum(f.stat().st_size for f in _external_files(model))
    params = sum(t.size for t in _tensors(model) if t.dtype not in _NOT_PARAMETERS)
    nodes = sum(1 for _ in model.graph.all_nodes())
    macs, unknown = count_macs(model)
    return Footprint(size, params, nodes, macs, unknown)


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Every tensor that the file stores, in functions and subgraphs too."""
    for graph in graphs(model):
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        for node in graph.all_nodes():
            if node.op_type == "Constant" and (held := node.attributes.get("value")) is not None:
                yield held.as_tensor()


def _external_files(model: ir.Model) -> set[Path]:
    return {Path(t.path).resolve() for t in _tensors(model) if isinstance(t, ir.ExternalTensor)}
