"""Models to be normalised, and how to compare them before and after."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from builders import model_of, weight
from rankc.cleanup import clean
from rankc.graph import array_of, node_named, value_named
from rankrt.session import open_model

Array = NDArray[Any]


def answers(model: ir.Model, feeds: dict[str, Array]) -> dict[str, Array]:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return open_model(proto.SerializeToString()).run(feeds)


def same(model: ir.Model, other: ir.Model, x: Array, share: float = 1e-5) -> None:
    """In ONNX Runtime the outputs agree to a share of their size."""
    wanted, found = answers(other, {"x": x}), answers(model, {"x": x})
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        bound = share * max(1.0, float(np.abs(array).max()))
        np.testing.assert_allclose(found[name], array, rtol=0, atol=bound)


def batches(array: Array, size: int = 16) -> list[dict[str, Array]]:
    return [{"x": array[k : k + size]} for k in range(0, len(array), size)]


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def made(model: ir.Model) -> list[str | None]:
    """Names of all values that nodes put out."""
    return [value.name for node in model.graph for value in node.outputs]


def weights(model: ir.Model) -> dict[str, Array]:
    return {name: np.array(array_of(v)) for name, v in model.graph.initializers.items()}


def parameters(model: ir.Model, name: str) -> list[Array]:
    """Scale, bias, mean and variance of a BatchNormalization, float64."""
    return [np.array(array_of(v), np.float64) for v in node_named(model, name).inputs[1:]]


def cleaned(model: ir.Model) -> ir.Model:
    clean(model)
    return model


def convolutions(*layers: tuple[str, tuple[int, ...], bool], relu: bool = False) -> ir.Model:
    """x (batch, 3, 6, 6) through convolutions (name, shape, biased), one into the other; y."""
    rng, tape = np.random.default_rng(7), ir.tape.Tape()
    x = value = ir.val("x", ir.DataType.FLOAT, ["batch", 3, 6, 6])
    for name, shape, biased in layers:
        inputs = [value, weight(tape, f"{name}.w", rng.normal(size=shape).astype(np.float32))]
        if biased:
            inputs.append(weight(tape, f"{name}.b", rng.normal(size=shape[0]).astype(np.float32)))
        value = tape.op("Conv", inputs, name=name)
        if relu:
            value = tape.op("Relu", [value], name=f"{name}.relu")
    y = ir.val("y", ir.DataType.FLOAT, ["batch", layers[-1][1][0], None, None])
    tape.op("Identity", [value], name="last", output=y)
    return cleaned(model_of(tape, [x], [y]))


def pictures(rows: int = 20, seed: int = 3) -> Array:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(rows, 3, 6, 6)) * [[[2.0]], [[1.0]], [[0.1]]] + 1).astype(np.float32)


def transposed(seed: int = 0) -> ir.Model:
    """x (batch, 3, 6, 6) through a ConvTranspose of three groups; y of six channels."""
    rng, tape = np.random.default_rng(seed), ir.tape.Tape()
    x, y = (ir.val(n, ir.DataType.FLOAT, ["batch", c, *s]) for n, c, s in (
        ("x", 3, [6, 6]), ("y", 6, [None, None])
    ))  # fmt: skip
    w = weight(tape, "w", rng.normal(size=(3, 2, 3, 2)).astype(np.float32))
    tape.op("ConvTranspose", [x, w], attributes={"group": 3}, name="up", output=y)
    return model_of(tape, [x], [y])


def added(model_bias: tuple[int, ...] = (4,)) -> ir.Model:
    """y = relu(x W + b), the bias in an Add, on its left; x (batch, 3)."""
    rng, tape = np.random.default_rng(1), ir.tape.Tape()
    x, y = (ir.val(n, ir.DataType.FLOAT, ["batch", m]) for n, m in (("x", 3), ("y", 4)))
    product = tape.op(
        "MatMul", [x, weight(tape, "w", rng.normal(size=(3, 4)).astype("f"))], name="fc"
    )
    b = weight(tape, "b", rng.normal(size=model_bias).astype("f"))
    tape.op("Relu", [tape.op("Add", [b, product], name="fc.add")], name="relu", output=y)
    return cleaned(model_of(tape, [x], [y]))


def normed(model: ir.Model, value: str, channels: int) -> ir.Model:
    """The model with a BatchNormalization of random numbers behind a value."""
    rng, old = np.random.default_rng(4), value_named(model, value)
    tape, numbers = ir.tape.Tape(), rng.normal(size=(4, channels)).astype(np.float32)
    numbers[3] = np.abs(numbers[3]) + 0.1
    names = ("scale", "bias", "mean", "var")
    for one in (initial := [weight(tape, n, a) for n, a in zip(names, numbers, strict=True)]):
        model.graph.register_initializer(one)
    readers = list(old.uses())
    new = tape.op("BatchNormalization", [old, *initial], attributes={"epsilon": 0.03}, name="bn")
    new.type, new.shape = old.type, old.shape
    for node, k in readers:
        node.replace_input_with(k, new)
    model.graph.insert_after(old.producer(), tape.nodes)  # type: ignore[arg-type]
    return model
