"""Times of a model on a CUDA stream, by events, as one captured graph where it can be captured.

Never run where this was written: there was no GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rankrt.backends.cuda import DeviceMemory
from rankrt.errors import BackendError

_COPIES = 5


class EventCalls:
    """`rankrt.device_bench.DeviceCalls` of whatever puts work on the stream of `memory`."""

    def __init__(
        self, memory: DeviceMemory, enqueue: Callable[[], None], copy: Callable[[], None]
    ) -> None:
        """Run once, and capture the second run as a graph if the device lets us.

        Args:
            memory: its stream is used.
            enqueue: puts one call of the model on the stream; inputs are on the device.
            copy: puts the copies of one batch there, and of its outputs back.
        """
        self._memory, self._enqueue, self._copy = memory, enqueue, copy
        enqueue()  # what is made at the first call must not be captured
        memory.synchronize()
        self._launch, self.graph = enqueue, False
        graph = self._captured()
        if graph is not None:
            self._launch = lambda: memory.call("cudaGraphLaunch", graph, memory.stream)
            self.graph = True

    def kernel_ms(self, calls: int) -> list[float]:
        """Device time of each call, the calls one behind the other on the stream."""
        return self._between(self._launch, calls)

    def copy_ms(self) -> float:
        """Device time of one batch's copies, the median of five."""
        return sorted(self._between(self._copy, _COPIES))[_COPIES // 2]

    def _between(self, work: Callable[[], Any], times: int) -> list[float]:
        memory = self._memory
        pairs = [
            (memory.call("cudaEventCreate"), memory.call("cudaEventCreate")) for _ in range(times)
        ]
        try:
            for start, end in pairs:
                memory.call("cudaEventRecord", start, memory.stream)
                work()
                memory.call("cudaEventRecord", end, memory.stream)
            memory.synchronize()
            return [float(memory.call("cudaEventElapsedTime", *pair)) for pair in pairs]
        finally:
            for pair in pairs:
                for event in pair:
                    memory.call("cudaEventDestroy", event)

    def _captured(self) -> Any:
        """The call as a graph ready to launch, or None: some engines do what cannot be captured."""
        memory = self._memory
        mode = memory.cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        memory.call("cudaStreamBeginCapture", memory.stream, mode)
        try:
            self._enqueue()
        except BackendError:
            self._end_capture()
            return None
        graph = self._end_capture()
        if graph is None:
            return None
        try:
            return memory.call("cudaGraphInstantiate", graph, 0)
        except BackendError:
            return None
        finally:
            memory.call("cudaGraphDestroy", graph)

    def _end_capture(self) -> Any:
        """The stream must leave the capture, also of what went wrong."""
        try:
            return self._memory.call("cudaStreamEndCapture", self._memory.stream)
        except BackendError:
            return None
