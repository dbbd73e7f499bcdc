"""What counts as an answer, and how far two of them are apart."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import model_of
from rankc.answers import Family, answers_of, divergence

FAMILIES: tuple[Family, ...] = ("bernoulli", "categorical", "normal")


def headed(*heads: str, shape: Sequence[int] = (3,), axis: int = -1) -> ir.Model:
    """x, batch of that shape, through an Abs `z`, which each head reads; "" puts out z itself."""
    x, tape = ir.val("x", ir.DataType.FLOAT, ["batch", *shape]), ir.tape.Tape()
    z = tape.op("Abs", [x], output=ir.val("z", ir.DataType.FLOAT, ["batch", *shape]))
    outputs = []
    for k, head in enumerate(heads):
        y = ir.val(f"y{k}", ir.DataType.FLOAT, ["batch", *shape])
        attributes = {"axis": axis} if "Softmax" in head else {}
        if head:
            kind = ir.DataType.INT64 if head == "ArgMax" else ir.DataType.FLOAT
            y.dtype = kind
            tape.op(head, [z], attributes=attributes, output=y)
        outputs.append(y if head else z)
    return model_of(tape, [x], outputs)


@pytest.mark.parametrize(
    ("heads", "shape", "family"),
    [
        (["Sigmoid"], (3,), "bernoulli"),
        (["Sigmoid"], (1,), "bernoulli"),
        (["Softmax"], (2, 2, 3), "categorical"),
        (["LogSoftmax"], (3,), "categorical"),
        ([""], (3,), "categorical"),
        ([""], (5, 3), "categorical"),
        ([""], (1,), "normal"),
        ([""], (), "normal"),
        ([""], (2, 4, 4), "normal"),
        (["", "Sigmoid"], (3,), "bernoulli"),
        (["Sigmoid", ""], (3,), "bernoulli"),
    ],
)
def test_what_a_logit_is_the_parameter_of(
    heads: list[str], shape: tuple[int, ...], family: Family
) -> None:
    (answer,) = answers_of(headed(*heads, shape=shape).graph)
    assert (answer.name, answer.family((7, *shape))) == ("z", family)


def test_a_softmax_over_another_axis_is_an_answer_itself() -> None:
    (answer,) = answers_of(headed("Softmax", shape=(3, 4, 4), axis=1).graph)
    assert (answer.name, answer.family((7, 3, 4, 4))) == ("y0", "normal")


def test_integers_are_no_answers() -> None:
    assert [a.name for a in answers_of(headed("ArgMax", "Exp").graph)] == ["y1"]
    assert answers_of(headed("ArgMax").graph) == []


@given(st.integers(0, 10_000), st.sampled_from(FAMILIES), st.floats(0.01, 30))
def test_a_divergence_is_that_of_the_probabilities(seed: int, family: Family, scale: float) -> None:
    rng = np.random.default_rng(seed)
    z, w = (scale * rng.normal(size=(5, 2, 3)).astype(np.float32) for _ in range(2))
    a, b = z.astype(float), w.astype(float)
    if family == "normal":
        want = float(np.square(a - b).sum()) / 2
    else:
        if family == "bernoulli":
            logs = [[-np.logaddexp(0, -s * v) for s in (1, -1)] for v in (a, b)]
        else:
            logs = [
                list(np.moveaxis(v - np.logaddexp.reduce(v, -1)[..., None], -1, 0)) for v in (a, b)
            ]
        pairs = zip(*logs, strict=True)
        want = sum(float((np.exp(p) * (p - q)).sum()) for p, q in pairs)
    assert divergence(family, z, w) == pytest.approx(want, rel=1e-6, abs=1e-9)
    assert divergence(family, z, z) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_certain_answers_have_a_finite_divergence(family: Family) -> None:
    z = np.array([[500.0, -500.0, 0.0]], np.float32)
    assert divergence(family, z, z) == 0
    assert 0 < divergence(family, z, -z) < math.inf


@pytest.mark.parametrize("family", ["bernoulli", "categorical"])
def test_half_the_fisher_information_is_the_divergence_of_small_changes(family: Family) -> None:
    rng = np.random.default_rng(0)
    z, d = rng.normal(size=(4, 3)), 1e-3 * rng.normal(size=(4, 3))
    if family == "bernoulli":
        p = 1 / (1 + np.exp(-z))
        want = (p * (1 - p) * d**2).sum() / 2
    else:
        p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        want = ((p * d**2).sum() - ((p * d).sum(axis=1) ** 2).sum()) / 2
    assert divergence(family, z, z + d) == pytest.approx(want, rel=5e-3)
