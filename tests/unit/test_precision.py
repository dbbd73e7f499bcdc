from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx_ir.passes import common

from builders import lookup, lookup_rows, mlp, mlp_rows, model_of, weight
from rankc.errors import ModelError
from rankc.lowering.precision import Golden, kept_in_fp32, to_fp16
from rankrt.session import open_model

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
Array = NDArray[Any]


def run(model: ir.Model, feeds: dict[str, Array], folder: Path, name: str) -> dict[str, Array]:
    path = folder / f"{name}.onnx"
    ir.save(model, path)
    onnx.checker.check_model(path, full_check=True)
    return open_model(path).run(feeds)


def check_close(model: ir.Model, feeds: dict[str, Array], folder: Path, bound: float) -> ir.Model:
    """Convert, check, run both; the outputs keep their names and types."""
    half = to_fp16(model)
    want, got = run(model, feeds, folder, "fp32"), run(half, feeds, folder, "fp16")
    assert want.keys() == got.keys()
    for name, expected in want.items():
        assert got[name].dtype == expected.dtype
        assert np.abs(got[name] - expected).max() <= bound
    return half


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def casts(model: ir.Model) -> list[tuple[str, int]]:
    return [
        (str(node.inputs[0] and node.inputs[0].name), node.attributes["to"].as_int())
        for node in model.graph
        if node.op_type == "Cast"
    ]


def graph(*layers: tuple[str, dict[str, Any], list[Array]], dims: int = 16) -> ir.Model:
    """A chain: each layer takes the last value and its constants."""
    x = ir.val("x", FLOAT, ["batch", dims])
    tape, value = ir.tape.Tape(), x
    for k, (op, attributes, constants) in enumerate(layers):
        inputs = [value, *(weight(tape, f"c{k}_{i}", c) for i, c in enumerate(constants))]
        value = tape.op(op, inputs, attributes=attributes, name=f"{op}{k}")
    value.name, value.dtype = "y", FLOAT
    model = model_of(tape, [x], [value])
    common.ShapeInferencePass()(model)
    return model


def square(seed: int = 0, scale: float = 0.3) -> Array:
    return (np.random.default_rng(seed).normal(size=(16, 16)) * scale).astype(np.float32)


def test_an_mlp_runs_in_half_but_for_its_head(tmp_path: Path) -> None:
    half = check_close(mlp(), {"x": mlp_rows()}, tmp_path, 4e-3)
    assert ops(half) == ["Cast", "MatMul", "Relu", "Gemm", "Cast", "Sigmoid"]
    weights = {name: value.dtype for name, value in half.graph.initializers.items()}
    assert weights == {"A": HALF, "B": HALF, "b": HALF}
    assert half.graph.inputs[0].dtype == half.graph.outputs[0].dtype == FLOAT
    assert [(k.name, k.reason) for k in kept_in_fp32(mlp())] == [
        ("head", "it is behind the last layer")
    ]


def test_the_original_is_not_changed() -> None:
    model = mlp()
    before = ir.to_proto(model).SerializeToString()
    to_fp16(model)
    assert ir.to_proto(model).SerializeToString() == before


def test_tables_are_half_and_ids_are_left_alone(tmp_path: Path) -> None:
    half = check_close(lookup(), {"ids": lookup_rows()}, tmp_path, 4e-3)
    assert half.graph.initializers["user"].dtype == HALF
    assert half.graph.initializers["column0"].dtype == ir.DataType.INT64
    assert ops(half).count("Cast") == 1  # the logit, for the sigmoid


@pytest.mark.parametrize(
    ("op", "attributes"),
    [("Softmax", {"axis": -1}), ("ReduceSumSquare", {"keepdims": 1}), ("Exp", {})],
)
def test_operators_in_the_list_stay_in_float32(
    op: str, attributes: dict[str, Any], tmp_path: Path
) -> None:
    axes = [np.array([1], np.int64)] if op == "ReduceSumSquare" else []
    last = square(2)[:1] if axes else square(2)
    model = graph(("MatMul", {}, [square(1)]), (op, attributes, axes), ("MatMul", {}, [last]))
    half = check_close(model, {"x": mlp_rows() * 0.1}, tmp_path, 2e-2)
    node = next(node for node in half.graph if node.op_type == op)
    assert node.inputs[0] is not None and node.inputs[0].dtype == node.outputs[0].dtype == FLOAT
    assert [k.op_type for k in kept_in_fp32(model)] == [op]


def test_a_normalisation_written_out_stays_whole_in_float32(tmp_path: Path) -> None:
    """Mean of squares, eps, root, division: nothing is narrowed in between."""
    x, tape = ir.val("x", FLOAT, ["batch", 16]), ir.tape.Tape()
    up = tape.op("MatMul", [x, weight(tape, "w", square())], name="up")
    power = tape.op("Pow", [up, weight(tape, "two", np.array(2, np.float32))], name="pow")
    axes = weight(tape, "axes", np.array([1], np.int64))
    mean = tape.op("ReduceMean", [power, axes], name="mean")
    safe = tape.op("Add", [mean, weight(tape, "eps", np.array(1e-3, np.float32))], name="safe")
    root = tape.op("Sqrt", [safe], name="root")
    scaled = tape.op("Div", [up, root], name="scaled")
    y = ir.val("y", FLOAT, ["batch", 16])
    tape.op("MatMul", [scaled, weight(tape, "v", square(1))], output=y, name="down")
    model = model_of(tape, [x], [y])
    half = check_close(model, {"x": mlp_rows()}, tmp_path, 2e-2)
    assert {k.name for k in kept_in_fp32(model)} == {"pow", "mean", "safe", "root"}
    assert [to for _, to in casts(half)] == [HALF, FLOAT, HALF, FLOAT]  # x, up, root, y


@pytest.mark.parametrize(
    ("value", "reason"),
    [(70000.0, "c0_0 holds 70000, beyond float16"), (1e-6, "c0_0 holds at most 1e-06, too small")],
)
def test_a_constant_that_does_not_fit_keeps_its_node(
    value: float, reason: str, tmp_path: Path
) -> None:
    constant = np.full(16, value, np.float32)
    back = np.full(16, 1 / value, np.float32)
    model = graph(("Mul", {}, [constant]), ("Mul", {}, [back]), ("MatMul", {}, [square()]))
    half = check_close(model, {"x": mlp_rows()}, tmp_path, 2e-2)
    assert half.graph.initializers["c0_0"].dtype == FLOAT
    assert half.graph.initializers["c2_0"].dtype == HALF
    assert kept_in_fp32(model)[0].reason.startswith(reason)


def test_nan_in_a_weight_keeps_its_node() -> None:
    broken = square()
    broken[3, 3] = np.nan
    model = graph(("MatMul", {}, [broken]), ("MatMul", {}, [square()]))
    assert [k.name for k in kept_in_fp32(model)] == ["MatMul0"]


def test_a_weight_with_two_kinds_of_readers_is_kept_twice(tmp_path: Path) -> None:
    x, tape = ir.val("x", FLOAT, ["batch", 16]), ir.tape.Tape()
    w = weight(tape, "w", square())
    up = tape.op("MatMul", [x, w], name="up")
    soft = tape.op("Softmax", [w], name="soft")
    y = ir.val("y", FLOAT, ["batch", 16])
    tape.op("MatMul", [up, soft], output=y, name="down")
    half = check_close(model_of(tape, [x], [y]), {"x": mlp_rows()}, tmp_path, 2e-2)
    assert half.graph.initializers["w"].dtype == FLOAT
    assert half.graph.initializers["w_fp16"].dtype == HALF


def codes_model(kind: type[np.generic]) -> ir.Model:
    """Table of integers -> Gather -> Reshape -> Cast -> Mul(scale) -> MatMul -> Sigmoid."""
    codes = np.random.default_rng(0).integers(-127, 128, (50, 8)).astype(kind)
    ids, tape = ir.val("ids", ir.DataType.INT64, ["batch", 2]), ir.tape.Tape()
    rows = tape.op("Gather", [weight(tape, "T", codes), ids], name="rows")
    flat = weight(tape, "flat", np.array([-1, 16], np.int64))
    wide = tape.op("Reshape", [rows, flat], name="wide")
    real = tape.op("Cast", [wide], attributes={"to": FLOAT}, name="real")
    scale = weight(tape, "scale", np.full(16, 0.01, np.float32))
    scaled = tape.op("Mul", [real, scale], name="scaled")
    logit = tape.op("MatMul", [scaled, weight(tape, "w", square()[:, :1])], name="fc")
    y = ir.val("y", FLOAT, ["batch", 1])
    tape.op("Sigmoid", [logit], name="head", output=y)
    return model_of(tape, [ids], [y])


IDS = {"ids": np.random.default_rng(1).integers(0, 50, (32, 2))}


def test_int8_codes_go_to_half_at_once(tmp_path: Path) -> None:
    half = check_close(codes_model(np.int8), IDS, tmp_path, 4e-3)
    table = half.graph.initializers["T"]
    assert table.dtype == ir.DataType.INT8
    assert casts(half)[0][1] == HALF
    assert len(casts(half)) == 2  # the codes, and the logit for the sigmoid


def test_wider_integers_take_the_way_over_float32(tmp_path: Path) -> None:
    half = check_close(codes_model(np.int32), IDS, tmp_path, 4e-3)
    assert [to for _, to in casts(half)] == [FLOAT, HALF, FLOAT]


def test_codes_that_only_float32_reads_are_not_narrowed(tmp_path: Path) -> None:
    model = codes_model(np.int8)
    large = np.full(16, 7e4, np.float32)
    model.graph.initializers["scale"].const_value = ir.tensor(large, name="scale")
    model.graph.initializers["w"].const_value = ir.tensor(square()[:, :1] * 1e-3, name="w")
    half = to_fp16(model)
    assert casts(half)[0][1] == FLOAT


def test_casts_of_the_user_are_not_undone_and_redone(tmp_path: Path) -> None:
    """A model that is half in float16 already: its Cast to float32 and ours back cancel."""
    x, tape = ir.val("x", FLOAT, ["batch", 16]), ir.tape.Tape()
    low = tape.op("Cast", [x], attributes={"to": HALF}, name="low")
    up = tape.op("MatMul", [low, weight(tape, "w", square().astype(np.float16))], name="up")
    high = tape.op("Cast", [up], attributes={"to": FLOAT}, name="high")
    y = ir.val("y", FLOAT, ["batch", 16])
    tape.op("MatMul", [high, weight(tape, "v", square(1))], output=y, name="down")
    half = check_close(model_of(tape, [x], [y]), {"x": mlp_rows()}, tmp_path, 2e-2)
    assert ops(half) == ["Cast", "MatMul", "MatMul", "Cast"]


def test_a_branch_stays_in_float32_with_casts_outside(tmp_path: Path) -> None:
    x, tape = ir.val("x", FLOAT, ["batch", 16]), ir.tape.Tape()
    up = tape.op("MatMul", [x, weight(tape, "w", square())], name="up")
    flag = ir.val("flag", ir.DataType.BOOL, [])
    branches = []
    for op in ("Relu", "Neg"):
        inner = ir.val(f"inner_{op}", FLOAT, ["batch", 16])
        node = ir.node(op, [up], outputs=[inner], name=f"branch_{op}")
        branches.append(ir.Graph([], [inner], nodes=[node], name=op))
    both = {"then_branch": branches[0], "else_branch": branches[1]}
    chosen = tape.op("If", [flag], attributes=both, name="choose")
    chosen.dtype, chosen.shape = FLOAT, ir.Shape(["batch", 16])
    y = ir.val("y", FLOAT, ["batch", 16])
    tape.op("MatMul", [chosen, weight(tape, "v", square(1))], output=y, name="down")
    model = model_of(tape, [x, flag], [y])
    for value in (True, False):
        feeds = {"x": mlp_rows(), "flag": np.array(value)}
        half = check_close(model, feeds, tmp_path, 2e-2)
    assert half.graph.initializers["w"].dtype == HALF
    assert "it holds a subgraph" in [k.reason for k in kept_in_fp32(model)]


def test_a_value_that_is_output_and_input_at_once(tmp_path: Path) -> None:
    x, tape = ir.val("x", FLOAT, ["batch", 16]), ir.tape.Tape()
    hidden, y = (ir.val(name, FLOAT, ["batch", 16]) for name in ("hidden", "y"))
    tape.op("MatMul", [x, weight(tape, "w", square())], output=hidden, name="up")
    tape.op("MatMul", [hidden, weight(tape, "v", square(1))], output=y, name="down")
    half = check_close(model_of(tape, [x], [hidden, y]), {"x": mlp_rows()}, tmp_path, 2e-2)
    assert [o.name for o in half.graph.outputs] == ["hidden", "y"]


def test_constant_nodes_are_weights_too(tmp_path: Path) -> None:
    x, tape = ir.val("x", FLOAT, ["batch", 16]), ir.tape.Tape()
    tensor = ir.tensor(square(), name="w")
    w = tape.op("Constant", [], attributes={"value": tensor}, name="w")
    y = ir.val("y", FLOAT, ["batch", 16])
    tape.op("MatMul", [x, w], output=y, name="up")
    half = check_close(model_of(tape, [x], [y]), {"x": mlp_rows()}, tmp_path, 2e-2)
    assert [v.dtype for v in half.graph.initializers.values()] == [HALF]


@pytest.mark.parametrize("op", ["Greater", "ArgMax"])
def test_decisions_are_taken_in_float32(op: str) -> None:
    constants = [np.zeros(16, np.float32)] if op == "Greater" else []
    model = graph(("MatMul", {}, [square()]), (op, {}, constants))
    model.graph.outputs[0].dtype = ir.DataType.BOOL if op == "Greater" else ir.DataType.INT64
    assert ("it has no float32 result") in [k.reason for k in kept_in_fp32(model)]


def test_nothing_to_narrow_is_an_error() -> None:
    with pytest.raises(ModelError, match="nothing in this model can run in float16"):
        to_fp16(graph(("Sigmoid", {}, [])))
    with pytest.raises(ModelError, match="Ask for precision fp32"):
        to_fp16(to_fp16(mlp()))


def test_values_that_were_seen_to_be_large_stay_in_float32(tmp_path: Path) -> None:
    """Every constant fits; the product passes 65504, and comes back."""
    up, down = np.full((16, 16), 6e3, np.float32), np.full((16, 16), 1e-4, np.float32)
    model = graph(("MatMul", {}, [up]), ("MatMul", {}, [down]), ("MatMul", {}, [square()]))
    golden = Golden({"x": np.ones((4, 16), np.float32)}, tmp_path)
    kept = kept_in_fp32(model, golden)
    assert [k.name for k in kept] == ["MatMul0", "MatMul1"]
    assert "reaches 9.6e+04 on golden inputs" in kept[0].reason
    assert to_fp16(model, golden).graph.initializers["c2_0"].dtype == HALF
    assert not kept_in_fp32(model)
    assert not list(tmp_path.iterdir())


def test_many_results_are_laid_side_by_side_before_they_are_widened(tmp_path: Path) -> None:
    x, tape = ir.val("x", FLOAT, ["batch", 16]), ir.tape.Tape()
    parts = [tape.op("MatMul", [x, weight(tape, f"w{k}", square(k))]) for k in range(3)]
    joined = tape.op("Concat", parts, attributes={"axis": 1})
    y = ir.val("y", FLOAT, ["batch", 48])
    tape.op("Sigmoid", [joined], output=y)
    half = check_close(model_of(tape, [x], [y]), {"x": mlp_rows()}, tmp_path, 2e-2)
    assert ops(half) == ["Cast", *(["MatMul"] * 3), "Concat", "Cast", "Sigmoid"]


def test_an_input_that_passes_through_is_not_rounded(tmp_path: Path) -> None:
    x, tape = ir.val("x", FLOAT, ["batch", 16]), ir.tape.Tape()
    y, z = ir.val("y", FLOAT, ["batch", 16]), ir.val("z", FLOAT, [16, "batch"])
    tape.op("MatMul", [x, weight(tape, "w", square())], output=y)
    tape.op("Transpose", [x], output=z)
    model = model_of(tape, [x], [y, z])
    half = check_close(model, {"x": mlp_rows()}, tmp_path, 2e-2)
    got = run(half, {"x": mlp_rows()}, tmp_path, "again")
    np.testing.assert_array_equal(got["z"], mlp_rows().T)
