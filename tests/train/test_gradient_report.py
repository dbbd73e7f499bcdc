"""What training can reach, and the node at which a gradient ends."""

from __future__ import annotations

from typing import Any

import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

from builders import lookup, lookup_rows, mlp, mlp_rows
from conv_builders import convnet, images
from rankc.cleanup import clean
from rankc.errors import ModelError
from rankc.train.batch_norm import insert_batch_norms
from rankc.train.gradients import Blocked, gradient_report, require_trainable
from rankc.train.interpreter import Interpreter


def parsed(body: str, weights: str, outputs: str = "float[batch,3] y") -> Interpreter:
    """x (batch, 3) through nodes called as what they put out."""
    text = f"""
    <ir_version: 10, opset_import: ["" : 20]>
    main_graph (float[batch,3] x) => ({outputs}) <{weights}> {{ {body} }}
    """
    model = ir.serde.deserialize_model(onnx.parser.parse_model(text))
    for node in model.graph:
        node.name = node.outputs[0].name
    return Interpreter(model)


W = "float[3,3] W = {1, 2, 3, 4, 5, 6, 7, 8, 10}"
V = "float[3] v = {1, -2, 3}"
X = {"x": torch.tensor([[1.0, -0.5, 2.0], [0.3, 0.2, -1.0]])}


def batch(array: Any, name: str = "x") -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array)}


@pytest.mark.parametrize(
    ("model", "feeds"),
    [
        (mlp, batch(mlp_rows(4))),
        (lookup, batch(lookup_rows(8), "ids")),
        (convnet, batch(images(4))),
    ],
)
def test_of_an_ordinary_model_everything_is_trained(
    model: Any, feeds: dict[str, torch.Tensor]
) -> None:
    made = model()
    clean(made)
    net = Interpreter(made)
    report = require_trainable(net, feeds)
    assert report.trained == net.weight_names
    assert report.blocked == report.zero == ()


def test_a_weight_that_only_decides_is_blocked_where_it_decides() -> None:
    net = parsed(
        "gate = Mul(x, v)  open = Greater(gate, x)  h = MatMul(x, W)  y = Where(open, h, x)",
        f"{W}, {V}",
    )
    report = require_trainable(net, X)
    assert report.trained == ("W",)
    assert report.blocked == (Blocked("v", "open", "Greater", "puts out bool"),)
    assert all(p.requires_grad for p in net.parameters())


def test_the_node_that_is_named_is_the_first_of_several() -> None:
    net = parsed(
        """
        a = Mul(x, v)
        low = Cast <to = 7> (a)
        b = Exp(a)
        top = ArgMax <axis = 1, keepdims = 1> (b)
        back = Cast <to = 1> (low)
        other = Cast <to = 1> (top)
        sum = Add(back, other)
        h = MatMul(x, W)
        y = Add(h, sum)
        """,
        f"{W}, {V}",
    )
    (blocked,) = gradient_report(net, X).blocked
    assert blocked == Blocked("v", "low", "Cast", "puts out int64")


def test_a_blocked_weight_is_followed_past_what_others_flow_through() -> None:
    net = parsed(
        """
        a = Mul(x, v)
        h = MatMul(a, W)
        n = Sign(x)
        top = ArgMax <axis = 1, keepdims = 1> (h)
        rank = Cast <to = 1> (top)
        y = Add(rank, u)
        """,
        f"{W}, {V}, float[3] u = {{1, 1, 1}}",
    )
    report = gradient_report(net, X)
    assert report.trained == ("u",)
    assert [(b.weight, b.node) for b in report.blocked] == [("W", "top"), ("v", "top")]


def test_an_operator_without_gradient_before_every_output_is_named() -> None:
    net = parsed(
        "h = MatMul(x, W)  s = Add(h, v)  y = ArgMax <axis = 1, keepdims = 0> (s)",
        f"{W}, {V}",
        "int64[batch] y",
    )
    with pytest.raises(
        ModelError, match=r"without gradient .* ArgMax node 'y' \(puts out int64\); train a model"
    ):
        require_trainable(net, X)


def test_two_such_operators_are_both_named() -> None:
    net = parsed(
        "a = Mul(x, v)  h = MatMul(x, W)  y = Cast <to = 7> (a)  z = NonZero(h)",
        f"{W}, {V}",
        "int64[batch,3] y, int64[2,n] z",
    )
    with pytest.raises(ModelError, match=r"NonZero node 'z'.*, Cast node 'y'|Cast.*NonZero"):
        require_trainable(net, X)


def test_zeros_are_not_the_same_as_no_gradient() -> None:
    """A ReLU whose units are all off on these rows."""
    net = parsed(
        "a = MatMul(x, W)  far = Sub(a, big)  off = Relu(far)  b = Mul(x, v)  y = Add(off, b)",
        f"{W}, {V}, float big = {{1000}}",
    )
    report = require_trainable(net, X)
    assert report.trained == ("W", "v")
    assert report.blocked == ()
    assert report.zero == (Blocked("W", "off", "Relu", "passes only zeros back"),)


def test_an_operator_whose_gradient_is_zero_everywhere_is_named() -> None:
    net = parsed("a = MatMul(x, W)  s = Round(a)  y = Neg(s)", W)
    with pytest.raises(ModelError, match=r"exactly zero .*: Round node 's' \(passes only zeros"):
        require_trainable(net, X)


def test_a_weight_that_nothing_reads_is_told() -> None:
    net = parsed("y = MatMul(x, W)", f"{W}, {V}")
    assert gradient_report(net, X).blocked == (Blocked("v", "", "", "no output depends on 'v'"),)


def test_every_weight_frozen_is_an_error_with_the_patterns() -> None:
    model = mlp()
    net = Interpreter(model, frozen=["[AB]", "re:b$"])
    assert dict(net.frozen) == {"A": "[AB]", "B": "[AB]", "b": "re:b$"}
    with pytest.raises(ModelError, match=r"every weight is frozen, all 3 .*: \[AB\], re:b\$;"):
        require_trainable(net, batch(mlp_rows(4)))


def test_parameters_that_ask_for_no_gradient_are_frozen_too() -> None:
    net = Interpreter(mlp())
    net.requires_grad_(False)
    with pytest.raises(ModelError, match="every weight is frozen, all 3 of them; leave"):
        require_trainable(net, batch(mlp_rows(4)))
    net.weight("b").requires_grad_(True)
    assert require_trainable(net, batch(mlp_rows(4))).trained == ("b",)
    assert [name for name in "ABb" if net.weight(name).requires_grad] == ["b"]


def test_a_graph_without_float_weights_is_an_error() -> None:
    net = parsed("wide = Cast <to = 1> (q)  y = Mul(x, wide)", "int8[3] q = {1, 2, 3}")
    with pytest.raises(
        ModelError, match=r"frozen graph.*'q' of INT8, read by Cast node 'wide'; train the model"
    ):
        require_trainable(net, X)
    with pytest.raises(ModelError, match="a frozen graph: it has no weights of floats, so"):
        require_trainable(parsed("y = Neg(x)", "float unused = {1}"), X)


class Product(nn.Module):
    def __init__(self, first: torch.Tensor, second: torch.Tensor) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(first), nn.Parameter(second)

    def forward(self) -> torch.Tensor:
        return self.first @ self.second


def test_a_computed_weight_is_reached_through_its_factors() -> None:
    net = parsed("a = MatMul(x, W)  c = Cast <to = 7> (a)  f = Cast <to = 1> (c)  y = Mul(f, v)",
                 f"{W}, {V}")  # fmt: skip
    net.compute_weight("W", Product(torch.eye(3)[:, :2], torch.eye(3)[:2]))
    report = gradient_report(net, X)
    assert report.trained == ("v",)
    assert report.blocked == (Blocked("W", "c", "Cast", "puts out int64"),)
    straight = parsed("y = MatMul(x, W)", W)
    straight.compute_weight("W", Product(torch.eye(3)[:, :2], torch.eye(3)[:2]))
    assert gradient_report(straight, X).trained == ("W",)


def test_looking_changes_nothing() -> None:
    model, x = convnet(), images(16)
    clean(model)
    insert_batch_norms(model, [{"x": x}])
    net = Interpreter(model).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    report = gradient_report(net, batch(x))
    assert report == gradient_report(net, batch(x))
    assert report.trained == net.weight_names
    assert net.training
    assert net.state.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


def test_half_precision_outputs_are_looked_at() -> None:
    net = parsed("h = MatMul(x, W)  y = Cast <to = 10> (h)", W, "float16[batch,3] y")
    assert require_trainable(net, X).trained == ("W",)


def test_a_branch_that_is_not_taken_is_where_its_weights_end() -> None:
    net = parsed(
        """
        c = Constant <value = bool {0}> ()
        h = MatMul(x, W)
        y = If(c) <then_branch = yes () => (p) { p = Add(h, v) },
                   else_branch = no () => (q) { q = Neg(h) }>
        """,
        f"{W}, {V}",
    )
    report = require_trainable(net, X)
    assert report.trained == ("W",)
    assert report.blocked == (Blocked("v", "y", "If", "passes no gradient on"),)
