"""The recipe's gates as bounds that a device can check with the bundle alone.

A device has neither the original nor the validation rows. What the original has of sizes and of
distances from itself is known when the bundle is made, so gates on those become plain bounds;
changes of times and of what labels judge do not.
"""

from __future__ import annotations

from collections.abc import Sequence

from rankc.recipe import Gate
from rankc.validate.quantities import Quantity, known_to, observe
from rankc.validate.schema import Metrics
from rankrt.manifest import Gate as DeviceGate

DISTANCES = ("mean_abs_err", "max_abs_err", "cosine")
TIMES = ("latency_ms", "throughput")


def device_gates(gates: Sequence[Gate], metrics: Metrics) -> tuple[DeviceGate, ...]:
    """One for each gate of the recipe, in its order.

    Args:
        gates: of the recipe.
        metrics: after the gates were decided, see `finish`.
    """
    return tuple(
        _gate(g, row["text"], metrics) for g, row in zip(gates, metrics["gates"], strict=True)
    )


def _gate(gate: Gate, text: str, metrics: Metrics) -> DeviceGate:
    quantity = known_to(metrics)[gate.metric]
    return DeviceGate(
        metric=gate.metric,
        kind=quantity.kind,
        text=text,
        at_least=quantity.higher_is_better,
        bound=_bound(gate, quantity, metrics),
        batch=gate.batch,
        percentile=(gate.percentile or 50) if gate.metric in TIMES else None,
        output=metrics["output"] if gate.metric in DISTANCES else None,
    )


def _bound(gate: Gate, quantity: Quantity, metrics: Metrics) -> float | None:
    """On the value itself; None where a device cannot measure it, or not what it changed from."""
    if gate.against == "baseline" or gate.metric not in (*DISTANCES, *TIMES, "size_bytes"):
        return None
    if gate.goal == "threshold":
        return gate.value
    pair = observe(metrics, gate.metric, gate.batch)
    if gate.metric in TIMES or pair is None:
        return None
    change = gate.value
    if gate.goal.startswith("percent"):
        change *= abs(pair[0]) / 100.0
    better = 1.0 if quantity.higher_is_better else -1.0
    return pair[0] + (change if "improvement" in gate.goal else -change) * better
