"""ONNX Runtime: the model as it is, or its float16 form, proven to load and run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from rankc.lowering.precision import Golden, to_fp16
from rankc.lowering.result import EngineResult, tolerance
from rankc.lowering.targets import PACKAGES
from rankc.recipe import Target
from rankc.serialize import save
from rankrt.backends.onnxruntime import available
from rankrt.errors import RankrtError
from rankrt.golden import compare
from rankrt.session import Array, Session, TensorSpec, open_model


def prove(
    model_path: Path, target: Target, folder: Path, golden: Mapping[str, Array] | None
) -> EngineResult:
    """Load the model and run it; in fp16, write `<folder>/<stem>.fp16.onnx` first and compare.

    Args:
        model_path: the finished float32 model.
        target: its precision matters here.
        folder: where the float16 model goes.
        golden: inputs to run on; one row of zeros when there are none.

    Raises:
        ModelError: nothing in the model can run in float16.
        MachineError: the disk is full or the folder cannot be written.
    """
    if problem := available():
        install = PACKAGES[target.backend].install
        return _result(target, f"not built: {problem}; {install}", available=False)
    half = target.precision == "fp16"
    path = folder / f"{model_path.stem}.fp16.onnx" if half else model_path
    try:
        if half:
            _write_fp16(model_path, path, golden)
        result = _run(path, model_path, target, golden)
    except RankrtError as error:
        result = _result(target, f"not built: {error}")
    if half and not result.built:
        path.unlink(missing_ok=True)
        Path(f"{path}.data").unlink(missing_ok=True)
    return result


def _write_fp16(model_path: Path, path: Path, golden: Mapping[str, Array] | None) -> None:
    measured = None if golden is None else Golden(golden, path.parent)
    save(to_fp16(ir.load(model_path), measured), path)


def _run(
    path: Path, reference: Path, target: Target, golden: Mapping[str, Array] | None
) -> EngineResult:
    session = open_model(path)
    feeds = golden or zeros(session.inputs)
    want = open_model(reference).run(feeds)
    seen = compare(want, session.run(feeds), tolerance(target.precision, want))
    if not seen.ok:
        text = f"max |Δ| {seen.max_abs_err:.1e}, more than {seen.bound:g}"
        return _result(target, f"not built: its answers are wrong: {text}", session)
    ran = "ran" if path == reference else f"ran, max |Δ| {seen.max_abs_err:.1e} to fp32"
    return _result(
        target,
        ran,
        session,
        path=path,
        max_abs_err=seen.max_abs_err,
        layers=len(ir.load(path).graph),
    )


def zeros(inputs: tuple[TensorSpec, ...]) -> dict[str, Array]:
    """One row of zeros for every input: ids of 0 exist in every table."""
    return {
        spec.name: np.zeros([d if isinstance(d, int) else 1 for d in spec.shape], spec.dtype)
        for spec in inputs
    }


def file_bytes(path: Path) -> int:
    """Size of an ONNX file and of the external data that it names."""
    tensors = (value.const_value for value in ir.load(path).graph.initializers.values())
    data = {Path(t.path) for t in tensors if isinstance(t, ir.ExternalTensor)}
    return path.stat().st_size + sum(file.stat().st_size for file in data)


def _result(
    target: Target,
    reason: str,
    session: Session | None = None,
    *,
    path: Path | None = None,
    max_abs_err: float | None = None,
    layers: int | None = None,
    available: bool = True,
) -> EngineResult:
    return EngineResult(
        backend=target.backend,
        precision=target.precision,
        built=path is not None,
        ran=session is not None,
        reason=reason,
        file=path,
        size_bytes=None if path is None else file_bytes(path),
        layers=layers,
        version=None if session is None else session.version,
        available=available,
        max_abs_err=max_abs_err,
    )
