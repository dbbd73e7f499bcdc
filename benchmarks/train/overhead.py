"""What the interpreter costs beside a net written in torch. `python -m benchmarks.train.overhead`.

One training step of ResNet-20: forward, cross-entropy, backward, a step of SGD with momentum.
Once as `models/cifar/network.py` writes it, once out of its ONNX graph, exported without folding
BatchNormalization away, by `rankc.train.Interpreter`; of the same weights and images (random ones:
what a step costs does not depend on them). Both have the same parameters: mean and deviation of
the pixels, which the exporter makes initializers of, are frozen. Thread CPU time of one thread, the
two in turn, which comes first changes every time. Two minutes.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported

import argparse
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch  # noqa: TID253 - what is measured is built on it
import torch.nn.functional as F  # noqa: N812, TID253
from models.cifar.network import ResNet20
from models.exporting import quiet
from torch import nn  # noqa: TID253

from rankc.train.interpreter import Interpreter

RESULTS = Path(__file__).parent / "results"
BATCHES, REPEATS, MOST = (32, 128), {32: 60, 128: 30}, 1.15
OPSET, RATE, MOMENTUM = 18, 0.01, 0.9
RESAMPLES = 10_000
WRITTEN, INTERPRETED = "written in torch", "interpreted"

Step = Callable[[], float]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write overhead.json and overhead.md; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="where results go")
    parser.add_argument("--repeats", type=int, help="of each batch size; default 60 and 30")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    raw: dict[str, Any] = {
        "format": 1,
        "environment": {
            "machine": platform.machine(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "seconds": {str(n): times(n, options.repeats or REPEATS[n]) for n in BATCHES},
    }
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(raw, indent=1, sort_keys=True) + "\n"
    (options.out / "overhead.json").write_text(text, encoding="utf-8", newline="\n")
    (options.out / "overhead.md").write_text(table(raw), encoding="utf-8", newline="\n")
    print(table(raw))
    return 0 if all(ratio_of(one)[0] <= MOST for one in raw["seconds"].values()) else 1


def exported(net: ResNet20) -> ir.Model:
    """The graph with every BatchNormalization in it."""
    with quiet():
        program = torch.onnx.export(
            net.eval(), (torch.zeros(2, 3, 32, 32),), dynamo=True, opset_version=OPSET,
            dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False, optimize=False,
        )  # fmt: skip
    assert program is not None
    model = program.model
    kinds = [node.op_type for node in model.graph]
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    assert kinds.count("BatchNormalization") == norms, kinds
    return model


def steps(batch: int) -> dict[str, Step]:
    """One training step of each, which gives its loss; the two start alike."""
    torch.manual_seed(0)
    net = ResNet20()
    nets = {WRITTEN: net, INTERPRETED: Interpreter(exported(net), ["offset", "scale"])}
    sizes = {k: sum(p.numel() for p in one.parameters()) for k, one in nets.items()}
    assert sizes[WRITTEN] == sizes[INTERPRETED], sizes
    images, labels = 255 * torch.rand(batch, 3, 32, 32), torch.randint(10, (batch,))
    return {name: _step(one.train(), images, labels) for name, one in nets.items()}


def _step(net: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Step:
    optimizer = torch.optim.SGD(net.parameters(), RATE, MOMENTUM)

    def step() -> float:
        optimizer.zero_grad()
        found = net(images)
        loss = F.cross_entropy(found[0] if isinstance(found, tuple) else found, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return float(loss.detach())

    return step


def times(batch: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of CPU of every step of each, in turn."""
    both = steps(batch)
    for _ in range(3):  # the first ones allocate, and show that both are the same net
        losses = [step() for step in both.values()]
        assert abs(losses[0] - losses[1]) < 1e-3 * losses[0], losses
    found: dict[str, list[float]] = {name: [] for name in both}
    for k in range(repeats):
        for name in list(both)[:: 1 if k % 2 else -1]:
            start = time.thread_time()
            both[name]()
            found[name].append(time.thread_time() - start)
    return found


def ratio_of(seconds: Mapping[str, Sequence[float]]) -> tuple[float, float, float]:
    """The median ratio of steps beside each other, and its 95 % bootstrap interval."""
    ratios = np.array(seconds[INTERPRETED]) / np.array(seconds[WRITTEN])
    picked = np.random.default_rng(0).integers(len(ratios), size=(RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(ratios[picked], axis=1), [2.5, 97.5])
    return float(np.median(ratios)), float(low), float(high)


def table(raw: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "# What the interpreter costs",
        "",
        "One training step of ResNet-20, median thread CPU time of one thread, in turn.",
        "",
        "| images | steps | written in torch, ms | interpreted, ms | ratio | 95 % interval |",
        "|---|---|---|---|---|---|",
    ]
    for batch, seconds in raw["seconds"].items():
        written, interpreted = (1e3 * np.median(seconds[k]) for k in (WRITTEN, INTERPRETED))
        ratio, low, high = ratio_of(seconds)
        lines.append(
            f"| {batch} | {len(seconds[WRITTEN])} | {written:.0f} | {interpreted:.0f} "
            f"| {ratio:.3f} | {low:.3f} to {high:.3f} |"
        )
    met = all(ratio_of(seconds)[0] <= MOST for seconds in raw["seconds"].values())
    lines += ["", f"Aim: a ratio of at most {MOST} ({'met' if met else 'missed'})."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
