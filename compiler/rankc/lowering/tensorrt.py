"""TensorRT and TensorRT-RTX: a graph in the form that they take, built by a process of its own.

TensorRT-RTX builds on a machine without a GPU: NVIDIA's parser and optimiser see the graph, but
nothing is timed, and the engine is marked as built, not run.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from rankc.errors import MachineError, ModelError
from rankc.lowering.dequantize import dequantize_tables
from rankc.lowering.precision import Golden, to_fp16
from rankc.lowering.result import EngineResult, tolerance
from rankc.lowering.subprocesses import ProcessError, call
from rankc.lowering.targets import PACKAGES
from rankc.lowering.trial import Trial, write_golden
from rankc.lowering.worker import Profile, Request
from rankc.recipe import Target
from rankc.serialize import save
from rankrt.backends import cuda
from rankrt.golden import Comparison, compare, read
from rankrt.session import Array, open_model


def build_engine(
    model_path: Path,
    target: Target,
    folder: Path,
    golden: Mapping[str, Array] | None,
    time_limit: float,
) -> EngineResult:
    """Build `<folder>/<target.name>.engine`, and run it where there is a GPU.

    Args:
        model_path: the finished float32 model.
        target: backend, precision, batch sizes and compute capabilities.
        folder: where the engine goes; made if it is missing.
        golden: inputs to run the engine on.
        time_limit: seconds for each of building and running.

    Raises:
        ModelError: the graph has no form that TensorRT takes.
        RankrtError: ONNX Runtime refuses the model or the golden inputs.
        MachineError: the disk is full or the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{target.name}.") as scratch:
        work = _Work(Path(scratch), target, time_limit)
        measured = None if golden is None else Golden(golden, Path(scratch))
        model = tensorrt_form(ir.load(model_path), target, measured)
        answer = work.build(model)
        result = _result(target, answer)
        if not result.built:
            return result
        if golden is not None and not isinstance(cuda.probe(), str):
            result = work.run(result, model_path, golden)
        if not result.built:
            return result
        file = folder / f"{target.name}.engine"
        os.replace(work.engine, file)
    return dataclasses.replace(result, file=file, size_bytes=file.stat().st_size)


def tensorrt_form(model: ir.Model, target: Target, golden: Golden | None = None) -> ir.Model:
    """The model in the target's precision, its int8 tables where TensorRT takes them.

    Raises:
        ModelError: it has no such form.
    """
    lowered = to_fp16(model, golden) if target.precision == "fp16" else model.clone()
    dequantize_tables(lowered)
    return lowered


def shape_profile(model: ir.Model, target: Target) -> Profile:
    """Smallest, usual and largest shape of every input whose first dimension is free.

    Raises:
        ModelError: another dimension than the first is free, or a shape is not known at all.
    """
    profile: Profile = {}
    for value in model.graph.inputs:
        if value.is_initializer():
            continue
        batch, fixed = _split_shape(value)
        if batch is None:
            continue
        sizes = (target.profile.min, target.profile.opt, target.profile.max)
        smallest, usual, largest = ([size, *fixed] for size in sizes)
        profile[str(value.name)] = (smallest, usual, largest)
    return profile


def _split_shape(value: ir.Value) -> tuple[str | None, list[int]]:
    """The name of the free batch dimension or None if it is fixed, and the sizes behind it."""
    if value.shape is None:
        raise ModelError(f"input {value.name!r} has no shape; TensorRT needs one: export it again")
    fixed: list[int] = []
    for axis, size in enumerate(value.shape[1:], start=1):
        if not isinstance(size, int):
            raise ModelError(
                f"input {value.name!r} has a free dimension {size.value or '?'!r} at axis {axis};"
                " an engine's profile here covers the batch (axis 0) only: export the model with"
                f" a fixed size at axis {axis}"
            )
        fixed.append(size)
    first = value.shape[0] if len(value.shape) else 1
    return (None if isinstance(first, int) else first.value or "?"), fixed


class _Work:
    """The files and processes of one build."""

    def __init__(self, scratch: Path, target: Target, time_limit: float) -> None:
        self._scratch, self._target, self._time_limit = scratch, target, time_limit
        self.engine = scratch / "engine"

    def build(self, model: ir.Model) -> dict[str, Any]:
        """The worker's answer, or one in its words when it cannot give one."""
        onnx_path, answer = self._scratch / "model.onnx", self._scratch / "built.json"
        profile = shape_profile(model, self._target)
        save(model, onnx_path)
        request = Request(
            backend=self._target.backend,
            module=PACKAGES[self._target.backend].module,
            model=str(onnx_path),
            opset=model.opset_imports.get("", 1),
            engine=str(self.engine),
            answer=str(answer),
            profile=profile,
            compute_capability=self._target.compute_capability,
        )
        try:
            return call(
                "rankc.lowering.worker", dataclasses.asdict(request), answer, self._time_limit
            )
        except ProcessError as error:
            return {"status": "refused", "reason": str(error)}

    def run(
        self, built: EngineResult, model_path: Path, golden: Mapping[str, Array]
    ) -> EngineResult:
        """Compare the engine with the float32 model. Never exercised: it takes a GPU."""
        inputs, outputs = self._scratch / "golden.npz", self._scratch / "outputs.npz"
        want = open_model(model_path).run(golden)
        write_golden(inputs, golden, want)
        answer = self._scratch / "ran.json"
        trial = Trial(
            backend=built.backend,
            precision=built.precision,
            version=str(built.version),
            compute_capability=self._target.compute_capability,
            engine=str(self.engine),
            golden=str(inputs),
            outputs=str(outputs),
            answer=str(answer),
        )
        try:
            said = call("rankc.lowering.trial", dataclasses.asdict(trial), answer, self._time_limit)
        except ProcessError as error:
            return dataclasses.replace(built, reason=f"built, not run: {error}")
        if said["problem"]:
            return dataclasses.replace(built, reason=f"built, not run: {said['problem']}")
        return judged(built, compare(want, read(outputs)[1], tolerance(built.precision, want)))


def judged(result: EngineResult, seen: Comparison) -> EngineResult:
    """The result of an engine that ran; wrong answers count as not built."""
    error = f"max |Δ| {seen.max_abs_err:.1e} over {seen.rows} golden rows"
    if seen.ok:
        reason = f"built and run, {error}"
    else:
        reason = f"its answers are wrong: {error}, more than {seen.bound:g}"
    return dataclasses.replace(
        result, built=seen.ok, ran=True, reason=reason, max_abs_err=seen.max_abs_err
    )


def _result(target: Target, answer: dict[str, Any]) -> EngineResult:
    """What the worker's answer means for the report."""
    status, reason = answer["status"], str(answer["reason"])
    if status == "machine":
        raise MachineError(f"{target.name}: {reason}: free some space or choose another --out")
    if status == "unavailable":
        reason = f"not built: {reason}; {PACKAGES[target.backend].install}"
    elif status == "refused":
        reason = f"not built: {reason}"
    else:
        device = cuda.probe()
        reason = (
            f"built, not run ({'no GPU here' if isinstance(device, str) else 'no golden inputs'})"
        )
    return EngineResult(
        backend=target.backend,
        precision=target.precision,
        built=status == "built",
        ran=False,
        reason=reason,
        layers=answer.get("layers"),
        version=answer.get("version"),
        available=status != "unavailable",
    )
