"""Gradients through windows, normalisations, attention and recurrent layers, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rankc.errors import ModelError
from rankc.train import (
    ops_attention,
    ops_norm,
    ops_pool,
    ops_recurrent,
    ops_resize,
    ops_window,
)
from rankc.train.interpreter import Interpreter
from rankc.train.registry import Tensor
from train.nodes import one_node

Array = NDArray[Any]
FAMILIES = (ops_attention, ops_norm, ops_pool, ops_recurrent, ops_resize, ops_window)


def x(*shape: int, seed: int = 0, low: float = 0.2, signs: bool = True) -> Array:
    """Numbers of distinct magnitudes, 0.2 to 0.8 or as much above `low`, none near a kink."""
    rng = np.random.default_rng(seed)
    size = int(np.prod(shape))
    found = rng.permutation(np.linspace(low, low + 0.6, size) + 0.0017 * seed)
    found *= rng.choice([-1.0, 1.0], size) if signs else 1.0
    return found.reshape(shape)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


IMAGE = x(1, 2, 4, 5)
POOL: dict[str, Any] = {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 0, 1]}
SEQUENCE = x(3, 2, 4)
LENGTHS = np.array([3, 1], np.int32)
HEADS: dict[str, Any] = {"q_num_heads": 4, "kv_num_heads": 2}
PLACES = np.array([[0, 4, 1], [2, 3, 4]])
SEEN = np.array([[True, False, True], [False, False, False]])  # the second query sees nothing


def layer(gates: int, ways: int = 1) -> tuple[Array, ...]:
    """Weights and biases of three hidden numbers, and the lengths."""
    w, r = x(ways, gates * 3, 4, seed=1), x(ways, gates * 3, 3, seed=2)
    return SEQUENCE, w, r, x(ways, 2 * gates * 3, seed=3), LENGTHS, x(ways, 2, 3, seed=4)


CASES: list[tuple[str, tuple[Array | None, ...], dict[str, Any]]] = [
    ("Conv", (x(1, 4, 5), x(2, 2, 3, seed=1), x(2, seed=2)), {"group": 2, "pads": [2, 1]}),
    ("Conv", (IMAGE, x(2, 2, 3, 2, seed=1)), {"auto_pad": "SAME_UPPER", "strides": [2, 1]}),
    ("Conv", (x(1, 1, 3, 3, 3), x(1, 1, 2, 2, 2, seed=1)), {"dilations": [2, 1, 1]}),
    ("ConvTranspose", (IMAGE, x(2, 1, 3, 2, seed=1), x(2, seed=2)), {
        "group": 2, "strides": [2, 2], "pads": [1, 0, 0, 1], "output_padding": [1, 1],
    }),
    ("ConvTranspose", (x(1, 1, 3), x(1, 2, 3, seed=1)), {"pads": [1, 1]}),
    ("AveragePool", (IMAGE,), {**POOL, "ceil_mode": 1}),
    ("AveragePool", (IMAGE,), {**POOL, "dilations": [1, 2], "count_include_pad": 1}),
    ("MaxPool", (IMAGE,), {**POOL, "ceil_mode": 1}),
    ("MaxPool", (x(1, 2, 6),), {"kernel_shape": [2], "dilations": [2]}),
    ("LpPool", (IMAGE,), {**POOL, "p": 3}),
    ("Col2Im", (x(1, 8, 4), ints(3, 3), ints(2, 2)), {}),
    ("GlobalAveragePool", (IMAGE,), {}),
    ("GlobalMaxPool", (IMAGE,), {}),
    ("Resize", (IMAGE, None, np.array([1, 1, 0.6, 1.7], np.float32)), {"mode": "cubic"}),
    ("Resize", (IMAGE, None, None, ints(1, 2, 3, 7)), {"mode": "linear", "antialias": 1}),
    ("Resize", (IMAGE, None, None, ints(1, 2, 3, 7)), {"mode": "nearest"}),
    ("GridSample", (IMAGE, x(1, 2, 3, 2, seed=1)), {"mode": "cubic", "padding_mode": "border"}),
    ("AffineGrid", (x(1, 2, 3), ints(1, 1, 3, 4)), {}),
    ("BatchNormalization", (IMAGE, x(2), x(2, seed=1), x(2, seed=2), x(2, signs=False)), {}),
    ("GroupNormalization", (x(2, 4, 3), x(4, seed=1), x(4, seed=2)), {"num_groups": 2}),
    ("InstanceNormalization", (IMAGE, x(2, seed=1), x(2, seed=2)), {}),
    ("LayerNormalization", (x(2, 3, 4), x(3, 4, seed=1), x(4, seed=2)), {"axis": 1}),
    ("LpNormalization", (x(2, 3),), {"p": 1}),
    ("LpNormalization", (x(2, 3),), {"axis": 0}),
    ("LRN", (x(1, 5, 2, 2),), {"size": 4, "alpha": 0.5}),
    ("MeanVarianceNormalization", (IMAGE,), {}),
    ("RMSNormalization", (x(2, 3, 4), x(4, seed=1)), {}),
    ("RotaryEmbedding", (x(2, 3, 8), x(5, 2, seed=1), x(5, 2, seed=2), PLACES),
        {"num_heads": 2}),
    ("RotaryEmbedding", (x(1, 2, 3, 6), x(1, 3, 2, seed=1), x(1, 3, 2, seed=2)),
        {"interleaved": 1, "rotary_embedding_dim": 4}),
    ("Attention", (x(1, 2, 8), x(1, 3, 4, seed=1), x(1, 3, 6, seed=2), SEEN), HEADS),
    ("Attention", (x(1, 2, 8), x(1, 2, 4, seed=1), x(1, 2, 4, seed=2), x(2, 4, seed=3),
        x(1, 2, 2, 2, seed=4), x(1, 2, 2, 2, seed=5)), {**HEADS, "is_causal": 1, "softcap": 0.7}),
    ("RNN", layer(1), {"hidden_size": 3, "activations": ["Softsign"]}),
    ("GRU", layer(3), {"hidden_size": 3, "direction": "reverse"}),
    ("GRU", layer(3, 2), {
        "hidden_size": 3, "direction": "bidirectional", "linear_before_reset": 1,
    }),
    ("LSTM", (*layer(4), x(1, 2, 3, seed=5), x(1, 9, seed=6)), {"hidden_size": 3, "clip": 5.0}),
    ("LSTM", (*layer(4, 2)[:4],), {"hidden_size": 3, "direction": "bidirectional"}),
]  # fmt: skip


@pytest.mark.parametrize(
    "operator,inputs,attributes", CASES, ids=[f"{k}-{case[0]}" for k, case in enumerate(CASES)]
)
def test_gradients_are_finite_differences(
    operator: str, inputs: tuple[Array | None, ...], attributes: dict[str, Any]
) -> None:
    net = Interpreter(
        one_node(operator, inputs, attributes, opset=23, outputs=_outputs(operator))
    ).eval()
    assert torch.autograd.gradcheck(net, _asked(operator, inputs))


def test_gradients_by_the_statistics_of_a_batch_are_finite_differences() -> None:
    inputs = (IMAGE, x(2), x(2, seed=1), x(2, seed=2), x(2, signs=False))
    net = Interpreter(one_node("BatchNormalization", inputs)).train()
    assert torch.autograd.gradcheck(net, _asked("BatchNormalization", inputs))


def _asked(operator: str, inputs: tuple[Array | None, ...]) -> list[Tensor]:
    """Running statistics have no gradient."""
    most = 3 if operator == "BatchNormalization" else len(inputs)
    return [
        torch.tensor(one, requires_grad=one.dtype == np.float64 and k < most)
        for k, one in enumerate(inputs)
        if one is not None
    ]


def _outputs(operator: str) -> int:
    return {"LSTM": 3, "GRU": 2, "RNN": 2}.get(operator, 1)


def test_every_operator_of_these_families_is_checked() -> None:
    known = {name for family in FAMILIES for name in family.OPERATORS}
    assert known == {case[0] for case in CASES}


def test_a_query_that_sees_nothing_gets_zeros_and_no_gradient() -> None:
    q, k, v = x(1, 2, 8), x(1, 3, 4, seed=1), x(1, 3, 4, seed=2)
    net = Interpreter(one_node("Attention", (q, k, v, SEEN), HEADS, opset=23))
    given: list[Tensor] = [torch.from_numpy(one).requires_grad_() for one in (q, k, v)]
    (y,) = net(*given, torch.from_numpy(SEEN))
    assert not y[:, 1].any()
    assert y[:, 0].all()
    grads = torch.autograd.grad(y.sum(), given)
    assert all(bool(grad.isfinite().all()) for grad in grads)
    assert not grads[0][:, 1].any()


@pytest.mark.parametrize("p", [1, 2, 3])
def test_a_norm_of_zeros_has_no_gradient(p: int) -> None:
    net = Interpreter(one_node("LpPool", (IMAGE,), {"kernel_shape": [2, 2], "p": p}))
    given = torch.zeros(IMAGE.shape, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(net(given)[0].sum(), given)
    assert not grad.any()


REFUSED: list[tuple[str, tuple[Array | None, ...], dict[str, Any], str]] = [
    ("Conv", (x(1, 1, 2, 2, 2, 2), x(1, 1, 1, 1, 1, 1)), {},
        r"Conv node 'node': a window of 4 axes; one, two or three are supported"),
    ("MaxPool", (IMAGE,), {"kernel_shape": [2, 2], "auto_pad": "SAME"},
        r"MaxPool node 'node': auto_pad 'SAME'; known are NOTSET, VALID, .*"),
    ("GRU", layer(3), {"hidden_size": 3, "activations": ["Sigmoid", "Gelu"]},
        r"GRU node 'node': activation 'Gelu'; known are affine, elu, .*"),
    ("Attention", (x(1, 2, 8), x(1, 3, 4), x(1, 3, 4)), {},
        r"Attention node 'node': inputs of three axes need q_num_heads and kv_num_heads"),
    ("GridSample", (x(1, 1, 2, 2, 2), x(1, 1, 1, 1, 3)), {"mode": "cubic"},
        r"GridSample node 'node': mode cubic over 3 axes; supported are nearest and linear .*"),
]  # fmt: skip


@pytest.mark.parametrize("operator,inputs,attributes,told", REFUSED)
def test_what_is_not_supported_is_told_of_the_node(
    operator: str, inputs: tuple[Array, ...], attributes: dict[str, Any], told: str
) -> None:
    with pytest.raises(ModelError, match=told):
        Interpreter(one_node(operator, inputs, attributes))(*map(torch.from_numpy, inputs))
