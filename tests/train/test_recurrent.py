"""Recurrent layers against ONNX Runtime, in every direction, with rows of different lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray

from rankc.train.interpreter import Interpreter
from rankrt.session import open_model
from train.nodes import one_node

Array = NDArray[Any]
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
HIDDEN, SIZE, ROWS, POSITIONS = 3, 4, 3, 5


def inputs_of(operator: str, ways: int, lengths: bool, rest: bool) -> list[Array | None]:
    """With `rest` the optional ones, too: biases, states to start from, peepholes."""
    rng = np.random.default_rng(0)

    def numbers(*shape: int) -> Array:
        return rng.normal(size=shape).astype(np.float32)

    width = GATES[operator] * HIDDEN
    found: list[Array | None] = [
        numbers(POSITIONS, ROWS, SIZE), numbers(ways, width, SIZE), numbers(ways, width, HIDDEN),
        numbers(ways, 2 * width) if rest else None,
        np.array([5, 1, 3], np.int32) if lengths else None,
    ]  # fmt: skip
    if rest:
        found.append(numbers(ways, ROWS, HIDDEN))
    if rest and operator == "LSTM":
        found += [numbers(ways, ROWS, HIDDEN), numbers(ways, 3 * HIDDEN)]
    return found


@pytest.mark.parametrize("operator", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("rest", [False, True])
def test_recurrent_layers_are_onnx_runtimes(
    operator: str, direction: str, lengths: bool, rest: bool
) -> None:
    inputs = inputs_of(operator, 1 + (direction == "bidirectional"), lengths, rest)
    attributes: dict[str, Any] = {"hidden_size": HIDDEN, "direction": direction}
    if operator == "GRU":
        attributes["linear_before_reset"] = int(rest)
    if rest:
        attributes["clip"] = 1.5
    agree(operator, inputs, attributes)


@pytest.mark.parametrize(
    "names", [["Affine", "LeakyRelu", "ScaledTanh"], ["HardSigmoid", "Softsign", "Elu"]]
)
def test_activations_with_parameters(names: list[str]) -> None:
    """Elu and Softsign have one or none of the two."""
    given = {"activation_alpha": [0.3, 0.2, 1.5], "activation_beta": [0.1, 0.0, 0.7]}
    if "Elu" in names:
        given = {"activation_alpha": [0.3, 1.2], "activation_beta": [0.4]}
    attributes = {"hidden_size": HIDDEN, "activations": names, **given}
    if "Affine" in names:
        attributes["activation_beta"] = [0.1, 0.7]
    agree("LSTM", inputs_of("LSTM", 1, False, False), attributes)


def agree(operator: str, inputs: list[Array | None], attributes: dict[str, Any]) -> None:
    outputs = 3 if operator == "LSTM" else 2
    model = one_node(operator, inputs, attributes, opset=22, outputs=outputs)
    feeds = {f"x{k}": one for k, one in enumerate(inputs) if one is not None}
    wanted = open_model(ir.to_proto(model).SerializeToString()).run(feeds)
    found = Interpreter(model)(*map(torch.from_numpy, feeds.values()))
    for one, array in zip(found, wanted.values(), strict=True):
        np.testing.assert_allclose(one.numpy(), array, rtol=1e-5, atol=1e-6)
