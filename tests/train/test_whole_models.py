"""Whole models, exported at three opsets: the interpreter is ONNX Runtime, and can be trained."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from rankc.train.interpreter import Interpreter
from rankrt.session import open_model
from train.networks import EXAMPLES, Tensor, exported

DEEPFM = Path(__file__).parents[2] / "models" / "ctr-deepfm"
CASES = [(name, opset) for name in EXAMPLES for opset in (18, 20, 23)]
OPERATORS = {  # what makes a case what it is
    ("resnet", 18): {"BatchNormalization", "Conv", "MaxPool"},
    ("encoder", 18): {"Erf", "LayerNormalization", "Softmax"},
    ("encoder", 20): {"Gelu", "LayerNormalization", "Softmax"},
    ("encoder", 23): {"Attention", "Gelu", "LayerNormalization"},
    ("decoder", 18): {"Cos", "ReduceMean", "Sigmoid", "Softmax"},
    ("decoder", 20): {"Cos", "ReduceMean", "Sigmoid", "Softmax"},
    ("decoder", 23): {"Attention", "Cos", "RMSNormalization", "Sigmoid"},
}
whole_models = pytest.mark.parametrize("name,opset", CASES)


def same(net: Interpreter, model: ir.Model, feeds: Mapping[str, Tensor]) -> None:
    """ONNX Runtime's outputs of the model are those of the net, to 1e-5 of their size."""
    session = open_model(ir.to_proto(model).SerializeToString())
    wanted = session.run({name: x.numpy() for name, x in feeds.items()})
    with torch.no_grad():
        found = net.run(feeds)
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        bound = 1e-5 * max(1.0, float(np.abs(array).max()))
        np.testing.assert_allclose(found[name].numpy(), array, rtol=0, atol=bound)


def loss_of(net: Interpreter, feeds: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([y.square().mean() for y in net.run(feeds).values()]).sum()


def step(net: Interpreter, feeds: Mapping[str, Tensor], rate: float = 0.05) -> None:
    net.zero_grad()
    loss_of(net, feeds).backward()  # type: ignore[no-untyped-call]
    torch.optim.SGD(net.parameters(), rate).step()


@whole_models
def test_outputs_are_onnx_runtimes_at_any_batch_size(name: str, opset: int) -> None:
    model = exported(name, opset)
    assert OPERATORS.get((name, opset), set()) <= {node.op_type for node in model.graph}
    net = Interpreter(model).eval()
    for count in (2, 5):
        same(net, model, EXAMPLES[name].feeds(count))


@whole_models
def test_every_float_weight_gets_a_gradient(name: str, opset: int) -> None:
    model, torch_net = exported(name, opset), EXAMPLES[name].make()
    net = Interpreter(model)
    loss_of(net, EXAMPLES[name].feeds(5)).backward()  # type: ignore[no-untyped-call]
    without = [w for w in net.weight_names if not _moves(net.weight(w))]
    assert without == []
    trained = sum(p.numel() for p in torch_net.parameters())
    tables = sum(b.numel() for key, b in torch_net.named_buffers() if key == "turns")
    assert sum(p.numel() for p in net.parameters()) == trained + tables


def _moves(weight: Tensor) -> bool:
    return weight.grad is not None and bool(weight.grad.isfinite().all() & weight.grad.any())


@whole_models
def test_weights_after_a_step_are_written_back(name: str, opset: int) -> None:
    model, example = exported(name, opset), EXAMPLES[name]
    net = Interpreter(model).train()
    step(net, example.feeds(5))
    net.eval()
    changed = net.to_onnx()
    same(net, changed, example.feeds(2))
    with pytest.raises(AssertionError):
        same(net, model, example.feeds(2))


@whole_models
def test_a_copy_lives_on_its_own(name: str, opset: int) -> None:
    model, feeds = exported(name, opset), EXAMPLES[name].feeds(5)
    net = Interpreter(model).eval()
    twin = copy.deepcopy(net)
    same(twin, model, feeds)
    step(twin.train(), feeds)
    same(net, model, feeds)
    step(net.train(), feeds)
    same(net.eval(), twin.to_onnx(), feeds)


@whole_models
def test_gradients_are_finite_differences(name: str, opset: int) -> None:
    """In float64, along random directions of all weights at once."""
    net, feeds = Interpreter(exported(name, opset)).double().eval(), EXAMPLES[name].feeds(3)
    feeds = {k: x.double() if x.is_floating_point() else x for k, x in feeds.items()}
    loss_of(net, feeds).backward()  # type: ignore[no-untyped-call]
    weights = list(net.parameters())
    for seed in range(3):
        torch.manual_seed(seed)
        along = [torch.randn_like(w) for w in weights]
        slope = sum(_dot(w.grad, d) for w, d in zip(weights, along, strict=True))
        found = (_moved(net, feeds, along, 1e-6) - _moved(net, feeds, along, -1e-6)) / 2e-6
        assert found == pytest.approx(slope, rel=1e-5, abs=1e-7)


def _dot(a: Tensor | None, b: Tensor) -> float:
    assert a is not None
    return float((a * b).sum())


def _moved(net: Interpreter, feeds: Mapping[str, Tensor], along: list[Tensor], by: float) -> float:
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for weight, direction in zip(twin.parameters(), along, strict=True):
            weight.add_(by * direction)
        return float(loss_of(twin, feeds))


def test_the_ctr_model_as_it_lies_there() -> None:
    model = ir.load(DEEPFM / "model.onnx")
    with np.load(DEEPFM / "calibration.npz") as rows:
        ids, dense = torch.from_numpy(rows["ids"][:64]), torch.from_numpy(rows["dense"][:64])
    net = Interpreter(model)
    for count in (2, 5):
        same(net, model, {"ids": ids[:count], "dense": dense[:count]})
    step(net, {"ids": ids, "dense": dense}, 1.0)
    same(net, net.to_onnx(), {"ids": ids, "dense": dense})
    assert [w for w in net.weight_names if not _moves(net.weight(w))] == []
    tables = [w for w in net.weight_names if w.startswith("emb.")]
    assert len(tables) == ids.shape[1]
