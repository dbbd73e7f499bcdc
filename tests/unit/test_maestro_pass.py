"""Cutting layers that were trained as ordered factors: what each rank costs, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from builders import mlp, mlp_rows
from conv_builders import convnet, images, random_conv
from rankc.calibrate import calibrate
from rankc.cleanup import clean
from rankc.errors import ModelError
from rankc.factors import LEARNED, Factors, attach_factors, balanced
from rankc.graph import constant, node_named, only_input
from rankc.passbase import Site, SiteStats, Skip
from rankc.passes.maestro import Maestro, Target
from rankc.planning import make_plan, smallest_plan
from rankc.progress import SilentProgress
from rankc.recipe import Refit
from rankc.rewriting import Sites, candidates, solve
from rankc.sequential import Refitting, refit
from rankrt.session import open_model
from sources import Rows

Array = NDArray[Any]
LEARNT = 3  # the rank of everything that was "trained" here
SMALL = {"min_size": 64, "round_to": 1, "positions": 1000}
CHANNEL: Maestro = Maestro(**SMALL, scheme="channel")  # type: ignore[arg-type]
SPATIAL: Maestro = Maestro(**SMALL, scheme="spatial")  # type: ignore[arg-type]


def net() -> ir.Model:
    """`convnet` with every shape known."""
    model = convnet()
    clean(model)
    return model


CASES = [
    pytest.param(mlp, mlp_rows(), CHANNEL, id="layers"),
    pytest.param(net, images(), CHANNEL, id="channel"),
    pytest.param(net, images(), SPATIAL, id="spatial"),
]


def some_factors(target: Target, rng: np.random.Generator) -> Factors:
    """Of rank `LEARNT`, neither orthogonal nor sorted by size."""
    rows, columns = target.unfolding.rows, target.unfolding.columns
    first, second = rng.normal(size=(rows, LEARNT)), rng.normal(size=(LEARNT, columns))
    return Factors(target.unfolding, first / np.sqrt(rows), second)


def set_weight(model: ir.Model, name: str, array: Array) -> None:
    tensor = ir.tensor(np.ascontiguousarray(array, np.float32), name=name)
    model.graph.initializers[name].const_value = tensor


def trained(model: ir.Model, pass_: Maestro, seed: int = 0) -> dict[str, Factors]:
    """Give every target a weight that is the product of two factors, and attach those."""
    rng = np.random.default_rng(seed)
    factors = {t.weight: some_factors(t, rng) for t in pass_.trained(model)}
    for name, one in factors.items():
        set_weight(model, name, one.unfolding.fold(one.first @ one.second))
    attach_factors(model, factors)
    return factors


def sites_of(pass_: Maestro, model: ir.Model) -> list[Site]:
    return [site for site in pass_.match(model) if isinstance(site, Site)]


def statistics(pass_: Maestro, model: ir.Model, rows: Array) -> dict[Site, SiteStats]:
    probes = {site: pass_.probe(model, site) for site in sites_of(pass_, model)}
    with SilentProgress().stage("calibrate") as stage:
        return dict(calibrate(model, probes, Rows({"x": rows}, 128), stage).stats)


def answers(model: ir.Model, rows: Array, value: str | None = None) -> Array:
    probed = model.clone()
    if value is not None:
        outputs = {v.name: v for node in probed.graph for v in node.outputs}
        probed.graph.outputs.clear()
        probed.graph.outputs.append(outputs[value])
    (found,) = open_model(ir.to_proto(probed).SerializeToString()).run({"x": rows}).values()
    return found


@pytest.mark.parametrize(("build", "rows", "pass_"), CASES)
def test_every_prefix_of_learned_factors_loses_what_is_predicted(
    build: Any, rows: Array, pass_: Maestro
) -> None:
    model = build()
    trained(model, pass_)
    stats = statistics(pass_, model, rows)
    for site in sites_of(pass_, model):
        solution = pass_.solve(model, site, stats[site])
        curve = pass_.cost(site, solution)
        assert curve.ranks.tolist() == [1, 2, LEARNT]
        assert curve.error[-1] < 1e-10, "nothing is lost at the rank that was learned"
        output = pass_.probe(model, site).outputs[0]
        want = answers(model, rows, output).astype(np.float64)
        axes = (0, *range(2, want.ndim))
        variance = np.square(want - want.mean(axis=axes, keepdims=True)).sum()
        for at, rank in enumerate(curve.ranks.tolist()):
            changed = model.clone()
            pass_.rewrite(changed, site, rank, solution)
            gap = np.square(answers(changed, rows, output) - want).sum() / variance
            assert gap == pytest.approx(curve.error[at], rel=0.01, abs=1e-7)


@pytest.mark.parametrize(("build", "rows", "pass_"), CASES)
def test_ranks_are_nested(build: Any, rows: Array, pass_: Maestro) -> None:
    """A smaller member of the family has the first columns of a larger one's factors."""
    model = build()
    factors = trained(model, pass_)
    stats = statistics(pass_, model, rows)
    for site in sites_of(pass_, model):
        weight = str(only_input(node_named(model, site.name), 1).name)
        solution = pass_.solve(model, site, stats[site])
        for rank in (1, LEARNT):
            changed = model.clone()
            pass_.rewrite(changed, site, rank, solution)
            first = constant(changed.graph.initializers[f"{site.name}.A"])
            assert first is not None
            want = factors[weight].first[:, :rank]
            got = first.reshape(rank, -1).T if first.ndim > 2 else first
            np.testing.assert_array_equal(got, want.astype(np.float32))


@pytest.mark.parametrize("seed", range(40))
def test_any_convolution_of_one_group_is_kept_at_full_rank(seed: int) -> None:
    rng = np.random.default_rng(seed)
    model, shape = random_conv(rng)
    x = rng.normal(size=(3, *shape)).astype(np.float32)
    want = answers(model, x)
    for pass_ in (
        Maestro(min_size=1, round_to=1, scheme="channel"),
        Maestro(min_size=1, round_to=1, scheme="spatial"),
    ):
        for entry in pass_.match(model):
            if isinstance(entry, Skip):
                assert any(word in entry.reason for word in ("pays below", "groups", "auto_pad"))
                continue
            stats = statistics(pass_, model, x)
            solution = pass_.solve(model, entry, stats[entry])
            changed = model.clone()
            pass_.rewrite(changed, entry, 10**6, solution)
            np.testing.assert_allclose(answers(changed, x), want, rtol=1e-4, atol=1e-4)


def test_what_was_not_trained_is_cut_by_its_singular_values() -> None:
    model, rows = mlp(), mlp_rows()
    site = sites_of(CHANNEL, model)[0]
    solution = CHANNEL.solve(model, site, statistics(CHANNEL, model, rows)[site])
    weight = constant(model.graph.initializers["A"])
    assert weight is not None
    _, sizes, _ = np.linalg.svd(weight.astype(np.float64), full_matrices=False)
    np.testing.assert_allclose(np.linalg.norm(solution.first, axis=0) ** 2, sizes)


def test_factors_follow_outputs_that_were_scaled() -> None:
    """As folding a BatchNormalization scales them; one output was switched off."""
    model = net()
    factors = trained(model, SPATIAL)
    rng = np.random.default_rng(3)
    for name in factors:
        array = constant(model.graph.initializers[name])
        assert array is not None
        scale = rng.normal(size=(len(array), *[1] * (array.ndim - 1)))
        scale[0] = 0
        outputs = scale if array.ndim > 2 else scale.reshape(-1)[: array.shape[1]]
        set_weight(model, name, array * outputs)
    attach_factors(model, factors)
    for name in factors:
        value = model.graph.initializers[name]
        array, found = constant(value), value.meta[LEARNED]
        assert array is not None
        product = found.unfolding.fold(found.first @ found.second)
        np.testing.assert_allclose(product, array, rtol=1e-5, atol=1e-6)


def test_factors_of_another_weight_are_refused() -> None:
    model = mlp()
    factors = trained(model, CHANNEL)
    set_weight(model, "A", np.random.default_rng(9).normal(size=(16, 24)))
    with pytest.raises(ModelError, match="weight 'A' is not the product of the factors"):
        attach_factors(model, factors)
    stats = statistics(CHANNEL, mlp(), mlp_rows())
    with pytest.raises(ModelError, match="node 'up': its weight is not the product"):
        CHANNEL.solve(model, sites_of(CHANNEL, model)[0], stats[sites_of(CHANNEL, model)[0]])
    del model.graph.initializers["A"]
    with pytest.raises(ModelError, match="weight 'A' was trained as two factors, and is gone"):
        attach_factors(model, factors)


def test_factors_of_another_scheme_are_refused() -> None:
    model = net()
    trained(model, CHANNEL)
    site = next(s for s in sites_of(SPATIAL, model) if s.name == "same")
    with pytest.raises(ModelError, match="'same' was trained with another `scheme`"):
        SPATIAL.solve(model, site, statistics(SPATIAL, net(), images())[site])


def test_a_gemm_is_read_with_its_alpha() -> None:
    model, rows = mlp(), mlp_rows()
    node_named(model, "down").attributes["alpha"] = ir.AttrFloat32("alpha", 0.5)
    trained(model, CHANNEL)
    site = next(s for s in sites_of(CHANNEL, model) if s.name == "down")
    changed = model.clone()
    stats = statistics(CHANNEL, model, rows)[site]
    CHANNEL.rewrite(changed, site, LEARNT, CHANNEL.solve(model, site, stats))
    np.testing.assert_allclose(answers(changed, rows), answers(model, rows), atol=1e-5)


@pytest.mark.parametrize("pass_", [CHANNEL, SPATIAL], ids=["channel", "spatial"])
def test_refitting_keeps_the_directions_that_were_learned(pass_: Maestro) -> None:
    """The first factors stay, nested; the second ones are fitted to what they really see."""
    model = net()
    factors = trained(model, pass_)
    sites = Sites.of(model, [pass_])
    stats = statistics(pass_, model, images(96))
    offers = candidates(model, sites, solve(model, sites, stats))
    assert {c.rank for c in make_plan(offers, []).choices} == {LEARNT}, "lossless, without a budget"
    plan = smallest_plan(offers, [], budgets={"macs": 1})
    by_name = {site.name: site for site in sites.owners}
    choices = {c.site: (by_name[c.site], c) for c in plan.choices}
    weights = {n: str(only_input(node_named(model, n), 1).name) for n in choices}

    def carried_out(settings: Refit) -> ir.Model:
        job = Refitting(
            model, model.clone(), choices, sites.owners, stats, Rows({"x": images(96)}, 32),
            settings, 0, frozenset(),
        )  # fmt: skip
        with SilentProgress().stage("refit") as stage:
            return refit(job, stage)[0]

    fitted, plain = carried_out(Refit(96, 1000)), carried_out(Refit(96, 1000, weights=False))
    for name, (_, choice) in choices.items():
        first = constant(fitted.graph.initializers[f"{name}.A"])
        assert first is not None
        got = first.reshape(choice.rank, -1).T if first.ndim > 2 else first
        want = factors[weights[name]].first[:, : choice.rank].astype(np.float32)
        np.testing.assert_array_equal(got, want)
    want = answers(model, images(96))
    lost = [np.square(answers(m, images(96)) - want).mean() for m in (fitted, plain)]
    assert lost[0] < 0.8 * lost[1]


def test_what_cannot_be_trained_as_factors_says_why() -> None:
    model = net()
    skips = {s.name: s.reason for s in Maestro(min_size=64).match(model) if isinstance(s, Skip)}
    assert "2 groups" in skips["grouped"]
    assert "12 groups" in skips["depthwise"]
    assert "16 x 5 pays below rank 3.8, less than 4" in skips["fc"]
    few = {s.name: s.reason for s in Maestro().match(model) if isinstance(s, Skip)}
    assert few["same"] == "576 weights are fewer than min_size = 1024"


def test_a_decomposition_is_balanced_and_the_weight() -> None:
    matrix = np.random.default_rng(0).normal(size=(7, 5)) @ np.diag([3, 2, 1, 0.5, 0.0])
    first, second = balanced(matrix)
    np.testing.assert_allclose(first @ second, matrix, atol=1e-12)
    np.testing.assert_allclose(first.T @ first, second @ second.T, atol=1e-12)
    assert (np.diff(np.linalg.norm(first, axis=0)) <= 1e-12).all()
