"""Maestro's training: directions come in order, ranks are found, nothing is lost on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray

from builders import model_of, weight
from conv_builders import convnet, images
from rankc.calibrate import calibrate
from rankc.cleanup import clean
from rankc.errors import ModelError
from rankc.factors import LEARNED, Factors, attach_factors, balanced
from rankc.graph import constant
from rankc.passbase import Site
from rankc.passes.maestro import Maestro, Target
from rankc.progress import SilentProgress
from rankc.recipe_training import Objective, Training
from rankc.train.batch_norm import fold_batch_norms, insert_batch_norms, reestimate_batch_norms
from rankc.train.history import History
from rankc.train.hooks import Hook, Silent
from rankc.train.interpreter import Interpreter
from rankc.train.loop import train
from rankc.train.maestro import Factored, MaestroHook
from rankc.train.maestro_draws import LEVELS, Budgets, Pairs, ranks_within
from rankc.train.rows import Rows
from rankc.train.teacher import Teacher
from rankrt.session import open_model
from sources import Rows as InMemory

Array = NDArray[Any]
SMALL = Maestro(min_size=64, round_to=1, sampling="layer")
INPUTS, OUTPUTS = 10, 12
TASK = Objective(task="regression", label=1.0, distill=0.0)


def linear(matrix: Array) -> ir.Model:
    """y (batch, m) = x W."""
    n, m = matrix.shape
    x, y = (
        ir.val("x", ir.DataType.FLOAT, ["batch", n]),
        ir.val("y", ir.DataType.FLOAT, ["batch", m]),
    )
    tape = ir.tape.Tape()
    tape.op("MatMul", [x, weight(tape, "W", matrix.astype(np.float32))], name="fc", output=y)
    return model_of(tape, [x], [y])


def white(rows: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(rows, INPUTS)).astype(np.float32)


def rows_of(feeds: Array, labels: Array | None = None, batch_size: int = 64) -> Rows:
    source = InMemory({"x": feeds}, batch_size, labels)
    return Rows(source, batch_size=batch_size, share=0.1, seed=0)


def trained(
    net: Interpreter, rows: Rows, settings: Training, hooks: list[Hook], **more: Any
) -> History:
    with SilentProgress().stage("train") as stage:
        return train(net, rows, settings, seed=0, hooks=hooks, stage=stage, **more)


def matrix_with(sizes: Array, seed: int = 0) -> Array:
    """(n, m) of these singular values."""
    rng = np.random.default_rng(seed)
    u, _ = np.linalg.qr(rng.normal(size=(INPUTS, len(sizes))))
    v, _ = np.linalg.qr(rng.normal(size=(OUTPUTS, len(sizes))))
    found: Array = (u * sizes) @ v.T
    return found


def mixed(factors: Factors, seed: int) -> Factors:
    """The same product by directions that say nothing of their importance."""
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(factors.rank, factors.rank)))
    return Factors(factors.unfolding, factors.first @ turn, turn.T @ factors.second)


def lost(factors: Factors, matrix: Array) -> Array:
    """Squared error of every prefix, (ranks + 1,)."""
    kept = [factors.first[:, :r] @ factors.second[:r] for r in range(factors.rank + 1)]
    return np.array([np.square(matrix - k).sum() for k in kept])


def test_a_linear_layer_learns_the_order_of_its_singular_values() -> None:
    """Over white inputs the best prefixes are those of the SVD (Maestro, theorem 4.1).

    The factors start as a random rotation of the balanced ones, whose prefixes are bad.
    """
    sizes = np.array([4.0, 2.5, 1.5])
    matrix = matrix_with(sizes)
    model = linear(matrix)
    (target,) = SMALL.trained(model)
    first, second = balanced(matrix)
    start = mixed(Factors(target.unfolding, first[:, :3], second[:3]), 5)
    model.graph.initializers["W"].meta[LEARNED] = start
    net, hook = Interpreter(model), MaestroHook(SMALL, [target], 0)
    settings = Training(epochs=40, objective=Objective(task="regression"), lr=0.3, weight_decay=0.0)
    trained(net, rows_of(white(1500)), settings, [hook], teacher=Teacher(model))
    best = np.append(np.cumsum(sizes[::-1] ** 2)[::-1], 0.0)  # Eckart and Young
    before, after = lost(start, matrix), lost(hook.factors["W"], matrix)
    assert (before[1:3] > 1.4 * best[1:3]).all(), "the start is no solution"
    np.testing.assert_allclose(after[:3], best[:3], rtol=0.01)
    assert after[3] < 0.01 * best[2]


@pytest.mark.parametrize(("rank", "lasso"), [(2, 0.03), (4, 0.01)])
def test_the_rank_of_what_is_learned_is_found(rank: int, lasso: float) -> None:
    """Labels of a layer of low rank; the model starts as anything, and its last ranks die out."""
    wanted, rng = matrix_with(np.linspace(3, 2, rank), seed=1), np.random.default_rng(2)
    model, x = linear(0.3 * rng.normal(size=(INPUTS, OUTPUTS))), white(1500)
    options = Maestro(min_size=64, round_to=1, group_lasso=lasso, shrink=0.02, sampling="layer")
    net, hook = Interpreter(model), MaestroHook(options, options.trained(model), 0)
    settings = Training(epochs=40, objective=TASK, lr=0.02, weight_decay=0.0)
    history = trained(net, rows_of(x, x @ wanted.astype(np.float32)), settings, [hook])
    report = hook.report()
    ranks = [found for _, found in report["ranks"]["fc"]]
    assert (ranks[0], ranks[-1]) == (INPUTS, rank)
    assert (np.diff(ranks) <= 0).all(), "what was dropped stays away"
    assert len(ranks) == 41
    assert report["macs_kept"][-1] == pytest.approx(rank * (INPUTS + OUTPUTS) / 120)
    assert hook.factors["W"].rank == rank
    assert history.looks[-1].metrics["mse"] < 0.02 * history.looks[0].metrics["mse"]
    assert history.hooks["maestro"] == report
    norms = [np.linalg.norm(f, axis=k) for k, f in enumerate(factors_of(hook))]
    suffixes = [np.sqrt(np.cumsum(n[::-1] ** 2)[::-1]) for n in norms]
    assert (np.diff(suffixes[0] * suffixes[1]) < 0).all(), "importance falls"


def factors_of(hook: MaestroHook) -> tuple[Array, Array]:
    return hook.factors["W"].first, hook.factors["W"].second


def test_a_penalty_too_heavy_leaves_one_direction() -> None:
    options = Maestro(min_size=64, round_to=1, group_lasso=10.0, shrink=1.0)
    model = linear(matrix_with(np.ones(6)))
    net, hook = Interpreter(model), MaestroHook(options, options.trained(model), 0)
    settings = Training(epochs=8, lr=0.01, clip=1.0, objective=Objective(task="regression"))
    trained(net, rows_of(white(700)), settings, [hook], teacher=Teacher(model))
    assert hook.report()["ranks"]["fc"][-1][1] == 1


def trainable(pass_: Maestro) -> tuple[ir.Model, list[str]]:
    """`convnet` with BatchNormalization behind its convolutions."""
    model = convnet()
    clean(model)
    return model, insert_batch_norms(model, [{"x": images(48, seed=k)} for k in range(2)])


@pytest.mark.parametrize("scheme", ["channel", "spatial"])
def test_what_was_trained_is_cut_without_loss_at_its_rank(scheme: Any) -> None:
    """Train, fold, attach, calibrate, rewrite: the factored model is the trained one."""
    pass_ = Maestro(min_size=64, round_to=1, scheme=scheme, group_lasso=0.03, shrink=0.3)
    model, _ = trainable(pass_)
    hook = MaestroHook(pass_, pass_.trained(model), 0)
    net = Interpreter(model)
    settings = Training(epochs=5, lr=0.02)
    trained(net, rows_of(images(400), batch_size=32), settings, [hook], teacher=Teacher(convnet()))
    ranks = {name: found[-1][1] for name, found in hook.report()["ranks"].items()}
    assert any(found[-1][1] < found[0][1] for found in hook.report()["ranks"].values()), ranks
    dense = net.to_onnx()
    assert fold_batch_norms(dense) > 3
    attach_factors(dense, hook.factors)
    sites = [site for site in pass_.match(dense) if isinstance(site, Site)]
    assert {site.name for site in sites} == set(ranks)
    probes = {site: pass_.probe(dense, site) for site in sites}
    with SilentProgress().stage("calibrate") as stage:
        stats = calibrate(dense, probes, InMemory({"x": images(96)}, 32), stage).stats
    factored = dense.clone()
    for site in sites:
        solution = pass_.solve(dense, site, stats[site])
        curve = pass_.cost(site, solution)
        assert curve.ranks[-1] == ranks[site.name]
        assert curve.error[-1] < 1e-10
        pass_.rewrite(factored, site, int(curve.ranks[-1]), solution)
    want, got = (run(m, images(20, seed=7)) for m in (dense, factored))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def run(model: ir.Model, x: Array) -> Array:
    return open_model(ir.to_proto(model).SerializeToString()).run({"x": x})["logits"]


def test_statistics_are_taken_anew_before_what_is_kept() -> None:
    model, _ = trainable(SMALL)
    net, rows = Interpreter(model), rows_of(images(400), batch_size=32)
    hook = MaestroHook(SMALL, SMALL.trained(model), 0)
    trained(net, rows, Training(epochs=2, lr=0.02), [hook], teacher=Teacher(convnet()))
    names = [n for n in net.graph.initializers if n.endswith(("batch_norm.mean", "batch_norm.var"))]
    kept = [net.weight(name).clone() for name in names]
    assert len(names) > 6
    reestimate_batch_norms(net, (batch.feeds for batch in rows.some(32)))
    for name, before in zip(names, kept, strict=True):
        torch.testing.assert_close(net.weight(name), before, rtol=1e-4, atol=1e-5)


class _Cut(Silent):
    """Ends a training as a power cut would."""

    name = "cut"

    def __init__(self, at: int | None) -> None:
        self.at = at

    def before_step(self, step: int) -> None:
        if step == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("sampling", ["layer", "budget"])
def test_a_training_that_was_cut_off_goes_on_to_the_same_bytes(
    tmp_path: Path, sampling: Any
) -> None:
    """In the middle of an epoch, after ranks have fallen."""
    pass_ = Maestro(min_size=64, round_to=1, group_lasso=0.03, shrink=0.3, sampling=sampling)
    settings = Training(epochs=5, lr=0.02, checkpoint=0.0)
    model, _ = trainable(pass_)

    def attempt(path: Path | None, at: int | None) -> tuple[bytes, MaestroHook]:
        hook, net = MaestroHook(pass_, pass_.trained(model), 0), Interpreter(model)
        rows = rows_of(images(400), batch_size=32)
        trained(
            net, rows, settings, [hook, _Cut(at)], teacher=Teacher(convnet()), checkpoint=path,
            resume=True,
        )  # fmt: skip
        return ir.to_proto(net.to_onnx()).SerializeToString(deterministic=True), hook

    whole, hook = attempt(None, None)
    path = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        attempt(path, 38)
    resumed, again = attempt(path, None)
    assert resumed == whole
    assert again.report() == hook.report()
    ranks = hook.report()["ranks"]
    assert any(found[3][1] < found[0][1] for found in ranks.values()), "ranks had fallen by then"


def test_nothing_left_to_train_is_refused() -> None:
    model = linear(matrix_with(np.ones(6)))
    hook = MaestroHook(SMALL, SMALL.trained(model), 0)
    settings = Training(epochs=1)
    with pytest.raises(ModelError, match=r"no layer is left to be trained as factors.*freeze"):
        net = Interpreter(model, frozen=("W",))
        trained(net, rows_of(white(200)), settings, [hook], teacher=Teacher(model))


def layer_of(rank: int = 5) -> Factored:
    model = linear(matrix_with(np.arange(rank, 0, -1.0)))
    (target,) = SMALL.trained(model)
    array = constant(model.graph.initializers["W"])
    assert array is not None
    return Factored(
        Factors(target.unfolding, *balanced(target.unfolding.unfold(array))),
        torch.from_numpy(array),
    )


def test_factors_start_as_the_weight() -> None:
    layer = layer_of()
    want = matrix_with(np.arange(5, 0, -1.0)).astype(np.float32)
    np.testing.assert_allclose(layer().detach().numpy(), want, atol=1e-5)
    layer.width = 3
    kept = (layer.first[:, :3] @ layer.second[:3]).detach()
    torch.testing.assert_close(layer().detach(), kept)


def test_what_is_dropped_gets_no_gradient_and_does_not_come_back() -> None:
    layer = layer_of()
    layer.shrink(2.5)
    rank = layer.rank
    assert 1 <= rank < 5
    layer().square().sum().backward()
    assert layer.first.grad is not None
    assert layer.second.grad is not None
    assert not layer.first.grad[:, rank:].any()
    assert not layer.second.grad[rank:].any()
    assert layer.first.grad[:, :rank].any()
    with torch.no_grad():
        layer.first.add_(10.0)
    layer.shrink(1e-9)
    assert layer.rank == rank


def test_the_penalty_is_that_of_every_suffix() -> None:
    """And has a gradient where directions are zero; checked by finite differences elsewhere."""
    layer = layer_of().double()
    with torch.no_grad():
        layer.second[4:] = 0
        layer.first[:, 4:] = 0
    a, b = (f.detach().numpy() for f in (layer.first, layer.second))
    want = [
        [np.linalg.norm(a[:, j:]) for j in range(10)],
        [np.linalg.norm(b[j:]) for j in range(10)],
    ]
    for norms, expected in zip(layer.suffixes(), want, strict=True):
        np.testing.assert_allclose(norms.detach().numpy(), expected, atol=1e-12)
    torch.cat(layer.suffixes()).sum().backward()  # type: ignore[no-untyped-call]
    grad = layer.first.grad
    assert grad is not None
    assert torch.isfinite(grad).all()
    step, at = 1e-6, (2, 1)
    sums = []
    for sign in (1, -1):
        with torch.no_grad():
            layer.first[at] += sign * step
            sums.append(torch.cat(layer.suffixes()).sum().item())
            layer.first[at] -= sign * step
    assert grad[at].item() == pytest.approx((sums[0] - sums[1]) / (2 * step), rel=1e-6)


def test_pairs_are_drawn_without_replacement_and_in_another_order_each_time() -> None:
    ranks = [3, 1, 4]
    draws = Pairs(7, ranks)
    pairs = {(layer, rank + 1) for layer, most in enumerate(ranks) for rank in range(most)}
    rounds = [[draws.next() for _ in range(8)] for _ in range(3)]
    assert all(set(one) == pairs for one in rounds)
    assert rounds[0] != rounds[1] != rounds[2]
    again = Pairs(7, ranks)
    again.load_state_dict(draws.state_dict())
    assert [draws.next() for _ in range(20)] == [again.next() for _ in range(20)]
    draws.restart([2, 1, 1])
    assert {draws.next() for _ in range(4)} == {(0, 1), (0, 2), (1, 1), (2, 1)}


def some_targets() -> list[Target]:
    model, _ = trainable(SMALL)
    return SMALL.trained(model)


def test_ranks_fit_into_the_share_of_macs() -> None:
    """What is worth most for each MAC comes first, and a direction needs those before it."""
    targets, rng = some_targets(), np.random.default_rng(0)
    gains = [np.sort(rng.random(min(t.unfolding.rows, t.unfolding.columns)))[::-1] for t in targets]
    gains[0][3] = 5.0  # a late one that is worth much: those before it are, too
    dense = sum(target.macs for target in targets)
    last = None
    for share in (1.0, 0.7, 0.4, 0.2):
        ranks = ranks_within(gains, targets, share)
        pairs = list(zip(ranks, targets, strict=True))
        assert sum(min(r * t.macs_a_rank, t.macs) for r, t in pairs) <= share * dense
        assert last is None or all(a <= b for a, b in zip(ranks, last, strict=True))
        last = ranks
    assert ranks_within(gains, targets, 0.2)[0] >= 4


def test_budgets_are_drawn_anew_for_every_step_and_planned_anew_now_and_then() -> None:
    targets = some_targets()
    gains = [np.arange(8, 0, -1.0)] * len(targets)
    budgets = Budgets(3, targets, 0.2)
    assert budgets.due(7)
    budgets.plan(gains)
    assert not budgets.due(7)
    assert budgets.due(100)
    drawn = [budgets.next(step) for step in range(60)]
    assert len({tuple(ranks) for ranks in drawn}) > LEVELS // 2
    again = Budgets(3, targets, 0.2)
    again.load_state_dict(budgets.state_dict())
    assert [again.next(step) for step in range(60)] == drawn
