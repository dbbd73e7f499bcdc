"""What one could do instead of low rank: ONNX Runtime's own quantisation."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from rankc.data import Source

IMAGES = 512  # that ranges of activations are taken from


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """The first rows of a source, batch by batch."""

    def __init__(self, source: Source) -> None:
        self._feeds = self._batches(source)

    def _batches(self, source: Source) -> Iterator[dict[str, Any]]:
        rows = 0
        for batch in source.batches():
            if rows >= IMAGES:
                return
            rows += batch.rows
            yield dict(batch.feeds)

    def get_next(self) -> Any:
        """As ONNX Runtime asks for them; None: no more."""
        return next(self._feeds, None)


def static_int8(model: Path, source: Source, out: Path) -> Path:
    """QDQ with one scale a channel of the weights; what its documentation advises for CPUs."""
    with _quiet(), tempfile.TemporaryDirectory(prefix="bench-") as folder:
        ready = Path(folder) / "ready.onnx"
        quant_pre_process(model, ready, skip_symbolic_shape=True)  # the models have shapes
        quantize_static(
            ready,
            out,
            _Reader(source),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    return out


def dynamic_int8(model: Path, out: Path) -> Path:
    """Weights in int8, activations at every call by the range of the batch at hand."""
    with _quiet():
        quantize_dynamic(model, out, weight_type=QuantType.QInt8)
    return out


@contextmanager
def _quiet() -> Iterator[None]:
    """It advises what has been done already."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
