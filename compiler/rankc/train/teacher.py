"""The original model, which answers what the one that is trained should."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np
import onnx_ir as ir
import torch

from rankc.train.interpreter import Interpreter
from rankc.train.minibatches import Minibatch

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

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return next(iter(self.net.buffers())).device

    def to(self, device: torch.device) -> Teacher:
        """Move it."""
        self.net.to(device).channels_last()
        return self

    @torch.no_grad()
    def values_of(self, feeds: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
        """Inner values or outputs of some rows, by name."""
        with self.net.capture(*names) as seen:
            self.net.run(feeds)
        return {name: seen[name] for name in names}


class Remembered:
    """What the original answers to rows that come again and again, unchanged."""

    def __init__(self, teacher: Teacher, name: str, batches: Iterable[Minibatch]) -> None:
        """Ask once.

        Args:
            teacher: the original, on its device, where answers are kept.
            name: of the value.
            batches: in the order of their rows, and always in the same batches: what else is in
                one shows in the last digits.
        """
        rows, found = [], []
        for batch in batches:
            feeds = batch.to(teacher.device).feeds
            found.append(teacher.values_of(feeds, [name])[name])
            rows.append(batch.rows)
        self._rows, self._answers = np.concatenate(rows), torch.cat(found)

    def of(self, batch: Minibatch) -> Tensor:
        """The answers to some of the rows, (rows, ...)."""
        places = torch.from_numpy(np.searchsorted(self._rows, batch.rows))
        return self._answers[places.to(self._answers.device)]
