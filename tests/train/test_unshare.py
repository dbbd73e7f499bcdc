"""Weights that several nodes read are trained apart once each has its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray

from builders import model_of, weight
from rankc.errors import ModelError
from rankc.graph import array_of, node_named, value_named
from rankc.train.interpreter import Interpreter
from rankc.train.unshare import unshare
from rankrt.session import open_model

Array = NDArray[Any]


def tied() -> ir.Model:
    """A chain of three products with one W (6, 6), a bias that two sums share; y (batch, 6)."""
    rng, tape = np.random.default_rng(0), ir.tape.Tape()
    x, y = (ir.val(name, ir.DataType.FLOAT, ["batch", 6]) for name in "xy")
    w = weight(tape, "W", rng.normal(size=(6, 6)).astype(np.float32))
    b = weight(tape, "b", rng.normal(size=6).astype(np.float32))
    hidden = tape.op("Add", [tape.op("MatMul", [x, w], name="first"), b], name="shift")
    hidden = tape.op("MatMul", [tape.op("Tanh", [hidden], name="tanh"), w], name="second")
    hidden = tape.op("Add", [hidden, b], name="again")
    tape.op("MatMul", [hidden, w], name="third", output=y)
    return model_of(tape, [x], [y])


ROWS = np.random.default_rng(1).normal(size=(9, 6)).astype(np.float32)


def answers(model: ir.Model) -> Array:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return open_model(proto.SerializeToString()).run({"x": ROWS})["y"]


def read(model: ir.Model, node: str) -> str | None:
    value = node_named(model, node).inputs[1]
    return None if value is None else value.name


def test_every_reader_gets_its_own_and_the_first_keeps_the_name() -> None:
    model = tied()
    assert unshare(model, ["W"]) == ["W/second", "W/third"]
    assert [read(model, n) for n in ("first", "second", "third")] == ["W", "W/second", "W/third"]
    assert (read(model, "shift"), read(model, "again")) == ("b", "b")
    np.testing.assert_array_equal(answers(model), answers(tied()))


@pytest.mark.parametrize(
    ("nodes", "copies"),
    [
        (["second"], ["W/second"]),
        (["third", "first"], ["W/first", "W/third"]),
        (["first", "second", "third"], ["W/second", "W/third"]),
        (["shift"], []),
    ],
)
def test_only_the_nodes_that_are_meant_get_one(nodes: list[str], copies: list[str]) -> None:
    model = tied()
    assert unshare(model, ["W"], nodes) == copies
    for node in ("first", "second", "third"):
        assert read(model, node) == (f"W/{node}" if f"W/{node}" in copies else "W")
    np.testing.assert_array_equal(answers(model), answers(tied()))


def test_copies_are_trained_apart_and_what_is_still_shared_together() -> None:
    model, before = tied(), np.array(array_of(value_named(tied(), "W")))
    unshare(model, ["W"], ["second"])
    net = Interpreter(model)
    assert set(net.weight_names) == {"W", "W/second", "b"}
    steps = torch.optim.SGD(net.parameters(), lr=0.01)
    net(torch.from_numpy(ROWS))[0].square().mean().backward()
    steps.step()
    trained = net.to_onnx()
    apart, together = (np.array(array_of(value_named(trained, n))) for n in ("W/second", "W"))
    assert not np.array_equal(apart, together)
    assert not np.array_equal(together, before)
    assert read(trained, "first") == read(trained, "third") == "W"
    with torch.no_grad():
        (wanted,) = net(torch.from_numpy(ROWS))
    np.testing.assert_allclose(answers(trained), wanted.numpy(), rtol=1e-5, atol=1e-5)


def test_a_weight_that_one_node_reads_stays_alone() -> None:
    model = tied()
    unshare(model, ["W", "b"])
    assert unshare(model, list(model.graph.initializers)) == []


def test_a_node_that_reads_it_twice_gets_one_copy() -> None:
    model = tied()
    third = node_named(model, "third")
    third.replace_input_with(0, value_named(model, "W"))
    assert unshare(model, ["W"], ["third"]) == ["W/third"]
    assert [v.name for v in third.inputs if v is not None] == ["W/third", "W/third"]


def test_what_is_known_of_a_weight_goes_with_its_copies() -> None:
    model = tied()
    value_named(model, "W").meta["rankc.factors"] = factors = (np.eye(6), np.eye(6))
    unshare(model, ["W"])
    assert value_named(model, "W/third").meta["rankc.factors"] is factors


def test_an_output_and_the_body_of_a_branch_read_it_as_it_was() -> None:
    model = tied()
    model.graph.outputs.append(value_named(model, "W"))
    assert unshare(model, ["W"]) == ["W/first", "W/second", "W/third"]
    text = """
        <ir_version: 10, opset_import: ["" : 20]>
        main_graph (float[batch,2] x, bool c) => (float[batch,2] y) <float[2] w = {1, 2}> {
            a = Mul(x, w)
            y = If(c) <then_branch = yes () => (p) { p = Add(a, w) },
                       else_branch = no () => (q) { q = Sub(a, w) }>
        }
    """
    branched = ir.serde.deserialize_model(onnx.parser.parse_model(text))
    (mul, branch) = branched.graph
    mul.name, branch.name = "mul", "if"
    assert unshare(branched, ["w"]) == ["w/mul"]
    assert {v.name for n in branched.graph.all_nodes() for v in n.inputs if v} >= {"w", "w/mul"}


@pytest.mark.parametrize(
    ("names", "nodes", "words"),
    [
        (["V"], None, "no initializer is called 'V'"),
        (["x"], None, "no initializer is called 'x'"),
        (["W"], ["fourth"], "no node is called 'fourth'"),
    ],
)
def test_names_that_are_not_there_are_refused(
    names: list[str], nodes: list[str] | None, words: str
) -> None:
    with pytest.raises(ModelError, match=words):
        unshare(tied(), names, nodes)
