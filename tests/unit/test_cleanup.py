"""A cleaned model is easier to read and computes the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from builders import Array, mlp, model_of, weight
from rankc.cleanup import clean
from rankc.errors import ModelError


def parsed(body: str, initializers: str = "", outputs: str = "float[batch,4] y") -> ir.Model:
    text = f"""
    <ir_version: 10, opset_import: ["" : 20]>
    main_graph (float[batch,4] x) => ({outputs}) {initializers} {{ {body} }}
    """
    return ir.serde.deserialize_model(onnx.parser.parse_model(text))


def run(model: ir.Model, x: Array) -> list[Any]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(
        ir.serde.serialize_model(model).SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
    )
    return list(session.run(None, {"x": x}))


def interface(model: ir.Model) -> list[str]:
    return [f"{v.name} {v.dtype} {v.shape}" for v in (*model.graph.inputs, *model.graph.outputs)]


def cleaned(model: ir.Model) -> ir.Model:
    """Cleaned, after checking what must hold of every model."""
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    promised, before = interface(model), run(model, x)
    clean(model)
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)
    assert interface(model) == promised
    for old, new in zip(before, run(model, x), strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-6, atol=1e-6)
    once = ir.serde.serialize_model(model).SerializeToString(deterministic=True)
    clean(model)
    assert ir.serde.serialize_model(model).SerializeToString(deterministic=True) == once
    node_names = [node.name for node in model.graph]
    assert all(node_names)
    assert len(set(node_names)) == len(node_names)
    return model


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def test_constants_become_initializers() -> None:
    model = cleaned(parsed("c = Constant <value = float[4] {1, 2, 3, 4}> () y = Mul(x, c)"))
    assert kinds(model) == ["Mul"]
    assert list(model.graph.initializers) == ["c"]


def test_constants_of_every_spelling_become_initializers() -> None:
    model = cleaned(
        parsed(
            """
            f = Constant <value_float = 2.0> ()
            i = Constant <value_ints = [0, 4]> ()
            a = Mul(x, f)
            y = Reshape(a, i)
            """
        )
    )
    assert kinds(model) == ["Mul", "Reshape"]


def test_what_is_constant_is_computed() -> None:
    model = cleaned(
        parsed(
            "t = Transpose <perm = [1, 0]> (w) h = MatMul(x, t) n = Neg(s) y = Mul(h, n)",
            "<float[4,4] w = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}, float[1] s = {3}>",
        )
    )
    assert kinds(model) == ["MatMul", "Mul"]


def test_a_shape_that_is_computed_becomes_a_constant() -> None:
    model = cleaned(
        parsed(
            """
            h = Reshape(x, three)
            s = Shape <start = 1, end = 3> (h)
            p = ReduceProd <keepdims = 1> (s)
            t = Concat <axis = 0> (minus, p)
            y = Reshape(h, t)
            """,
            "<int64[3] three = {-1, 2, 2}, int64[1] minus = {-1}>",
        )
    )
    assert kinds(model) == ["Reshape", "Reshape"]


def test_folding_never_makes_the_model_much_bigger() -> None:
    model = cleaned(
        parsed(
            "b = Expand(one, shape) c = ReduceMax <keepdims = 0> (b) y = Mul(x, c)",
            "<float[1] one = {2}, int64[2] shape = {1000, 1000}>",
        )
    )
    assert "Expand" in kinds(model)
    assert len(ir.serde.serialize_model(model).SerializeToString()) < 1000


def test_nodes_that_do_nothing_go() -> None:
    model = cleaned(parsed("a = Identity(x) b = Exp(a) unused = Neg(b) y = Identity(b)"))
    assert kinds(model) == ["Exp"]


def test_an_output_that_is_an_input_keeps_both_names() -> None:
    model = cleaned(parsed("y = Identity(x)"))
    assert kinds(model) == ["Identity"]


def test_an_output_that_is_another_output_keeps_both_names() -> None:
    outputs = "float[batch,4] y, float[batch,4] z"
    model = cleaned(parsed("y = Exp(x) z = Identity(y)", outputs=outputs))
    assert [value.name for value in model.graph.outputs] == ["y", "z"]


def test_a_value_that_is_renamed_to_an_output_keeps_its_other_readers() -> None:
    outputs = "float[batch,4] y, float[batch,4] z"
    model = cleaned(parsed("a = Exp(x) y = Identity(a) z = Neg(a)", outputs=outputs))
    assert kinds(model) == ["Exp", "Neg"]


def test_branches_keep_their_own_outputs() -> None:
    body = """
        h = Exp(x) g = Identity(h) s = ReduceSum <keepdims = 0> (g) zero = Sub(s, s)
        c = Greater(s, zero)
        y = If (c) <
            then_branch = a () => (float[batch,4] u) { u = Identity(g) },
            else_branch = b () => (float[batch,4] v) { v = Neg(h) }
        >
    """
    assert "If" in kinds(cleaned(parsed(body)))


def test_an_output_that_is_constant_stays_an_output() -> None:
    outputs = "float[batch,4] y, float[2] z"
    model = cleaned(parsed("y = Exp(x) z = Neg(c)", "<float[2] c = {1, 2}>", outputs))
    assert [value.name for value in model.graph.outputs] == ["y", "z"]


def test_two_equal_outputs_stay_two() -> None:
    outputs = "float[batch,4] y, float[batch,4] z"
    model = cleaned(parsed("y = Exp(x) z = Exp(x)", outputs=outputs))
    assert [value.name for value in model.graph.outputs] == ["y", "z"]


def test_equal_nodes_merge_even_where_their_indices_were_two_constants() -> None:
    model = cleaned(
        parsed(
            "a = Gather <axis = 1> (x, i) b = Gather <axis = 1> (x, j) y = Mul(a, b)",
            "<int64[4] i = {3, 2, 1, 0}, int64[4] j = {3, 2, 1, 0}>",
        )
    )
    assert kinds(model) == ["Gather", "Mul"]


def test_indices_that_differ_in_shape_or_type_alone_stay_apart() -> None:
    body = """
        a = Gather <axis = 1> (x, scalar)
        b = Unsqueeze(a, axes)
        c = Gather <axis = 1> (x, small)
        d = Unsqueeze(c, axes)
        y = Concat <axis = 1> (b, d, b, d)
    """
    model = cleaned(parsed(body, "<int64 scalar = {1}, int64[1] axes = {1}, int32 small = {1}>"))
    assert len(model.graph.initializers) == 3


def test_equal_weights_are_neither_shared_nor_parted() -> None:
    twins = cleaned(
        parsed("a = Add(x, v) y = Mul(a, w)", "<float[4] v = {1,2,3,4}, float[4] w = {1,2,3,4}>")
    )
    assert list(twins.graph.initializers) == ["v", "w"]
    shared = cleaned(parsed("a = Add(x, v) y = Mul(a, v)", "<float[4] v = {1,2,3,4}>"))
    assert list(shared.graph.initializers) == ["v"]


def test_functions_are_inlined() -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 20, "local" : 1]>
    calls (float[batch,4] x) => (float[batch,4] y) { h = local.f(x) y = local.f(h) }
    <opset_import: ["" : 20], domain: "local"> f (a) => (b) { b = Exp(a) }
    """
    model = cleaned(ir.serde.deserialize_model(onnx.parser.parse_model(text)))
    assert kinds(model) == ["Exp", "Exp"]
    assert list(model.graph.opset_imports) == [""]


def test_initializers_that_are_listed_as_inputs_are_no_inputs() -> None:
    model = parsed("y = Mul(x, w)", "<float[4] w = {1, 2, 3, 4}>")
    model.graph.inputs.append(model.graph.initializers["w"])
    clean(model)
    assert [value.name for value in model.graph.inputs] == ["x"]


def test_given_names_are_kept() -> None:
    clean(model := mlp())
    assert [node.name for node in model.graph] == ["up", "relu", "down", "head"]


def test_equal_node_names_are_told_apart() -> None:
    clean(model := parsed("[layer] a = Exp(x) [layer] y = Neg(a)"))
    assert [node.name for node in model.graph] == ["layer", "layer_1"]


def test_nodes_are_in_the_order_in_which_they_can_run() -> None:
    model = mlp()
    nodes = list(model.graph)
    model.graph.remove(nodes[0])
    model.graph.append(nodes[0])
    clean(model)
    names = [node.name for node in model.graph]
    assert names.index("up") < names.index("relu")


def test_traces_of_the_exporter_s_machine_go() -> None:
    model = mlp()
    node = next(iter(model.graph))
    node.metadata_props["pkg.torch.onnx.stack_trace"] = "File /home/me/train.py, line 3"
    node.doc_string = "/home/me/train.py(3)"
    model.metadata_props["author"] = "me"
    clean(model)
    text = ir.serde.serialize_model(model).SerializeToString()
    assert b"/home/me" not in text
    assert model.metadata_props["author"] == "me"


@pytest.mark.parametrize(
    "shape_of",
    [lambda tape, x: ints(tape, -1, 8), lambda tape, x: ints(tape, 0, 8)],
    ids=["minus one", "zero"],
)
def test_the_batch_keeps_its_name_through_a_reshape(
    shape_of: Callable[[ir.tape.Tape, ir.Value], ir.Value],
) -> None:
    tape = ir.tape.Tape()
    x = ir.val("x", ir.DataType.FLOAT, ["rows", 2, 4])
    flat = tape.op("Reshape", [x, shape_of(tape, x)])
    y = tape.op("Add", [tape.op("Exp", [flat]), tape.op("Reshape", [x, shape_of(tape, x)])])
    y.name, y.type = "y", ir.TensorType(ir.DataType.FLOAT)
    y.shape = ir.Shape(["n", 8])
    model = model_of(tape, [x], [y])
    clean(model)
    for node in model.graph:
        value = node.outputs[0]
        assert value.shape == (["n", 8] if value.is_graph_output() else ["rows", 8]), node


def test_a_symbol_may_be_any_text() -> None:
    model = parsed("y = Exp(x)")
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = ir.Shape(["rows (all)", 4])
    clean(model)
    assert model.graph.outputs[0].shape == ["rows (all)", 4]


def test_the_batch_is_not_named_where_rows_are_mixed() -> None:
    tape = ir.tape.Tape()
    x = ir.val("x", ir.DataType.FLOAT, ["rows", 4])
    y = tape.op("Reshape", [x, ints(tape, -1, 8)])
    y.name, y.type = "y", ir.TensorType(ir.DataType.FLOAT)
    y.shape = ir.Shape(["n", 8])
    clean(model := model_of(tape, [x], [y]))
    assert model.graph.outputs[0].shape == ["n", 8]


def ints(tape: ir.tape.Tape, *values: int) -> ir.Value:
    name = f"shape{len(tape.initializers)}"
    return weight(tape, name, np.array(values, np.int64))


def test_shapes_that_contradict_each_other_are_an_error() -> None:
    constants = "<float[4] w = {1, 2, 3, 4}, int64[1] s = {3}>"
    model = parsed("r = Reshape(w, s) y = Mul(x, r)", constants)
    with pytest.raises(ModelError, match="Incompatible dimensions"):
        clean(model)
