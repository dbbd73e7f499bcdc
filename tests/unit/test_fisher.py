"""Gradients under the Fisher information of the answer: its covariance, and the KL it predicts."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import Array, lookup, lookup_rows, mlp_rows, model_of, weight
from gradient_builders import inferred, run
from rankc.answers import divergence
from rankc.calibrate import calibrate
from rankc.cleanup import clean
from rankc.gradient import add_gradients
from rankc.passbase import Site
from rankc.passes.embedding import Embedding
from rankc.progress import SilentProgress
from sources import Rows


def headed(head: str, *shape: int) -> ir.Model:
    """z = Abs(x), rows of that shape in float64, and its probability."""
    x, tape = ir.val("x", ir.DataType.DOUBLE, ["batch", *shape]), ir.tape.Tape()
    z, y = ir.Value(name="z"), ir.val("y", ir.DataType.DOUBLE, ["batch", *shape])
    tape.op("Abs", [x], output=z)
    tape.op(head, [z], output=y)
    return inferred(model_of(tape, [x], [y]))


def all_signs(width: int) -> Array:
    return np.array(list(itertools.product([-1.0, 1.0], repeat=width)))


def covariance(model: ir.Model, x: Array, value: str = "z") -> Array:
    """E[g gT] of one row over all patterns of signs, g flat."""
    gradients = add_gradients(model, [value], fisher=True)
    feeds = {"x": x[None]}
    if gradients.cotangent is not None:
        signs = all_signs(gradients.width)
        feeds = {"x": np.repeat(x[None], len(signs), axis=0), gradients.cotangent: signs}
    found = run(model, feeds)[gradients.outputs[value]]
    flat = found.reshape(len(found), -1)
    moment: Array = flat.T @ flat / len(flat)
    return moment


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(2, 5), st.floats(0.1, 20))
def test_of_a_softmax_it_is_exact(seed: int, classes: int, scale: float) -> None:
    z = scale * np.abs(np.random.default_rng(seed).normal(size=classes))
    p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    want = np.diag(p) - np.outer(p, p)
    np.testing.assert_allclose(covariance(headed("Softmax", classes), z), want, atol=1e-12)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 5), st.floats(0.1, 20))
def test_of_sigmoids_it_is_exact(seed: int, width: int, scale: float) -> None:
    """With one logit a row nothing is fed."""
    z = scale * np.abs(np.random.default_rng(seed).normal(size=width))
    want = np.diag(1 / (1 + np.exp(-z)) / (1 + np.exp(z)))
    np.testing.assert_allclose(covariance(headed("Sigmoid", width), z), want, atol=1e-12)


def test_every_place_is_a_choice_of_its_own() -> None:
    z = np.abs(np.random.default_rng(1).normal(size=(2, 3)))
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    want = np.zeros((6, 6))
    for k in range(2):
        want[3 * k : 3 * k + 3, 3 * k : 3 * k + 3] = np.diag(p[k]) - np.outer(p[k], p[k])
    np.testing.assert_allclose(covariance(headed("Softmax", 2, 3), z), want, atol=1e-12)


@pytest.mark.parametrize("shape", [(1,), (2, 2, 2)])
def test_numbers_that_are_no_probabilities_weigh_as_they_are(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(size=shape)
    np.testing.assert_allclose(covariance(headed("Neg", *shape), x, "x"), np.eye(x.size))


def net(*heads: str) -> ir.Model:
    """h = tanh(x A + a), and an output of three numbers through each head; all reads h."""
    rng, tape = np.random.default_rng(2), ir.tape.Tape()
    x, outputs = ir.val("x", ir.DataType.FLOAT, ["batch", 16]), []
    a = weight(tape, "A", (rng.normal(size=(16, 5)) / 4).astype(np.float32))
    bias = weight(tape, "a", np.zeros(5, np.float32))
    hidden = ir.Value(name="h")
    tape.op("Add", [tape.op("MatMul", [x, a]), bias], output=hidden)
    active = tape.op("Tanh", [hidden])
    for k, head in enumerate(heads):
        b = weight(tape, f"B{k}", rng.normal(size=(5, 3)).astype(np.float32))
        y = ir.val(f"y{k}", ir.DataType.FLOAT, ["batch", 3])
        if head:
            tape.op(head, [tape.op("MatMul", [active, b])], output=y)
        else:
            tape.op("MatMul", [active, b], output=y)
        outputs.append(y)
    return inferred(model_of(tape, [x], outputs))


@pytest.mark.parametrize("heads", [["Softmax"], ["Sigmoid"], [""], ["Softmax", "Sigmoid"]])
def test_half_the_loss_is_the_divergence_of_a_small_change(heads: list[str]) -> None:
    """All rows' h moves by the same d: KL is d^T E[g gT] d / 2."""
    x, model = mlp_rows(60), net(*heads)
    step = (0.02 * np.random.default_rng(5).normal(size=5)).astype(np.float32)
    before, moved = run(model, {"x": x}), model.clone()
    moved.graph.initializers["a"].const_value = ir.tensor(step, name="a")
    after = run(moved, {"x": x})
    gradients = add_gradients(model, ["h"], fisher=True)
    assert gradients.cotangent is not None
    signs = all_signs(gradients.width)
    feeds = {"x": np.repeat(x, len(signs), axis=0)}
    feeds[gradients.cotangent] = np.tile(signs, (len(x), 1)).astype(np.float32)
    g = run(model, feeds)[gradients.outputs["h"]].astype(float)
    predicted = np.square(g @ step.astype(float)).mean() / 2
    apart = 0.0
    for k, head in enumerate(heads):
        a, b = (found[f"y{k}"].astype(float) for found in (before, after))
        if head == "Sigmoid":
            apart += divergence("bernoulli", np.log(a / (1 - a)), np.log(b / (1 - b)))
        else:  # log probabilities are logits
            apart += divergence("categorical", *((np.log(a), np.log(b)) if head else (a, b)))
    assert predicted == pytest.approx(apart / len(x), rel=0.05)


def test_calibration_weighs_by_it_and_half_the_loss_is_the_divergence() -> None:
    """Of tables, for an entry that loses little: read off the whole model's outputs."""
    model, pass_, feeds = lookup(), Embedding(), {"ids": lookup_rows(512)}
    clean(model)
    sites = [site for site in pass_.match(model) if isinstance(site, Site)]
    probes = {site: pass_.probe(model, site) for site in sites}
    with SilentProgress().stage("calibrate") as stage:
        plain, fisher = (
            calibrate(model, probes, Rows(feeds), stage, fisher=on).stats for on in (False, True)
        )
    p = run(model, feeds)["p"].astype(float)
    for site in sites:
        felt, under = plain[site].output_weight, fisher[site].output_weight
        assert isinstance(felt, np.ndarray) and isinstance(under, np.ndarray)
        assert 0 < np.trace(under) < np.trace(felt) / 4 * (1 + 1e-6)
        solution, changed = pass_.solve(model, site, fisher[site]), model.clone()
        curve = pass_.cost(site, solution)
        at = int(np.flatnonzero(curve.loss > 1e-4)[-1])
        pass_.rewrite(changed, site, int(curve.ranks[at]), solution)
        q = run(changed, feeds)["p"].astype(float)
        apart = float((p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean())
        assert curve.loss[at] / 2 == pytest.approx(apart, rel=0.2), site.name
