"""Engines from the real TensorRT-RTX, which builds without a GPU; and ways of not getting one."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from builders import mlp, mlp_rows, model_of, weight
from rankc.errors import MachineError
from rankc.lowering import EngineResult, lower
from rankc.lowering.result import tolerance
from rankc.lowering.subprocesses import ProcessError, call
from rankc.lowering.targets import opset_problem
from rankc.lowering.tensorrt import judged
from rankc.lowering.trial import Trial, write_golden
from rankc.recipe import Profile, Target
from rankrt import golden
from rankrt.backends import cuda

FLOAT = ir.DataType.FLOAT
RTX = Target("tensorrt-rtx")
RTX_HALF = Target("tensorrt-rtx", "fp16")
IDS = np.arange(24).reshape(8, 3)


@pytest.fixture
def rtx() -> None:
    pytest.importorskip("tensorrt_rtx", reason="published for x86-64 Linux and Windows only")


@pytest.fixture
def without_gpu() -> None:
    if not isinstance(cuda.probe(), str):
        pytest.skip("there is a GPU here")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A bundle's folder; whatever happens in it, no temporary file stays."""
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    yield bundle
    hidden = [path for path in bundle.rglob("*") if path.name.startswith(".")]
    assert not hidden


def lowered(model: ir.Model, target: Target, folder: Path, time_limit: float = 120) -> EngineResult:
    path = folder / "model.onnx"
    ir.save(model, path)
    feeds = {"ids": IDS} if model.graph.inputs[0].name == "ids" else {"x": mlp_rows(8)}
    return lower(path, target, folder, feeds, time_limit=time_limit)


def table_model(rows: int = 100_000, width: int = 16) -> ir.Model:
    """int8 table -> Gather -> Reshape -> Cast -> MatMul: y (batch, 4) from ids (batch, 3)."""
    rng = np.random.default_rng(0)
    ids, tape = ir.val("ids", ir.DataType.INT64, ["batch", 3]), ir.tape.Tape()
    table = weight(tape, "T", rng.integers(-127, 128, (rows, width)).astype(np.int8))
    read = tape.op("Gather", [table, ids], name="lookup")
    shape = weight(tape, "s", np.array([-1, 3 * width], np.int64))
    flat = tape.op("Reshape", [read, shape], name="flat")
    real = tape.op("Cast", [flat], attributes={"to": FLOAT}, name="real")
    decoder = weight(tape, "decoder", (rng.normal(size=(3 * width, 4)) / 500).astype(np.float32))
    y = ir.val("y", FLOAT, ["batch", 4])
    tape.op("MatMul", [real, decoder], output=y, name="decode")
    return model_of(tape, [ids], [y])


def unsupported() -> ir.Model:
    x, tape = ir.val("x", FLOAT, ["batch", 4, 4]), ir.tape.Tape()
    y = ir.val("y", FLOAT, ["batch"])
    tape.op("Det", [x], output=y, name="volume")
    return model_of(tape, [x], [y])


@pytest.mark.usefixtures("rtx", "without_gpu")
@pytest.mark.parametrize("target", [RTX, RTX_HALF], ids=lambda t: t.name)
def test_an_mlp_builds(target: Target, folder: Path) -> None:
    result = lowered(mlp(), target, folder)
    assert result.reason == "built, not run (no GPU here)"
    assert result.built and not result.ran and not result.failed and result.available
    assert result.file == folder / "engines" / f"{target.name}.engine"
    assert result.size_bytes == os.path.getsize(str(result.file)) > 1000
    assert result.layers and result.version and result.seconds > 0
    assert sorted(os.listdir(folder / "engines")) == [f"{target.name}.engine"]


@pytest.mark.usefixtures("rtx", "without_gpu")
@pytest.mark.parametrize("target", [RTX, RTX_HALF], ids=lambda t: t.name)
def test_the_engine_holds_a_table_as_int8(target: Target, folder: Path) -> None:
    result = lowered(table_model(), target, folder)
    assert result.built, result.reason
    assert 1_600_000 <= (result.size_bytes or 0) < 2_000_000  # codes are 1.6 MB, floats 6.4 MB


@pytest.mark.usefixtures("rtx", "without_gpu")
def test_weights_beside_the_file_are_found(folder: Path) -> None:
    path = folder / "model.onnx"
    ir.save(table_model(), path, external_data="model.onnx.data")
    result = lower(path, RTX, folder)
    assert result.built and (result.size_bytes or 0) > 1_600_000


@pytest.mark.usefixtures("rtx", "without_gpu")
def test_the_profile_is_the_recipes(folder: Path) -> None:
    fixed = mlp()
    fixed.graph.inputs[0].shape = ir.Shape([8, 16])
    fixed.graph.outputs[0].shape = ir.Shape([8, 8])
    assert lowered(fixed, RTX, folder).built
    assert lowered(mlp(), Target("tensorrt-rtx", profile=Profile(1, 1, 1)), folder).built


@pytest.mark.usefixtures("rtx")
def test_refused_operators_are_named(folder: Path) -> None:
    result = lowered(unsupported(), RTX, folder)
    assert result.failed
    assert result.reason == "not built: operator Det in node 'volume': unsupported node"
    assert result.file is None and not os.listdir(folder / "engines")


def test_a_free_dimension_other_than_the_batch_is_named(folder: Path) -> None:
    model = mlp()
    model.graph.inputs[0].shape = ir.Shape(["batch", "width"])
    result = lowered(model, RTX, folder)
    assert result.failed and "'x' has a free dimension 'width' at axis 1" in result.reason


@pytest.mark.usefixtures("rtx", "without_gpu")
def test_compute_capabilities(folder: Path) -> None:
    fine = Target("tensorrt-rtx", compute_capability=("8.6", "8.9"))
    assert lowered(mlp(), fine, folder).built
    result = lowered(mlp(), Target("tensorrt-rtx", compute_capability=("8.7",)), folder)
    assert result.failed and "capability 8.7 is not one" in result.reason
    assert "it takes 12.0" in result.reason or "8.6, 8.9" in result.reason


@pytest.mark.usefixtures("rtx")
def test_a_failed_build_leaves_an_older_engine(folder: Path) -> None:
    (folder / "engines").mkdir()
    old = folder / "engines" / "tensorrt-rtx-fp32.engine"
    old.write_bytes(b"old")
    assert lowered(unsupported(), RTX, folder).failed
    assert old.read_bytes() == b"old"


def test_a_build_that_takes_too_long_is_stopped(folder: Path) -> None:
    result = lowered(mlp(), RTX, folder, time_limit=0.05)
    assert result.failed
    assert result.reason == "not built: it took more than 0.05 s and was stopped"


def backend_that(folder: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a `tensorrt_rtx` in front of the real one, in the build's process."""
    (folder / "tensorrt_rtx.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(folder))


def test_an_absent_backend_is_a_line_not_a_failure(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = "raise ModuleNotFoundError(\"No module named 'tensorrt_rtx'\", name='tensorrt_rtx')"
    backend_that(tmp_path, absent, monkeypatch)
    result = lowered(mlp(), RTX, folder)
    assert not result.built and not result.available and not result.failed
    assert "tensorrt_rtx is not installed; pip install 'rankc[rtx]'" in result.reason


def test_a_backend_that_does_not_load_says_why(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend_that(tmp_path, "raise ImportError('libtensorrt_rtx.so.1: not found')", monkeypatch)
    result = lowered(mlp(), RTX, folder)
    assert not result.available and "libtensorrt_rtx.so.1: not found" in result.reason


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize(
    ("name", "reason"), [("SIGSEGV", "crashed with SIGSEGV"), ("SIGKILL", "ran out of memory")]
)
def test_a_crash_is_survived(
    name: str, reason: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = f"import os, signal; os.kill(os.getpid(), signal.{name})"
    backend_that(tmp_path, code, monkeypatch)
    result = lowered(mlp(), RTX, folder)
    assert result.failed and reason in result.reason
    assert not os.listdir(folder / "engines")


def test_a_full_disk_is_the_machines_fault(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = "import errno, os\n__version__ = '1.0'\n"
    full += "def __getattr__(name): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))"
    backend_that(tmp_path, full, monkeypatch)
    with pytest.raises(MachineError, match="No space left on device"):
        lowered(mlp(), RTX, folder)


def test_a_process_without_an_answer(tmp_path: Path) -> None:
    with pytest.raises(ProcessError, match="left no answer"):
        call("this", {}, tmp_path / "none.json", 60)
    with pytest.raises(ProcessError, match=r"status 1: .*No module named no_such_module"):
        call("no_such_module", {}, tmp_path / "none.json", 60)


@pytest.mark.usefixtures("without_gpu")
def test_a_trial_without_a_device_says_so(tmp_path: Path) -> None:
    """The process that runs engines starts, reads its request, and answers."""
    answer = tmp_path / "ran.json"
    trial = Trial(
        backend="tensorrt-rtx",
        precision="fp32",
        version="1.7",
        compute_capability=("8.6",),
        engine=str(tmp_path / "engine"),
        golden=str(tmp_path / "golden.npz"),
        outputs=str(tmp_path / "outputs.npz"),
        answer=str(answer),
    )
    said = call("rankc.lowering.trial", dataclasses.asdict(trial), answer, 60)
    assert said == {"problem": cuda.probe()}


def test_what_a_trial_writes_is_what_the_runtime_reads(tmp_path: Path) -> None:
    inputs, outputs = {"x": mlp_rows(2)}, {"y": np.ones((2, 1), np.float16)}
    write_golden(tmp_path / "golden.npz", inputs, outputs)
    for wrote, got in zip((inputs, outputs), golden.read(tmp_path / "golden.npz"), strict=True):
        assert wrote.keys() == got.keys()
        assert all(np.array_equal(array, got[name]) for name, array in wrote.items())


@pytest.mark.parametrize(("error", "right"), [(1.5, True), (2.5, False)])
def test_an_engine_is_judged_relative_to_its_largest_answer(error: float, right: bool) -> None:
    want = {"y": np.array([[100.0], [-3.0]], np.float32)}
    seen = golden.compare(want, {"y": want["y"] + np.float32(error)}, tolerance("fp16", want))
    result = judged(EngineResult("tensorrt", "fp16", True, False, "built"), seen)
    assert result.ran and result.built == right and result.max_abs_err == pytest.approx(error)
    assert ("answers are wrong" in result.reason) != right


@pytest.mark.parametrize(
    ("version", "opset", "limit"),
    [("10.3.0", 20, None), ("10.3.0", 21, 20), ("10.13.3", 24, None), ("11.4.1", 26, 25)],
)
def test_an_opset_beyond_the_parser_is_named(version: str, opset: int, limit: int | None) -> None:
    problem = opset_problem("tensorrt", version, opset)
    assert (problem is None) == (limit is None)
    assert problem is None or f"opset_version={limit}" in problem
    assert opset_problem("tensorrt-rtx", "1.7.1.116", 27) is None


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_onnxruntime_is_proven_to_run(precision: str, folder: Path) -> None:
    target = Target("onnxruntime", "fp16" if precision == "fp16" else "fp32")
    result = lowered(mlp(), target, folder)
    assert result.built and result.ran and result.version
    name = "model.fp16.onnx" if precision == "fp16" else "model.onnx"
    assert result.file == folder / name and result.size_bytes == os.path.getsize(str(result.file))
    assert result.max_abs_err is not None and result.max_abs_err < 5e-3
    assert (result.max_abs_err > 0) == (precision == "fp16")


def test_onnxruntime_runs_on_zeros_without_golden_inputs(folder: Path) -> None:
    path = folder / "model.onnx"
    ir.save(table_model(50, 4), path)
    assert lower(path, Target("onnxruntime"), folder).ran


def test_answers_that_float16_ruins_are_not_shipped(folder: Path) -> None:
    """A difference of large numbers: every constant fits, every value fits, nothing is left."""
    x, tape = ir.val("x", FLOAT, ["batch", 1]), ir.tape.Tape()
    up = tape.op("MatMul", [x, weight(tape, "a", np.array([[8000, 8001]], np.float32))], name="a")
    y = ir.val("y", FLOAT, ["batch", 1])
    tape.op("MatMul", [up, weight(tape, "b", np.array([[1], [-1]], np.float32))], output=y)
    path = folder / "model.onnx"
    ir.save(model_of(tape, [x], [y]), path)
    result = lower(path, Target("onnxruntime", "fp16"), folder, {"x": np.ones((4, 1), np.float32)})
    assert result.failed and "answers are wrong" in result.reason
    assert os.listdir(folder) == ["model.onnx"]


def test_a_model_that_onnxruntime_refuses(folder: Path) -> None:
    path = folder / "model.onnx"
    ir.save(mlp(), path)
    path.write_bytes(path.read_bytes().replace(b"Sigmoid", b"Sigmoit"))
    result = lower(path, Target("onnxruntime"), folder)
    assert result.failed and "Sigmoit" in result.reason


def test_the_float16_model_takes_weights_from_elsewhere_along(folder: Path) -> None:
    path = folder / "model.onnx"
    ir.save(mlp(), path, external_data="model.weights")
    result = lower(path, Target("onnxruntime", "fp16"), folder)
    (folder / "model.weights").unlink()
    assert result.built and lower(folder / "model.fp16.onnx", Target("onnxruntime"), folder).ran


def test_size_counts_the_weights_beside_the_file(folder: Path) -> None:
    path = folder / "model.onnx"
    ir.save(table_model(5000, 4), path, external_data="model.weights")
    assert (lower(path, Target("onnxruntime"), folder).size_bytes or 0) > 20_000
    assert os.path.getsize(path) < 5_000
