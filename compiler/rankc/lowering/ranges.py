"""How large the values of a model get, measured: float16 ends at 65504.

ONNX Runtime cannot show an overflow by running the float16 model: on a CPU it computes in float32
and drops the casts between. So the float32 model is run, and its values are looked at.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from rankc.lowering.precision_rules import FLOAT
from rankc.serialize import save
from rankrt.session import Array, open_model


def peaks(model: ir.Model, feeds: Mapping[str, Array], folder: Path) -> dict[str, float]:
    """Largest magnitude of every float32 input and result of the main graph, by name.

    Args:
        model: its values have types; it is not changed.
        feeds: inputs, (rows, ...) each.
        folder: where a temporary copy of the model may go.

    Raises:
        RankrtError: ONNX Runtime refuses the model or the inputs.
    """
    found = {name: _peak(array) for name, array in feeds.items() if array.dtype == np.float32}
    probe = model.clone()
    outputs = {value.name for value in probe.graph.outputs}
    for node in probe.graph:
        probe.graph.outputs.extend(
            value for value in node.outputs if value.dtype == FLOAT and value.name not in outputs
        )
    with tempfile.TemporaryDirectory(dir=folder, prefix=".ranges.") as scratch:
        path = Path(scratch) / "model.onnx"
        save(probe, path)
        results = open_model(path).run(feeds)
    found |= {name: _peak(a) for name, a in results.items() if a.dtype == np.float32}
    return found


def _peak(array: Array) -> float:
    """NaN when there is one."""
    return float(np.abs(array).max()) if array.size else 0.0
