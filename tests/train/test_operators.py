"""Corners of operators against ONNX Runtime; devices; what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray

from gradient_builders import inferred, run
from rankc.errors import ModelError
from rankc.train.interpreter import Interpreter
from train.nodes import one_node

Array = NDArray[Any]


def f(*values: Any) -> Array:
    return np.array(values[0] if len(values) == 1 else values, np.float32)


def i(*values: Any, dtype: Any = np.int64) -> Array:
    return np.array(values[0] if len(values) == 1 else values, dtype)


def grid(*shape: int) -> Array:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


LAST, MOST = -(2**63), 2**63 - 1
NODES: list[tuple[str, tuple[Array | None, ...], dict[str, Any]]] = [
    ("ArgMax", (f([[3, 1, 3], [2, 2, 0]]),), {"axis": 1, "select_last_index": 1, "keepdims": 0}),
    ("ArgMin", (f([[3, 1, 1], [2, 0, 0]]),), {"axis": -1}),
    ("BitShift", (i(1, 2, 255, dtype=np.uint8), i(7, 1, 4, dtype=np.uint8)), {"direction": "LEFT"}),
    ("Cast", (f(-1.9, 2.9, 0.0),), {"to": 7}),
    ("Cast", (f(-0.1, 0.0, 5.0),), {"to": 9}),
    ("Clip", (f(-3, 0, 3), f(2.0), f(1.0)), {}),
    ("Clip", (i(-3, 0, 3, dtype=np.int32), i(-1, dtype=np.int32)), {}),
    ("Concat", (grid(2, 1), grid(2, 0), grid(2, 2)), {"axis": -1}),
    ("ConstantOfShape", (i([]),), {"value": i([7], dtype=np.int32)}),
    ("CumSum", (i(2**31 - 1, 1, dtype=np.int32), i(0)), {"exclusive": 1}),
    ("DepthToSpace", (grid(2, 12, 2, 3),), {"blocksize": 2, "mode": "CRD"}),
    ("Div", (i(-7, 7, -7, dtype=np.int32), i(2, -2, -2, dtype=np.int32)), {}),
    ("Div", (i(2**64 - 1, dtype=np.uint64), i(3, dtype=np.uint64)), {}),
    ("Einsum", (grid(2, 3, 4), grid(2, 4, 5)), {"equation": "...ij, ...jk"}),
    ("Expand", (grid(3, 1), i(2, 1, 4)), {}),
    ("Flatten", (grid(0, 3, 4),), {"axis": 2}),
    ("Gather", (grid(3, 4), i(-1)), {"axis": 0}),
    ("Gather", (grid(2, 3, 4), i([[0, -1], [1, 2]], dtype=np.int32)), {"axis": -2}),
    ("Gather", (i(5, 6, 7), i(1)), {}),
    ("GatherElements", (grid(3, 4), i([[0, -1]], dtype=np.int32)), {"axis": 1}),
    ("GatherND", (grid(2, 3, 4, 5), i([[[1, -1]], [[0, 2]]])), {"batch_dims": 1}),
    ("Gemm", (grid(3, 2), grid(4, 3), f(2.0)), {"transA": 1, "transB": 1, "beta": 0.5}),
    ("Gemm", (grid(2, 3), grid(3, 4), grid(2, 1)), {"alpha": 2.0}),
    ("Hardmax", (f([[1, 3, 3], [2, 2, 2]]),), {"axis": 1}),
    ("LogSoftmax", (f([[1e4, -1e4], [0, 1]]),), {"axis": 0}),
    ("MatMul", (grid(3), grid(2, 3, 4)), {}),
    ("Max", (f(1, np.nan, 3), f(2.0)), {}),
    ("Min", (i(2**64 - 1, 5, dtype=np.uint64), i(2**63, 7, dtype=np.uint64)), {}),
    ("Mod", (i(-7, 7, dtype=np.int32), i(3, -3, dtype=np.int32)), {}),
    ("Mod", (f(-7.5, 7.5), f(2.0)), {"fmod": 1}),
    ("NonZero", (f([[0, 1], [2, 0]]),), {}),
    ("OneHot", (i(1, -1, 7), i(3), f(-1, 2)), {"axis": 0}),
    ("Pad", (grid(3, 4), i(1, -1, 0, 2), f(9.0)), {}),
    ("Pad", (grid(3, 4), i(2, 2), None, i([-1])), {"mode": "reflect"}),
    ("Pad", (i([[1, 2], [3, 4]], dtype=np.int32), i(1, 0, 2, 3)), {"mode": "edge"}),
    ("Pad", (grid(3, 4), i(1, 2, 2, 1)), {"mode": "wrap"}),
    ("Pow", (i(2, -3, dtype=np.int32), f(3.0)), {}),
    ("Pow", (f(2, 3), i(-1, 2)), {}),
    ("Pow", (grid(2, 3), f([2.0])), {}),
    ("Pow", (f(2.0), f([3.0])), {}),
    ("PRelu", (grid(2, 3, 4), grid(3, 1)), {}),
    ("Range", (i(5), i(-2), i(-3)), {}),
    ("Range", (f(1.0), f(0.5), f(0.1)), {}),
    ("Range", (f(0.0), f(1.0), f(0.3)), {}),
    ("ReduceL2", (grid(2, 3, 4), i(0, -1)), {"keepdims": 0}),
    ("ReduceLogSumExp", (f([[1e3, -1e3], [-np.inf, 0]]), i([1])), {}),
    ("ReduceMax", (np.array([[True, False], [False, False]]), i([1])), {}),
    ("ReduceMean", (i([[-3, 0], [4, 5]], dtype=np.int32), i([1])), {}),
    ("ReduceMean", (grid(2, 3), i([])), {"noop_with_empty_axes": 1}),
    ("ReduceMin", (f(2.0),), {}),
    ("ReduceProd", (grid(2, 3, 4), i(-1, 0)), {}),
    ("ReduceSum", (i([[7, -9]], dtype=np.int32), i([1])), {}),
    ("ReduceSum", (grid(2, 0, 3), i([1])), {}),
    ("Reshape", (grid(2, 3, 4), i(0, -1)), {}),
    ("Reshape", (grid(1, 1), i([])), {}),
    ("Reshape", (grid(0, 3), i(3, 0)), {"allowzero": 1}),
    ("ReverseSequence", (grid(3, 4, 2), i(2, 0, 4)), {"batch_axis": 0, "time_axis": 1}),
    ("Round", (f(-2.5, -0.5, 0.5, 1.5, 2.5),), {}),
    ("ScatterElements", (grid(3, 4), i([[0, -1]]), f([[5, 6]])), {"axis": 1}),
    ("ScatterElements", (grid(3), i(1, 1), f(5, 6)), {"reduction": "max"}),
    ("ScatterND", (grid(3, 4), i([[1], [-1], [1]]), grid(3, 4)), {"reduction": "add"}),
    ("ScatterND", (grid(3, 4), i([[1, 2], [0, -1]]), f(5, 6)), {}),
    ("Shape", (grid(2, 3, 4),), {"start": -2, "end": 7}),
    ("Shrink", (f(-2, -0.2, 0.2, 2),), {"lambd": 0.5, "bias": 0.5}),
    ("Slice", (grid(5, 4), i([-10]), i([LAST]), i([0]), i([-1])), {}),
    ("Slice", (grid(5, 4), i([MOST]), i([LAST]), i([-2]), i([-2])), {}),
    ("Slice", (grid(5, 4), i(4, 1), i(1, MOST)), {}),
    ("Slice", (grid(0, 4), i([3]), i([-9]), i([0]), i([-1])), {}),
    ("Split", (grid(7, 2),), {"num_outputs": 3}),
    ("Split", (grid(7, 2), i(1, 0, 6)), {}),
    ("Squeeze", (grid(1, 3, 1), i([-1])), {}),
    ("Tile", (grid(2, 3), i(2, 0)), {}),
    ("TopK", (f([[1, 3, 3, 0]]), i([2])), {}),
    ("TopK", (f([[1, 3, 0, 0], [0, 0, 2, 1]]), i([2])), {"axis": -1, "largest": 0}),
    ("Trilu", (grid(3, 4), i(-1)), {"upper": 0}),
    ("Unique", (f(2, 1, 1, 3, 2),), {"sorted": 0}),
    ("Unique", (f([[1, 0], [1, 0], [0, 2]]),), {"axis": 0}),
    ("Unsqueeze", (grid(2, 3), i(-1, 0)), {}),
    ("Where", (np.array([[True], [False]]), f(1, 2, 3), f(0.0)), {}),
]
OUTPUTS = {"Split": 3, "TopK": 2, "Unique": 4}


def compare(model: ir.Model, inputs: tuple[Array | None, ...]) -> None:
    net = Interpreter(model)
    feeds = {f"x{k}": sample for k, sample in enumerate(inputs) if sample is not None}
    feeds = {name: feeds[name] for name in net.input_names}
    found = net.run({name: torch.from_numpy(np.array(v)) for name, v in feeds.items()})
    for value in inferred(model).graph.outputs:
        value.shape = value.shape or ir.Shape([None] * found[str(value.name)].dim())
    for name, wanted in run(model, feeds).items():
        array = found[name].detach().numpy()
        assert array.dtype == wanted.dtype
        np.testing.assert_allclose(array, wanted, 1e-6, 1e-6)


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes"), NODES, ids=[f"{n[0]}-{k}" for k, n in enumerate(NODES)]
)
def test_corner_is_as_in_onnx_runtime(
    operator: str, inputs: tuple[Array | None, ...], attributes: dict[str, Any]
) -> None:
    """With all inputs given at run time, and with all but the first known beforehand."""
    for known in (range(0), range(1, len(inputs))):
        outputs = OUTPUTS.get(operator, 1)
        model = one_node(operator, inputs, attributes, constants=known, outputs=outputs)
        compare(model, inputs)


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes", "opset"),
    [
        ("ReduceMean", (grid(2, 3),), {"axes": [-1], "keepdims": 0}, 13),
        ("ReduceMax", (grid(2, 3),), {"axes": [0]}, 17),
        ("ReduceLogSumExp", (grid(2, 3),), {}, 13),
        ("ReduceL1", (grid(2, 3), i([0])), {}, 18),
        ("Split", (grid(6, 2),), {}, 13),
        ("Split", (grid(6, 2), i(1, 2, 3)), {}, 17),
        ("Clip", (grid(2, 3), f(0.0)), {}, 13),
        ("ScatterElements", (grid(3), i(0, 2), f(5, 6)), {"reduction": "add"}, 16),
        ("Softmax", (grid(2, 3),), {"axis": 0}, 13),
        ("Cast", (grid(2, 3),), {"to": 10}, 23),
        ("Reshape", (grid(2, 3), i([-1])), {}, 23),
        ("Unsqueeze", (grid(2, 3), i([1])), {}, 23),
    ],
)
def test_operator_is_as_in_onnx_runtime_at_opsets(
    operator: str, inputs: tuple[Array | None, ...], attributes: dict[str, Any], opset: int
) -> None:
    outputs = OUTPUTS.get(operator, 1)
    compare(one_node(operator, inputs, attributes, opset=opset, outputs=outputs), inputs)


def constant(tape: ir.tape.Tape, array: Array) -> ir.Value:
    return tape.op("Constant", [], {"value": ir.tensor(array)})


def test_shapes_and_constants_on_the_cpu_meet_data_elsewhere() -> None:
    """The device is "meta", whose tensors hold no numbers: to read one would be an error."""
    tape = ir.tape.Tape()
    x = ir.Value(name="x", shape=ir.Shape([2, 3]), type=ir.TensorType(ir.DataType.FLOAT))
    kept = tape.initializer(ir.tensor(i([1])), name="kept")
    columns = tape.op("Gather", [tape.op("Shape", [x]), kept], {"axis": 0})
    minus = tape.initializer(ir.tensor(i([-1])), name="minus")
    shape = tape.op("Concat", [columns, constant(tape, i([-1]))], {"axis": 0})
    y = tape.op("Reshape", [x, tape.op("Mul", [shape, constant(tape, i([1]))])])
    y = tape.op("Add", [y, constant(tape, f(1, 2))])
    y = tape.op("Clip", [y, constant(tape, f(0.0))])
    y = tape.op("Where", [constant(tape, np.array([True, False])), y, constant(tape, f(0.0))])
    y = tape.op("Gather", [y, constant(tape, i(0, 2))], {"axis": 0})
    y = tape.op("Concat", [y, constant(tape, f([[5, 6]]))], {"axis": 0})
    y = tape.op("Gemm", [y, constant(tape, f([[1, 2], [3, 4]])), constant(tape, f(0.0))])
    zeros = tape.op("ConstantOfShape", [tape.op("Shape", [y])])
    y = tape.op("ScatterND", [zeros, constant(tape, i([[0], [1], [-1]])), y])
    y = tape.op("ReduceSum", [y, minus], {"keepdims": 0})
    y.name = "y"
    stored = [kept, minus]
    graph = ir.Graph(
        [x], [y], nodes=tape.nodes, initializers=stored, opset_imports={"": 20}, name="g"
    )
    net = Interpreter(ir.Model(graph, ir_version=10)).to("meta")
    (found,) = net(torch.zeros(2, 3, device="meta"))
    assert (found.device.type, tuple(found.shape)) == ("meta", (3,))


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes", "told"),
    [
        ("BitCast", (f(1.0),), {"to": 7}, "of another width"),
        ("BitShift", (i(1), i(1)), {"direction": "UP"}, "LEFT or RIGHT"),
        ("Cast", (f(1.0),), {"to": 17}, "FLOAT8E4M3FN .* known are FLOAT, DOUBLE"),
        ("Constant", (), {"value_string": "a"}, "holds value_string; known are value, value_int"),
        ("Dropout", (f(1.0), None, np.array(True)), {}, "training_mode .* export the model for"),
        ("Gelu", (f(1.0),), {"approximate": "fast"}, "known are none and tanh"),
        ("Pad", (f([1.0]), i(1, 1)), {"mode": "mirror"}, "known are constant, reflect, edge, wrap"),
        ("ScatterND", (f(1, 2), i([[0]]), f([1])), {"reduction": "xor"}, "none, add, mul, min"),
    ],
)
@pytest.mark.parametrize("known", [False, True])
def test_refusal_names_the_node_and_what_is_supported(
    operator: str,
    inputs: tuple[Array | None, ...],
    attributes: dict[str, Any],
    told: str,
    known: bool,
) -> None:
    constants = range(1, len(inputs)) if known else ()
    model = one_node(operator, inputs, attributes, constants=constants, opset=25)
    with pytest.raises(ModelError, match=f"{operator} node 'node': .*{told}"):
        Interpreter(model)(*(torch.tensor(v) for v in inputs[: 1 if known else 3] if v is not None))
