from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from builders import mlp, mlp_rows, model_of
from bundles import fused_tables
from rankrt.backends import onnxruntime as backend
from rankrt.errors import BackendError, FeedError
from rankrt.session import Session, TensorSpec, open_model


def _bytes(model: ir.Model) -> bytes:
    data: bytes = ir.serde.serialize_model(model).SerializeToString()
    return data


@pytest.fixture(scope="module")
def session() -> Session:
    return open_model(_bytes(mlp()))


def test_it_says_what_it_takes_and_gives(session: Session) -> None:
    assert session.backend == "onnxruntime"
    assert session.inputs == (TensorSpec("x", "float32", ("batch", 16)),)
    assert session.outputs == (TensorSpec("y", "float32", ("batch", 8)),)
    assert str(session.inputs[0]) == "x float32 (batch, 16)"


@pytest.mark.parametrize("optimize", [True, False])
def test_it_computes_what_the_weights_say(tmp_path: Path, optimize: bool) -> None:
    model = mlp()
    ir.save(model, tmp_path / "m.onnx")
    x = mlp_rows(5)
    weights = {k: v.const_value for k, v in model.graph.initializers.items()}
    a, b, bias = (w.numpy().astype(np.float64) for n in ("A", "B", "b") if (w := weights[n]))
    want = 1 / (1 + np.exp(-(np.maximum(x @ a, 0) @ b.T + bias)))
    got = open_model(tmp_path / "m.onnx", optimize=optimize).run({"x": x})
    assert list(got) == ["y"]
    np.testing.assert_allclose(got["y"], want, atol=1e-5)


def test_a_strided_input_is_read_right(session: Session) -> None:
    wide = np.repeat(mlp_rows(6), 2, axis=1)
    got = session.run({"x": wide[:, ::2]})["y"]
    np.testing.assert_array_equal(got, session.run({"x": mlp_rows(6)})["y"])


@pytest.mark.parametrize(
    ("feeds", "says"),
    [
        ({}, "missing inputs: x; the model takes x float32 (batch, 16)"),
        ({"x": mlp_rows(2), "z": mlp_rows(2)}, "unknown inputs: z; the model takes x"),
        ({"x": [[1.0] * 16]}, "input x is a list"),
        ({"x": mlp_rows(2).astype(np.float64)}, "the model takes x float32"),
        ({"x": mlp_rows(2)[:, :3]}, "the model takes x float32"),
    ],
)
def test_feeds_that_do_not_fit(session: Session, feeds: dict[str, object], says: str) -> None:
    with pytest.raises(FeedError) as caught:
        session.run(feeds)  # type: ignore[arg-type]
    assert says in str(caught.value)


def test_an_id_beyond_the_table_is_the_callers_mistake() -> None:
    with pytest.raises(FeedError, match="out of data bounds"):
        open_model(_bytes(fused_tables())).run({"ids": np.array([[99, 0]])})


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\x00" * 64)
    with pytest.raises(BackendError, match=r"m.onnx: onnxruntime .* refuses it"):
        open_model(tmp_path / "m.onnx")
    with pytest.raises(BackendError, match=r"absent.onnx"):
        open_model(tmp_path / "absent.onnx")


def test_a_provider_that_is_not_there_is_not_replaced_in_silence() -> None:
    with pytest.raises(BackendError, match=r"has no NoSuchProvider; it has .*CPUExecutionProvider"):
        open_model(_bytes(mlp()), providers=("NoSuchProvider", "CPUExecutionProvider"))


def test_a_number_of_threads_that_cannot_be() -> None:
    with pytest.raises(BackendError, match="threads is -1"):
        open_model(_bytes(mlp()), threads=-1)


def test_an_output_that_numpy_cannot_hold() -> None:
    x = ir.val("x", ir.DataType.FLOAT, [2])
    tape = ir.tape.Tape()
    y = ir.val("y", ir.DataType.BFLOAT16, [2])
    tape.op("Cast", [x], attributes={"to": int(ir.DataType.BFLOAT16)}, output=y)
    with pytest.raises(BackendError, match=r"y is a tensor.bfloat16., which numpy cannot hold"):
        open_model(_bytes(model_of(tape, [x], [y])))


def test_onnxruntime_is_available_where_these_tests_run() -> None:
    assert backend.available() is None
