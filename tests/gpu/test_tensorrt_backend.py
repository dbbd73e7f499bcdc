"""The TensorRT backend on a real device: both flavours, against ONNX Runtime."""

from __future__ import annotations

import importlib
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from builders import mlp, mlp_rows
from bundles import fused_tables, write_mlp_bundle
from rankrt.backends import cuda, tensorrt
from rankrt.bench import time_batch
from rankrt.bundle import load
from rankrt.device_bench import time_on_device
from rankrt.errors import BackendError, FeedError
from rankrt.manifest import Engine
from rankrt.power import watching
from rankrt.session import TensorSpec, open_model

pytestmark = pytest.mark.gpu

_MAX_BATCH = 512
_TOLERANCE = 2e-3  # TF32 on Ampere and newer keeps 10 bits of each factor


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if reason := tensorrt.available(name):
        pytest.skip(reason)
    device = cuda.probe()
    assert isinstance(device, cuda.Device)
    if reason := tensorrt.capability_mismatch(_entry(name), device):
        pytest.skip(reason)
    return name


def _entry(backend: str, file: str = "a.plan") -> Engine:
    return Engine(backend, "fp32", file, (), "test", True, False, tolerance=_TOLERANCE)


def _build(backend: str, model: ir.Model, path: Path) -> Engine:
    """Build an engine for a batch of 1..512."""
    trt: Any = importlib.import_module(tensorrt.MODULES[backend])
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(ir.serde.serialize_model(model).SerializeToString())
    profile = builder.create_optimization_profile()
    name = network.get_input(0).name
    width = network.get_input(0).shape[1]
    profile.set_shape(name, (1, width), (64, width), (_MAX_BATCH, width))
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    built = builder.build_serialized_network(network, config)
    assert built is not None
    path.write_bytes(bytes(built))
    return _entry(backend, path.name)


def test_it_computes_what_onnxruntime_does(backend: str, tmp_path: Path) -> None:
    engine = _build(backend, mlp(), tmp_path / "a.plan")
    session = tensorrt.open_engine(tmp_path / "a.plan", engine)
    assert session.inputs == (TensorSpec("x", "float32", (None, 16)),)
    assert session.outputs == (TensorSpec("y", "float32", (None, 8)),)
    ir.save(mlp(), tmp_path / "m.onnx")
    reference = open_model(tmp_path / "m.onnx")
    for rows in (1, 7, _MAX_BATCH, 3):  # buffers grow, and are used again
        x = mlp_rows(rows, seed=rows)
        want = reference.run({"x": x})["y"]
        np.testing.assert_allclose(session.run({"x": x})["y"], want, atol=_TOLERANCE)


def test_a_strided_input_is_read_right(backend: str, tmp_path: Path) -> None:
    engine = _build(backend, mlp(), tmp_path / "a.plan")
    session = tensorrt.open_engine(tmp_path / "a.plan", engine)
    wide = np.repeat(mlp_rows(6), 2, axis=1)
    np.testing.assert_array_equal(
        session.run({"x": wide[:, ::2]})["y"], session.run({"x": mlp_rows(6)})["y"]
    )


def test_whole_numbers_go_in(backend: str, tmp_path: Path) -> None:
    engine = _build(backend, fused_tables(), tmp_path / "a.plan")
    ids = np.array([[0, 0], [2, 4]])
    got = tensorrt.open_engine(tmp_path / "a.plan", engine).run({"ids": ids})["z"]
    np.testing.assert_array_equal(got[..., 0], [[0, 3], [2, 7]])


def test_feeds_that_do_not_fit(backend: str, tmp_path: Path) -> None:
    engine = _build(backend, mlp(), tmp_path / "a.plan")
    session = tensorrt.open_engine(tmp_path / "a.plan", engine)
    with pytest.raises(FeedError, match=r"the engine was built for 1\.\.512"):
        session.run({"x": mlp_rows(_MAX_BATCH + 1)})
    with pytest.raises(FeedError, match="axis 0 is 0"):
        session.run({"x": mlp_rows(0)})
    with pytest.raises(FeedError, match="float64"):
        session.run({"x": mlp_rows(2).astype(np.float64)})
    with pytest.raises(FeedError, match="missing inputs: x"):
        session.run({})
    assert session.run({"x": mlp_rows(2)})["y"].shape == (2, 8)  # none of it did any harm


def test_several_threads_do_not_mix_their_rows(backend: str, tmp_path: Path) -> None:
    engine = _build(backend, mlp(), tmp_path / "a.plan")
    session = tensorrt.open_engine(tmp_path / "a.plan", engine)
    feeds = [mlp_rows(1 + i, seed=i) for i in range(8)]
    want = [session.run({"x": x})["y"] for x in feeds]
    same: list[bool] = []

    def work(i: int) -> None:
        same.extend(np.array_equal(session.run({"x": feeds[i]})["y"], want[i]) for _ in range(50))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(same) == 400
    assert all(same)


def test_a_bundle_prefers_its_engine(backend: str, tmp_path: Path) -> None:
    engine = _build(backend, mlp(), tmp_path / "a.plan")
    write_mlp_bundle(tmp_path, engines=(engine,))
    bundle = load(tmp_path)
    assert (bundle.backend, bundle.refused) == (backend, ())
    result = bundle.check_golden()
    assert result is not None
    assert result.ok
    assert result.bound == _TOLERANCE


def test_an_engine_of_another_model_is_refused_by_the_golden_rows(
    backend: str, tmp_path: Path
) -> None:
    engine = _build(backend, mlp(seed=1), tmp_path / "a.plan")
    write_mlp_bundle(tmp_path, engines=(engine,))
    bundle = load(tmp_path)
    assert bundle.backend == "onnxruntime"
    ((name, reason),) = bundle.refused
    assert name == engine.name
    assert reason.startswith("it misses the golden outputs: max |Δ| ")


def test_a_file_that_is_no_engine(backend: str, tmp_path: Path) -> None:
    (tmp_path / "a.plan").write_bytes(b"not an engine" * 100)
    with pytest.raises(BackendError, match="refuses the engine"):
        tensorrt.open_engine(tmp_path / "a.plan", _entry(backend))


def test_its_own_time_is_less_than_a_whole_call(backend: str, tmp_path: Path) -> None:
    engine = _build(backend, mlp(), tmp_path / "a.plan")
    session = tensorrt.open_engine(tmp_path / "a.plan", engine)
    feeds = {"x": mlp_rows(64)}
    before = session.run(feeds)["y"]
    with session.on_device(feeds) as calls:
        assert len(calls.kernel_ms(10)) == 10
        found = time_on_device(calls, 64, 1.0, partial(watching, session.bus_id))
    whole = time_batch(lambda: session.run(feeds), 64, 0.5)
    assert 0 < found.p50_ms < whole.wall_p50_ms
    assert found.copy_ms > 0
    assert found.energy_mj is None or found.energy_mj > 0
    np.testing.assert_array_equal(session.run(feeds)["y"], before)  # a graph leaves no trace


def test_the_readings_are_of_the_device_that_works(backend: str, tmp_path: Path) -> None:
    engine = _build(backend, mlp(), tmp_path / "a.plan")
    session = tensorrt.open_engine(tmp_path / "a.plan", engine)
    with watching(session.bus_id) as told, session.on_device({"x": mlp_rows(_MAX_BATCH)}) as calls:
        for _ in range(50):
            calls.kernel_ms(100)
    assert len(told) >= 3
    assert any(one.temperature_c is not None for one in told)
