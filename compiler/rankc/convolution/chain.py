"""What every way to factor a convolution offers: its error and its cost at every rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rankc.convolution.kernel import Stage
from rankc.linalg import Floats


class Chain(Protocol):
    """A convolution as a chain of smaller ones, nested in the rank. The last rank is exact."""

    @property
    def name(self) -> str:
        """Of the form, in plans and recipes."""
        ...

    @property
    def lost(self) -> Floats:
        """E|y - y'|^2 summed over channels, at ranks 0, 1, ... full, (full + 1,)."""
        ...

    @property
    def felt(self) -> Floats:
        """The same under the weight of an error at the output, (full + 1,)."""
        ...

    def stages(self, rank: int) -> tuple[Stage, ...]:
        """What would be emitted."""
        ...

    def weights(self, rank: int) -> Sequence[Floats]:
        """The weight of each stage, in its shape or flat."""
        ...

    def matrix(self, rank: int) -> Floats:
        """What the chain computes, as one kernel, (groups, m, C taps)."""
        ...
