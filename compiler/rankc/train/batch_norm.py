"""BatchNormalization put behind layers for training, and folded into them again.

Compilers and exporters fold BatchNormalization into the convolution before it. A net without it is
hard to train further (Ioffe & Szegedy, ICML 2015), so it is put back such that nothing changes:
where z = W x has mean m and variance v in every channel and y = z + b is what the layer puts out,
    y = scale (z - mean) / sqrt(var + eps) + bias
with var = v, scale = sqrt(v + eps), mean = m and bias = m + b. The layer's own bias goes: under the
statistics of a batch its gradient would be zero. So would that of the size of W: it only decides
how far a step of given length turns W, by 1 / |W|^2 (van Laarhoven, arXiv 1706.05350). Folding made
it that of the layer's output, so W is scaled by a power of two, one for the layer, to about the
size of weights that are trained. Folding is the way back, in float64, cast once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from rankc.errors import DataError, ModelError
from rankc.factors import LEARNED
from rankc.graph import (
    array_of,
    attribute,
    drop_unused,
    matches,
    new_initializer,
    only_input,
    values,
)
from rankc.linalg import Floats
from rankc.train.channels import (
    CONVOLUTIONS,
    LAYERS,
    Layer,
    give_bias,
    layer_of,
    scale_weight,
    take_bias,
    unique_name,
)
from rankc.train.interpreter import Interpreter
from rankc.train.registry import Tensor

Array = NDArray[Any]

EPSILON = 1e-5
KEPT = 0.9  # of running statistics at every step
# Norm of the weights of one output. He et al., ICCV 2015, start from sqrt(2); it grows in training:
# the layers of a trained ResNet-20 have 1.2 to 2.2, and 0.6 to 4.3 once folded.
SIZE = 2.0


def insert_batch_norms(
    model: ir.Model,
    batches: Iterable[Mapping[str, Array]],
    nodes: Collection[str] | None = None,
    frozen: Sequence[str] = (),
) -> list[str]:
    """Put a BatchNormalization behind layers, in place, so that the model computes the same.

    There is none behind a layer that only a BatchNormalization reads, nor within a pair of
    convolutions, that is behind one without a bias that only convolutions read. The bias of the
    new node takes the name of the layer's, and its output the name of the layer's output. A channel
    that is constant stays so: its variance is 0, its scale sqrt(eps).

    Args:
        model: cleaned up.
        batches: arrays by input name, for the means and variances, over batches and positions.
        nodes: names of layers: Conv, ConvTranspose, and Gemm or MatMul with outputs (batch, m).
            By default every convolution with constant weights.
        frozen: patterns of weights and biases that are not to be trained: their layers get none,
            for folding it would change them.

    Returns:
        Names of the new nodes, in the model's order: `<layer>/batch_norm`.

    Raises:
        ModelError: a named node is not there or no such layer, or the model cannot be run in torch.
        DataError: no batches, one without an input, or numbers that are not finite.
    """
    layers = [layer for layer in _meant(model, nodes) if not _needs_none(layer, frozen)]
    if not layers:
        return []
    found = _measure(model, [str(layer.output.name) for layer in layers], batches)
    return [_insert(model, layer, *found[str(layer.output.name)]) for layer in layers]


def fold_batch_norms(model: ir.Model) -> int:
    """Fold BatchNormalization into the layer before it, in place, by the running statistics.

    Left alone are those behind anything else than a layer with constant weights, and those whose
    layer is read by others. Weights that other nodes share are copied first.

    Returns:
        How many were folded.
    """
    folded = 0
    for node in list(model.graph):
        if node.op_type == "BatchNormalization" and (layer := _foldable(node)) is not None:
            _fold(model, node, layer)
            folded += 1
    return folded


@torch.no_grad()
def reestimate_batch_norms(net: Interpreter, batches: Iterable[Mapping[str, Tensor]]) -> None:
    """Take the running statistics anew: the mean of the batches', weighted by their rows.

    To be done before a net is looked at whose weights have changed by anything but steps of
    training, as Maestro does (Horváth et al., ICML 2024). No weight changes; whether the net is
    training stays as it was.

    Args:
        net: nothing happens where it has no BatchNormalization.
        batches: tensors by input name, on the net's device.

    Raises:
        DataError: no batches, or one with a single number a channel.
    """
    statistics = _statistics(net)
    if not statistics:
        return
    mode, state, rows = net.training, net.state, 0
    before = state.momentum, state.fixed_statistics
    net.train()
    state.fixed_statistics = False
    try:
        for batch in batches:
            if rows == 0:
                _reset(net, statistics)
            count = len(batch[net.input_names[0]])
            rows += count
            state.momentum = count / rows
            _run_training(net, batch)
    finally:
        state.momentum, state.fixed_statistics = before
        net.train(mode)
    if rows == 0:
        raise DataError("BatchNormalization: no rows to take the statistics from")


def _run_training(net: Interpreter, batch: Mapping[str, Tensor]) -> None:
    try:
        net.run(batch)
    except ValueError as error:  # torch's word for a channel that has one number
        raise DataError(
            f"BatchNormalization: a batch has no variance: {error}; give more rows a batch"
        ) from error


def _statistics(net: Interpreter) -> list[tuple[str, str]]:
    """Names of running mean and variance, a pair for each BatchNormalization that changes them."""
    return [
        (str(only_input(node, 3).name), str(only_input(node, 4).name))
        for node in net.graph
        if node.op_type == "BatchNormalization"
        and not attribute(node, "training_mode", 0)
        and all(only_input(node, k).is_initializer() for k in (3, 4))
        and not any(only_input(node, k).name in net.state.frozen for k in (3, 4))
    ]


def _reset(net: Interpreter, statistics: Iterable[tuple[str, str]]) -> None:
    for mean, var in statistics:
        net.weight(mean).zero_()
        net.weight(var).fill_(1.0)


def _meant(model: ir.Model, nodes: Collection[str] | None) -> list[Layer]:
    """The layers that are asked for, in the model's order."""
    found = {str(node.name): node for node in model.graph}
    layers: list[Layer] = []
    for name in [n for n in found if nodes is None or n in nodes]:
        node = found[name]
        if nodes is None and node.op_type not in CONVOLUTIONS:
            continue
        layer = layer_of(node)
        if layer is not None:
            layers.append(layer)
        elif nodes is not None:
            raise ModelError(
                f"{node.op_type} node {name!r}: no BatchNormalization can stand behind it; it has "
                f"to be one of {', '.join(LAYERS)} with constant weights and outputs (batch, m)"
            )
    if missing := [name for name in nodes or () if name not in found]:
        raise ModelError(f"no node is called {missing[0]!r}; `rankc inspect` lists names")
    return layers


def _needs_none(layer: Layer, frozen: Sequence[str]) -> bool:
    """Whether no BatchNormalization belongs behind a layer."""
    own = [v for node in (layer.node, layer.add) if node is not None for v in node.inputs]
    names = [str(v.name) for v in own if v is not None and v.is_initializer()]
    if any(matches(name, pattern) for name in names for pattern in frozen):
        return True
    readers = {reader.op_type for reader in layer.output.consumers()}
    if not readers or layer.output.is_graph_output():
        return False
    if readers == {"BatchNormalization"}:
        return True
    first = layer.node.op_type in CONVOLUTIONS and layer.bias is None
    return first and readers <= set(CONVOLUTIONS)


@dataclasses.dataclass(slots=True)
class _Running:
    """Mean and variance a channel of tensors (batch, channels, ...), batch by batch, in float64.

    Merged as in Chan, Golub & LeVeque, COMPSTAT 1982.
    """

    count: int = 0
    mean: Tensor | float = 0.0
    squares: Tensor | float = 0.0  # of the distances to the mean

    def add(self, tensor: Tensor) -> None:
        along = [axis for axis in range(tensor.dim()) if axis != 1]
        more = tensor.numel() // tensor.shape[1]
        var, mean = torch.var_mean(tensor.to(torch.float64), along, correction=0)
        whole = self.count + more
        step = mean - self.mean
        self.squares = self.squares + var * more + step * step * (self.count * more / whole)
        self.mean = self.mean + step * (more / whole)
        self.count = whole

    def result(self) -> tuple[Floats, Floats]:
        assert isinstance(self.mean, Tensor)
        assert isinstance(self.squares, Tensor)
        return self.mean.cpu().numpy(), (self.squares / self.count).cpu().numpy()


@torch.no_grad()
def _measure(
    model: ir.Model, names: Iterable[str], batches: Iterable[Mapping[str, Array]]
) -> dict[str, tuple[Floats, Floats]]:
    """Mean and variance of each channel of the values."""
    net = Interpreter(model).train(False)
    running = {name: _Running() for name in names}
    for name, one in running.items():
        net.tap(name, _watched(one))
    for batch in batches:
        if missing := [name for name in net.input_names if name not in batch]:
            raise DataError(f"a batch lacks the model's input {missing[0]!r}")
        net.run({name: torch.from_numpy(np.array(batch[name])) for name in net.input_names})
    if not all(one.count for one in running.values()):
        raise DataError("BatchNormalization: no rows to measure means and variances on")
    found = {name: one.result() for name, one in running.items()}
    for name, (mean, var) in found.items():
        if not (np.isfinite(mean).all() and np.isfinite(var).all()):
            raise _not_finite(name)
    return found


def _not_finite(name: str) -> DataError:
    return DataError(
        f"value {name!r} is not finite or too large on the data that is trained on; look for rows "
        "of another scale than the model's"
    )


def _watched(one: _Running) -> Callable[[Tensor], Tensor]:
    def tap(tensor: Tensor) -> Tensor:
        one.add(tensor)
        return tensor

    return tap


def _insert(model: ir.Model, layer: Layer, mean: Floats, var: Floats) -> str:
    """Put a BatchNormalization behind a layer whose outputs have these moments; its name."""
    old = layer.output
    name = unique_name(f"{layer.node.name}/batch_norm", {str(n.name) for n in model.graph})
    parameters = _parameters(model, layer, name, mean, var)
    out = ir.Value(name=old.name, type=old.type, shape=old.shape)
    old.name = unique_name(f"{name}.input", {str(v.name) for v in values(model)})
    ir.convenience.replace_all_uses_with(old, out, replace_graph_outputs=True)
    new = ir.Node(
        "",
        "BatchNormalization",
        [layer.node.outputs[0], *parameters],
        [ir.AttrFloat32("epsilon", EPSILON), ir.AttrFloat32("momentum", KEPT)],
        outputs=[out],
        name=name,
    )
    model.graph.insert_after(layer.add or layer.node, new)
    if layer.add is not None:
        model.graph.remove(layer.add, safe=True)
    return name


def _parameters(
    model: ir.Model, layer: Layer, name: str, mean: Floats, var: Floats
) -> list[ir.Value]:
    """Scale, bias, mean and variance of a new node.

    The layer's own bias is taken away, and its weights are scaled.

    Raises:
        DataError: the variance is too large for the layer's type.
    """
    by = _resize(layer)
    raw = mean if layer.bias is None else mean - layer.bias
    with np.errstate(over="ignore"):
        var = (by * by * var).astype(layer.dtype).astype(np.float64)  # as it will be read
    if not np.isfinite(var).all():
        raise _not_finite(str(layer.output.name))
    arrays = {
        f"{name}.scale": np.sqrt(var + float(np.float32(EPSILON))) / by,
        take_bias(model, layer) or f"{name}.bias": mean,
        f"{name}.mean": by * raw,
        f"{name}.var": var,
    }
    return [new_initializer(model, key, a.astype(layer.dtype)) for key, a in arrays.items()]


def _resize(layer: Layer) -> float:
    """Bring weights to about the size that is trained; the factor, 1 where others read them."""
    value = only_input(layer.node, 1)
    array = np.asarray(array_of(value))
    norm = float(np.linalg.norm(array.astype(np.float64)))
    if len(value.uses()) > 1 or value.is_graph_output() or not norm:
        return 1.0
    by = 2.0 ** round(math.log2(SIZE * math.sqrt(layer.channels) / norm))
    value.const_value = ir.tensor((by * array).astype(array.dtype), name=value.name)
    if (learned := value.meta.get(LEARNED)) is not None:
        value.meta[LEARNED] = dataclasses.replace(learned, second=by * learned.second)
    return by


def _foldable(node: ir.Node) -> Layer | None:
    """The layer that a BatchNormalization can be folded into."""
    value, parameters = only_input(node), [array_of(v) for v in node.inputs[1:]]
    producer = value.producer()
    if producer is None or value.is_graph_output() or len(value.uses()) != 1:
        return None
    if attribute(node, "training_mode", 0) or any(array is None for array in parameters):
        return None
    if producer.op_type == "Add":
        above = [v.producer() for v in producer.inputs if v is not None]
        layers = [layer_of(n) for n in above if n is not None and n.op_type == "MatMul"]
        return next((one for one in layers if one is not None and one.add is producer), None)
    return layer_of(producer)


def _fold(model: ir.Model, node: ir.Node, layer: Layer) -> None:
    scale, bias, mean, var = (
        np.asarray(array_of(value)).astype(np.float64) for value in node.inputs[1:]
    )
    epsilon = node.attributes.get("epsilon", ir.AttrFloat32("epsilon", EPSILON)).as_float()
    by = scale / np.sqrt(var + epsilon)
    shift = bias + by * ((0.0 if layer.bias is None else layer.bias) - mean)
    title = str(only_input(node, 2).name)
    scale_weight(model, layer.node, by)
    take_bias(model, layer)
    _remove(model, node, layer)
    give_bias(model, layer, new_initializer(model, title, shift.astype(layer.dtype)))


def _remove(model: ir.Model, node: ir.Node, layer: Layer) -> None:
    """Connect round a BatchNormalization."""
    out, parameters = node.outputs[0], list(node.inputs[1:])
    kept = layer.output
    ir.convenience.replace_all_uses_with(out, kept, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)
    kept.name = out.name
    drop_unused(model, [value for value in parameters if value is not None])
