"""Where a training runs: the device, the threads, and arithmetic that gives the same every time."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import torch

from rankc.errors import MachineError
from rankc.recipe_training import Training

_NO_MEMORY = "DefaultCPUAllocator"  # what torch says on a CPU, as a plain RuntimeError


def device_of(settings: Training) -> torch.device:
    """The device to train on.

    Raises:
        MachineError: there is no CUDA device where one is asked for.
    """
    if settings.device == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    if settings.device == "cuda":
        built = torch.version.cuda
        why = (
            f"PyTorch {torch.__version__} finds none"
            if built
            else (f"PyTorch {torch.__version__} is built without CUDA")
        )
        raise MachineError(
            f"device is cuda, and {why}; install a PyTorch for your driver, or set it to auto"
        )
    return torch.device("cpu")


@contextlib.contextmanager
def deterministic(threads: int, seed: int, device: torch.device) -> Iterator[None]:
    """Same numbers every time, for as long as this lasts; all is put back afterwards.

    Raises:
        MachineError: the device is out of memory, or cannot compute something repeatably.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS is not repeatable
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    filled = _filled()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(True)
        _fill(False)  # nobody reads memory that was not written
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise MachineError(
                f"the device is out of memory: {error}; lower data.training.batch_size, or set "
                "device to cpu"
            ) from error
        except RuntimeError as error:
            if _NO_MEMORY in str(error):
                raise MachineError(
                    f"out of memory: {error}; lower data.training.batch_size or memory_mb"
                ) from error
            if "deterministic" not in str(error):
                raise
            raise MachineError(
                f"not every operator is repeatable on this device: {error}; set device to cpu"
            ) from error
        finally:
            torch.set_num_threads(before[0])
            torch.use_deterministic_algorithms(before[1])
            _fill(filled)


def _filled() -> bool:
    return bool(getattr(torch.utils.deterministic, "fill_uninitialized_memory"))  # noqa: B009


def _fill(value: bool) -> None:
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", value)  # noqa: B010


class Interrupts:
    """Ctrl-C between two steps rather than in the midst of one. A second one is not held back."""

    def __init__(self) -> None:
        self.asked = False

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    @contextlib.contextmanager
    def held(self) -> Iterator[Interrupts]:
        """For as long as this lasts; only the main thread gets signals."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = signal.signal(signal.SIGINT, self._ask)
        try:
            yield self
        finally:
            signal.signal(signal.SIGINT, before or signal.SIG_DFL)
