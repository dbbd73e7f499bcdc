"""Small models with one kind of layer, and rewrites of them that rankc would not make."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

FLOAT = ir.DataType.FLOAT
CLASSES = 10

Array = NDArray[Any]


def layers(widths: Sequence[int], seed: int = 0) -> ir.Model:
    """Gemm `fc0`, `fc1`, ... of these widths, a Relu after each but the last."""
    rng, tape = np.random.default_rng(seed), ir.tape.Tape()
    x = ir.val("x", FLOAT, ["batch", widths[0]])
    value = x
    for k, (n, m) in enumerate(itertools.pairwise(widths)):
        value = tape.op("Gemm", [value, *_weights(tape, rng, f"fc{k}", (n, m), m)], name=f"fc{k}")
        if k + 2 < len(widths):
            value = tape.op("Relu", [value], name=f"relu{k}")
    return _model(tape, x, value, widths[-1])


def tensor_train(modes: Sequence[int], rank: int, seed: int = 0) -> ir.Model:
    """One layer of prod(modes) inputs and outputs as a Tensor-Train matrix, as libraries emit it.

    Core k has shape (r, n, n, r'): the input is seen as a tensor of the modes, and one mode after
    another is multiplied away: Reshape, MatMul, Transpose.
    """
    rng, tape = np.random.default_rng(seed), ir.tape.Tape()
    width = math.prod(modes)
    x = ir.val("x", FLOAT, ["batch", width])
    # Invariant: (rows, r n_k, the modes still to come); outputs that are done are among the rows.
    value, before, rest, done = x, 1, width, 1
    for k, n in enumerate(modes):
        after = rank if k + 1 < len(modes) else 1
        rest //= n
        core = _scaled(rng, (before * n, n * after), before * n)
        split = _ints(tape, f"split{k}", (-1, done, before * n, rest))
        seen = tape.op("Reshape", [value, split], name=f"mode{k}")
        moved = tape.op("Transpose", [seen], {"perm": [0, 1, 3, 2]}, name=f"last{k}")
        weight = tape.initializer(ir.tensor(core, name=f"core{k}"))
        put = tape.op("MatMul", [moved, weight], name=f"core{k}")  # (rows, done, rest, n r')
        apart = _ints(tape, f"apart{k}", (-1, done, rest, n, after))
        parts = tape.op("Reshape", [put, apart], name=f"parts{k}")
        value = tape.op("Transpose", [parts], {"perm": [0, 1, 3, 4, 2]}, name=f"next{k}")
        done, before = done * n, after
    flat = tape.op("Reshape", [value, _ints(tape, "flat", (-1, width))], name="flat")
    return _model(tape, x, flat, width)


def images(channels: Sequence[int], size: int, seed: int = 0) -> ir.Model:
    """3 x 3 convolutions `conv0`, ... between these numbers of channels; then mean, and Gemm."""
    rng, tape = np.random.default_rng(seed), ir.tape.Tape()
    x = ir.val("x", FLOAT, ["batch", channels[0], size, size])
    value = x
    for k, (c, m) in enumerate(itertools.pairwise(channels)):
        given = _weights(tape, rng, f"conv{k}", (m, c, 3, 3), m)
        value = tape.op("Conv", [value, *given], {"pads": [1, 1, 1, 1]}, name=f"conv{k}")
        value = tape.op("Relu", [value], name=f"relu{k}")
    pooled = tape.op("Flatten", [tape.op("GlobalAveragePool", [value], name="mean")], name="flat")
    given = _weights(tape, rng, "head", (channels[-1], CLASSES), CLASSES)
    return _model(tape, x, tape.op("Gemm", [pooled, *given], name="head"), CLASSES)


def rows_for(model: ir.Model, count: int, seed: int = 1) -> Array:
    """Random rows, correlated along the last axis, so that moments are not white."""
    (given,) = (value for value in model.graph.inputs if not value.is_initializer())
    assert given.shape is not None
    shape = [int(d) for d in given.shape if isinstance(d, int)]
    noise = np.random.default_rng(seed).standard_normal((count, *shape))
    smooth = (noise + np.roll(noise, 1, -1) + np.roll(noise, 2, -1)) / 3
    return np.asarray(smooth, np.float32)


def _weights(
    tape: ir.tape.Tape, rng: np.random.Generator, name: str, shape: tuple[int, ...], outputs: int
) -> tuple[ir.Value, ir.Value]:
    """A weight and a bias; Gemm has (n, m), Conv (m, c, ...)."""
    depth = shape[0] if len(shape) == 2 else math.prod(shape[1:])
    bias = rng.standard_normal(outputs).astype(np.float32)
    kernel = tape.initializer(ir.tensor(_scaled(rng, shape, depth), name=f"{name}.w"))
    return kernel, tape.initializer(ir.tensor(bias, name=f"{name}.b"))


def _scaled(rng: np.random.Generator, shape: tuple[int, ...], depth: int) -> Array:
    """Random, so that outputs are about as large as inputs."""
    return (rng.standard_normal(shape) * math.sqrt(2 / depth)).astype(np.float32)


def _ints(tape: ir.tape.Tape, name: str, values: Sequence[int]) -> ir.Value:
    return tape.initializer(ir.tensor(np.array(values, np.int64), name=f"{name}.shape"))


def _model(tape: ir.tape.Tape, x: ir.Value, last: ir.Value, width: int) -> ir.Model:
    last.name, last.type, last.shape = "y", ir.TensorType(FLOAT), ir.Shape(["batch", width])
    graph = ir.Graph(
        [x],
        [last],
        nodes=tape.nodes,
        initializers=tape.initializers,
        opset_imports={"": 18},
        name="main_graph",
    )
    return ir.Model(graph, ir_version=10)
