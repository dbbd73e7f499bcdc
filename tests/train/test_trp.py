"""Trained rank pruning of a net: what is unfolded how, and that training with it ends lower."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray

import sources
from builders import mlp, mlp_rows, model_of, weight
from conv_builders import convnet, images
from rankc.cleanup import clean
from rankc.errors import RecipeError
from rankc.graph import array_of, node_named, only_input
from rankc.passes.trp import Target, Trp
from rankc.progress import SilentProgress
from rankc.recipe_training import Objective, Training
from rankc.train.batch_norm import fold_batch_norms, insert_batch_norms
from rankc.train.history import History
from rankc.train.hooks import Hook
from rankc.train.interpreter import Interpreter
from rankc.train.loop import train
from rankc.train.rows import Rows
from rankc.train.teacher import Teacher
from rankc.train.trp import Parts, TrpHook, folded_as, matrices_of
from rankc.train.trp_ranks import fewest

Array = NDArray[Any]
SMALL = Trp(min_size=64, period=5, energy=0.98, nuclear=1e-3)


def cleaned(model: ir.Model) -> ir.Model:
    clean(model)
    return model


def macs_of(ranks: dict[Target, int]) -> int:
    return sum(t.macs if rank > t.most else rank * t.macs_a_rank for t, rank in ranks.items())


@pytest.mark.parametrize("scheme", ["channel", "spatial", "decoupled"])
def test_weights_unfold_as_the_pass_cuts_them(scheme: Any) -> None:
    """To the matrices that the emitted factors are of, and back."""
    model = cleaned(convnet())
    targets = Trp(min_size=64, scheme=scheme).trained(model)
    assert {t.site for t in targets} == {"stem", "same", "down", "pointwise", "fc"}
    by_name = {t.site: t for t in targets}
    array = torch.from_numpy(np.array(array_of(model.graph.initializers["down.w"])))
    for target in targets:
        whole = torch.from_numpy(np.array(array_of(model.graph.initializers[target.weight])))
        torch.testing.assert_close(folded_as(matrices_of(whole, target), target), whole)
    matrices = matrices_of(array, by_name["down"])  # (12, 8, 3, 5)
    o, c, i, j = 7, 5, 2, 3
    at = {
        "channel": (1, 8 * 3 * 5, 12, (0, (c * 3 + i) * 5 + j, o)),
        "spatial": (1, 8 * 3, 12 * 5, (0, c * 3 + i, o * 5 + j)),
        "decoupled": (12, 8, 3 * 5, (o, c, i * 5 + j)),
    }[scheme]
    assert tuple(matrices.shape) == at[:3]
    assert matrices[at[3]] == array[o, c, i, j]


def test_a_frozen_layer_is_refused_by_name() -> None:
    model = mlp()
    hook = TrpHook(SMALL, SMALL.trained(model), Training())
    with pytest.raises(RecipeError, match=r"freeze: it holds weight 'A' of layer 'up'.*`ignore`"):
        hook.start(Interpreter(model, frozen=("A",)), 10)


def test_looks_leave_a_layer_whole_that_would_stay_dense() -> None:
    """Training cuts it all the same: its rank is to fall."""
    model, whole = mlp(), Interpreter(mlp()).weight("A")
    targets = SMALL.trained(model)
    assert [(t.site, t.most) for t in targets] == [("up", 9), ("down", 5)]
    ranks = {}
    for energy in (0.9, 0.98):
        net = Interpreter(model)
        hook = TrpHook(dataclasses.replace(SMALL, energy=energy), targets, Training())
        hook.start(net, 10)
        hook.evaluating()
        ranks[energy] = hook.report()["final"]["up"]
        assert torch.equal(net.weight("A"), whole) == (ranks[energy] > 9)
        hook.before_step(0)
        assert not torch.equal(net.weight("A"), whole)
    assert ranks == {0.9: 7, 0.98: 10}


@pytest.mark.parametrize("scheme", ["channel", "spatial", "decoupled"])
def test_folding_batch_norms_changes_no_rank(scheme: Any) -> None:
    """They scale outputs: columns of the matrix, or whole matrices."""
    model = cleaned(convnet())
    pass_ = Trp(min_size=64, scheme=scheme, energy=0.6)
    norms = insert_batch_norms(model, [{"x": images()}])
    targets = pass_.trained(model)
    net = Interpreter(model)
    with torch.no_grad():
        for name in norms:
            scale = net.weight(str(only_input(node_named(model, name), 1).name))
            scale.mul_(torch.linspace(0.3, 3, len(scale)))
    hook = TrpHook(pass_, targets, Training())
    hook.start(net, 10)
    hook.before_step(0)
    trained = net.to_onnx()
    fold_batch_norms(trained)
    ranks = {site: entries[-1][1] for site, entries in hook.report()["ranks"].items()}
    pays = [t for t in targets if ranks[t.site] <= t.most]
    assert len(pays) >= 3
    for target in pays:
        folded = np.array(array_of(trained.graph.initializers[target.weight]), np.float64)
        before = net.weight(target.weight).detach().double()
        assert target.site == "fc" or not np.allclose(folded, before.numpy(), rtol=0.1)
        for array in (torch.from_numpy(folded), before):
            sizes = torch.linalg.svdvals(matrices_of(array, target))
            assert int((sizes > 1e-5 * sizes.max()).sum(dim=1).max()) == ranks[target.site]


# --- training -------------------------------------------------------------------------------


def student(seed: int = 3) -> ir.Model:
    """y = relu(x A) B for rows x (batch, 16): A (16, 24) and B (24, 8) of full rank."""
    rng, tape = np.random.default_rng(seed), ir.tape.Tape()
    x, y = (ir.val(name, ir.DataType.FLOAT, ["batch", n]) for name, n in (("x", 16), ("y", 8)))
    a, b = (rng.normal(size=shape).astype(np.float32) / 4 for shape in ((16, 24), (24, 8)))
    hidden = tape.op("Relu", [tape.op("MatMul", [x, weight(tape, "A", a)], name="up")], name="relu")
    tape.op("MatMul", [hidden, weight(tape, "B", b)], name="down", output=y)
    return model_of(tape, [x], [y])


def teacher() -> Teacher:
    """The same with a first layer of rank 3, which is all that there is to learn."""
    model, rng = student(4), np.random.default_rng(5)
    a = (rng.normal(size=(16, 3)) @ rng.normal(size=(3, 24)) / 4).astype(np.float32)
    model.graph.initializers["A"].const_value = ir.tensor(a, name="A")
    return Teacher(model)


HOW = Training(
    epochs=40, lr=0.05, objective=Objective(task="regression"), evaluate=20, weight_decay=0
)


def rows() -> Rows:
    feeds = {"x": (mlp_rows(640) * 0.5).astype(np.float32)}
    return Rows(sources.Rows(feeds), batch_size=32, share=0.2)


def trained(hooks: Sequence[Hook], how: Training = HOW) -> tuple[Interpreter, History]:
    net = Interpreter(student())
    with SilentProgress().stage("train") as stage:
        history = train(net, rows(), how, seed=0, teacher=teacher(), hooks=hooks, stage=stage)
    return net, history


def hook_of(pass_: Trp) -> TrpHook:
    return TrpHook(pass_, pass_.trained(student()), HOW)


def sizes_of(net: Interpreter, name: str = "A") -> torch.Tensor:
    """Singular values of a weight."""
    found: torch.Tensor = torch.linalg.svdvals(net.weight(name).detach().double())
    return found


def rank_of(net: Interpreter, share: float, name: str = "A") -> int:
    """Singular values above that share of the largest."""
    sizes = sizes_of(net, name)
    return int((sizes > share * sizes[0]).sum())


def test_training_ends_at_a_lower_rank_with_the_same_loss() -> None:
    plain, before = trained([])
    hook = hook_of(SMALL)
    pruned, after = trained([hook])
    told = after.hooks["trp"]
    assert rank_of(plain, 0.05) == 16
    assert rank_of(pruned, Trp().threshold) == told["final"]["up"] == 9
    assert fewest((sizes_of(plain) ** 2).numpy(), SMALL.energy) >= 12
    assert after.looks[-1].loss <= 1.05 * before.looks[-1].loss <= 0.02 * before.looks[0].loss
    assert after.best == len(after.looks) - 1
    steps, ranks = zip(*told["ranks"]["up"], strict=True)
    assert steps[0] == 0
    assert list(steps) == sorted(steps)
    assert list(ranks) == sorted(ranks, reverse=True)
    assert all(step % SMALL.period == 0 for step in steps)


def test_all_layers_come_down_to_a_share_of_their_macs_together() -> None:
    pass_ = dataclasses.replace(SMALL, keep=0.5, anneal=0.5)
    net, history = trained([hook_of(pass_)])
    final = {t: history.hooks["trp"]["final"][t.site] for t in pass_.trained(student())}
    macs = sum(t.macs for t in final)
    assert 0.4 * macs < macs_of(final) <= 0.5 * macs
    for target, rank in final.items():
        assert rank_of(net, pass_.threshold, target.weight) == rank
    plain, _ = trained([])
    later = hook_of(pass_)
    later.start(plain, 640)
    later.evaluating()
    assert macs_of({t: later.report()["final"][t.site] for t in final}) <= 0.5 * macs
    assert error_of(net) < 0.5 * error_of(plain)


@torch.no_grad()
def error_of(net: Interpreter) -> float:
    """Mean squared difference from the teacher."""
    x = torch.from_numpy((mlp_rows(640) * 0.5).astype(np.float32))
    return float((net(x)[0] - teacher().net(x)[0]).square().mean())


def test_looks_change_nothing_that_training_goes_by() -> None:
    net, hook, optimizer = started(dataclasses.replace(SMALL, keep=0.5, anneal=0.5, settled=2))
    advance(net, hook, optimizer, range(27))
    before = hook.state_dict()["tracks"]
    hook.evaluating()
    assert hook.state_dict()["tracks"] == before
    assert set(hook.report()["final"]) == {"up", "down"}


def test_leaving_out_layers_that_have_settled_ends_at_the_same_ranks() -> None:
    always, often = hook_of(dataclasses.replace(SMALL, settled=0)), hook_of(SMALL)
    (_, one), (_, other) = trained([always]), trained([often])
    assert one.hooks["trp"]["final"] == other.hooks["trp"]["final"]
    assert one.hooks["trp"]["skipped"] == 0
    periods, looks = 640 // SMALL.period, len(one.looks)
    assert one.hooks["trp"]["decomposed"] == 2 * (periods + looks)
    told = other.hooks["trp"]
    assert told["decomposed"] + told["skipped"] == 2 * (periods + looks)
    assert told["decomposed"] < told["skipped"]


def test_newton_schulz_shrinks_the_nuclear_norm_without_decomposing() -> None:
    how = dataclasses.replace(SMALL, step="newton-schulz", nuclear=0.01)
    plain, before = trained([])
    shrunk, after = trained([hook_of(how)])
    assert sizes_of(shrunk).sum() < 0.9 * sizes_of(plain).sum()
    assert after.looks[-1].loss <= 1.05 * before.looks[-1].loss
    told = after.hooks["trp"]
    assert told["decomposed"] == 2 * len(after.looks)
    assert told["ranks"] == {site: [[640, rank]] for site, rank in told["final"].items()}
    assert set(told["final"]) == {"up", "down"}


def advance(
    net: Interpreter, hook: Hook, optimizer: torch.optim.Optimizer, steps: range
) -> Interpreter:
    """The loop's order, on one batch after another."""
    x = torch.from_numpy(mlp_rows(640))
    wanted = teacher().net
    for step in steps:
        hook.before_step(step)
        rows = x[(32 * step) % 640 :][:32]
        optimizer.zero_grad()
        (net(rows)[0] - wanted(rows)[0]).square().mean().backward()
        hook.after_backward(step)
        optimizer.step()
        hook.after_step(step)
    return net


def started(pass_: Trp) -> tuple[Interpreter, TrpHook, torch.optim.Optimizer]:
    net, hook = Interpreter(student()), hook_of(pass_)
    hook.start(net, 64)
    return net, hook, torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)


@pytest.mark.parametrize("step", ["svd", "newton-schulz"])
def test_a_training_cut_in_two_is_the_same(step: Any, tmp_path: Path) -> None:
    pass_ = dataclasses.replace(SMALL, step=step, period=2, settled=3)
    net, hook, optimizer = started(pass_)
    whole, told = advance(net, hook, optimizer, range(64)), hook.report()
    net, hook, optimizer = started(pass_)
    advance(net, hook, optimizer, range(29))
    torch.save([x.state_dict() for x in (net, hook, optimizer)], tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt")
    net, hook, optimizer = started(pass_)
    net.load_state_dict(state[0])
    hook.load_state_dict(state[1])
    optimizer.load_state_dict(state[2])
    advance(net, hook, optimizer, range(29, 64))
    assert hook.report() == told
    assert hook.key() == started(pass_)[1].key() != started(SMALL)[1].key()
    for name in whole.weight_names:
        assert torch.equal(net.weight(name), whole.weight(name))


def test_only_steps_with_a_truncation_are_pulled_and_momentum_is_left_alone() -> None:
    net, hook, _ = started(dataclasses.replace(SMALL, nuclear=0.5))
    weight = net.weight("A")
    for step in range(6):
        hook.before_step(step)
        parts = Parts.of(weight.detach()[None])
        weight.grad = torch.zeros_like(weight)
        hook.after_backward(step)
        if step % SMALL.period:
            assert not weight.grad.any()
        else:
            rank = hook.report()["ranks"]["up"][-1][1]
            assert rank_of(net, 1e-5) == rank
            torch.testing.assert_close(weight.grad, 0.5 * parts.pull(rank)[0], atol=1e-5, rtol=0)


def test_weights_that_are_not_finite_are_left_for_the_loop_to_tell_of() -> None:
    with pytest.raises(RecipeError, match="training diverged at step"):
        trained([hook_of(dataclasses.replace(SMALL, period=1))], dataclasses.replace(HOW, lr=1e6))
    net, hook, _ = started(SMALL)
    with torch.no_grad():
        net.weight("A")[2, 3] = torch.inf
    hook.before_step(0)
    hook.evaluating()
    assert hook.report()["ranks"]["up"] == []
    assert set(hook.report()["final"]) == {"down"}
    assert torch.isinf(net.weight("A")).sum() == 1
