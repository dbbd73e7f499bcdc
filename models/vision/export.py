"""Export an image classifier from PyTorch to one self-contained ONNX file, and check it."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch  # noqa: TID253 - the zoo trains; the compiler never imports this
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
    with _quiet():
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
    clean = _anonymous(program.model, name)
    _check(clean)
    ir.save(clean, path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes on packages it could use and on its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _check(model: ir.Model) -> None:
    left = [node.name for node in model.graph if node.op_type == "BatchNormalization"]
    if left:
        raise RuntimeError(f"the exporter left BatchNormalization unfolded: {left}")
    for value in (*model.graph.inputs, *model.graph.outputs):
        axis = None if value.shape is None else value.shape[0]
        if not isinstance(axis, ir.SymbolicDim) or axis.value != BATCH:
            raise RuntimeError(f"{value.name}: the first axis is {axis}, not {BATCH!r}")


def _anonymous(model: ir.Model, name: str) -> ir.Model:
    """Drop metadata and doc strings; name nodes after the layer whose weight they read."""
    model.metadata_props.clear()
    model.doc_string = model.producer_name = model.producer_version = None
    model.graph.name = name
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    for node in model.graph:
        values += node.outputs
        node.metadata_props.clear()
        node.doc_string = None
        weights = [v.name for v in node.inputs if v is not None and v.is_initializer()]
        layers = [w.removesuffix(".weight") for w in weights if w and w.endswith(".weight")]
        if layers:
            node.name = layers[0]
    for value in values:
        value.metadata_props.clear()
        value.doc_string = None
    model.graph.metadata_props.clear()
    model.graph.doc_string = None
    return model


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
