"""What the machine refuses is told as such."""

from __future__ import annotations

import pytest
import torch

from rankc.errors import MachineError
from rankc.train.machine import deterministic


def test_memory_that_the_machine_does_not_have() -> None:
    """On a CPU torch says so by a RuntimeError like any other."""
    with (
        pytest.raises(MachineError, match=r"out of memory: .*lower data.training.batch_size"),
        deterministic(1, 0, torch.device("cpu")),
    ):
        torch.empty(1 << 60, dtype=torch.uint8)
    assert not torch.are_deterministic_algorithms_enabled()
