"""The original model, which answers what the one that is trained should."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx_ir as ir
import torch

from rankc.train.interpreter import Interpreter

Tensor = torch.Tensor


class Teacher:
    """A model that is run and never changed."""

    def __init__(self, model: ir.Model) -> None:
        """Args: the model, which is copied.

        Raises:
            ModelError: it has operators that have no torch form.
        """
        self.net = Interpreter(model, frozen=("*",))
        self.net.eval()

    @property
    def values(self) -> dict[str, ir.Value]:
        """Inner values by name."""
        return {str(v.name): v for node in self.net.graph for v in node.outputs if v.name}

    def to(self, device: torch.device) -> Teacher:
        """Move it."""
        self.net.to(device)
        return self

    @torch.no_grad()
    def values_of(self, feeds: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
        """Inner values or outputs of some rows, by name."""
        with self.net.capture(*names) as seen:
            self.net.run(feeds)
        return {name: seen[name] for name in names}
