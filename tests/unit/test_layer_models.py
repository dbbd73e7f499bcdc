from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import Array, lookup, model_of, weight
from layer_builders import image_model, lowrank, random, site_named, stack
from rankc.cleanup import clean
from rankc.layer_models import (
    concrete,
    feeds_of,
    isolate,
    rewritten,
    signature,
    solved,
)
from rankc.layer_timing import self_fed
from rankc.passbase import Pass, Site
from rankc.passes import PASSES
from rankc.passes.conv import Conv
from rankc.passes.embedding import Embedding
from rankrt.session import open_model


def run(model: ir.Model, feeds: dict[str, Array], *wanted: str) -> dict[str, Array]:
    """The outputs, and the values called so."""
    watched = model.clone()
    outputs = {v.name for v in watched.graph.outputs}
    for node in watched.graph:
        watched.graph.outputs.extend(
            v for v in node.outputs if v.name in wanted and v.name not in outputs
        )
    return open_model(ir.to_proto(watched).SerializeToString()).run(feeds)


def alone(model: ir.Model, pass_: Pass, site: Site, batch: int = 1) -> ir.Model:
    found = isolate(model, pass_, site, batch)
    assert not isinstance(found, str), found
    return found


MODELS: dict[str, tuple[ir.Model, Pass, str]] = {
    "gemm": (stack([24, 40, 32]), lowrank(), "fc1"),
    "matmul": (stack([24, 40, 32]), lowrank(), "last"),
    "conv": (image_model(), Conv(), "conv1"),
    "fixed batch": (image_model(3), Conv(), "conv0"),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_layer_alone_computes_what_it_does_in_the_model(name: str) -> None:
    model, pass_, layer = MODELS[name]
    site = site_named(model, pass_, layer)
    probe = pass_.probe(model, site)
    assert probe.inputs is not None
    (x,) = model.graph.inputs
    assert x.shape is not None
    rows = random(3, *(int(d) for d in x.shape[1:] if isinstance(d, int)), seed=5)
    inside = {"x": rows} | run(model, {"x": rows}, probe.inputs, *probe.outputs)
    layer_model = alone(model, pass_, site, 3)
    outside = run(layer_model, {probe.inputs: inside[probe.inputs]})
    assert [n.name for n in layer_model.graph] == [layer]
    assert set(outside) == set(probe.outputs)
    for value, array in outside.items():
        np.testing.assert_allclose(array, inside[value], rtol=1e-5, atol=1e-5)


def test_isolating_changes_nothing() -> None:
    model, pass_ = stack([24, 40, 32]), lowrank()
    before = ir.to_proto(model).SerializeToString()
    alone(model, pass_, site_named(model, pass_, "fc0"))
    assert ir.to_proto(model).SerializeToString() == before


def test_the_batch_is_in_every_shape_and_nothing_else_is() -> None:
    fixed = concrete(image_model(), 5)
    shapes = [value.shape for node in fixed.graph for value in node.outputs]
    assert all(shape is not None and shape.is_static() and shape[0] == 5 for shape in shapes)
    assert concrete(fixed, 7) is fixed


def test_what_cannot_be_isolated_has_a_reason() -> None:
    model = lookup()
    clean(model)
    embedding = Embedding()
    table = next(s for s in embedding.match(model) if isinstance(s, Site))
    assert "table" in str(isolate(model, embedding, table, 1))
    free = ir.val("x", ir.DataType.FLOAT, ["batch", "tokens", 32])
    tape, y = ir.tape.Tape(), ir.val("y", ir.DataType.FLOAT, ["batch", "tokens", 40])
    tape.op("MatMul", [free, weight(tape, "w", random(32, 40))], name="up", output=y)
    tokens = model_of(tape, [free], [y])
    clean(tokens)
    reason = isolate(tokens, lowrank(), site_named(tokens, lowrank(), "up"), 4)
    assert "[4,tokens,32]" in str(reason)
    assert "fixed sizes" in str(reason)


@pytest.mark.parametrize("name", MODELS)
def test_a_layer_alone_is_factored_exactly_at_the_last_rank_of_every_form(name: str) -> None:
    model, pass_, layer = MODELS[name]
    site = site_named(model, pass_, layer)
    layer_model = alone(model, pass_, site, 3)
    solution = solved(pass_, layer_model, site)
    curve = pass_.cost(site, solution)
    feeds = feeds_of(layer_model)
    (want,) = run(layer_model, feeds).values()
    last = {curve.form(i): int(rank) for i, rank in enumerate(curve.ranks)}
    for form, rank in last.items():
        if form.startswith("tucker") and form != "tucker-16":
            continue  # exact with all inner channels only
        factored = rewritten(layer_model, pass_, site, rank, solution, form)
        shapes = [value.shape for node in factored.graph for value in node.outputs]
        assert all(shape is not None and shape.is_static() for shape in shapes)
        (got,) = run(factored, feeds).values()
        np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


def test_every_pass_with_layers_can_be_profiled() -> None:
    seen = set()
    for model in (stack([64, 64]), image_model()):
        for kind in PASSES:
            for site in kind().match(model):
                if isinstance(site, Site):
                    solved(kind(), alone(model, kind(), site), site)
                    seen.add(kind.name)
    assert seen == {"lowrank", "conv", "trp", "maestro"}


def test_equal_layers_have_equal_signatures() -> None:
    model, pass_ = stack([32, 32, 32]), lowrank()
    first, second = (alone(model, pass_, site_named(model, pass_, n)) for n in ("fc0", "fc1"))
    assert signature(first) == signature(second) == "Gemm(1x32, 32x32, 32)"
    assert signature(alone(model, pass_, site_named(model, pass_, "last"))) == "MatMul(1x32, 32x32)"
    assert signature(alone(model, pass_, site_named(model, pass_, "fc0"), 2)) != signature(first)


def conv_signature(size: int = 8, out: int = 6, attributes: dict[str, object] | None = None) -> str:
    x = ir.val("x", ir.DataType.FLOAT, [1, 4, size, size])
    tape = ir.tape.Tape()
    inputs = [x, weight(tape, "w", random(out, 4, 3, 3))]
    given_: dict[str, ir.Attr | object] = dict(attributes or {})
    y = tape.op("Conv", inputs, given_, name="conv")  # type: ignore[arg-type]
    return signature(model_of(tape, [x], [y]))


def test_signatures_tell_layers_apart_and_no_spellings() -> None:
    plain = conv_signature()
    assert plain == "Conv(1x4x8x8, 6x4x3x3)"
    spelt = {
        "strides": [1, 1],
        "dilations": [1, 1],
        "pads": [0, 0, 0, 0],
        "group": 1,
        "kernel_shape": [3, 3],
        "auto_pad": "NOTSET",
    }
    assert conv_signature(attributes=spelt) == plain
    others = {
        conv_signature(9),
        conv_signature(out=7),
        conv_signature(attributes={"strides": [2, 2]}),
        conv_signature(attributes={"strides": [1, 2]}),
        conv_signature(attributes={"pads": [1, 1, 1, 1]}),
        conv_signature(attributes={"pads": [0, 0, 1, 1]}),
        conv_signature(attributes={"dilations": [2, 2]}),
        conv_signature(attributes={"auto_pad": "SAME_UPPER"}),
        plain,
    }
    assert len(others) == 9


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 6), m=st.integers(1, 6), batch=st.integers(1, 4))
def test_a_layer_that_feeds_itself_computes_the_same(n: int, m: int, batch: int) -> None:
    x = ir.val("x", ir.DataType.FLOAT, [batch, n])
    tape, y = ir.tape.Tape(), ir.val("y", ir.DataType.FLOAT, [batch, m])
    tape.op("MatMul", [x, weight(tape, "w", random(n, m))], name="up", output=y)
    model = model_of(tape, [x], [y])
    ones = np.ones((batch, n), np.float32)
    want = run(model, {"x": 1.5 * ones})["y"].max()
    fed = self_fed(model)
    (name,) = (v.name for v in fed.graph.inputs)
    (got,) = run(fed, {str(name): np.array([1.5], np.float32)}).values()
    assert got.shape == ()
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert [v.name for v in model.graph.inputs] == ["x"]
