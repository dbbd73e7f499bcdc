"""Timing of isolated layers, in pairs, so that a busy machine cannot tilt the answer.

  cpu       ONNX Runtime, one thread, CPU time of that thread: the harness of `validate.sampling`
  cuda      ONNX Runtime's CUDA provider, wall-clock time
  tensorrt  an engine for every layer, built by `lowering`, wall-clock time

A call of an empty model is timed first and taken off every layer: a layer inside a model is not
called from Python. On a device a layer makes its own input and reduces its output, or copies
between host and device would outweigh it.
"""

from __future__ import annotations

import dataclasses
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from rankc.errors import MachineError, RecipeError
from rankc.graph import FLOAT
from rankc.layer_models import Feeds, feeds_of
from rankc.lowering import TIME_LIMIT, lower
from rankc.recipe import Target
from rankc.validate.bootstrap import median_interval
from rankc.validate.sampling import CLOCK, Samples, sample_pairs
from rankrt.backends import cuda, onnxruntime, tensorrt
from rankrt.errors import BackendError, RankrtError
from rankrt.manifest import Engine
from rankrt.session import Session, open_model

TARGETS = ("cpu", "cuda", "tensorrt")
PAIRS = 40  # wanted; fewer where the seconds do not suffice, but at least 5
WALL_CLOCK = "wall-clock time"

_LEAST = 0.02  # of an empty call: what a layer takes at least, once the call is taken off
_SAMPLE_NS = 2_000_000
_MIN_PAIRS = 5
_WARM_UP = 5

Call = Callable[[], object]


@dataclasses.dataclass(frozen=True, slots=True)
class Machine:
    """What measured times depend on."""

    device: str
    backend: str
    version: str
    clock: str
    threads: int


@dataclasses.dataclass(frozen=True, slots=True)
class Compared:
    """A factored layer against the dense one, calls of an empty model taken off."""

    dense_ms: float
    factored_ms: float
    ratio: float  # factored / dense, median over pairs
    interval: tuple[float, float]  # 95 %, of the ratio
    pairs: int


class Bench(Protocol):
    """A device on which layers are timed."""

    machine: Machine

    def open(self, alone: ir.Model) -> Call:
        """A call that runs the isolated layer once.

        Raises:
            MachineError: the backend refuses the layer.
        """
        ...

    def pairs(self, first: Call, second: Call, seconds: float) -> Samples:
        """Interleaved samples of two calls, in nanoseconds."""
        ...


def bench_of(target: str) -> Bench:
    """Where to time.

    Raises:
        RecipeError: no such target.
        MachineError: it is not on this machine; says what to install.
    """
    if target not in TARGETS:
        raise RecipeError(f"target {target!r} is not known; choose one of {', '.join(TARGETS)}")
    if target == "cpu":
        return _Cpu()
    return _Cuda() if target == "cuda" else _TensorRT()


def empty_call_ns(bench: Bench) -> float:
    """What calling a model costs that does nothing."""
    call = bench.open(_empty())
    samples = bench.pairs(call, call, 0.1)
    return float(np.median([samples.original, samples.compressed]))


def compare(bench: Bench, dense: Call, factored: Call, seconds: float, empty_ns: float) -> Compared:
    """Time two isolated layers in turn, for about `seconds`."""
    samples = bench.pairs(dense, factored, seconds)
    a, b = (_net(times, empty_ns) for times in (samples.original, samples.compressed))
    ratios = b / a
    return Compared(
        dense_ms=float(np.median(a)) / 1e6,
        factored_ms=float(np.median(b)) / 1e6,
        ratio=float(np.median(ratios)),
        interval=median_interval(ratios),
        pairs=len(ratios),
    )


def _net(times: NDArray[np.float64], empty_ns: float) -> NDArray[np.float64]:
    """Never zero: the smallest layers take less than the noise of a call."""
    return np.maximum(times - empty_ns, max(_LEAST * empty_ns, 1.0))


def _empty() -> ir.Model:
    x = ir.val("x", FLOAT, [1])
    tape = ir.tape.Tape()
    y = tape.op("Identity", [x], name="empty")
    y.name, y.type, y.shape = "y", ir.TensorType(FLOAT), ir.Shape([1])
    graph = ir.Graph([x], [y], nodes=tape.nodes, opset_imports={"": 18}, name="empty")
    return ir.Model(graph, ir_version=10)


class _Cpu:
    """ONNX Runtime with one thread."""

    def __init__(self) -> None:
        if problem := onnxruntime.available():
            raise MachineError(f"target cpu: {problem}")
        version = open_model(_bytes(_empty())).version
        self.machine = Machine(processor(), "onnxruntime", version, CLOCK, 1)

    def open(self, alone: ir.Model) -> Call:
        return _call(_opened(alone, "CPUExecutionProvider"), feeds_of(alone))

    def pairs(self, first: Call, second: Call, seconds: float) -> Samples:
        return sample_pairs(first, second, PAIRS, seconds)


class _Cuda:
    """ONNX Runtime's CUDA provider. Never run where this was written: there was no GPU."""

    def __init__(self) -> None:
        device = _device("cuda")
        try:
            version = open_model(_bytes(_empty()), providers=("CUDAExecutionProvider",)).version
        except BackendError as error:
            raise MachineError(
                f"target cuda: {error}; pip uninstall onnxruntime, then pip install 'rankc[gpu]'"
            ) from error
        self.machine = Machine(device.name, "onnxruntime-cuda", version, WALL_CLOCK, 1)

    def open(self, alone: ir.Model) -> Call:
        fed = self_fed(alone)
        return _call(_opened(fed, "CUDAExecutionProvider"), feeds_of(fed))

    def pairs(self, first: Call, second: Call, seconds: float) -> Samples:
        return wall_pairs(first, second, seconds)


class _TensorRT:
    """TensorRT engines in float32. Never run where this was written: there was no GPU."""

    def __init__(self) -> None:
        if problem := tensorrt.available("tensorrt"):
            raise MachineError(f"target tensorrt: {problem}; a Jetson has it from JetPack")
        device = _device("tensorrt")
        version = self._session(_empty()).version
        self.machine = Machine(device.name, "tensorrt", version, WALL_CLOCK, 1)

    def open(self, alone: ir.Model) -> Call:
        fed = self_fed(alone)
        return _call(self._session(fed), feeds_of(fed))

    def pairs(self, first: Call, second: Call, seconds: float) -> Samples:
        return wall_pairs(first, second, seconds)

    def _session(self, fed: ir.Model) -> Session:
        with tempfile.TemporaryDirectory(prefix="rankc-") as folder:
            return tensorrt.open_engine(*layer_engine(fed, Target("tensorrt"), Path(folder)))


def layer_engine(fed: ir.Model, target: Target, folder: Path) -> tuple[Path, Engine]:
    """Build an engine of a layer: its file, and its entry as the runtime takes it.

    Raises:
        MachineError: the backend is not here or refuses the layer.
    """
    path = folder / "layer.onnx"
    path.write_bytes(_bytes(fed))
    built = lower(path, target, folder, time_limit=TIME_LIMIT)
    if built.file is None:
        raise MachineError(f"target {target.backend}: {built.reason}")
    entry = Engine(
        backend=target.backend,
        precision=target.precision,
        file=None,
        compute_capability=target.compute_capability,
        version=str(built.version),
        built=True,
        ran=False,
    )
    return built.file, entry


def self_fed(alone: ir.Model) -> ir.Model:
    """An isolated layer that fills its input with one number and returns its largest output.

    Input `fill` (1,), output `peak`, a scalar: what is copied to and from a device is two numbers.
    """
    fed = alone.clone()
    graph = fed.graph
    (given,) = graph.inputs
    assert given.shape is not None
    graph.inputs.clear()
    fill = ir.val("rankc.fill", FLOAT, [1])
    shape = ir.Value(
        name="rankc.shape",
        const_value=ir.tensor(np.array(given.shape.numpy(), np.int64), name="rankc.shape"),
    )
    graph.register_initializer(shape)
    head, tail = ir.tape.Tape(), ir.tape.Tape()
    filled = head.op("Expand", [fill, shape], name="rankc.expand")
    ir.convenience.replace_all_uses_with(given, filled)
    peaks = [
        tail.op("ReduceMax", [value], attributes={"keepdims": 0}, name=f"rankc.peak{k}")
        for k, value in enumerate(graph.outputs)
    ]
    graph.insert_before(graph[0], head.nodes)
    graph.extend(tail.nodes)
    graph.inputs.append(fill)
    graph.outputs.clear()
    for k, peak in enumerate(peaks):
        peak.name, peak.type, peak.shape = f"peak{k}", ir.TensorType(FLOAT), ir.Shape([])
        graph.outputs.append(peak)
    return fed


def wall_pairs(first: Call, second: Call, seconds: float) -> Samples:
    """`sample_pairs` on wall-clock time: what a device does costs the calling thread nothing."""
    both = (first, second)
    calls = [max(1, int(_SAMPLE_NS / _settled_ns(call))) for call in both]
    times = np.empty((PAIRS, 2))
    deadline, done = time.perf_counter_ns() + int(seconds * 1e9), 0
    while done < PAIRS and (done < _MIN_PAIRS or time.perf_counter_ns() < deadline):
        for which in (0, 1) if done % 2 == 0 else (1, 0):
            times[done, which] = _wall_ns(both[which], calls[which])
        done += 1
    return Samples(times[:done, 0], times[:done, 1], (calls[0], calls[1]))


def _settled_ns(call: Call) -> float:
    _wall_ns(call, _WARM_UP)
    return max(_wall_ns(call, _WARM_UP), 1.0)


def _wall_ns(call: Call, calls: int) -> float:
    started = time.perf_counter_ns()
    for _ in range(calls):
        call()
    return (time.perf_counter_ns() - started) / calls


def processor() -> str:
    """The name of the processor, or of the board: Python knows only a family on Linux."""
    lines = _text("/proc/cpuinfo").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    board = _text("/proc/device-tree/model").strip("\0\n ")  # Arm boards name that alone
    return next(filter(None, [*names, board, platform.processor()]), platform.machine())


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _device(target: str) -> cuda.Device:
    device = cuda.probe()
    if isinstance(device, str):
        raise MachineError(
            f"target {target}: {device}; run this on the machine with the GPU, after "
            "pip install 'rankc[gpu]'"
        )
    return device


def _opened(model: ir.Model, provider: str) -> Session:
    try:
        return open_model(_bytes(model), providers=(provider,))
    except BackendError as error:
        raise MachineError(f"a layer cannot be timed: {error}") from error


def _call(session: Session, feeds: Feeds) -> Call:
    """Run once, so that a layer that does not run is told here and not while the clock runs."""
    try:
        session.run(feeds)
    except RankrtError as error:
        raise MachineError(f"a layer cannot be timed: {error}") from error
    return lambda: session.run(feeds)


def _bytes(model: ir.Model) -> bytes:
    return bytes(ir.to_proto(model).SerializeToString())
