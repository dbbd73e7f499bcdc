"""Everything that can be wrong with a model file, and the sentence that says so."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from builders import mlp, mlp_rows
from model_files import edited, proto_of, refusal, weight_of
from rankc.cleanup import clean
from rankc.errors import ModelError
from rankc.intake import TensorSpec, load, stamp


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "model.onnx"
    file.write_bytes(proto_of(mlp()).SerializeToString())
    return file


def test_a_good_model_comes_with_what_one_wants_to_know(path: Path) -> None:
    intake = load(path)
    assert intake.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert intake.size_bytes == path.stat().st_size
    assert intake.opset == 18
    assert intake.inputs == (TensorSpec("x", "float32", ("batch", 16)),)
    assert intake.outputs == (TensorSpec("y", "float32", ("batch", 8)),)
    hidden = next(n for n in intake.model.graph if n.name == "up").outputs[0]
    assert hidden.shape is not None
    assert list(hidden.shape) == ["batch", 24]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"just some text, not a model at all\n", "is not an ONNX model, or was cut short"),
        (b"PK\x03\x04rest of a zip", "is not an ONNX model but a zip archive"),
        (b"\x80\x04\x95rest of a pickle", "is not an ONNX model but a Python pickle"),
        (b"version https://git-lfs.github.com/spec/v1\n", "run `git lfs pull`"),
        (b"<!DOCTYPE html>", "is not an ONNX model but a web page"),
        (bytes(range(256)) * 40, "is not an ONNX model"),
        (b"\x08\x0a", "it has no graph"),
    ],
)
def test_other_files_are_named_for_what_they_are(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(content)
    assert reason in refusal(file)


def test_no_file(tmp_path: Path) -> None:
    assert refusal(tmp_path / "model.onnx") == "there is no such file"


def test_a_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path) == "is a folder or a device, not a file"


def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.onnx")
    assert refusal(tmp_path / "model.onnx") == "is a folder or a device, not a file"


def test_the_size_limit_is_checked_before_reading(path: Path) -> None:
    with pytest.raises(ModelError, match="above the limit of 10"):
        load(path, max_bytes=10)


def test_every_truncation_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    for end in range(1, len(whole), 97):
        path.write_bytes(whole[:end])
        refusal(path)


def test_damage_is_refused_or_harmless_but_never_a_crash(path: Path) -> None:
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), size=8):
            damaged[place] = rng.integers(0, 256)
        for place in rng.integers(0, 150, size=2):  # where the structure is
            damaged[place] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(damaged)
        try:
            load(path)
        except ModelError:
            refused += 1
    assert refused > 20


def test_external_data_of_a_constant_inside_a_branch_is_checked_too(path: Path) -> None:
    secret = onnx.TensorProto(name="s", data_type=1, dims=[1], data_location="EXTERNAL")
    secret.external_data.add(key="location", value="../secret")
    constant = onnx.NodeProto(op_type="Constant", output=["s"])
    constant.attribute.add(name="value", type=onnx.AttributeProto.TENSOR, t=secret)
    branch = onnx.GraphProto(name="b", node=[constant])
    node = onnx.NodeProto(op_type="If", input=["x"], output=["z"])
    node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH, g=branch)
    assert "'../secret' lies outside" in refusal(edited(path, lambda p: p.graph.node.append(node)))


# Claims


def test_a_shape_that_claims_terabytes_is_refused_without_making_it(path: Path) -> None:
    def blow_up(proto: onnx.ModelProto) -> None:
        proto.graph.initializer[0].dims[:] = [1 << 40, 1 << 20]

    assert "should hold 4,611,686,018,427,387,904 bytes and holds 1,536" in refusal(
        edited(path, blow_up)
    )


def test_constants_that_would_unfold_to_terabytes_are_left_folded(path: Path) -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    bomb (float[batch,1] x) => (float[n,1] y)
       <int64[2] huge = {1099511627776, 1}, float[1] one = {1}>
    {
       big = Expand(one, huge)
       y = Add(x, big)
    }
    """
    path.write_bytes(onnx.parser.parse_model(text).SerializeToString())
    model = load(path).model
    clean(model)
    assert [n.op_type for n in model.graph] == ["Expand", "Add"]


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda t: t.dims.__setitem__(0, -1), "has a negative dimension: [-1, 24]"),
        (lambda t: setattr(t, "data_type", 999), "has the unknown type 999"),
        (lambda t: setattr(t, "data_type", 0), "has the unknown type 0"),
        (lambda t: t.ClearField("raw_data"), "should hold 384 elements and holds 0"),
    ],
)
def test_tensors_that_contradict_themselves(
    path: Path, edit: Callable[[onnx.TensorProto], object], reason: str
) -> None:
    assert reason in refusal(edited(path, lambda p: edit(p.graph.initializer[0])))


# The graph


@pytest.mark.parametrize("opset", [0, 7, 12, 99])
def test_opsets_out_of_range(path: Path, opset: int) -> None:
    message = refusal(edited(path, lambda p: setattr(p.opset_import[0], "version", opset)))
    assert message.startswith(f"has opset {opset}; supported are 13 to ")
    assert "export it with opset_version=20" in message


def test_no_nodes(path: Path) -> None:
    def strip(proto: onnx.ModelProto) -> None:
        del proto.graph.node[:], proto.graph.output[:], proto.graph.initializer[:]
        proto.graph.output.append(proto.graph.input[0])

    assert "has no nodes" in refusal(edited(path, strip))


def test_no_outputs(path: Path) -> None:
    assert "has no outputs" in refusal(edited(path, lambda p: p.graph.ClearField("output")))


def test_no_inputs(path: Path) -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    fixed () => (float[1] y) <float[1] one = {1}> { y = Exp(one) }
    """
    path.write_bytes(onnx.parser.parse_model(text).SerializeToString())
    assert "has no inputs" in refusal(path)


def test_a_node_that_reads_what_nobody_made(path: Path) -> None:
    message = refusal(edited(path, lambda p: p.graph.node[0].input.__setitem__(0, "ghost")))
    assert message.startswith("is not valid ONNX: ")
    assert "ghost" in message


def test_an_operator_that_does_not_exist(path: Path) -> None:
    message = refusal(edited(path, lambda p: setattr(p.graph.node[0], "op_type", "Bogus")))
    assert "Bogus" in message


def test_shapes_that_cannot_be(path: Path) -> None:
    message = refusal(
        edited(path, lambda p: p.graph.initializer[0].dims.__setitem__(slice(None), [24, 16]))
    )
    assert "MatMul" in message


def test_a_stale_shape_note_is_no_reason_to_refuse(path: Path) -> None:
    def note(proto: onnx.ModelProto) -> None:
        value = ir.serde.serialize_value(ir.val("up", ir.DataType.FLOAT, [5, 99]))
        value.name = proto.graph.node[0].output[0]
        proto.graph.value_info.append(value)

    hidden = next(iter(load(edited(path, note)).model.graph)).outputs[0]
    assert hidden.shape is not None
    assert list(hidden.shape) == ["batch", 24]


def test_custom_operators_are_listed(path: Path) -> None:
    def customise(proto: onnx.ModelProto) -> None:
        proto.opset_import.add(domain="acme", version=1)
        proto.graph.node[1].domain = "acme"

    message = refusal(edited(path, customise))
    assert message.startswith("has operators of acme, which ONNX Runtime cannot run")


def test_operators_of_onnx_runtime_itself_pass(path: Path) -> None:
    def contribute(proto: onnx.ModelProto) -> None:
        proto.opset_import.add(domain="com.microsoft", version=1)
        proto.graph.node[1].domain = "com.microsoft"
        proto.graph.node[1].op_type = "QuickGelu"

    assert len(load(edited(path, contribute)).model.graph) == 4


@pytest.mark.parametrize(
    ("bad", "reason"),
    [(np.nan, "has 1 NaN elements of 384"), (np.inf, "has 1 infinite elements of 384")],
)
def test_weights_that_are_not_finite(tmp_path: Path, bad: float, reason: str) -> None:
    model = mlp()
    array = weight_of(model).copy()
    array[3, 3] = bad
    model.graph.initializers["A"].const_value = ir.tensor(array, name="A")
    ir.save(model, tmp_path / "model.onnx")
    message = refusal(tmp_path / "model.onnx")
    assert message.startswith(f"initializer 'A' {reason}")


def test_an_infinite_mask_is_fine(path: Path) -> None:
    mask = onnx.numpy_helper.from_array(np.full((1, 8), -np.inf, np.float32), "mask")

    def add_mask(proto: onnx.ModelProto) -> None:
        proto.graph.initializer.append(mask)
        proto.graph.node[3].input[0] = "masked"
        node = onnx.NodeProto(op_type="Add", input=[proto.graph.node[2].output[0], "mask"])
        node.output.append("masked")
        proto.graph.node.insert(3, node)

    assert load(edited(path, add_mask))


FUNCTIONS = """
<ir_version: 10, opset_import: ["" : 20, "local" : 1]>
calls (float[batch,4] x) => (float[batch,4] y) { y = local.f0(x) }
"""


def with_functions(path: Path, bodies: list[str]) -> Path:
    header = '<opset_import: ["" : 20, "local" : 1], domain: "local">'
    proto = onnx.parser.parse_model(FUNCTIONS)
    proto.functions.extend(
        onnx.parser.parse_function(f"{header} f{k} (x) => (y) {{ {body} }}")
        for k, body in enumerate(bodies)
    )
    path.write_bytes(proto.SerializeToString())
    return path


def test_functions_are_inlined(path: Path) -> None:
    model = load(with_functions(path, ["h = local.f1(x) y = Tanh(h)", "y = Exp(x)"])).model
    assert [n.op_type for n in model.graph] == ["Exp", "Tanh"]
    assert not model.functions


def test_functions_that_would_explode_are_refused_at_once(path: Path) -> None:
    doubling = [f"h = local.f{k + 1}(x) y = local.f{k + 1}(h)" for k in range(40)]
    message = refusal(with_functions(path, [*doubling, "y = Exp(x)"]))
    assert message == "has more than 1,000,000 nodes once its functions are inlined"


def test_functions_that_call_themselves(path: Path) -> None:
    bodies = ["y = local.f1(x)", "y = local.f0(x)"]
    assert "recursive" in refusal(with_functions(path, bodies))


def test_nodes_without_a_name_get_one_that_does_not_depend_on_others(path: Path) -> None:
    def forget(proto: onnx.ModelProto) -> None:
        for node, name in zip(proto.graph.node, ["", "Gemm_0", "", ""], strict=True):
            node.name = name

    names = [node.name for node in load(edited(path, forget)).model.graph]
    assert names == ["MatMul_0", "Gemm_0", "Gemm_1", "Sigmoid_0"]


def test_the_loaded_model_computes_what_the_file_computes(path: Path) -> None:
    x = mlp_rows(8)
    results = []
    for source in (path.read_bytes(), proto_of(load(path).model).SerializeToString()):
        session = ort.InferenceSession(source, providers=["CPUExecutionProvider"])
        results.append(session.run(None, {"x": x})[0])
    np.testing.assert_array_equal(*results)


def test_a_stamp_holds_no_path() -> None:
    model = mlp()
    stamp(model, {"source_sha256": "3f9c", "recipe": "recipes/ctr.yaml"})
    assert model.metadata_props["rankc.source_sha256"] == "3f9c"
    for path in ("/home/me/model.onnx", "C:\\models\\model.onnx"):
        with pytest.raises(ValueError, match="is a path of this machine"):
            stamp(model, {"source": path})
