"""The pass `trp`: the singular value decomposition of trained weights, in every scheme."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from builders import mlp, mlp_rows
from conv_builders import convnet, images, random_conv
from rankc.calibrate import calibrate
from rankc.cleanup import clean
from rankc.convolution.solution import Solution
from rankc.convolution.weights import strengths
from rankc.graph import array_of
from rankc.macs import count_macs
from rankc.passbase import Curve, Site, Skip
from rankc.passes.trp import Trp
from rankc.planning import Candidate, Plan, make_plan
from rankc.progress import SilentProgress
from rankc.rewriting import Draft, Sites, fit
from rankrt.session import open_model
from sources import Rows

Array = NDArray[Any]
SCHEMES = pytest.mark.parametrize("scheme", ["channel", "spatial", "decoupled"])


def run(model: ir.Model, x: Array) -> Array:
    (found,) = open_model(ir.to_proto(model).SerializeToString()).run({"x": x}).values()
    return found


def net(weights: dict[str, Array] | None = None) -> ir.Model:
    """`convnet`, some weights replaced."""
    model = convnet()
    clean(model)
    for name, array in (weights or {}).items():
        assert model.graph.initializers[name].const_value is not None
        model.graph.initializers[name].const_value = ir.tensor(array.astype(np.float32), name=name)
    return model


def weight(model: ir.Model, name: str) -> Array:
    return np.array(array_of(model.graph.initializers[name]), np.float64)


def draft(pass_: Trp, model: ir.Model, x: Array) -> Draft:
    sites = Sites.of(model, [pass_])
    probes = {site: pass_.probe(model, site) for site in sites.owners}
    with SilentProgress().stage("calibrate") as stage:
        return Draft.of(model, sites, calibrate(model, probes, Rows({"x": x}), stage).stats)


def solved(pass_: Trp, model: ir.Model, x: Array) -> dict[str, tuple[Site, Solution, Curve]]:
    found = draft(pass_, model, x)
    return {
        site.name: (site, solution, pass_.cost(site, solution))
        for site, solution in found.solutions.items()
    }


def low_rank(array: Array, scheme: str, rank: int) -> Array:
    """A kernel (N, C, H, W) cut by the decomposition of its unfolding, written out plainly."""
    n, c, h, w = array.shape
    if scheme == "spatial":
        matrix = array.transpose(1, 2, 0, 3).reshape(c * h, n * w)
    else:
        matrix = array.reshape((n, c * h * w) if scheme == "channel" else (n, c, h * w))
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    found = (u[..., :rank] * s[..., None, :rank]) @ v[..., :rank, :]
    if scheme == "spatial":
        return np.asarray(found.reshape(c, h, n, w).transpose(2, 0, 1, 3))
    return np.asarray(found.reshape(array.shape))


# --- what it cuts ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(60))
@SCHEMES
def test_full_rank_is_exact_for_any_convolution(scheme: Any, seed: int) -> None:
    """Strides, pads, dilations, kernels of one to three axes; strides of `decoupled`, too."""
    rng = np.random.default_rng(seed)
    model, shape = random_conv(rng)
    clean(model)
    pass_ = Trp(min_size=0, scheme=scheme, positions=1000)
    (found,) = pass_.match(model)
    if isinstance(found, Skip):
        known = ("auto_pad", "groups", "it pays up to rank 0, less than 1")
        assert any(text in found.reason for text in known)
        return
    x = rng.normal(size=(12, *shape)).astype(np.float32)
    ((site, solution, curve),) = solved(pass_, model, x).values()
    want = run(model, x)
    pass_.rewrite(model, site, int(curve.ranks[-1]), solution)
    assert np.abs(run(model, x) - want).max() <= 1e-5 * np.abs(want).max()


@SCHEMES
@pytest.mark.parametrize(("name", "rank"), [("stem", 2), ("down", 4)])
def test_it_is_the_truncated_decomposition(scheme: Any, name: str, rank: int) -> None:
    model, pass_ = net(), Trp(min_size=64, scheme=scheme)
    _, solution, _ = solved(pass_, model, images())[name]
    (chain,) = solution.chains.values()
    want = low_rank(weight(model, f"{name}.w"), scheme, rank)
    np.testing.assert_allclose(chain.matrix(rank)[0], want.reshape(len(want), -1), atol=1e-12)


@SCHEMES
def test_factors_are_balanced(scheme: Any) -> None:
    """Every direction is as strong in the one as in the other, so both train alike."""
    model, pass_ = net(), Trp(min_size=64, scheme=scheme)
    for _, solution, _ in solved(pass_, model, images()).values():
        (chain,) = solution.chains.values()
        rank = len(chain.lost) - 1
        first, second = chain.weights(rank)
        if chain.name == "decoupled":
            m = len(second)
            norms = [np.sum(w.reshape(m, rank, -1) ** 2, axis=2) for w in (first, second)]
        else:
            a, b = first.reshape(rank, -1), second.reshape(-1, rank, second.shape[-1] // rank)
            norms = [np.sum(a**2, axis=1), np.sum(b**2, axis=(0, 2))]
            np.testing.assert_allclose(norms[0], strengths(chain))
        np.testing.assert_allclose(norms[0], norms[1], atol=1e-12)


def test_layers_that_are_matrices_are_cut_alike() -> None:
    model, x = mlp(rank=5), mlp_rows()
    pass_ = Trp(min_size=64)
    (up, solution, curve), (down, *_) = solved(pass_, model, x).values()
    assert (up.name, up.shape, down.shape) == ("up", (16, 24), (24, 8))
    assert curve.own is not None
    assert curve.ranks[curve.own] == 5
    assert curve.forms == ()
    want = run(model, x)
    pass_.rewrite(model, up, 5, solution)
    assert [n.op_type for n in model.graph][:3] == ["MatMul", "MatMul", "Add"]
    assert np.abs(run(model, x) - want).max() <= 1e-5


# --- which rank -----------------------------------------------------------------------------


@SCHEMES
def test_the_rank_of_its_own_is_what_training_left_however_outputs_are_scaled(scheme: Any) -> None:
    """Folding a batch normalisation scales outputs."""
    rng = np.random.default_rng(0)
    trained = low_rank(weight(net(), "down.w"), scheme, 3) + 1e-6 * rng.normal(size=(12, 8, 3, 5))
    scaled = trained * rng.uniform(0.2, 4, size=(12, 1, 1, 1))
    for array in (trained, scaled):
        pass_, model = Trp(min_size=64, scheme=scheme), net({"down.w": array})
        _, _, curve = solved(pass_, model, images())["down"]
        assert curve.own is not None
        assert curve.ranks[curve.own] == 3
        assert curve.error[curve.own] < 1e-9
        full = 24 if scheme == "spatial" else 12 if scheme == "channel" else 8
        assert curve.ranks.tolist() == [1, 2, 3, full]  # more of it is no better
        wider = dataclasses.replace(pass_, round_to=2)
        _, _, curve = solved(wider, model, images())["down"]
        assert curve.own is not None
        assert curve.ranks[curve.own] == 4


def test_without_a_budget_every_layer_takes_its_own_rank_where_that_pays() -> None:
    left = {
        name: low_rank(weight(net(), f"{name}.w"), "spatial", rank)
        for name, rank in (("same", 4), ("down", 17))
    }
    model = net({f"{name}.w": array for name, array in left.items()})
    pass_, x = Trp(min_size=64), images()

    def weigh(_: ir.Model) -> dict[Any, float]:
        return {}

    plan, finished = fit(draft(pass_, model, x), (), weigh)
    assert [(c.site, c.rank, c.form) for c in plan.choices] == [("same", 4, "vertical")]
    reasons = {s.name: s.reason for s in plan.skips}
    assert reasons["down"].startswith("left dense: its own rank, 17, takes no fewer bytes")
    assert reasons["stem"].startswith("left dense: its own rank, 12, takes no fewer bytes")
    assert "groups" in reasons["grouped"]
    want = run(model, x)
    assert np.abs(run(finished, x) - want).max() <= 1e-5 * np.abs(want).max()


def test_under_a_budget_no_layer_costs_more_than_it_did() -> None:
    model, pass_ = net(), Trp(min_size=64)
    found = draft(pass_, model, images())
    for share in (0.4, 0.7, 0.95):
        dense = sum(o.dense.macs for o in found.offers)
        plan = make_plan(found.offers, [], budgets={"macs": share * dense})
        assert all(c.macs < c.dense_macs for c in plan.choices)
        assert macs_of(plan, found.offers) <= share * dense


def macs_of(plan: Plan, offers: Any) -> float:
    chosen = {c.site: c.macs for c in plan.choices}
    taken: list[float] = [chosen.get(o.site.name, o.dense.macs) or 0 for o in offers]
    return float(sum(taken))


@SCHEMES
def test_the_most_that_pays_is_the_last_rank_that_is_smaller(scheme: Any) -> None:
    model, pass_ = net(), Trp(min_size=64, scheme=scheme)
    targets = {t.site: t for t in pass_.trained(model)}
    found = solved(pass_, model, images())
    assert set(targets) == set(found)
    for name, (site, _, curve) in found.items():
        dense = pass_.dense(model, site)
        bias = site.shape[1]  # all have one
        smaller = (curve.parameters - bias < dense.parameters - bias) & (curve.macs < dense.macs)
        assert targets[name].most == curve.ranks[smaller].max()
        assert targets[name].weight == f"{name}.w"


# --- which layers ---------------------------------------------------------------------------


def test_which_layers_are_meant() -> None:
    def taken(**options: Any) -> dict[str, str]:
        found = Trp(**{"min_size": 64, **options}).match(net())
        return {s.name: "" if isinstance(s, Site) else s.reason for s in found}

    every = taken()
    assert [name for name, why in every.items() if not why] == [
        "stem", "same", "down", "pointwise", "fc",
    ]  # fmt: skip
    assert every["depthwise"] == "a convolution of 12 groups does not become two factors"
    wide = taken(layers=("conv",))
    assert wide["fc"] == "dense layers are not among those of `layers`"
    assert wide["pointwise"] == "pointwise layers are not among those of `layers`"
    assert not wide["stem"]
    assert taken(min_size=300)["stem"] == "288 weights are fewer than min_size = 300"
    assert taken(round_to=8)["fc"] == "it pays up to rank 3, less than 8"
    assert set(taken(targets=("d*",), ignore=("down",))) == {"depthwise"}


def test_a_kernel_along_one_axis_splits_as_channel() -> None:
    rng = np.random.default_rng(0)
    tape, x = ir.tape.Tape(), ir.val("x", ir.DataType.FLOAT, ["batch", 6, 9, 9])
    w = tape.initializer(ir.tensor(rng.normal(size=(8, 6, 3, 1)).astype(np.float32), name="w"))
    y = ir.val("y", ir.DataType.FLOAT, ["batch", 8, 7, 9])
    tape.op("Conv", [x, w], name="conv", output=y)
    graph = ir.Graph([x], [y], nodes=tape.nodes, initializers=tape.initializers,
                     opset_imports={"": 18}, name="main_graph")  # fmt: skip
    model = ir.Model(graph, ir_version=10)
    (site,) = solved(
        Trp(min_size=0), model, rng.normal(size=(20, 6, 9, 9)).astype(np.float32)
    ).values()
    assert set(site[2].forms) == {"channel"}
    assert count_macs(model.clone())[0] == Trp().dense(model, site[0]).macs


def test_a_rank_for_all() -> None:
    model, pass_ = net(), Trp(min_size=64, rank=3)
    found = draft(pass_, model, images())
    assert all(isinstance(o, Candidate) and o.forced == 3 for o in found.offers)
    plan = make_plan(found.offers, [])
    assert {c.rank for c in plan.choices} == {3}
