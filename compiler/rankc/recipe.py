"""A recipe: what to compress, how far, and what must still hold afterwards."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BeforeValidator, WithJsonSchema

from rankc.recipe_training import Recovery, Training

Goal = Literal[
    "threshold",
    "min-improvement",
    "percent-min-improvement",
    "max-degradation",
    "percent-max-degradation",
]
Metric = Literal[
    "auc",
    "grouped_auc",
    "logloss",
    "ece",
    "accuracy_top1",
    "accuracy_top5",
    "perplexity",
    "mean_iou",
    "pearson",
    "spearman",
    "mse",
    "top1_agreement",
    "kl_div",
    "max_abs_err",
    "mean_abs_err",
    "cosine",
    "sqnr_db",
    "psnr",
    "size_bytes",
    "params",
    "macs",
    "nodes",
    "peak_memory_bytes",
    "size_ratio",
    "params_ratio",
    "macs_ratio",
    "latency_ms",
    "latency_ratio",
    "throughput",
    "energy_mj",
    "load_ms",
    "cold_start_ms",
]

METRICS: tuple[str, ...] = get_args(Metric)
_ANY_METRIC = {"anyOf": [{"enum": list(METRICS)}, {"type": "string"}]}  # editors offer the first
MetricName = Annotated[str, WithJsonSchema(_ANY_METRIC)]
LABELLED = frozenset(  # need data.validation.label
    {
        *("auc", "grouped_auc", "logloss", "ece", "accuracy_top1", "accuracy_top5"),
        *("perplexity", "mean_iou", "mse"),
    }
)

# What to do where energy is asked for and not measured.
ENERGY_ELSEWHERE = (
    "only a device that tells its power can measure energy: run `rankrt bench` on the bundle "
    "there, an NVIDIA GPU or a Jetson"
)

Sensitivity = Literal["gradient", "fisher", "perturbation", "kl"]  # what a loss is measured by
Unit = Literal["bytes", "parameters", "macs", "ms"]  # what a budget counts

Count = Annotated[int, Ge(1)]


def _listed(value: Any) -> Any:
    """A value by itself is a list of one."""
    return tuple(value) if isinstance(value, list | tuple) else (value,)


_NUMBER = {"type": "number"}
PerChannel = Annotated[
    tuple[float, ...],
    MinLen(1),
    BeforeValidator(_listed),
    WithJsonSchema({"anyOf": [_NUMBER, {"type": "array", "items": _NUMBER, "minItems": 1}]}),
]


@dataclasses.dataclass(frozen=True, slots=True)
class Images:
    """How the images of a folder become the model's input: value = (pixel - mean) / scale."""

    mean: PerChannel  # of pixels from 0 to 255, as in training; one number, or one a channel
    scale: PerChannel  # like mean; 255 with a mean of 0 gives values from 0 to 1
    # pixels of the shorter side, before the model's size is cut out of the centre; left out, the
    # fewest that cover it
    resize: Count | None = None

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (*self.mean, *self.scale))) or 0 in self.scale:
            raise ValueError("mean and scale must be finite, and scale not 0")


@dataclasses.dataclass(frozen=True, slots=True)
class DataSpec:
    """Where rows come from: .npz, a folder of .npy or of images, .parquet, .csv, or code."""

    path: Annotated[str, MinLen(1)]  # relative to the recipe; code is `module.py:function`
    batch_size: Count = 1024  # rows in memory at once; of images no more than fit into 16 MiB
    rows: Count | None = None  # read at most this many; of images those that lie evenly spaced
    # array or column with the target; of images `folder`: each class has a sub-folder; validation
    # only
    label: str | None = None
    # array or column by whose values rows are grouped, for grouped_auc: numbers, or in .npz, .npy,
    # .csv and .parquet text; validation only
    group: str | None = None
    image: Images | None = None  # for a folder of images, and needed there


@dataclasses.dataclass(frozen=True, slots=True)
class Data:
    """The rows that the compiler looks at."""

    calibration: DataSpec  # what the compressed model is fitted on; no labels needed
    validation: DataSpec | None = None  # what the original and the result are compared on
    training: DataSpec | None = None  # what `train` and `recover` train on; batch_size is a step's
    holdout: DataSpec | None = None  # never trained on; decides when to stop, and what is kept


@dataclasses.dataclass(frozen=True, slots=True)
class Budget:
    """How large the result may be: `max` in the unit, or `keep_ratio` of the original."""

    # what is counted: bytes of the file, parameters, multiply-accumulates of a row, or predicted
    # milliseconds of the layers that passes can rewrite, on the target that was profiled
    unit: Unit = "bytes"
    keep_ratio: Annotated[float, Gt(0), Le(1)] | None = None  # share of the original, in (0, 1]
    max: Annotated[float, Gt(0)] | None = None  # the most that the result may have, in the unit

    def __post_init__(self) -> None:
        if (self.keep_ratio is None) == (self.max is None):
            given = "neither" if self.max is None else "both"
            raise ValueError(f"give exactly one of keep_ratio and max ({given} is given)")
        if self.max is not None and self.unit != "ms":
            if self.max != int(self.max):
                raise ValueError(f"max must be a whole number of {self.unit}, not {self.max}")
            object.__setattr__(self, "max", int(self.max))


def _budgets(value: Any) -> Any:
    """One by itself is a list of one, and null is none."""
    return () if value is None else _listed(value)


@dataclasses.dataclass(frozen=True, slots=True)
class Planning:
    """How a rank is chosen for every site. Sites with a `rank` of their own are not asked."""

    # optimal: the least predicted loss within the budget; greedy (as AIMET's) and uniform are what
    # it can be held against
    strategy: Literal["optimal", "greedy", "uniform"] = "optimal"
    # what an error of a layer is weighed by: the gradient of the logits, or of the answer's
    # distribution (fisher); what one rewrite of the layer alone changes (perturbation); or, at six
    # rewrites of each site alone, the measured KL divergence (kl)
    sensitivity: Sensitivity = "gradient"
    rows: Count = 256  # calibration rows that perturbation and kl run, for every site
    min_rank: Count = 1  # no rank below it
    floor: Annotated[float, Ge(0), Le(1)] = 0.0  # no rank below this share of the full rank
    cap: Annotated[float, Gt(0), Le(1)] = 1.0  # no rank above it: dense is then the next choice

    def __post_init__(self) -> None:
        if self.floor > self.cap:
            raise ValueError(f"floor {self.floor} is above cap {self.cap}: no rank is left")


@dataclasses.dataclass(frozen=True, slots=True)
class Timing:
    """What is known of the time that layers take, and what becomes of rewrites that lose time."""

    # latency table that `rankc profile` wrote, relative to the recipe: ranks that are slower there
    # than the layer left dense are not chosen
    table: Annotated[str, MinLen(1)] | None = None
    device: str | None = None  # instead of a table: estimates from the data sheet of this device
    batch: Count = 1  # of the device: rows a call; a table has its own
    precision: Literal["fp32", "fp16"] = "fp32"  # of the device
    # time every rewritten layer on this machine against the dense one, and leave those dense that
    # are slower at every size of latency.batch_sizes; not where a device or the table of another
    # target says how fast they are
    revert: bool = True
    # share of the speed-up that its multiply-accumulates promise, which a rewrite has to reach at
    # one of the sizes: with 0.8 a layer of half of them has to be 1.6 times faster; 0: any gain
    efficiency: Annotated[float, Ge(0), Le(1)] = 0.0

    def __post_init__(self) -> None:
        if self.table is not None and self.device is not None:
            raise ValueError("give a table or a device, not both")
        if self.device is None and (self.batch, self.precision) != (1, "fp32"):
            raise ValueError("batch and precision are those of a device, and none is given")


@dataclasses.dataclass(frozen=True, slots=True)
class Refit:
    """Layers fitted again, one after another, to what the compressed ones before them put out."""

    rows: Count = 1024  # calibration rows that are used, the first ones
    positions: Count = 64  # patches of an image that a convolution is fitted on
    weights: bool = True  # fit the weights; layers that stay dense are corrected, too
    # give every output with a bias the variance that it had: for crude factors, without `weights`
    variance: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Family:
    """What `rankc family` makes: a bundle for every share, of one preparation."""

    keep_ratios: Annotated[tuple[Annotated[float, Gt(0), Le(1)], ...], MinLen(1)]  # of the original
    # what the shares are of, in the place of the budget of that unit: that of the first budget, or
    # bytes. Budgets of other units hold as they are
    unit: Unit | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Search:
    """Find the smallest plan that keeps every gate, by bisection over the budget."""

    objective: Literal["smallest", "fastest"] = "smallest"  # which of those that keep the gates
    # what is bisected, in the place of the budget of that unit: that of the first budget, or bytes.
    # Budgets of other units hold as they are
    unit: Unit | None = None
    low: Annotated[float, Gt(0), Le(1)] = 0.02  # share of the original to go down to
    high: Annotated[float, Gt(0), Le(1)] = 1.0  # and up to
    tolerance: Annotated[float, Ge(0.005), Lt(1)] = 0.05  # go on until the share is known so well
    steps: Count = 10  # plans that are measured, at most
    # begin no other plan after that long; one is always measured. Run again, it goes on
    minutes: Annotated[float, Ge(0)] | None = None
    # search on every other validation row, and let the gates of the bundle be decided by the rest,
    # which had no part in the choice
    holdout: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"low must be below high, and low is {self.low}, high {self.high}")


@dataclasses.dataclass(frozen=True, slots=True)
class Gate:
    """One promise, checked on the finished model. `metric` names a row of metrics.json."""

    metric: MetricName  # what is measured: see docs/validation.md; or a name out of `metrics`
    goal: Goal  # how `value` is meant
    value: float  # in the metric's unit, or in percent of the original's
    batch: Count | None = None  # latency gates: at which of latency.batch_sizes
    # of latency_ms: of the samples, 50 if left out
    percentile: Literal[50, 90, 95, 99] | None = None
    # what becomes of a gate whose `value` lies inside the interval of what was measured
    undecided: Literal["fail", "warn"] = "fail"
    # what a change is counted from: the original model, or what `rankc baseline update` stored
    against: Literal["original", "baseline"] = "original"


@dataclasses.dataclass(frozen=True, slots=True)
class Latency:
    """How latency is measured: the original and the result in turn, one thread, CPU time."""

    batch_sizes: Annotated[tuple[Count, ...], MinLen(1)] = (1, 32, 256)  # one measurement each
    repeats: Count = 60  # interleaved pairs per batch size

    def __post_init__(self) -> None:
        if len(set(self.batch_sizes)) < len(self.batch_sizes):
            raise ValueError(f"batch_sizes names a size twice: {list(self.batch_sizes)}")


@dataclasses.dataclass(frozen=True, slots=True)
class Profile:
    """Batch sizes that an engine is built for, in TensorRT's sense."""

    min: Count = 1  # smallest batch that the engine accepts
    opt: Count = 256  # the batch it is tuned for
    max: Count = 4096  # largest batch that the engine accepts

    def __post_init__(self) -> None:
        if not self.min <= self.opt <= self.max:
            raise ValueError(
                f"needs min <= opt <= max, and has min {self.min}, opt {self.opt}, max {self.max}"
            )


_CAPABILITY = re.compile(r"[1-9]\d*\.\d")


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """One engine to build beside the ONNX file."""

    backend: Literal["onnxruntime", "tensorrt-rtx", "tensorrt"]  # what runs it
    precision: Literal["fp32", "fp16"] = "fp32"  # of the weights and the arithmetic
    profile: Profile = Profile()  # TensorRT: which batch sizes
    compute_capability: tuple[str, ...] = ()  # e.g. ["8.6", "8.9"]; empty: the backend's default

    def __post_init__(self) -> None:
        for text in self.compute_capability:
            if not _CAPABILITY.fullmatch(text):
                raise ValueError(f"compute_capability is written like '8.6', not {text!r}")

    @property
    def name(self) -> str:
        return f"{self.backend}-{self.precision}"


@dataclasses.dataclass(frozen=True, slots=True)
class PassSpec:
    """One pass of the recipe."""

    name: str
    options: Mapping[str, Any]  # as written; checked against the pass's own fields


_CODE = re.compile(r".+\.py:[A-Za-z_]\w*")


@dataclasses.dataclass(frozen=True, slots=True)
class OwnMetric:
    """A metric of your own: Python code, which runs only with --trust-recipe-code."""

    # `scoring.py:function`, the file relative to the recipe; called with labels and outputs of some
    # rows, it returns one number a row, whose mean is the metric
    code: str
    better: Literal["higher", "lower"]  # which way is better

    def __post_init__(self) -> None:
        if not _CODE.fullmatch(self.code):
            raise ValueError(f"code is written like 'scoring.py:function', not {self.code!r}")


_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


NOT_KEYS = ("folder", "file", "lines")  # fields of Recipe that no recipe says


@dataclasses.dataclass(frozen=True, slots=True)
class Recipe:
    """One compilation from end to end."""

    name: str  # what the result is called; also its folder under build/
    model: Annotated[str, MinLen(1)]  # the ONNX file, relative to the recipe
    data: Data
    passes: tuple[PassSpec, ...]  # what may be done, each at most once
    # one, or a list with one a unit, all of which must hold; without it every site keeps what its
    # pass alone thinks right
    budget: Annotated[tuple[Budget, ...], BeforeValidator(_budgets)] = ()
    planning: Planning = Planning()
    timing: Timing = Timing()
    refit: Refit | None = None  # `{}` for the defaults; left out, layers are factored on their own
    # metrics of your own by name, which gates may name: `my_score: {code: "scoring.py:score",
    # better: higher}`
    metrics: Mapping[str, OwnMetric] = dataclasses.field(default_factory=dict)
    train: Training | None = None  # `{}` for the defaults; for passes that learn, and needed there
    recover: Recovery | None = None  # `{}` for the defaults; left out, nothing is trained again
    search: Search | None = None  # `{}` for the defaults; left out, the budget is what counts
    family: Family | None = None  # for `rankc family`; a compile takes no notice of it
    gates: tuple[Gate, ...] = ()  # the exit code tells whether they hold
    latency: Latency = Latency()
    lower: tuple[Target, ...] = (Target("onnxruntime"),)
    seed: Annotated[int, Ge(0)] = 0  # of everything that draws random numbers
    folder: Path = Path()  # of the recipe file; not a key
    file: Path = dataclasses.field(default=Path(), compare=False)  # that was read; not a key
    # in which line of it each key stands, e.g. "gates[0]"; none of what --set says; not a key
    lines: Mapping[str, int] = dataclasses.field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if not _FILE_NAME.fullmatch(self.name):
            raise ValueError(
                f"name must be usable as a folder name (letters, digits, '.', '_', '-'), "
                f"not {self.name!r}"
            )
