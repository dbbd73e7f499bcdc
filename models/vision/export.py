"""Export an image classifier from PyTorch to one self-contained ONNX file, and check it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch  # noqa: TID253 - the zoo trains; the compiler never imports this
from models.exporting import anonymous, quiet
from numpy.typing import NDArray
from torch import nn  # noqa: TID253

OPSET = 18
INPUT, OUTPUT, BATCH = "image", "logits", "batch"


def export(model: nn.Module, shape: tuple[int, int, int], path: Path, name: str) -> None:
    """Write `model` with input "image" [batch, *shape] and output "logits" [batch, classes].

    Nodes are named after the layer whose weight they read. What the exporter records about this
    machine (stack traces, paths) is removed, so equal weights give equal bytes.

    Raises:
        RuntimeError: A BatchNormalization is left, or the batch axis came out fixed.
    """
    with quiet():
        program = torch.onnx.export(
            model.eval(),
            (torch.zeros(2, *shape),),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim(BATCH)},),
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    clean = anonymous(program.model, name)
    _check(clean)
    ir.save(clean, path)


def _check(model: ir.Model) -> None:
    left = [node.name for node in model.graph if node.op_type == "BatchNormalization"]
    if left:
        raise RuntimeError(f"the exporter left BatchNormalization unfolded: {left}")
    for value in (*model.graph.inputs, *model.graph.outputs):
        axis = None if value.shape is None else value.shape[0]
        if not isinstance(axis, ir.SymbolicDim) or axis.value != BATCH:
            raise RuntimeError(f"{value.name}: the first axis is {axis}, not {BATCH!r}")


def predict_torch(
    model: nn.Module, images: NDArray[Any], batch_size: int = 250
) -> NDArray[np.float32]:
    """Logits (rows, classes) of the PyTorch module: the reference for the exported file.

    Args:
        model: In evaluation mode afterwards.
        images: (rows, channels, height, width), any dtype; cast to float32.
        batch_size: Rows a call.
    """
    model.eval()
    with torch.no_grad():
        parts = [
            model(torch.from_numpy(images[at : at + batch_size].astype(np.float32))).numpy()
            for at in range(0, len(images), batch_size)
        ]
    return np.concatenate(parts)
