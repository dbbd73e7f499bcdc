"""Every operator that can be trained through, by its ONNX name."""

from __future__ import annotations

from collections.abc import Mapping

from rankc.train import (
    ops_activation,
    ops_attention,
    ops_control,
    ops_create,
    ops_elementwise,
    ops_index,
    ops_linear,
    ops_logic,
    ops_loss,
    ops_norm,
    ops_pad,
    ops_pool,
    ops_quantize,
    ops_recurrent,
    ops_reduce,
    ops_resize,
    ops_scatter,
    ops_shape,
    ops_signal,
    ops_window,
)
from rankc.train.registry import Builder

OPERATORS: Mapping[str, Builder] = {
    **ops_activation.OPERATORS,
    **ops_attention.OPERATORS,
    **ops_control.OPERATORS,
    **ops_create.OPERATORS,
    **ops_elementwise.OPERATORS,
    **ops_index.OPERATORS,
    **ops_linear.OPERATORS,
    **ops_logic.OPERATORS,
    **ops_loss.OPERATORS,
    **ops_norm.OPERATORS,
    **ops_pad.OPERATORS,
    **ops_pool.OPERATORS,
    **ops_quantize.OPERATORS,
    **ops_recurrent.OPERATORS,
    **ops_reduce.OPERATORS,
    **ops_resize.OPERATORS,
    **ops_scatter.OPERATORS,
    **ops_shape.OPERATORS,
    **ops_signal.OPERATORS,
    **ops_window.OPERATORS,
}
