"""Every operator that can be trained through, by its ONNX name."""

from __future__ import annotations

from collections.abc import Mapping

from rankc.train import (
    ops_elementwise,
    ops_index,
    ops_linear,
    ops_norm,
    ops_reduce,
    ops_shape,
    ops_window,
)
from rankc.train.registry import Builder

OPERATORS: Mapping[str, Builder] = {
    **ops_elementwise.OPERATORS,
    **ops_index.OPERATORS,
    **ops_linear.OPERATORS,
    **ops_norm.OPERATORS,
    **ops_reduce.OPERATORS,
    **ops_shape.OPERATORS,
    **ops_window.OPERATORS,
}
