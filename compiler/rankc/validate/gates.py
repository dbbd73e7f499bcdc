"""The recipe's promises, checked on the finished model. Goal names are Olive's.

With `gain` the change in the metric's better direction (QUANTITIES says which that is):
  threshold                the compressed value itself: at most `value` where lower is better
                           (errors, costs), at least `value` where higher is (auc, size_ratio)
  min-improvement          gain >= value
  percent-min-improvement  gain >= value % of the original's
  max-degradation          -gain <= value
  percent-max-degradation  -gain <= value % of the original's
What has an interval is decided by that, as `verdicts` says; for a percentage it is divided by the
original's value, as if that were known. Against the baseline, a change is from what that has.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from rankc.errors import Exit, RecipeError
from rankc.recipe import ENERGY_ELSEWHERE, Gate, Recipe
from rankc.validate.baseline import Baseline
from rankc.validate.bootstrap import Interval
from rankc.validate.quantities import (
    MINUS,
    QUANTITIES,
    Quantity,
    available,
    known_to,
    observe,
    own_quantity,
)
from rankc.validate.schema import GateRow, Kind, Metrics
from rankc.validate.verdicts import Ruling, rule


@dataclasses.dataclass(frozen=True, slots=True)
class GateResult:
    """One gate and what came of it."""

    gate: Gate
    kind: Kind
    observed: float  # what was compared with the gate's value, in its unit
    ruling: Ruling
    text: str  # the promise: "drop ≤ 0.001"
    message: str  # what was seen: "auc fell by 0.0031 (0.0024 to 0.0038), the gate allows 0.001"

    @property
    def passed(self) -> bool:
        """Whether it lets the bundle pass: where the gate says so, even undecided."""
        verdict = self.ruling.verdict
        return verdict == "pass" or (verdict == "undecided" and self.gate.undecided == "warn")

    def row(self) -> GateRow:
        """As in metrics.json."""
        row = GateRow(
            metric=self.gate.metric,
            goal=self.gate.goal,
            value=self.gate.value,
            batch=self.gate.batch,
            against=self.gate.against,
            kind=self.kind,
            observed=self.observed,
            passed=self.passed,
            verdict=self.ruling.verdict,
            interval=self.ruling.interval,
            rows_needed=None if self.gate.batch is not None else self.ruling.needed,
            text=self.text,
            message=self.message,
        )
        if self.gate.metric == "latency_ms":
            row["percentile"] = self.gate.percentile or 50
        return row


def check_gates_possible(recipe: Recipe) -> None:
    """Refuse, before any work, gates that the recipe's own data could never decide.

    Raises:
        RecipeError: Lists every gate that is wrong and what would be right.
    """
    problems = [
        f"gates[{i}]: {p}" for i, g in enumerate(recipe.gates) if (p := _problem(g, recipe))
    ]
    if problems:
        raise RecipeError("\n".join(problems))


def check(
    gates: Sequence[Gate], metrics: Metrics, baseline: Baseline | None = None
) -> tuple[GateResult, ...]:
    """Decide every gate; a failure does not stop the others.

    Raises:
        RecipeError: A gate names something that was not measured, and lists what was; or what the
            baseline has nothing of.
    """
    return tuple(_decide(gate, metrics, baseline) for gate in gates)


def require_measured(gates: Sequence[Gate], metrics: Metrics) -> None:
    """Refuse gates on metrics that do not fit the output, before the slow measurements.

    Raises:
        RecipeError: As `check`, for the kind "accuracy" only; lists every such gate.
    """
    known = known_to(metrics)
    missing = [
        _not_measured(gate, metrics)
        for gate in gates
        if gate.metric not in metrics["metrics"]
        and (quantity := known.get(gate.metric))
        and quantity.kind == "accuracy"
    ]
    if missing:
        raise RecipeError("\n".join(missing))


def finish(
    metrics: Metrics,
    gates: Sequence[Gate],
    baseline: Baseline | None = None,
    lines: Mapping[str, int] | None = None,
) -> Metrics:
    """A copy of the metrics with `gates` and `passed` filled in. May be called again.

    Args:
        metrics: What was measured.
        gates: Of the recipe.
        baseline: As `open_baseline` gave it; needed where a gate is against it.
        lines: Of the recipe, by key.

    Raises:
        RecipeError: As `check`.
    """
    results = check(gates, metrics, baseline)
    rows = [result.row() for result in results]
    for index, row in enumerate(rows):
        if (line := (lines or {}).get(f"gates[{index}]")) is not None:
            row["line"] = line
    return {**metrics, "gates": rows, "passed": all(r.passed for r in results)}


def exit_code(metrics: Metrics) -> Exit:
    """Of the process: an accuracy gate that failed outweighs a performance gate."""
    failed = {row["kind"] for row in metrics["gates"] if not row["passed"]}
    if "accuracy" in failed:
        return Exit.ACCURACY
    return Exit.PERFORMANCE if failed else Exit.OK


def _problem(gate: Gate, recipe: Recipe) -> str:
    """Why the gate cannot be decided by this recipe; empty if it can."""
    known = _known(recipe)
    quantity = known.get(gate.metric)
    if quantity is None:
        return f"unknown metric '{gate.metric}'; known: {', '.join(known)}"
    validation = recipe.data.validation
    if quantity.needs and validation is None:
        return f"{gate.metric} needs validation data; add data.validation"
    labelled = quantity.needs in ("labels", "group")
    if labelled and validation is not None and validation.label is None:
        return f"{gate.metric} needs labels; name their column in data.validation.label"
    if quantity.needs == "group" and validation is not None and validation.group is None:
        return f"{gate.metric} needs groups; name their column in data.validation.group"
    if gate.metric == "energy_mj":
        return f"energy_mj is not measured by compiling, which times the CPU; {ENERGY_ELSEWHERE}"
    if gate.percentile is not None and gate.metric != "latency_ms":
        return f"{gate.metric} has no percentile; leave `percentile` out"
    return _batch_problem(gate, quantity, recipe.latency.batch_sizes) or _value_problem(
        gate, quantity
    )


def _known(recipe: Recipe) -> Mapping[str, Quantity]:
    own = {name: own_quantity(name, one.better) for name, one in recipe.metrics.items()}
    return {**QUANTITIES, **own}


def _batch_problem(gate: Gate, quantity: Quantity, sizes: Sequence[int]) -> str:
    if not quantity.per_batch:
        return "" if gate.batch is None else f"{gate.metric} has no batch; leave `batch` out"
    if gate.batch in sizes:
        return ""
    listed = ", ".join(map(str, sizes)) or "none"
    asked = "none is given" if gate.batch is None else f"{gate.batch} is not measured"
    return f"{gate.metric} needs a `batch` out of latency.batch_sizes ({listed}); {asked}"


def _value_problem(gate: Gate, quantity: Quantity) -> str:
    since = gate.against == "baseline"
    if since and gate.goal == "threshold":
        return "a threshold compares with nothing; leave `against` out, or use 'max-degradation'"
    if quantity.relative and gate.goal != "threshold" and not since:
        return (
            f"{gate.metric} already compares the two models, so '{gate.goal}' has no meaning; "
            "use 'threshold', or add `against: baseline`"
        )
    if not math.isfinite(gate.value):
        return f"value {gate.value} is not a finite number"
    if gate.value < 0 and gate.goal != "threshold":
        opposite = "min-improvement" if "degradation" in gate.goal else "max-degradation"
        return f"{gate.goal} of {gate.value}: must be 0 or more; the other way is {opposite}"
    return ""


def _decide(gate: Gate, metrics: Metrics, baseline: Baseline | None) -> GateResult:
    known = known_to(metrics)
    at = gate.batch, gate.percentile
    pair = observe(metrics, gate.metric, *at) if gate.metric in known else None
    if pair is None:
        raise RecipeError(_not_measured(gate, metrics))
    quantity = known[gate.metric]
    before, interval = _before(gate, quantity, metrics, baseline, pair[0])
    observed = _observed(gate, quantity, before, pair[1])
    at_least = _at_least(gate, quantity)
    ruling = rule(
        observed,
        gate.value,
        interval,
        at_least=at_least,
        samples=_samples(gate, metrics),
    )
    limit = f"{'≥' if at_least else '≤'} {_amount(gate.value, gate, quantity)}"
    text = f"{_VERBS[_verb(gate, quantity)]} {limit}{_since(gate)}".lstrip()
    message = _message(gate, quantity, observed, ruling.interval, metrics)
    if ruling.verdict == "undecided":
        message = f"undecided: {message}; {_remedy(gate, ruling)}"
    return GateResult(gate, quantity.kind, observed, ruling, text, message)


def _before(
    gate: Gate, quantity: Quantity, metrics: Metrics, baseline: Baseline | None, original: float
) -> tuple[float, Interval | None]:
    """What a change is counted from, and the interval of the number that the gate is about."""
    if gate.against == "original":
        return original, _interval(gate, quantity, original, metrics)
    if baseline is None:
        raise RecipeError(f"gate on {gate.metric} against the baseline: none was opened")
    reference = baseline.reference(gate, metrics)
    if reference.interval is None:
        return reference.value, None
    return reference.value, _turned(gate, quantity, reference.value, reference.interval)


def _since(gate: Gate) -> str:
    return " since the baseline" if gate.against == "baseline" else ""


def _interval(gate: Gate, quantity: Quantity, original: float, metrics: Metrics) -> Interval | None:
    """Of the number that is compared with the gate's value; None if it has no sampling error."""
    if quantity.per_batch:
        row = metrics["latency"][str(gate.batch)]
        return row["interval"] if quantity.relative else None
    measured = metrics["metrics"].get(gate.metric)
    if measured is None or measured["interval"] is None:
        return None
    if gate.goal == "threshold":
        return measured.get("value_interval")
    return _turned(gate, quantity, original, measured["interval"])


def _turned(gate: Gate, quantity: Quantity, before: float, interval: Interval) -> Interval:
    """The interval of a difference in the direction and the unit of the gate."""
    scale = 100.0 / abs(before) if before and gate.goal.startswith("percent") else 1.0
    low, high = (scale * end for end in interval)
    rises = ("improvement" in gate.goal) == quantity.higher_is_better
    return (low, high) if rises else (-high, -low)


def _samples(gate: Gate, metrics: Metrics) -> int | None:
    """How many samples the interval is made of."""
    if gate.batch is None:
        return metrics["rows"]
    return metrics["latency"][str(gate.batch)]["pairs"]


def _remedy(gate: Gate, ruling: Ruling) -> str:
    if gate.undecided == "warn":
        return "let pass by `undecided: warn`"
    of = "rows" if gate.batch is None else "latency.repeats"
    if ruling.needed is None:
        return f"at this value no number of {of} would decide; or `undecided: warn`"
    return f"about {ruling.needed:,} {of} would decide; or `undecided: warn`"


def _not_measured(gate: Gate, metrics: Metrics) -> str:
    at = "" if gate.batch is None else f" at batch {gate.batch}"
    reasons = metrics["unavailable"]
    why = reasons.get(gate.metric) or reasons.get(gate.metric.removesuffix("_ratio"), "")
    if not why and gate.metric in QUANTITIES:
        why = QUANTITIES[gate.metric].otherwise
    return (
        f"gate on {gate.metric}{at}: it was not measured{': ' if why else ''}{why}; "
        f"measured: {', '.join(available(metrics))}"
    )


def _observed(gate: Gate, quantity: Quantity, original: float, compressed: float) -> float:
    """The number that is compared with the gate's value."""
    if gate.goal == "threshold":
        return compressed
    gain = compressed - original if quantity.higher_is_better else original - compressed
    change = (gain if "improvement" in gate.goal else -gain) + 0.0  # no -0
    if quantity.share:  # 0.86 - 0.845 is a little more than 0.015, which 15 rows of 1000 are
        change = round(change, _SHARE_DIGITS)
    if not gate.goal.startswith("percent"):
        return change
    if original == 0:
        raise RecipeError(
            f"gate on {gate.metric}: the {gate.against}'s is 0, so a percentage of it means "
            f"nothing; use '{gate.goal.removeprefix('percent-')}' or 'threshold'"
        )
    return 100.0 * change / abs(original)


def _at_least(gate: Gate, quantity: Quantity) -> bool:
    if gate.goal == "threshold":
        return quantity.higher_is_better
    return "improvement" in gate.goal


_SHARE_DIGITS = 12

# What the observed number counts: a value, a fall or a rise. "fell by -0.1" is never written.
_VERBS = {"is": "", "fell": "drop", "rose": "rise"}
_OPPOSITE = {"fell": "rose", "rose": "fell"}


def _verb(gate: Gate, quantity: Quantity) -> str:
    if gate.goal == "threshold":
        return "is"
    improving = "improvement" in gate.goal
    return "rose" if improving == quantity.higher_is_better else "fell"


def _message(
    gate: Gate, quantity: Quantity, observed: float, interval: Interval | None, metrics: Metrics
) -> str:
    name = gate.metric if gate.percentile is None else f"p{gate.percentile} of {gate.metric}"
    name += "" if gate.batch is None else f" at batch {gate.batch}"
    where = f" on {metrics['latency_how']['device']}" if quantity.per_batch else ""
    allowed = _amount(gate.value, gate, quantity)
    verb = _verb(gate, quantity)
    word = "asks for" if _at_least(gate, quantity) else "allows"
    if verb == "is":
        seen = f"{_amount(observed, gate, quantity)}{_range(gate, quantity, interval)}"
        return f"{name} is {seen}{where}, the gate {word} {allowed}"
    seen = verb if observed >= 0 else _OPPOSITE[verb]
    if seen != verb and interval is not None:
        interval = (-interval[1], -interval[0])
    wanted = f"a {_VERBS[verb]} of {allowed}" if seen != verb else allowed
    size = _amount(abs(observed), gate, quantity)
    told = f"{name} {seen} by {size}{_range(gate, quantity, interval)}{_since(gate)}{where}"
    return f"{told}, the gate {word} {wanted}"


def _range(gate: Gate, quantity: Quantity, interval: Interval | None) -> str:
    """The interval in the unit of the number before it, and in the direction that was seen."""
    if interval is None:
        return ""
    scale = 100.0 if quantity.share and not gate.goal.startswith("percent") else 1.0
    digits = 4 if quantity.share and gate.goal == "threshold" else 3
    low, high = (number(scale * end, digits) for end in interval)
    return f" ({low} to {high})"


def _amount(value: float, gate: Gate, quantity: Quantity) -> str:
    if gate.goal.startswith("percent"):
        return f"{number(value)} %"
    if quantity.share and gate.goal == "threshold":
        return f"{number(100.0 * value, digits=4)} %"
    if quantity.share:
        points = number(100.0 * value)
        return f"{points} {'point' if points == '1' else 'points'}"
    return f"{number(value)}{quantity.unit}"


def number(value: float, digits: int = 3) -> str:
    """A few digits for people, with a real minus; whole numbers above 1000 with commas."""
    if abs(value) >= 1000:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.{digits}g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.1e}"
    return text.replace("-", MINUS, 1) if value < 0 else text
