"""The structure of metrics.json, format 1; `docs/metrics.schema.json` is generated from it.

Every number is finite. A difference is compressed - original; a size ratio is original / compressed
(12 means twelve times smaller); a latency ratio is compressed / original (0.4 means 2.5 times
faster). Intervals are 95 % unless a level is given.
"""

from __future__ import annotations

import json
from typing import Final, Literal

from pydantic import ConfigDict, TypeAdapter, with_config
from typing_extensions import NotRequired, TypedDict  # pydantic needs these below Python 3.12

FORMAT: Final = 1

Kind = Literal["accuracy", "performance"]
Better = Literal["higher", "lower"]
GateVerdict = Literal["pass", "fail", "undecided"]
Verdict = Literal["kept", "put back", "too slow, but the budget needs it", "too slow, but as asked"]
Stopped = Literal["found", "none", "steps", "time"]
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@with_config(_STRICT)
class Measured(TypedDict):
    """One metric of both models.

    Distances give the original's to itself: 0, and cosine and top1_agreement 1.
    """

    original: float
    compressed: float
    difference: float  # compressed - original
    interval: tuple[float, float] | None  # of the difference; None where none is computed
    method: NotRequired[str]  # how the interval was made, e.g. "bootstrap" or "DeLong"
    value_interval: NotRequired[tuple[float, float]]  # of the compressed model's own value
    p_value: NotRequired[float]  # of no difference, two-sided: McNemar of accuracies, DeLong of auc


@with_config(_STRICT)
class Ratios(TypedDict):
    """original / compressed; a missing key could not be counted, see `unavailable`."""

    size_bytes: NotRequired[float]
    params: NotRequired[float]
    macs: NotRequired[float]


@with_config(_STRICT)
class Percentiles(TypedDict):
    """Times of one call; a sample is the mean of `calls_per_sample` of them."""

    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float


@with_config(_STRICT)
class LatencyRow(TypedDict):
    """One batch size. Rows a second are the batch size / p50."""

    original: Percentiles
    compressed: Percentiles
    ratio: float  # compressed / original: of rounds their mean, of a round's pairs the median
    interval: tuple[float, float]  # of the ratio, at the level that `latency_how` names
    pairs: int
    rounds: NotRequired[int]  # in each of which both models were opened afresh
    wall_p50_ms: NotRequired[tuple[float, float]]  # wall clock, of a busy machine too: not gated
    energy_mj: NotRequired[tuple[float, float]]  # of one call; where a device tells its power
    calls_per_sample: tuple[int, int]  # a sample is the mean of so many calls: original, compressed


@with_config(_STRICT)
class LatencyHow(TypedDict):
    """What the times mean, and what they were measured on."""

    scope: str
    clock: str
    device: str  # the processor's own name; times say nothing about any other
    backend: str  # what ran the models, with its version
    pinned: bool  # whether the thread was kept on one core
    level: float  # of the intervals of ratios, a share: 0.99


@with_config(_STRICT)
class Backend(TypedDict):
    """One target that the compressed model was lowered to."""

    built: bool
    ran: bool  # False with built True: built, not run
    precision: str
    size_bytes: int
    note: NotRequired[str]  # why it was not built or not run


@with_config(_STRICT)
class LayerRatio(TypedDict):
    """Rewritten / dense, the layer by itself."""

    ratio: float  # median over pairs
    interval: tuple[float, float]


@with_config(_STRICT)
class TimedLayer(TypedDict):
    """A rewrite that was timed against the dense layer, and what became of it."""

    site: str
    pass_name: str
    rank: int
    form: str  # empty: the pass has one form only
    verdict: Verdict
    latency: dict[str, LayerRatio]  # by batch size


@with_config(_STRICT)
class GateRow(TypedDict):
    """One gate of the recipe and what came of it."""

    metric: str
    goal: str
    value: float
    batch: int | None
    kind: Kind
    observed: float  # what was compared with `value`
    passed: bool  # whether it lets the bundle pass: a warning does
    verdict: GateVerdict  # undecided: the interval has the gate's value inside
    against: NotRequired[Literal["original", "baseline"]]  # what a change is counted from
    percentile: NotRequired[int]  # of a latency
    interval: tuple[float, float] | None  # of `observed`; None: it is exact
    rows_needed: int | None  # validation rows that would decide; None: exact, or no number would
    line: NotRequired[int]  # of the recipe
    text: str  # "drop ≤ 0.001"
    message: str  # a sentence on what was seen


@with_config(_STRICT)
class Look(TypedDict):
    """What the rows held out said at one moment of a training."""

    epoch: float
    loss: float  # the objective, a row
    metrics: dict[str, float]  # of the task, where the rows have labels


@with_config(_STRICT)
class Lesson(TypedDict):
    """One training: before the plan, or of the compressed model."""

    stage: Literal["train", "recover"]
    epochs: float  # that were trained
    steps: int
    seconds: float
    stopped: str  # why it ended
    looks: list[Look]  # the first one before any step
    best: float  # epoch of the weights that were taken
    kept: bool  # whether the trained weights go on; without a guard they do
    why: str  # a sentence on that
    fall: NotRequired[float]  # of the mean loss of rows held out, by which `kept` is decided
    standard_error: NotRequired[float]  # of that fall
    ranks: NotRequired[dict[str, list[tuple[int, int]]]]  # of layers: from which step on which rank


@with_config(_STRICT)
class Split(TypedDict):
    """Where a metric's change comes from, one precision of one target; all from the original.

    total = compression + lowering + what the two do together.
    """

    floor: float  # the original at that precision: what lowering alone does to any model
    compression: float  # the compressed model in float32
    lowering: float  # total - compression
    total: float  # the compressed model at that precision
    floor_interval: tuple[float, float] | None
    compression_interval: tuple[float, float] | None
    lowering_interval: tuple[float, float] | None
    total_interval: tuple[float, float] | None


@with_config(_STRICT)
class Startup(TypedDict):
    """What a model costs before it answers; wall clock, a fresh process, medians."""

    load_ms: float  # opening the model
    cold_start_ms: float  # from the start of the process to the first answer


@with_config(_STRICT)
class LayerTime(TypedDict):
    """A layer of the original model, and the nodes that stand for it in both models."""

    layer: str
    original_ms: float  # of one call, added up over its nodes
    compressed_ms: float
    nodes: tuple[int, int]  # how many: original, compressed


@with_config(_STRICT)
class Point(TypedDict):
    """A plan that a search tried."""

    budget: float  # in the unit of the search
    unit: str
    values: dict[str, float]  # of every metric that a gate names, and size_bytes
    loss: float  # predicted
    passed: bool
    failed: NotRequired[list[str]]  # of each gate that failed a sentence
    efficient: bool  # no other is smaller and no less accurate, or more accurate and no larger
    chosen: bool


@with_config(_STRICT)
class SearchHow(TypedDict):
    """How `front` was searched."""

    unit: str  # of the budgets
    objective: Literal["smallest", "fastest"]
    # found: the limit is known to the tolerance; none: no plan that was tried keeps every gate
    stopped: Stopped
    tolerance: float  # of the budget
    holdout: bool  # whether the gates were decided by rows that had no part in the search


@with_config(_STRICT)
class Metrics(TypedDict):
    """The whole file."""

    format: Literal[1]
    recipe: str
    passed: bool
    gates: list[GateRow]
    rows: int  # of the validation data; 0 without
    output: str | None  # the output that is compared
    metrics: dict[str, Measured]
    unavailable: dict[str, str]  # metric: why it was not measured
    notes: NotRequired[dict[str, str]]  # metric: what it leaves out
    own: NotRequired[dict[str, Better]]  # the recipe's own metrics, and which way is better
    ratios: Ratios
    latency: dict[str, LatencyRow]  # by batch size
    latency_how: LatencyHow
    training: NotRequired[list[Lesson]]  # in the order in which they took place
    split: NotRequired[dict[str, dict[str, Split]]]  # by target, by metric
    startup: NotRequired[dict[Literal["original", "compressed"], Startup]]
    layer_times: NotRequired[list[LayerTime]]  # at one batch size, the largest that was timed
    front: NotRequired[list[Point]]  # of a search, by rising budget
    search: NotRequired[SearchHow]
    layers: list[TimedLayer]  # in the order of the plan; those put back come last
    memory_batch: int | None  # rows of the batch that peak_memory_bytes was measured with
    backends: dict[str, Backend]
    environment: dict[str, str]  # versions and the machine


_ADAPTER = TypeAdapter(Metrics)


def check_metrics(metrics: object) -> Metrics:
    """The argument, if it has the structure of metrics.json.

    Raises:
        pydantic.ValidationError: It has not; names every place.
    """
    return _ADAPTER.validate_python(metrics)


def schema_text() -> str:
    """The JSON Schema of metrics.json, as published in `docs/metrics.schema.json`."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "metrics.json of a rankc bundle, format 1",
        **{k: v for k, v in _ADAPTER.json_schema().items() if k != "title"},
    }
    return json.dumps(schema, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
