"""What builds the function of an operator: a node in, a function of tensors out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from rankc.errors import ModelError

if TYPE_CHECKING:
    from rankc.train.program import Program

Tensor = torch.Tensor
# Takes what the node reads, a tensor each or None for an input left out; returns what it writes, a
# tensor, or a tuple of them where there are several outputs.
Function = Callable[..., Any]
Builder = Callable[["Op"], Function]

DTYPES: Mapping[ir.DataType, torch.dtype] = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.INT8: torch.int8,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.UINT16: torch.uint16,
    ir.DataType.UINT32: torch.uint32,
    ir.DataType.UINT64: torch.uint64,
    ir.DataType.BOOL: torch.bool,
}


@dataclasses.dataclass(slots=True)
class State:
    """What operators ask of the net that they belong to, while it runs."""

    training: bool = False  # BatchNormalization then takes the statistics of the batch
    fixed_statistics: bool = False  # not even then
    frozen: frozenset[str] = frozenset()  # running statistics that stay what they are, by name
    momentum: float | None = None  # of running statistics, instead of each node's; 1: the batch's


@dataclasses.dataclass(frozen=True, slots=True)
class Op:
    """A node, as builders read it. Attributes are read once, when the net is built."""

    node: ir.Node
    opset: int
    state: State
    build: Callable[[ir.Graph], Program]  # of the bodies of If, Loop and Scan
    captured: tuple[str, ...] = ()  # what the bodies read from outside: inputs after the node's own

    @property
    def outputs(self) -> int:
        """How many outputs the node names, those at the end that are left out not counted."""
        return len(self.node.outputs)

    def has(self, index: int) -> bool:
        """Whether the node reads an input there."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def integer(self, name: str, default: int | None = None) -> int:
        """An integer attribute; without a default it has to be there."""
        found = self.node.attributes.get(name)
        if found is None:
            return int(self._needed(name, default))
        return int(found.as_int())

    def number(self, name: str, default: float | None = None) -> float:
        """A float attribute."""
        found = self.node.attributes.get(name)
        return self._needed(name, default) if found is None else float(found.as_float())

    def text(self, name: str, default: str | None = None) -> str:
        """A string attribute."""
        found = self.node.attributes.get(name)
        return self._needed(name, default) if found is None else str(found.as_string())

    def integers(self, name: str) -> list[int] | None:
        """A list of integers, or None."""
        found = self.node.attributes.get(name)
        return None if found is None else [int(k) for k in found.as_ints()]

    def numbers(self, name: str) -> list[float] | None:
        """A list of floats, or None."""
        found = self.node.attributes.get(name)
        return None if found is None else [float(k) for k in found.as_floats()]

    def texts(self, name: str) -> list[str] | None:
        """A list of strings, or None."""
        found = self.node.attributes.get(name)
        return None if found is None else [str(k) for k in found.as_strings()]

    def tensor(self, name: str) -> Tensor | None:
        """A tensor attribute, or None."""
        found = self.node.attributes.get(name)
        return None if found is None else as_torch(found.as_tensor(), self.where)

    def dtype(self, name: str, default: torch.dtype | None = None) -> torch.dtype:
        """A data type, given as ONNX numbers them."""
        found = self.node.attributes.get(name)
        if found is None:
            wanted: torch.dtype = self._needed(name, default)
            return wanted
        return dtype_of(ir.DataType(found.as_int()), self.where)

    def body(self, name: str) -> Program:
        """The graph of an If, a Loop or a Scan."""
        return self.build(self.node.attributes[name].as_graph())

    def constant(self, index: int) -> NDArray[Any] | None:
        """What input `index` is, where that is known before anything runs."""
        value = self.node.inputs[index] if self.has(index) else None
        if value is None or value.const_value is None:
            return None
        return np.asarray(value.const_value.numpy())

    @property
    def where(self) -> str:
        """The node, for messages."""
        return f"{self.node.op_type} node {self.node.name!r}"

    def refuse(self, what: str) -> ModelError:
        """The error to raise for what this operator cannot do."""
        return ModelError(f"{self.where}: {what}")

    def _needed(self, name: str, default: Any) -> Any:
        if default is None:
            raise self.refuse(f"attribute {name} is missing")
        return default


def dtype_of(dtype: ir.DataType, where: str) -> torch.dtype:
    """The type in torch.

    Raises:
        ModelError: torch has none, or cannot compute with it.
    """
    found = DTYPES.get(dtype)
    if found is None:
        known = ", ".join(one.name for one in DTYPES)
        raise ModelError(f"{where}: data type {dtype.name} cannot be trained; known are {known}")
    return found


def as_torch(tensor: ir.TensorProtocol, where: str) -> Tensor:
    """A copy of an ONNX tensor."""
    dtype = dtype_of(tensor.dtype, where)
    array = np.array(tensor.numpy(), order="C")  # a copy of its own, which may be written to
    if dtype is torch.bfloat16:
        return torch.from_numpy(array.astype(np.float32)).to(dtype)
    return torch.from_numpy(array)
