"""Running statistics taken anew."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

from builders import mlp
from norm_builders import (
    Array,
    added,
    batches,
    cleaned,
    convolutions,
    pictures,
)
from rankc.errors import DataError
from rankc.graph import node_named
from rankc.train.batch_norm import fold_batch_norms, insert_batch_norms, reestimate_batch_norms
from rankc.train.interpreter import Interpreter


def tensors(array: Array, size: int = 16) -> list[dict[str, torch.Tensor]]:
    return [{"x": torch.from_numpy(one["x"])} for one in batches(array, size)]


def normalised() -> tuple[Interpreter, Array]:
    model, x = convolutions(("a", (4, 3, 3, 3), True), relu=True), pictures(30)
    insert_batch_norms(model, batches(x))
    return Interpreter(model).train(False), x


def test_statistics_taken_anew_are_the_mean_over_all_rows() -> None:
    net, x = normalised()
    weight_, mean, var = (net.weight(n) for n in ("a.w", "a/batch_norm.mean", "a/batch_norm.var"))
    with torch.no_grad():
        weight_.mul_(3)
        mean.fill_(torch.nan)
        others = {k: v.clone() for k, v in net.state_dict().items()}
        with net.capture("a/batch_norm.input") as seen:
            net(torch.from_numpy(x))
    z = seen["a/batch_norm.input"]
    reestimate_batch_norms(net, tensors(x, 8))
    parts = [z[k : k + 8] for k in range(0, len(z), 8)]
    variances = [p.transpose(0, 1).flatten(1).var(1) * len(p) / len(z) for p in parts]
    torch.testing.assert_close(mean, z.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(var, torch.stack(variances).sum(0), rtol=1e-5, atol=1e-6)
    moved = [k for k, v in net.state_dict().items() if not torch.equal(v, others[k])]
    assert len(moved) == 2


@pytest.mark.parametrize("mode", [True, False])
def test_taking_statistics_anew_leaves_the_mode_as_it_was(mode: bool) -> None:
    net, x = normalised()
    net.train(mode)
    net.state.fixed_statistics = True
    net.weight("a/batch_norm.mean").fill_(1000.0)
    reestimate_batch_norms(net, tensors(x))
    assert net.weight("a/batch_norm.mean").abs().max() < 100
    assert (net.training, net.state.training) == (mode, mode)
    assert (net.state.momentum, net.state.fixed_statistics) == (None, True)


def test_a_net_without_any_needs_no_batches() -> None:
    reestimate_batch_norms(Interpreter(cleaned(mlp())), [])


def test_statistics_of_nothing_are_refused_and_kept() -> None:
    net, _ = normalised()
    before = net.weight("a/batch_norm.var").clone()
    with pytest.raises(DataError, match="no rows to take the statistics from"):
        reestimate_batch_norms(net, [])
    assert torch.equal(net.weight("a/batch_norm.var"), before)


def test_a_batch_of_one_number_a_channel_is_refused() -> None:
    model, x = added(), np.ones((6, 3), np.float32)
    insert_batch_norms(model, batches(x), ["fc"])
    net = Interpreter(model).train(False)
    with pytest.raises(DataError, match="a batch has no variance"):
        reestimate_batch_norms(net, tensors(x, 1))
    assert not net.training
    assert net.state.momentum is None


def test_one_that_always_goes_by_the_batch_keeps_what_it_reads() -> None:
    """In the graph's own training mode new statistics are outputs, the old ones constants."""
    model, x = convolutions(("a", (4, 3, 3, 3), True), relu=True), pictures(30)
    insert_batch_norms(model, batches(x))
    node = node_named(model, "a/batch_norm")
    node.attributes["training_mode"] = ir.AttrInt64("training_mode", 1)
    net = Interpreter(model)
    before = net.weight("a/batch_norm.mean").clone()
    reestimate_batch_norms(net, [])
    assert torch.equal(net.weight("a/batch_norm.mean"), before)
    assert fold_batch_norms(model) == 0
