"""`gather_fusion` changes how a model is computed, and nothing else."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx_ir.passes import common

import ctr_builders
from builders import Array, mlp, model_of, weight
from rankc.graph import constant, initializer_bytes, parameters
from rankc.passes.gather_fusion import ID_RANGES, GatherFusion

MODELS: dict[str, Callable[..., ir.Model]] = {
    "deepfm": ctr_builders.deepfm,
    "dcn": ctr_builders.dcn,
    "wide_and_deep": ctr_builders.wide_and_deep,
    "sequence": ctr_builders.sequence,
}
MANY = (5, 7, 11, 6, 9, 30, 4, 13)
fusion = GatherFusion()


def run_all(model: ir.Model, feeds: dict[str, Array]) -> list[Array]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    return [np.asarray(found) for found in session.run(None, feeds)]


def run(model: ir.Model, feeds: dict[str, Array]) -> Array:
    return run_all(model, feeds)[0]


def text(model: ir.Model) -> str:
    return ir.to_onnx_text(model)


def tables(model: ir.Model) -> list[str]:
    return [
        name
        for name, value in model.graph.initializers.items()
        if constant(value, ndim=2) is not None
        and any(user.op_type == "Gather" for user, _ in value.uses())
    ]


def size(model: ir.Model, name: str) -> tuple[int, int]:
    array = constant(model.graph.initializers[name], ndim=2)
    assert array is not None, name
    return array.shape[0], array.shape[1]


def random_ranks(model: ir.Model, rng: np.random.Generator, lowest: int = 1) -> dict[str, int]:
    """A rank for about two tables in three."""
    found = {}
    for name in tables(model):
        _, width = size(model, name)
        if rng.random() < 0.7 and width > 1:
            found[name] = int(rng.integers(lowest, min(width, 4) + 1))
    return found


@pytest.mark.parametrize("name", MODELS)
def test_the_function_stays_the_same(name: str) -> None:
    model = MODELS[name](MANY)
    feeds = ctr_builders.feeds(model)
    before, nodes = run(model, feeds), model.graph.num_nodes()
    fusion.prepare(model)
    np.testing.assert_allclose(run(model, feeds), before, atol=1e-6)
    fusion.finish(model)
    np.testing.assert_allclose(run(model, feeds), before, atol=1e-6)
    assert model.graph.num_nodes() < nodes / 2
    common.CheckerPass(full_check=True)(model)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", MODELS)
def test_decoders_fold_exactly(name: str, seed: int, int8: bool) -> None:
    model = MODELS[name](MANY, seed=seed)
    feeds = ctr_builders.feeds(model)
    fusion.prepare(model)
    ranks = random_ranks(model, np.random.default_rng(seed))
    ctr_builders.project(model, ranks, seed, int8=int8)
    before, nodes = run(model, feeds), model.graph.num_nodes()
    fusion.finish(model)
    np.testing.assert_allclose(run(model, feeds), before, atol=1e-5)
    assert model.graph.num_nodes() < nodes * 0.65
    once = text(model)
    fusion.finish(model)
    assert text(model) == once


def test_finishing_twice_is_finishing_once() -> None:
    for build in MODELS.values():
        model = build()
        fusion.prepare(model)
        fusion.finish(model)
        once = text(model)
        fusion.prepare(model)
        fusion.finish(model)
        assert text(model) == once


def test_the_same_model_gives_the_same_bytes() -> None:
    found = []
    for _ in range(2):
        model = ctr_builders.deepfm(MANY)
        fusion.prepare(model)
        ctr_builders.project(model, dict.fromkeys(tables(model), 2))
        fusion.finish(model)
        found.append(ir.to_proto(model).SerializeToString(deterministic=True))
    assert found[0] == found[1]


def test_what_has_no_tables_is_left_alone() -> None:
    model = mlp()
    common.ShapeInferencePass()(model)
    before = text(model)
    fusion.prepare(model)
    fusion.finish(model)
    assert text(model) == before


def test_prepare_glues_what_one_index_reads() -> None:
    model = ctr_builders.deepfm()
    fusion.prepare(model)
    assert tables(model) == [f"emb.{k}" for k in range(4)]
    assert model.graph.initializers["emb.2"].shape == ir.Shape([11, 5])  # 4 deep, 1 wide
    assert Counter(n.op_type for n in model.graph)["Gather"] == 8


def test_prepare_leaves_a_table_with_another_reader() -> None:
    net = ctr_builders.Net((5, 5), seed=0)
    deep, wide = net.random("deep", 5, 4), net.random("wide", 5, 1)
    rows = [net.op("Gather", [t, net.columns[0]]) for t in (deep, wide)]
    rows.append(net.op("Gather", [wide, net.columns[1]]))
    model = net.model(net.linear(net.op("Concat", rows, axis=1), "out", 6, 1))
    fusion.prepare(model)
    assert tables(model) == ["deep", "wide"]


def test_no_decoder_is_left_in_a_factorisation_machine() -> None:
    model = ctr_builders.deepfm(MANY, width=8, hidden=16)
    fusion.prepare(model)
    before = parameters(model)
    ctr_builders.project(model, dict.fromkeys(tables(model), 2))
    fusion.finish(model)
    codes = 2 * sum(MANY)
    layers = 19 * (16 + 8 + 1) + 16 * 16 + 16  # of base (16 codes, 3 dense), fc2, out
    small = 16 + 8 + 2 * 16 + 3 * 16  # squares, biases
    assert codes + layers < parameters(model) < codes + layers + small < before


def test_a_decoder_that_is_not_orthonormal_is_kept_for_the_squares() -> None:
    model = ctr_builders.deepfm(MANY)
    feeds = ctr_builders.feeds(model)
    fusion.prepare(model)
    ctr_builders.project(model, dict.fromkeys(tables(model), 3))
    rng = np.random.default_rng(5)
    for name, value in model.graph.initializers.items():
        if name.endswith(".decoder"):
            value.const_value = ir.tensor(rng.normal(size=(3, 5)).astype(np.float32), name=name)
    before = run(model, feeds)
    fusion.finish(model)
    np.testing.assert_allclose(run(model, feeds), before, atol=1e-5)


def test_a_cross_stores_no_block_diagonal() -> None:
    model = ctr_builders.dcn(tuple(range(20, 52)), width=16, hidden=32)
    fusion.prepare(model)
    ctr_builders.project(model, {name: 2 + k % 2 for k, name in enumerate(tables(model))})
    fusion.finish(model)
    joins = [n for n in model.graph if n.op_type == "Concat" and len(n.inputs) > 2]
    layers = [v.producer() for node in joins for v in node.inputs if v is not None]
    weights = [constant(n.inputs[1]) for n in layers if n and n.op_type in ("MatMul", "Gemm")]
    stored = sum(w.size for w in weights if w is not None)
    codes, rows = 16 * 2 + 16 * 3, 32 * 16
    assert codes * 16 <= stored < codes * rows / 2


def test_a_table_that_several_fields_read_is_stored_once() -> None:
    net = ctr_builders.Net((9, 9, 9, 9), seed=0)
    shared = net.random("shared", 9, 4)
    rows = [net.op("Gather", [shared, column]) for column in net.columns]
    model = net.model(net.linear(net.op("Concat", rows, axis=1), "out", 16, 1))
    feeds = ctr_builders.feeds(model)
    before, size = run(model, feeds), initializer_bytes(model)
    fusion.finish(model)
    np.testing.assert_allclose(run(model, feeds), before, atol=1e-6)
    assert Counter(n.op_type for n in model.graph)["Gather"] == 1
    assert initializer_bytes(model) <= size


def test_a_field_of_rank_zero_is_a_constant() -> None:
    for build in (ctr_builders.deepfm, ctr_builders.dcn):
        model = build(MANY)
        fusion.prepare(model)
        ctr_builders.project(model, {"emb.1": 2, "emb.2": 2})
        expected = model.clone()
        for name in ("emb.1", "emb.2"):  # a decoder of zeros, then no code at all
            height, width = size(model, f"{name}.codes")[0], size(model, f"{name}.decoder")[1]
            mean = np.linspace(0, 1, width, dtype=np.float32)
            for target, rank in ((model, 0), (expected, 2)):
                put(target, f"{name}.codes", np.ones((height, rank), np.float32))
                put(target, f"{name}.decoder", np.zeros((rank, width), np.float32))
                shift(target, f"{name}.decoder", mean)
        feeds = ctr_builders.feeds(build(MANY))
        fusion.finish(model)
        np.testing.assert_allclose(run(model, feeds), run(expected, feeds), atol=1e-5)


def put(model: ir.Model, name: str, array: Array) -> None:
    value = model.graph.initializers[name]
    value.const_value, value.shape = ir.tensor(array, name=name), ir.Shape(array.shape)
    for node, _ in value.uses():  # shapes are inferred anew
        node.outputs[0].shape = None


def shift(model: ir.Model, decoder: str, mean: Array) -> None:
    (use,) = model.graph.initializers[decoder].uses()
    decoded = use.node.outputs[0]
    users = list(decoded.uses())
    added = ir.node("Add", [decoded, ir.val("m", const_value=ir.tensor(mean, name="m"))])
    shifted = added.inputs[1]
    assert shifted is not None
    shifted.name = f"{decoder}.shift"
    model.graph.register_initializer(shifted)
    model.graph.insert_after(use.node, [added])
    for user, index in users:
        user.replace_input_with(index, added.outputs[0])


def test_two_towers_have_a_base_each() -> None:
    net = ctr_builders.Net(MANY, seed=0)
    rows = [
        net.op("Gather", [net.random(f"t{k}", v, 4), c])
        for k, (v, c) in enumerate(zip(MANY, net.columns, strict=True))
    ]
    towers = [
        net.op("Relu", [net.linear(net.op("Concat", some, axis=1), f"tower{k}", 16, 8)])
        for k, some in enumerate((rows[:4], rows[4:]))
    ]
    model = net.model(net.total(net.op("Mul", towers), keepdims=1))
    feeds = ctr_builders.feeds(model)
    fusion.prepare(model)
    ctr_builders.project(model, {f"t{k}": 2 for k in range(8)})
    before = run(model, feeds)
    fusion.finish(model)
    np.testing.assert_allclose(run(model, feeds), before, atol=1e-5)
    weights = [constant(n.inputs[1]) for n in model.graph if n.op_type == "Gemm"]
    assert [w.shape for w in weights if w is not None] == [(8, 8), (8, 8)]


def test_the_largest_id_of_each_column_is_noted() -> None:
    model = ctr_builders.deepfm()
    fusion.prepare(model)
    fusion.finish(model)
    ranges = json.loads(model.metadata_props[ID_RANGES])
    assert ranges == {"ids": [v - 1 for v in ctr_builders.VOCABULARIES]}
    net = ctr_builders.Net((5, 6, 7, 8), seed=0)
    read = {0: 5, 2: 7, 3: 8}  # column 1 is not
    rows = [net.op("Gather", [net.random(f"t{k}", v, 4), net.columns[k]]) for k, v in read.items()]
    both = net.op("Concat", [*rows, net.dense], axis=1)
    model = net.model(net.linear(both, "out", 15, 1))
    fusion.finish(model)
    assert json.loads(model.metadata_props[ID_RANGES]) == {"ids": [4, None, 6, 7]}


def test_outputs_keep_their_names() -> None:
    net = ctr_builders.Net((5, 6, 7), seed=0)
    rows = [
        net.op("Gather", [net.random(f"t{k}", v, 4), net.columns[k]])
        for k, v in enumerate((5, 6, 7))
    ]
    x = net.op("Concat", rows, axis=1)
    twice = [net.op("Reshape", [x, weight(net.tape, f"s{k}", np.array([-1, 12]))]) for k in "ab"]
    for value, name in zip(twice, "ab", strict=True):
        value.name = name
    p = net.linear(x, "out", 12, 1)
    p.name = "p"
    model = model_of(net.tape, [net.ids], [p, *twice])
    feeds = {"ids": ctr_builders.feeds(model)["ids"]}
    common.ShapeInferencePass()(model)
    before = run_all(model, feeds)
    fusion.finish(model)
    assert [v.name for v in model.graph.outputs] == ["p", "a", "b"]
    for old, new in zip(before, run_all(model, feeds), strict=True):
        np.testing.assert_allclose(new, old, atol=1e-6)
