"""Whole graphs: what is differentiated, what is left out, and why."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from builders import mlp, mlp_rows, model_of, weight
from gradient_builders import (
    ROWS,
    c,
    central_differences,
    differentiable,
    inferred,
    ints,
    op,
    op_ints,
    run,
)
from rankc.gradient import Gradients, add_gradients


def tiny_deepfm(opset: int = 17) -> ir.Model:
    """p = sigmoid(wide + FM + MLP) over 3 fields of width 4, as an exporter writes it."""
    values = np.random.default_rng(5)
    fields, width = 3, 4
    ids = ir.val("ids", ir.DataType.INT64, ["batch", fields])
    tape = ir.tape.Tape()
    deep, wide = [], []
    for k in range(fields):
        table = weight(tape, f"deep{k}", values.normal(size=(7, width)).astype(np.float32))
        column = weight(tape, f"wide{k}", values.normal(size=(7, 1)).astype(np.float32))
        chosen = tape.op("Gather", [ids, c(tape, k, np.int64)], {"axis": 1})
        e = tape.op("Gather", [table, chosen], output=ir.Value(name=f"e{k}"))
        deep.append(tape.op("Unsqueeze", [e, ints(tape, 1)]))
        wide.append(tape.op("Gather", [column, chosen], output=ir.Value(name=f"w{k}")))
    stacked = tape.op("Concat", deep, {"axis": 1})
    total = tape.op("ReduceSum", [stacked, ints(tape, 1)], {"keepdims": 0})
    squares = tape.op("Mul", [stacked, stacked])
    squares = tape.op("ReduceSum", [squares, ints(tape, 1)], {"keepdims": 0})
    pairs = tape.op("Sub", [tape.op("Mul", [total, total]), squares])
    pairs = tape.op("ReduceSum", [pairs, ints(tape, 1)], {"keepdims": 1})
    fm = tape.op("Mul", [pairs, c(tape, 0.5, np.float32)])
    flat = tape.op("Reshape", [stacked, ints(tape, -1, fields * width)])
    up = weight(tape, "up", values.normal(size=(8, fields * width)).astype(np.float32) / 3)
    down = weight(tape, "down", values.normal(size=(1, 8)).astype(np.float32))
    hidden = tape.op("Gemm", [flat, up], {"transB": 1}, output=ir.Value(name="hidden"))
    mlp_out = tape.op("Gemm", [tape.op("Relu", [hidden]), down], {"transB": 1})
    linear = tape.op("ReduceSum", [tape.op("Concat", wide, {"axis": 1}), ints(tape, 1)])
    logit = tape.op("Add", [tape.op("Add", [linear, fm]), mlp_out], output=ir.Value(name="logit"))
    p = ir.val("p", ir.DataType.FLOAT, ["batch"])
    tape.op("Squeeze", [tape.op("Sigmoid", [logit]), ints(tape, 1)], output=p)
    return inferred(model_of(tape, [ids], [p], opset))


def test_deepfm_gradients_agree_with_the_derivation_by_hand() -> None:
    model = tiny_deepfm()
    wanted = ["e0", "e2", "w1", "hidden"]
    gradients = add_gradients(model, wanted)
    assert gradients == Gradients({name: f"rankc.grad.of.{name}" for name in wanted}, (), None, 1)
    ids = np.random.default_rng(2).integers(0, 7, size=(5, 3))
    result = run(model, {"ids": ids})
    weights = {k: v.const_value.numpy() for k, v in model.graph.initializers.items()}  # type: ignore[union-attr]
    e = np.stack([weights[f"deep{k}"][ids[:, k]] for k in range(3)], axis=1)  # (5, 3, 4)
    active = (e.reshape(5, 12) @ weights["up"].T > 0) * weights["down"]  # (5, 8)
    fm = e.sum(axis=1, keepdims=True) - e
    expected = fm + (active @ weights["up"]).reshape(5, 3, 4)
    of = gradients.outputs
    np.testing.assert_allclose(result[of["hidden"]], active, rtol=1e-5)
    np.testing.assert_allclose(result[of["e0"]], expected[:, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result[of["e2"]], expected[:, 2], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(result[of["w1"]], np.ones((5, 1), np.float32))


def test_several_logits_take_random_signs() -> None:
    model = inferred(mlp())
    up = next(n for n in model.graph if n.name == "up").outputs[0]
    assert up.name is not None
    gradients = add_gradients(model, [up.name])
    assert gradients.cotangent == "rankc.grad.cotangent"
    assert gradients.width == 8
    x = mlp_rows(4)
    signs = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), size=(4, 8))
    result = run(model, {"x": x, gradients.cotangent: signs})
    a, b = (model.graph.initializers[k].const_value.numpy() for k in "AB")  # type: ignore[union-attr]
    np.testing.assert_allclose(
        result[gradients.outputs[up.name]], (signs @ b) * (x @ a > 0), rtol=1e-5, atol=1e-6
    )


def two_headed() -> ir.Model:
    """Two probabilities of one number a row each, from one hidden layer."""
    x = ir.val("x", ir.DataType.FLOAT, ["batch", 4])
    tape = ir.tape.Tape()
    hidden = tape.op("Tanh", [x], output=ir.Value(name="hidden"))
    outs = []
    for k in range(2):
        out = ir.val(f"p{k}", ir.DataType.FLOAT, ["batch", 1])
        head = c(tape, np.arange(4).reshape(4, 1) + k + 1, np.float32)
        tape.op("Sigmoid", [tape.op("MatMul", [hidden, head])], output=out)
        outs.append(out)
    return inferred(model_of(tape, [x], outs))


def test_two_heads_share_one_cotangent() -> None:
    model = two_headed()
    gradients = add_gradients(model, ["hidden"])
    assert gradients.width == 2
    assert gradients.cotangent is not None
    signs = np.array([[1, 1], [1, -1], [-1, 1]], np.float32)
    result = run(model, {"x": np.ones((3, 4), np.float32), gradients.cotangent: signs})
    heads = np.stack([np.arange(4) + 1, np.arange(4) + 2]).astype(np.float32)
    np.testing.assert_allclose(result[gradients.outputs["hidden"]], signs @ heads)


def test_expected_outer_product_of_signs_is_the_gram_of_the_jacobian() -> None:
    model = two_headed()
    gradients = add_gradients(model, ["hidden"])
    assert gradients.cotangent is not None
    signs = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], np.float32)
    result = run(model, {"x": np.ones((4, 4), np.float32), gradients.cotangent: signs})
    g = result[gradients.outputs["hidden"]]
    heads = np.stack([np.arange(4) + 1, np.arange(4) + 2]).astype(np.float32)
    np.testing.assert_allclose(g.T @ g / 4, heads.T @ heads, rtol=1e-5)


def blocked_model() -> ir.Model:
    """A hardmax on one of two branches: only the other one has a gradient."""
    x = ir.val("x", ir.DataType.FLOAT, ["batch", 4])
    tape = ir.tape.Tape()
    hidden = tape.op("Tanh", [x], output=ir.Value(name="hidden"))
    free = tape.op("Exp", [hidden], output=ir.Value(name="free"))
    stuck = tape.op("Hardmax", [hidden], {"axis": -1}, name="pick")
    size = tape.op("Cast", [tape.op("ArgMax", [free], {"axis": 1})], {"to": 1})
    both = tape.op("Add", [tape.op("Add", [free, stuck]), size])
    y = ir.val("y", ir.DataType.FLOAT, ["batch", 1])
    tape.op("ReduceSum", [both, ints(tape, 1)], output=y)
    return inferred(model_of(tape, [x], [y]))


def test_an_operator_without_a_rule_blocks_what_is_behind_it_and_no_more() -> None:
    model = blocked_model()
    gradients = add_gradients(model, ["hidden", "free", "nowhere"])
    assert list(gradients.outputs) == ["free"]
    assert {u.value: u.reason for u in gradients.unreachable} == {
        "hidden": "operator Hardmax is not differentiated: node 'pick'",
        "nowhere": "no such value in the graph",
    }
    x = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(run(model, {"x": x})["rankc.grad.of.free"], x)


def test_where_nothing_can_be_differentiated_the_model_stays_as_it_was() -> None:
    model = blocked_model()
    before = ir.serde.serialize_model(model).SerializeToString()
    gradients = add_gradients(model, ["hidden"])
    assert not gradients.outputs
    assert ir.serde.serialize_model(model).SerializeToString() == before


def test_values_that_only_reach_integers_are_unreachable() -> None:
    model = tiny_deepfm()
    (unreachable,) = add_gradients(model, ["ids"]).unreachable
    assert unreachable.reason == "the model's answer does not depend on it differentiably"


def test_only_nodes_on_the_way_are_appended() -> None:
    model = tiny_deepfm()
    before = len(model.graph)
    add_gradients(model, ["hidden"])
    # ones like the logit (Shape, ConstantOfShape), back through Gemm, through Relu (Sign, Mul)
    assert [n.op_type for n in list(model.graph)[before:]] == [
        "Shape",
        "ConstantOfShape",
        "Gemm",
        "Sign",
        "Mul",
    ]


def test_the_original_outputs_stay_first_and_bitwise_equal() -> None:
    model = tiny_deepfm()
    feeds = {"ids": np.random.default_rng(2).integers(0, 7, size=(64, 3))}
    before = run(model, feeds)["p"]
    add_gradients(model, ["e0"])
    after = run(model, feeds)
    assert next(iter(after)) == "p"
    np.testing.assert_array_equal(after["p"], before)


@pytest.mark.parametrize("opset", [13, 17, 20])
def test_reductions_follow_the_opset(opset: int) -> None:
    axes = op("ReduceMean", axes=[1]) if opset < 18 else op_ints("ReduceMean", [1])
    model = differentiable(axes, [(3, 2)], opset)
    x = np.random.default_rng(0).normal(size=(ROWS, 3, 2))
    expected = central_differences(model, {"x0": x}, "x0", 1e-6)
    gradients = add_gradients(model, ["x0"])
    np.testing.assert_allclose(run(model, {"x0": x})[gradients.outputs["x0"]], expected, rtol=1e-6)


def test_values_inside_the_same_sum_get_an_output_each() -> None:
    model = differentiable(op("Add"), [(4,), (4,)])
    gradients = add_gradients(model, ["x0", "x1", "x0"])
    result = run(model, {"x0": np.ones((ROWS, 4)), "x1": np.ones((ROWS, 4))})
    np.testing.assert_array_equal(result[gradients.outputs["x0"]], result[gradients.outputs["x1"]])


def test_what_an_if_reads_is_blocked_with_the_if_named() -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    branchy (float[batch,4] x, bool flag) => (float[batch,4] y)
    {
       h = Tanh(x)
       [choice] y = If (flag) <
          then_branch = a () => (float[batch,4] u) { u = Exp(h) },
          else_branch = b () => (float[batch,4] v) { v = Neg(h) }
       >
    }
    """
    model = inferred(ir.serde.deserialize_model(onnx.parser.parse_model(text)))
    (unreachable,) = add_gradients(model, ["h"]).unreachable
    assert unreachable.reason == "operator If is not differentiated: node 'choice'"
