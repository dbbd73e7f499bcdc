"""What a recipe says of training: `train` for passes that learn, `recover` for any others."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

Count = Annotated[int, Ge(1)]
Share = Annotated[float, Ge(0), Le(1)]
Weight = Annotated[float, Ge(0)]


@dataclasses.dataclass(frozen=True, slots=True)
class Augment:
    """Random changes of the rows that are trained on, another one for every row."""

    pad: Annotated[int, Ge(0)] = 0  # pixels of border that crops of the image's size are drawn from
    fill: float = 0.0  # what the border is filled with, as the model sees it
    flip: bool = False  # left and right, every other time
    # endless rows to learn the original's answers from, whose labels nobody knows. Columns: share
    # of the ids that are another row's, of each column another one's, and of rows whose numbers
    # are. Images: share of those that are blended with another (Zhang et al., mixup)
    mix: Annotated[float, Ge(0), Le(1)] = 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class Objective:
    """What is minimised: the task's loss, and how far the answer is from the original's."""

    # binary: one logit or probability a row; multiclass: (rows, classes); tokens: (rows, places,
    # classes); auto: by the output's shape
    task: Literal["auto", "binary", "multiclass", "tokens", "regression"] = "auto"
    label: Weight = 0.0  # weight of the task's loss; above 0 needs data.training.label
    # weight of the KL divergence from the original's answer; of a regression, of the squared error
    distill: Weight = 1.0
    temperature: Annotated[float, Gt(0)] = 1.0  # that both answers are softened by
    # inner values of the graph that the compressed model still has, as globs, each with the weight
    # of its mean squared error, relative to the variance that it has in the original
    match: Mapping[str, Weight] = dataclasses.field(default_factory=dict)
    # binary: draw another calibrated loss for every batch (Dai, EnsLoss), against over-fitting
    ensemble: bool = False

    def __post_init__(self) -> None:
        if not self.label and not self.distill and not any(self.match.values()):
            raise ValueError("nothing is minimised: label, distill and match are all 0")


@dataclasses.dataclass(frozen=True, slots=True)
class Training:
    """How a model is trained. The rows are those of data.training."""

    epochs: Annotated[float, Gt(0)] = 12.0  # how often every row is seen; may be a fraction
    objective: Objective = Objective()
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Annotated[float, Gt(0)] = 0.02  # the highest learning rate
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9  # of sgd
    weight_decay: Weight = 1e-4  # not on biases and normalisation
    schedule: Literal["cosine", "step", "constant"] = "cosine"  # how the learning rate falls
    # step: shares of the training after which the learning rate is a tenth of what it was
    milestones: tuple[Share, ...] = (0.5, 0.75)
    warmup: Share = 0.0  # share of the training in which the learning rate rises from 0
    clip: Annotated[float, Gt(0)] | None = None  # largest norm of the gradient of a step
    # keep the mean of the weights over the last steps, decaying by this a step; left out, the last
    average: Annotated[float, Gt(0), Lt(1)] | None = None
    augment: Augment | None = None  # of images
    # put a BatchNormalization that changes nothing behind every convolution, and fold it afterwards
    batch_norm: bool = True
    freeze: tuple[str, ...] = ()  # weights to leave as they are: globs, or re: patterns
    # of `train`: weights that several layers read, as patterns; each layer gets its own, called
    # <weight>/<layer>, and they are trained apart. The model gets larger by the copies
    unshare: tuple[str, ...] = ()
    # share of data.training that is never trained on, and decides when to stop, where there is no
    # data.holdout
    holdout: Annotated[float, Gt(0), Lt(1)] = 0.1
    evaluate: Annotated[float, Gt(0)] = 1.0  # epochs between two looks at the rows held out
    # what a look goes by: loss, the objective itself; the others need labels
    metric: Literal["loss", "logloss", "accuracy_top1", "auc", "mse"] = "loss"
    patience: Count | None = None  # stop after that many looks without a better one
    checkpoint: Annotated[float, Ge(0)] = 2.0  # minutes between two checkpoints
    # end the training after that long, wherever the learning rate is by then; what comes out then
    # hangs on the machine's speed
    minutes: Annotated[float, Gt(0)] | None = None
    # of rows in memory at once, 1024 if left out; a larger source is read again in every epoch and
    # shuffled through a buffer of that size
    memory_mb: Count | None = None
    # of activations and their gradients: bf16 takes about half the time where the processor has it,
    # weights and looks at the rows held out stay in fp32
    precision: Literal["fp32", "bf16"] = "fp32"
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda where there is one
    threads: Count = 1  # of the CPU; another number may change the last digits of the result

    def __post_init__(self) -> None:
        if self.augment is not None and self.augment.mix and self.objective.label:
            raise ValueError(
                "augment.mix makes rows whose labels nobody knows: set objective.label to 0, and "
                "learn from the original's answers alone"
            )


@dataclasses.dataclass(frozen=True, slots=True)
class Recovery(Training):
    """Train the compressed model; kept only where the rows held out say that it helps."""

    # all: every weight; factors: those of rewritten layers; singular: one number a rank, between
    # the factors (Sun et al., SVFit)
    parameters: Literal["all", "factors", "singular"] = "all"
    # weight of |A^T A - I|^2 of every layer's first factor, which keeps what flows between the two
    # in range
    orthogonality: Weight = 0.0
    # keep the trained weights only if the held-out rows say so: their loss falls by more than
    # `margin` times the standard error of the fall, row by row
    margin: Annotated[float, Ge(0)] = 2.0
    guard: bool = True  # false: keep them whatever the rows held out say

    def __post_init__(self) -> None:
        Training.__post_init__(self)
        if self.unshare:
            raise ValueError("unshare is for `train`: here a copy would add to what was planned")
