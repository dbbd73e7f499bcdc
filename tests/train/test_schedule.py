"""Learning rates, what decays, mean weights; and the loop against one that is written by hand."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it
from hypothesis import given
from hypothesis import strategies as st

from rankc.progress import SilentProgress
from rankc.recipe_training import Objective, Training
from rankc.train.hooks import Silent
from rankc.train.interpreter import Interpreter
from rankc.train.loop import train
from rankc.train.schedule import Average, optimizer_of, rate_at
from train.nets import convnet, image_rows


def test_cosine_is_torch_s() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
    for step in range(40):
        assert rate_at(Training(lr=0.3), step, 40) == pytest.approx(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()


def test_steps_fall_to_a_tenth_at_every_milestone() -> None:
    settings = Training(lr=1.0, schedule="step", milestones=(0.5, 0.75))
    rates = [rate_at(settings, step, 8) for step in range(8)]
    assert rates == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])
    assert rate_at(Training(lr=0.7, schedule="constant"), 5, 8) == 0.7


@given(st.sampled_from(["cosine", "step", "constant"]), st.floats(0, 1), st.integers(1, 300))
def test_rates_rise_in_the_warm_up_and_never_again(kind: Any, warmup: float, steps: int) -> None:
    settings = Training(lr=0.2, schedule=kind, warmup=warmup, milestones=())
    rates = [rate_at(settings, step, steps) for step in range(steps)]
    assert all(0 < rate <= 0.2 for rate in rates)
    rising = math.ceil(warmup * steps)
    assert all(a < b for a, b in itertools.pairwise(rates[:rising]))
    after = rates[rising:]
    assert all(a >= b for a, b in itertools.pairwise(after))


def test_biases_and_scales_do_not_decay() -> None:
    net = Interpreter(convnet())
    groups = optimizer_of(net, Training(weight_decay=0.5)).param_groups
    names = {id(net.weight(name)): name for name in net.weight_names}
    found = {
        group["weight_decay"]: sorted(names[id(p)] for p in group["params"]) for group in groups
    }
    assert found == {0.5: ["conv.w", "fc.w"], 0.0: ["bn.scale", "bn.shift", "fc.b"]}


class _Scaled(torch.nn.Module):
    def __init__(self, base: torch.Tensor) -> None:
        super().__init__()
        self.base = torch.nn.Parameter(base.clone())
        self.factor = torch.nn.Parameter(torch.ones(len(base)))

    def forward(self) -> torch.Tensor:
        return self.base * self.factor[:, None]


def test_numbers_a_rank_of_computed_weights_do_not_decay() -> None:
    net = Interpreter(convnet())
    module = _Scaled(net.weight("fc.w").detach())
    net.compute_weight("fc.w", module)
    decays = {
        id(p): group["weight_decay"]
        for group in optimizer_of(net, Training(weight_decay=0.5)).param_groups
        for p in group["params"]
    }
    assert (decays[id(module.base)], decays[id(module.factor)]) == (0.5, 0.0)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_the_loop_is_what_one_would_write_by_hand(optimizer: Any) -> None:
    rows, ours, by_hand = image_rows(), Interpreter(convnet()), Interpreter(convnet())
    settings = Training(
        epochs=2, objective=Objective(label=1.0, distill=0.0), optimizer=optimizer, lr=0.05,
        weight_decay=0.01, clip=0.5, evaluate=10.0,
    )  # fmt: skip
    with SilentProgress().stage("train") as stage:
        train(ours, rows, settings, seed=0, stage=stage, hooks=[Last()])
    decayed = [by_hand.weight(name) for name in ("conv.w", "fc.w")]
    plain = [by_hand.weight(name) for name in ("bn.scale", "bn.shift", "fc.b")]
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    steps: Any = (
        torch.optim.SGD(groups, lr=0.05, momentum=0.9)
        if optimizer == "sgd"
        else kinds[optimizer](groups, lr=0.05)
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(steps, 22)
    by_hand.train()
    for epoch in (0, 1):
        for batch in rows.batches(epoch):
            loss = F.cross_entropy(by_hand(batch.feeds["x"])[0], batch.labels)  # type: ignore[arg-type]
            steps.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 0.5)
            steps.step()
            schedule.step()
    for name in (*ours.weight_names, "bn.mean", "bn.var"):
        torch.testing.assert_close(ours.weight(name), by_hand.weight(name), rtol=1e-4, atol=1e-5)


class Last(Silent):
    """Keeps the weights of the last step."""

    keeps_last = True


@torch.no_grad()
def test_a_mean_put_into_the_net_and_gone_on_from() -> None:
    net = Interpreter(convnet())
    average = Average(net, 0.9)
    start = net.weight("fc.w").clone()
    for _ in range(3):
        net.weight("fc.w").add_(1.0)
        net.weight("bn.var").add_(1.0)
        average.update()
    again = Average(net, 0.9)
    again.load_state_dict(average.state_dict())
    for one in (average, again):
        net.weight("fc.w").copy_(start + 4.0)
        one.update()
        one.put()
        # Shares of the start left by each update: 1/10, 2/11, 3/12, 4/13, which the mean forgets.
        mean = 0.0
        for k, now in enumerate((1.0, 2.0, 3.0, 4.0)):
            decay = min(0.9, (1 + k) / (10 + k))
            mean = decay * mean + (1 - decay) * now
        torch.testing.assert_close(net.weight("fc.w"), start + mean, rtol=1e-5, atol=1e-5)
        assert 1.0 < float(net.weight("bn.var")[0]) < 4.0
