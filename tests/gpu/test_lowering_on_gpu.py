"""Lowering where there is a device: the engine is run and compared. Not run by us so far."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import onnx_ir as ir
import pytest

from builders import mlp, mlp_rows
from rankc.lowering import lower
from rankc.recipe import Target
from rankrt.backends import tensorrt

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_an_engine_is_run_and_gives_the_models_answers(
    backend: Literal["tensorrt", "tensorrt-rtx"],
    precision: Literal["fp32", "fp16"],
    tmp_path: Path,
) -> None:
    if reason := tensorrt.available(backend):
        pytest.skip(reason)
    path = tmp_path / "model.onnx"
    ir.save(mlp(), path)
    result = lower(path, Target(backend, precision), tmp_path, {"x": mlp_rows(8)})
    assert result.built and result.ran, result.reason
    assert result.max_abs_err is not None and result.max_abs_err < 2e-2
