"""The loop trains what it should, and keeps what is best."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from builders import lookup, mlp, mlp_rows, model_of, weight
from rankc.recipe_training import Augment, Objective, Training
from rankc.train.augment import augmented
from rankc.train.batch_norm import reestimate_batch_norms
from rankc.train.hooks import Silent
from rankc.train.interpreter import Interpreter
from rankc.train.loop import held_out_losses
from rankc.train.rows import Rows
from rankc.train.teacher import Teacher
from rankrt.session import open_model
from sources import Rows as Arrays
from train.nets import convnet, digest, image_rows, images, run

LABELS = Objective(label=1.0, distill=0.0)


def answers(net: Interpreter, feeds: Mapping[str, Any]) -> Any:
    model = ir.to_proto(net.to_onnx()).SerializeToString()
    return next(iter(open_model(model).run(dict(feeds)).values()))


def test_labels_are_learned_and_onnx_runtime_agrees() -> None:
    net, (pixels, labels) = Interpreter(convnet()), images(300, seed=9)
    before = (answers(net, {"x": pixels}).argmax(axis=1) == labels).mean()
    history = run(net, image_rows(400), Training(epochs=15, objective=LABELS, lr=0.1))
    after = (answers(net, {"x": pixels}).argmax(axis=1) == labels).mean()
    assert before < 0.5 < 0.85 < after
    kept = history.looks[history.best]
    assert kept.loss == min(look.loss for look in history.looks) < 0.5 * history.looks[0].loss
    assert kept.metrics["accuracy_top1"] > 0.85
    assert kept.metrics["logloss"] == pytest.approx(kept.loss)
    assert (history.steps, history.stopped) == (15 * 22, "all steps made")


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_distillation_comes_close_to_the_original_without_labels(temperature: float) -> None:
    original, net = Teacher(convnet(1)), Interpreter(convnet(0))
    rows = Rows(Arrays({"x": images(400)[0]}), batch_size=16)
    goal = Objective(temperature=temperature)
    history = run(net, rows, Training(epochs=15, objective=goal, lr=0.05), original)
    assert history.looks[history.best].loss < 0.05 * history.looks[0].loss
    assert history.looks[0].metrics == {}


def test_matching_inner_values_alone() -> None:
    original, net = Teacher(convnet(1)), Interpreter(convnet(0))
    goal = Objective(distill=0.0, match={"*logits": 0.5})
    found = run(net, image_rows(), Training(epochs=10, objective=goal, lr=0.05), original)
    assert found.looks[found.best].loss < 0.2 * found.looks[0].loss


def test_a_regression_learns_numbers() -> None:
    net, original = Interpreter(_line(0)), Interpreter(_line(1))
    x = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)
    y = answers(original, {"x": x}).reshape(-1)
    rows = Rows(Arrays({"x": x}, 64, y), batch_size=20)
    settings = Training(epochs=20, objective=LABELS, lr=0.05, metric="mse", weight_decay=0.0)
    history = run(net, rows, settings)
    assert history.looks[-1].metrics["mse"] < 1e-6
    assert history.looks[-1].metrics.keys() == {"mse"}


def _line(seed: int) -> ir.Model:
    tape, x = ir.tape.Tape(), ir.val("x", ir.DataType.FLOAT, ["batch", 3])
    numbers = np.random.default_rng(seed).normal(size=(3, 1)).astype(np.float32)
    y = ir.val("y", ir.DataType.FLOAT, ["batch", 1])
    tape.op("MatMul", [x, weight(tape, "w", numbers)], output=y)
    return model_of(tape, [x], [y])


def test_a_binary_answer_is_trained_at_its_logit() -> None:
    """The model puts out probabilities; the metric is the AUC."""
    net, rng = Interpreter(lookup()), np.random.default_rng(0)
    ids = rng.integers(0, [60, 9, 60], (600, 3))
    labels = ((ids[:, 0] % 3 == 0) ^ (rng.random(600) < 0.05)).astype(np.float32)
    rows = Rows(Arrays({"ids": ids}, 64, labels), batch_size=25)
    for goal in (LABELS, dataclasses.replace(LABELS, ensemble=True)):
        settings = Training(
            epochs=20, objective=goal, optimizer="adam", lr=0.01, metric="auc", weight_decay=0.0
        )
        history = run(net, rows, settings)
        first, kept = history.looks[0], history.looks[history.best]
        assert kept.metrics["auc"] == max(look.metrics["auc"] for look in history.looks)
        assert kept.metrics["auc"] > max(0.85, first.metrics["auc"] - 1e-9)
        net = Interpreter(lookup())


def test_tokens_without_a_label_are_not_learned() -> None:
    """Labels of -100 everywhere but at one place: the others may hold anything."""
    tape, ids = ir.tape.Tape(), ir.val("ids", ir.DataType.INT64, ["batch", 5])
    table = weight(tape, "table", np.zeros((7, 6), np.float32))
    logits = ir.val("logits", ir.DataType.FLOAT, ["batch", 5, 6])
    tape.op("Gather", [table, ids], output=logits)
    net, rng = Interpreter(model_of(tape, [ids], [logits])), np.random.default_rng(0)
    rows = rng.integers(0, 7, (200, 5))
    labels = np.full((200, 5), -100)
    labels[:, 2] = rows[:, 2] % 6
    found = run(
        net, Rows(Arrays({"ids": rows}, 64, labels), batch_size=10),
        Training(epochs=10, objective=LABELS, lr=2.0, weight_decay=0.0),
    )  # fmt: skip
    kept = found.looks[found.best].metrics
    assert kept["accuracy_top1"] == 1.0
    assert kept["logloss"] < 0.1


def test_the_best_look_is_kept_and_patience_ends_the_training() -> None:
    net, rows = Interpreter(convnet()), image_rows()
    settings = Training(
        epochs=50, objective=LABELS, lr=0.5, schedule="constant", evaluate=0.5, patience=3
    )
    history = run(net, rows, settings)
    losses = [look.loss for look in history.looks]
    assert history.stopped == "no better look in 3"
    assert history.epochs < 50
    assert history.best == int(np.argmin(losses)) == len(losses) - 4
    found = held_out_losses(net, rows, settings, None, trained=True)
    assert len(found) == rows.held_out_count
    assert float(found.mean()) == pytest.approx(min(losses), rel=1e-6)


def test_the_start_is_kept_where_training_only_harms() -> None:
    """Distilled from itself, a model is best as it is."""
    net, before = Interpreter(convnet()), digest(Interpreter(convnet()))
    objective = Objective(label=0.01)
    history = run(
        net, image_rows(), Training(epochs=1, objective=objective, lr=3.0), Teacher(convnet())
    )
    assert history.best == 0
    assert digest(net) == before


def test_a_hook_may_ask_for_the_last_weights() -> None:
    class Last(Silent):
        keeps_last = True

    net = Interpreter(convnet())
    settings = Training(epochs=1, objective=Objective(label=0.01), lr=3.0)
    history = run(net, image_rows(), settings, Teacher(convnet()), (Last(),))
    assert history.best == len(history.looks) - 1
    assert history.looks[-1].loss > history.looks[0].loss


class Recorder(Silent):
    """Writes down what it is called for, and what looks change must not last."""

    name = "recorder"

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.net: Interpreter | None = None

    def start(self, net: Interpreter, steps: int) -> None:
        self.net = net
        self.calls.append(f"start {steps}")

    def before_step(self, step: int) -> None:
        assert self.net is not None
        assert self.net.weight("fc.b").abs().max() < 100
        self.calls.append(f"before {step}")

    def penalty(self) -> torch.Tensor | None:
        self.calls.append("penalty")
        return None

    def after_backward(self, step: int) -> None:
        self.calls.append(f"backward {step}")

    def after_step(self, step: int) -> None:
        self.calls.append(f"after {step}")

    @torch.no_grad()
    def evaluating(self) -> None:
        assert self.net is not None
        self.net.weight("fc.b").fill_(100.0)
        torch.rand(3)
        self.calls.append("evaluating")

    def after_epoch(self, epoch: int) -> None:
        self.calls.append(f"epoch {epoch}")

    def finish(self, net: Interpreter) -> None:
        self.calls.append(f"finish {float(net.weight('fc.b').detach()[0]):g}")


def test_hooks_are_called_in_order_and_looks_leave_no_trace() -> None:
    hook = Recorder()
    rows = image_rows(40, 16)  # 36 to train on: two steps an epoch
    run(Interpreter(convnet()), rows, Training(epochs=1.5, objective=LABELS), hooks=(hook,))
    step = ["before {0}", "penalty", "backward {0}", "after {0}"]
    steps = [[call.format(k) for call in step] for k in range(3)]
    assert hook.calls == [
        "start 3", "evaluating", *steps[0], *steps[1], "epoch 0", "evaluating", *steps[2],
        "epoch 1", "evaluating", "finish 100",
    ]  # fmt: skip


def test_how_often_is_looked_changes_no_step() -> None:
    rows, found = image_rows(), []
    for evaluate in (0.2, 1.0, 5.0):
        net = Interpreter(convnet())
        last = type("Last", (Silent,), {"keeps_last": True})()
        settings = Training(epochs=2, objective=LABELS, average=0.9, evaluate=evaluate)
        run(net, rows, settings, hooks=(last,))
        found.append(digest(net))
    assert len(set(found)) == 1


def test_the_same_seed_gives_the_same_bytes_and_another_others() -> None:
    found = []
    for seed in (0, 0, 1):
        net = Interpreter(convnet())
        settings = Training(epochs=2, objective=LABELS, lr=0.1, augment=Augment(pad=1))
        run(net, image_rows(), settings, seed=seed)
        found.append(digest(net))
    assert found[0] == found[1] != found[2]


def test_what_was_set_in_torch_is_as_before() -> None:
    torch.manual_seed(5)
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    drawn = torch.get_rng_state()
    run(Interpreter(convnet()), image_rows(), Training(epochs=0.5, objective=LABELS, threads=2))
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before
    assert torch.equal(torch.get_rng_state(), drawn)


def test_frozen_weights_stay() -> None:
    """And running statistics, which steps would change and not the optimizer."""
    net, names = Interpreter(convnet(), frozen=("conv.*", "bn.*")), ("scale", "mean", "var")
    kept = ("conv.w", *(f"bn.{name}" for name in names))
    before = {name: net.weight(name).clone() for name in (*kept, "fc.w")}
    hook = type("Again", (Silent,), {"reestimates": True})()
    run(net, image_rows(), Training(epochs=1, objective=LABELS, lr=0.1), hooks=(hook,))
    same = {name: torch.equal(net.weight(name), w) for name, w in before.items()}
    assert same == {**dict.fromkeys(kept, True), "fc.w": False}


def test_statistics_taken_anew_are_those_of_rows_as_they_are_trained_on() -> None:
    net, rows, how = Interpreter(convnet()), image_rows(), Augment(pad=3, fill=40.0)
    expected = Interpreter(convnet())
    some = [batch.feeds for batch in rows.some(32)]
    bordered = [augmented(feeds, how, 0, k) for k, feeds in enumerate(some)]
    settings = Training(epochs=1, objective=LABELS, lr=1e-12, augment=how)
    run(net, rows, settings, hooks=(type("Again", (Silent,), {"reestimates": True})(),))
    for batches, same in ((bordered, True), (some, False)):
        reestimate_batch_norms(expected, batches)
        assert torch.allclose(net.weight("bn.mean"), expected.weight("bn.mean"), rtol=1e-3) is same


def test_the_mean_of_the_weights_is_looked_at_and_kept() -> None:
    class Last(Silent):
        keeps_last = True

        def __init__(self) -> None:
            self.net: Interpreter | None = None
            self.weights: list[torch.Tensor] = []
            self.means: list[torch.Tensor] = []

        def start(self, net: Interpreter, steps: int) -> None:
            self.net = net
            self.after_step(-1)

        def after_step(self, step: int) -> None:
            assert self.net is not None
            self.weights.append(self.net.weight("fc.w").detach().clone())
            self.means.append(self.net.weight("bn.mean").clone())

    net, hook = Interpreter(convnet()), Last()
    run(net, image_rows(), Training(epochs=1, objective=LABELS, lr=0.2, average=0.5), hooks=(hook,))
    for name, seen in (("fc.w", hook.weights), ("bn.mean", hook.means)):
        mean = seen[0]
        for k, now in enumerate(seen[1:]):
            decay = min(0.5, (1 + k) / (10 + k))
            mean = decay * mean + (1 - decay) * now
        torch.testing.assert_close(net.weight(name).detach(), mean, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(mean, seen[-1], rtol=1e-3)


def test_minutes_end_the_training() -> None:
    history = run(
        Interpreter(convnet()), image_rows(), Training(epochs=500, objective=LABELS, minutes=1e-4)
    )
    assert history.stopped == "0.0001 minutes"
    assert history.steps < 500 * 11
    assert history.looks[-1].step == history.steps


def test_progress_is_told() -> None:
    class Told:
        def __init__(self) -> None:
            self.done: list[tuple[int, int | None]] = []
            self.notes: list[str] = []

        def advance(self, done: int, total: int | None = None) -> None:
            self.done.append((done, total))

        def note(self, text: str) -> None:
            self.notes.append(text)

    told = Told()
    history = run(
        Interpreter(convnet()), image_rows(), Training(epochs=1, objective=LABELS), stage=told
    )
    assert told.done == [(k + 1, 11) for k in range(11)]
    assert "epoch 1 of 1, held-out loss" in told.notes[-2]
    assert "accuracy_top1 0." in told.notes[-2]
    assert told.notes[-1] == history.told()


def test_the_history_is_json() -> None:
    history = run(Interpreter(convnet()), image_rows(), Training(epochs=0.2, objective=LABELS))
    tree = json.loads(json.dumps(history.to_dict(), allow_nan=False))
    assert tree["looks"][0]["metrics"]["accuracy_top1"] >= 0
    assert tree["best"] < len(tree["looks"])


class Counting(Teacher):
    calls = 0

    def values_of(
        self, feeds: Mapping[str, torch.Tensor], names: Collection[str]
    ) -> dict[str, torch.Tensor]:
        self.calls += 1
        return super().values_of(feeds, names)


def test_remembered_answers_are_those_of_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked anew at every step, the original gives the same training up to the last digits."""
    found = []
    for most in (0, 1 << 26):
        monkeypatch.setattr("rankc.train.criterion.REMEMBERED", most)
        original = Counting(convnet(1))
        history = run(Interpreter(convnet()), image_rows(), Training(epochs=3, lr=0.05), original)
        found.append(([look.loss for look in history.looks], original.calls))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert (found[0][1], found[1][1]) == (3 * 11 + 4 * 2, 12 + 2)


def test_several_numbers_behind_a_sigmoid_are_several_answers() -> None:
    original, net = Teacher(mlp(seed=3)), Interpreter(mlp())
    rows = Rows(Arrays({"x": mlp_rows(400)}), batch_size=20)
    found = run(net, rows, Training(epochs=8, lr=0.1, optimizer="sgd"), original)
    assert found.looks[found.best].loss < 0.3 * found.looks[0].loss
