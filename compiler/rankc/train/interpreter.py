"""An ONNX graph as a differentiable `torch.nn.Module`, and back.

Weights keep their names. Every initializer of floats with more than one number is one, and so is a
bias of one number; other initializers are constants, and the running statistics of a
BatchNormalization are buffers.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from rankc.errors import ModelError
from rankc.graph import matches
from rankc.train.program import Program, Tap, program_of
from rankc.train.registry import State, Tensor, as_torch

# Inputs that are weights even where they are one number, that is of one channel.
_ALWAYS = {"Conv": (2,), "ConvTranspose": (2,), "Gemm": (2,), "BatchNormalization": (1, 2)}
_STATISTICS = {"BatchNormalization": (3, 4)}


class Interpreter(nn.Module):
    """Runs a graph; `forward` takes and returns tensors in the order of the graph's."""

    def __init__(self, model: ir.Model, frozen: Sequence[str] = ()) -> None:
        """Make a module of a model; the model is copied, and never changed.

        Args:
            model: of opset 13 or later, functions inlined.
            frozen: names of initializers that are not to be trained: globs, or re: patterns.

        Raises:
            ModelError: it has operators that have no torch form, see `rankc.train.operators`.
        """
        super().__init__()
        self._model = model.clone()
        graph = self._model.graph
        self.state = State()
        self._program = self._steps()
        self._parameters_of: dict[str, str] = {}
        self._buffers_of: dict[str, str] = {}
        self._computed: dict[str, str] = {}
        self._frozen: dict[str, str] = {}
        self._taps: dict[str, Tap] = {}
        for k, (name, value) in enumerate(graph.initializers.items()):
            assert value.const_value is not None, name
            tensor = as_torch(value.const_value, f"initializer {name!r}")
            weight = _is_weight(value, tensor)
            pattern = next((p for p in frozen if matches(name, p)), None)
            if weight and pattern is not None:
                self._frozen[name] = pattern
            if weight and pattern is None:
                self.register_parameter(f"weight_{k}", nn.Parameter(tensor))
                self._parameters_of[name] = f"weight_{k}"
            else:
                self.register_buffer(f"constant_{k}", tensor)
                self._buffers_of[name] = f"constant_{k}"
                if pattern is not None:
                    self.state.frozen |= {name}

    def _steps(self) -> Program:
        return program_of(self.graph, self._model.opset_imports.get("", 0), self.state)

    def __deepcopy__(self, memo: dict[int, Any]) -> Interpreter:
        """The functions of a program hold on to the state, so a copy gets a program of its own."""
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        shared = ("_model", "_program")  # the model is never changed
        for name, value in self.__dict__.items():
            made.__dict__[name] = value if name in shared else copy.deepcopy(value, memo)
        made._program = made._steps()
        return made

    @property
    def graph(self) -> ir.Graph:
        """What is run; not to be changed."""
        return self._model.graph

    @property
    def input_names(self) -> tuple[str, ...]:
        """Of the graph's inputs."""
        return self._program.inputs

    @property
    def output_names(self) -> tuple[str, ...]:
        """Of the graph's outputs."""
        return self._program.outputs

    @property
    def weight_names(self) -> tuple[str, ...]:
        """Initializers that are trained, computed ones included."""
        return (*self._parameters_of, *self._computed)

    @property
    def computed_names(self) -> tuple[str, ...]:
        """Those of them that `compute_weight` took over."""
        return tuple(self._computed)

    @property
    def frozen(self) -> Mapping[str, str]:
        """Weights that are left as they are, and the pattern that says so."""
        return self._frozen

    def train(self, mode: bool = True) -> Interpreter:
        """As in torch; BatchNormalization then goes by the batch."""
        super().train(mode)
        self.state.training = mode
        return self

    def channels_last(self) -> Interpreter:
        """Lay weights of images out so that convolutions are fastest; values stay as they are."""
        if all(tensor.dim() < 5 for tensor in (*self.parameters(), *self.buffers())):
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Outputs in the graph's order, of inputs in the graph's order."""
        known = dict(zip(self._program.inputs, inputs, strict=True))
        return tuple(self._program.run(self._values(known), self._taps))

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs by name, of inputs by name."""
        found = self(*(inputs[name] for name in self.input_names))
        return dict(zip(self.output_names, found, strict=True))

    def _values(self, known: dict[str, Tensor]) -> dict[str, Tensor]:
        for name, key in self._buffers_of.items():
            known[name] = self._buffers[key]  # type: ignore[assignment]
        for name, key in self._parameters_of.items():
            known[name] = self._parameters[key]  # type: ignore[assignment]
        for name, key in self._computed.items():
            known[name] = self._modules[key]()  # type: ignore[misc]
        return known

    def weight(self, name: str) -> Tensor:
        """The tensor behind an initializer; of a weight the parameter, to be changed in place.

        Raises:
            KeyError: there is no initializer of that name, or it is computed.
        """
        if name in self._parameters_of:
            return getattr(self, self._parameters_of[name])  # type: ignore[no-any-return]
        return getattr(self, self._buffers_of[name])  # type: ignore[no-any-return]

    def compute_weight(self, name: str, module: nn.Module) -> None:
        """Take an initializer from `module()` at every run, e.g. as the product of two factors.

        The module's parameters are trained in its place.

        Raises:
            KeyError: there is no initializer of that name, or it is computed already.
            ModelError: the module's tensor has another shape.
        """
        if name in self._parameters_of:
            key = self._parameters_of.pop(name)
            shape = tuple(self._parameters.pop(key).shape)  # type: ignore[union-attr]
        else:
            key = self._buffers_of.pop(name)
            shape = tuple(self._buffers.pop(key).shape)  # type: ignore[union-attr]
        with torch.no_grad():
            found = tuple(module().shape)
        if found != shape:
            raise ModelError(f"weight {name!r} of shape {shape} is computed as one of {found}")
        self.add_module(f"computed_{key}", module)
        self._computed[name] = f"computed_{key}"

    def computing(self, name: str) -> nn.Module:
        """The module that a weight is taken from."""
        return self._modules[self._computed[name]]  # type: ignore[return-value]

    def settle_weight(self, name: str) -> None:
        """Make a computed weight a parameter of its own again, of the value it has."""
        module = self.computing(name)
        with torch.no_grad():
            settled = nn.Parameter(module().detach().clone())
        key = self._computed.pop(name)
        del self._modules[key]
        self.register_parameter(key.removeprefix("computed_"), settled)
        self._parameters_of[name] = key.removeprefix("computed_")

    def tap(self, value: str, function: Tap | None) -> None:
        """Put a function behind an inner value; None takes it away."""
        if function is None:
            self._taps.pop(value, None)
            return
        if not any(value in step.outputs for step in self._program.steps):
            raise ModelError(f"the graph computes no value {value!r}")
        self._taps[value] = function

    @contextlib.contextmanager
    def capture(self, *values: str) -> Iterator[dict[str, Tensor]]:
        """What the inner values were in the last run, by name, with their gradients' history."""
        seen: dict[str, Tensor] = {}
        before = dict(self._taps)

        def keep(name: str) -> Callable[[Tensor], Tensor]:
            inner = before.get(name)

            def tap(tensor: Tensor) -> Tensor:
                seen[name] = tensor if inner is None else inner(tensor)
                return seen[name]

            return tap

        for name in values:
            self.tap(name, keep(name))
        try:
            yield seen
        finally:
            self._taps = before

    def to_onnx(self) -> ir.Model:
        """A model of the same graph with the weights and statistics as they are now."""
        model = self._model.clone()
        for name, value in model.graph.initializers.items():
            if name in self._computed:
                with torch.no_grad():
                    tensor = self.computing(name)()
            else:
                tensor = self.weight(name)
            value.const_value = _as_onnx(tensor, name, value)
        return model


def _as_onnx(tensor: Tensor, name: str, value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None
    found = tensor.detach().cpu()
    if found.dtype is torch.bfloat16:
        found = found.to(torch.float32)
    array = np.array(found.numpy(), value.const_value.dtype.numpy(), order="C")
    return ir.tensor(array, dtype=value.const_value.dtype, name=name)


def _is_weight(value: ir.Value, tensor: Tensor) -> bool:
    if not tensor.is_floating_point():
        return False
    uses = [(node.op_type, index) for node, index in value.uses()]
    if any(index in _STATISTICS.get(op, ()) for op, index in uses):
        return False
    return tensor.numel() > 1 or any(index in _ALWAYS.get(op, ()) for op, index in uses)
