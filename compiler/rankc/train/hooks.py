"""What a trainable method adds to the loop: it acts between the loop's own steps."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from rankc.train.interpreter import Interpreter


class Hook(Protocol):
    """One method. The loop calls these in the order in which they stand here.

    `step` counts from 0 and goes on where a resumed training left off.
    """

    name: str
    # The model becomes smaller as it is trained, so that looks at it are not to be compared: the
    # last weights are kept, whatever the rows held out say.
    keeps_last: bool
    # Statistics of BatchNormalization are to be taken anew, by rows that are trained on, before
    # every look: steps ran on other nets than the one that is looked at.
    reestimates: bool

    def key(self) -> str:
        """The method's options as text: a checkpoint made under others is not gone on from."""
        ...

    def start(self, net: Interpreter, steps: int) -> None:
        """Once, before the optimizer is made: weights may be replaced by computed ones.

        Args:
            net: on the device that it will be trained on.
            steps: of the whole training.
        """
        ...

    def before_step(self, step: int) -> None:
        """Before the forward pass; weights may be changed in place."""
        ...

    def penalty(self) -> torch.Tensor | None:
        """A term of the loss, or None; asked for once a step, after the forward pass."""
        ...

    def after_backward(self, step: int) -> None:
        """Gradients are there and may be added to; before they are clipped."""
        ...

    def after_step(self, step: int) -> None:
        """Weights have been updated; they may be changed in place, without a gradient."""
        ...

    def evaluating(self) -> None:
        """Before rows held out are looked at: the net has to be what would be deployed.

        Weights may be changed in place. What the net was is put back after the look, so that
        looking changes no training; if the look is the best one, the net is kept as it was seen.
        """
        ...

    def after_epoch(self, epoch: int) -> None:
        """After every epoch, the last, unfinished one included."""
        ...

    def finish(self, net: Interpreter) -> None:
        """Once, after the weights to keep were put back: settle computed weights.

        What this needs of the moment that they are from has to lie in the net's buffers.
        """
        ...

    def report(self) -> dict[str, Any]:
        """What the method has to tell, as JSON; e.g. the rank of every layer over time."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that resuming needs beside the net's parameters: tensors, numbers, text, lists."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The other way round; called after `start`."""
        ...


class Silent:
    """A hook that does nothing: the base of those that need not do everything."""

    name = "nothing"
    keeps_last = False
    reestimates = False

    def key(self) -> str:
        return ""

    def start(self, net: Interpreter, steps: int) -> None: ...

    def before_step(self, step: int) -> None: ...

    def penalty(self) -> torch.Tensor | None:
        return None

    def after_backward(self, step: int) -> None: ...

    def after_step(self, step: int) -> None: ...

    def evaluating(self) -> None: ...

    def after_epoch(self, epoch: int) -> None: ...

    def finish(self, net: Interpreter) -> None: ...

    def report(self) -> dict[str, Any]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
