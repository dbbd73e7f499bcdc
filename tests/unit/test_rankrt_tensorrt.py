"""What can be known about the TensorRT backend without a GPU; tests/gpu holds the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankrt.backends import cuda, tensorrt
from rankrt.errors import BackendError, FeedError
from rankrt.manifest import Engine

_NO_DEVICE = isinstance(cuda.probe(), str)


def _engine(backend: str, *built_for: str) -> Engine:
    return Engine(backend, "fp16", "a.plan", built_for, "1.0", True, False)


@pytest.mark.parametrize(
    ("backend", "built_for", "device", "fits"),
    [
        ("tensorrt-rtx", (), "8.9", True),
        ("tensorrt-rtx", (), "12.0", True),
        ("tensorrt-rtx", (), "12.1", True),
        ("tensorrt-rtx", (), "7.5", False),  # Turing is built for only when it is named
        ("tensorrt-rtx", (), "9.0", False),  # Hopper is not a target of TensorRT-RTX
        ("tensorrt-rtx", ("8.6", "8.9"), "8.9", True),
        ("tensorrt-rtx", ("8.6",), "8.9", False),
        ("tensorrt", ("8.7",), "8.7", True),
        ("tensorrt", ("8.7",), "8.9", False),
        ("tensorrt", ("8.0+",), "10.0", True),  # as numbers: 10 is newer than 8
        ("tensorrt", ("8.0+",), "7.5", False),
        ("tensorrt", (), "8.9", True),  # TensorRT decides
    ],
)
def test_the_device_must_be_one_it_was_built_for(
    backend: str, built_for: tuple[str, ...], device: str, fits: bool
) -> None:
    engine = _engine(backend, *built_for)
    reason = tensorrt.capability_mismatch(engine, cuda.Device("GPU X", device))
    assert (reason is None) == fits
    if reason is not None:
        assert f"GPU X has {device}: recompile with that target" in reason


def test_a_capability_that_is_none() -> None:
    with pytest.raises(BackendError, match="'new' is no compute capability"):
        tensorrt.capability_mismatch(_engine("tensorrt", "new+"), cuda.Device("X", "8.9"))


def test_a_batch_outside_the_profile() -> None:
    bounds = ((1, 24), (256, 24), (4096, 24))
    tensorrt.check_profile("ids", (4096, 24), bounds)
    with pytest.raises(FeedError, match=r"axis 0 is 5000, the engine was built for 1..4096; split"):
        tensorrt.check_profile("ids", (5000, 24), bounds)
    with pytest.raises(FeedError, match="axis 0 is 0"):
        tensorrt.check_profile("ids", (0, 24), bounds)


def test_an_unknown_backend() -> None:
    assert (
        tensorrt.available("tvm") == "unknown backend 'tvm'; choose one of tensorrt, tensorrt-rtx"
    )


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_an_absent_module_is_named(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tensorrt.MODULES, backend, "no_such_tensorrt")
    reason = tensorrt.available(backend)
    assert reason == f"no_such_tensorrt is not installed: pip install {tensorrt.PACKAGES[backend]}"


@pytest.mark.skipif(not _NO_DEVICE, reason="a GPU is here")
def test_without_a_device_the_reason_is_the_driver() -> None:
    pytest.importorskip("tensorrt_rtx")
    reason = tensorrt.available("tensorrt-rtx")
    assert reason == cuda.probe()
    assert "NVIDIA driver" in str(reason)
    assert tensorrt.wrong_device(_engine("tensorrt-rtx")) == reason


@pytest.mark.skipif(not _NO_DEVICE, reason="a GPU is here")
def test_device_memory_needs_a_device() -> None:
    with pytest.raises(BackendError, match=r"pip install cuda-python|cuda[A-Z].* failed: "):
        cuda.DeviceMemory()


def test_a_file_that_is_no_engine_is_refused_with_tensorrts_own_words(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    (tmp_path / "a.plan").write_bytes(b"not an engine" * 100)
    with pytest.raises(BackendError, match=r"refuses the engine, built by 1.0: ") as caught:
        tensorrt.open_engine(tmp_path / "a.plan", _engine("tensorrt-rtx"))
    assert "it gave no reason" not in str(caught.value)


def test_every_call_is_one_that_tensorrt_has() -> None:
    """The session itself runs only on a GPU; a renamed method should be noticed here already."""
    trt = pytest.importorskip("tensorrt_rtx")
    engine = (
        "create_execution_context get_tensor_dtype get_tensor_location get_tensor_mode "
        "get_tensor_name get_tensor_profile_shape get_tensor_shape num_io_tensors"
    )
    context = "execute_async_v3 get_tensor_shape infer_shapes set_input_shape set_tensor_address"
    assert [name for name in engine.split() if not hasattr(trt.ICudaEngine, name)] == []
    assert [name for name in context.split() if not hasattr(trt.IExecutionContext, name)] == []
    assert hasattr(trt.Runtime, "deserialize_cuda_engine")
    known = set(trt.DataType.__members__)
    assert known >= {"FLOAT", "HALF", "INT8", "UINT8", "INT32", "INT64", "BOOL"}
    assert trt.TensorIOMode.INPUT != trt.TensorIOMode.OUTPUT
    assert trt.TensorLocation.HOST != trt.TensorLocation.DEVICE
