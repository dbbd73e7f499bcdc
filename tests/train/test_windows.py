"""Windows of any kind against ONNX Runtime: sizes, strides, paddings and dilations at random."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray

from rankc.train.interpreter import Interpreter
from rankrt.errors import BackendError, FeedError
from rankrt.session import open_model
from train.nodes import one_node

Array = NDArray[Any]
ASKED = 40  # cases of each operator


def window(rng: np.random.Generator, axes: int, least: int) -> dict[str, Any]:
    """Padding stays below the kernel, and half of the cases have some after the input only."""
    kernel = rng.integers(least, 4, axes)
    pads = rng.integers(0, kernel, (2, axes))
    pads[0] *= rng.integers(2)
    made: dict[str, Any] = {
        "kernel_shape": kernel.tolist(),
        "strides": rng.integers(1, 4, axes).tolist(),
        "dilations": rng.integers(1, 3, axes).tolist(),
    }
    how = str(rng.choice(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if how.startswith("SAME"):
        made["dilations"] = [1] * axes
        made["strides"] = [min(s, k) for s, k in zip(made["strides"], kernel.tolist(), strict=True)]
    return made | ({"pads": pads.reshape(-1).tolist()} if how == "NOTSET" else {"auto_pad": how})


def numbers(rng: np.random.Generator, *shape: int) -> Array:
    return rng.normal(size=shape).astype(np.float32)


def case(operator: str, rng: np.random.Generator) -> tuple[list[Array], dict[str, Any], int]:
    """Inputs, attributes and the number of outputs."""
    axes = int(rng.integers(1, 4))
    how = window(rng, axes, 1)
    x = numbers(rng, 2, 4, *rng.integers(6, 9, axes))
    if operator == "Conv":
        return [x, numbers(rng, 6, 2, *how["kernel_shape"]), numbers(rng, 6)], how | {"group": 2}, 1
    if operator == "ConvTranspose":
        how |= {"group": 2}
        if "pads" in how:
            how["output_padding"] = [int(rng.integers(s)) for s in how["strides"]]
        return [x, numbers(rng, 4, 3, *how["kernel_shape"]), numbers(rng, 6)], how, 1
    if "pads" in how:
        how["ceil_mode"] = int(rng.integers(2))
    if operator == "AveragePool":
        how["count_include_pad"] = int(rng.integers(2))
    if operator == "LpPool":
        how["p"] = int(rng.integers(1, 4))
    if operator == "MaxPool":
        how["storage_order"] = int(rng.integers(2))
    return [x], how, 2 if operator == "MaxPool" else 1


@pytest.mark.parametrize("operator", ["AveragePool", "Conv", "ConvTranspose", "LpPool", "MaxPool"])
def test_windows_are_onnx_runtimes(operator: str) -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(ASKED):
        inputs, attributes, outputs = case(operator, rng)
        model = one_node(operator, inputs, attributes, opset=22, outputs=outputs)
        feeds = {f"x{k}": one for k, one in enumerate(inputs)}
        try:
            wanted = open_model(ir.to_proto(model).SerializeToString()).run(feeds)
        except (BackendError, FeedError):  # not all that the standard allows is there
            continue
        found = Interpreter(model)(*map(torch.from_numpy, inputs))
        held += 1
        for one, array in zip(found, wanted.values(), strict=True):
            np.testing.assert_allclose(
                one.numpy(), array, rtol=1e-4, atol=1e-5, err_msg=str(attributes)
            )
    assert held > ASKED / 2
