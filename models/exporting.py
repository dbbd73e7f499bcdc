"""What every export of the zoo does beside the export itself."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

import onnx_ir as ir


@contextlib.contextmanager
def quiet() -> Iterator[None]:
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


def anonymous(model: ir.Model, name: str) -> ir.Model:
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
