"""What turns gradients into steps: the learning rate over time, the optimizer, the mean weights."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from rankc.errors import ModelError
from rankc.recipe_training import Training
from rankc.train.interpreter import Interpreter

Tensor = torch.Tensor
_STEP = 0.1  # what the learning rate is multiplied by at a milestone
# Inputs of operators that are biases or scales: decay would pull them towards what is not neutral.
_PLAIN: Mapping[str, tuple[int, ...]] = {
    "Add": (0, 1),
    "Sub": (0, 1),
    "Conv": (2,),
    "ConvTranspose": (2,),
    "Gemm": (2,),
    "BatchNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "RMSNormalization": (1,),
    "PRelu": (1,),
}


def rate_at(settings: Training, step: int, steps: int) -> float:
    """The learning rate of a step, counted from 0, of so many.

    It rises in a line through the warm-up; `cosine` then falls along half a cosine to 0 at the end
    (Loshchilov and Hutter, SGDR, 2017, without restarts).
    """
    rising = settings.warmup * steps
    if step < rising:
        return settings.lr * (step + 1) / (rising + 1)
    if settings.schedule == "cosine":
        done = (step - rising) / max(steps - rising, 1)
        return settings.lr * (1 + math.cos(math.pi * done)) / 2
    if settings.schedule == "step":
        return settings.lr * _STEP ** sum(step >= share * steps for share in settings.milestones)
    return settings.lr


def optimizer_of(net: Interpreter, settings: Training) -> torch.optim.Optimizer:
    """The optimizer of all that can be trained.

    Weight decay is for weights only: not for biases, scales of normalisations, and numbers a
    channel or a rank.

    Raises:
        ModelError: nothing can be trained.
    """
    plain = _spared(net)
    trained = [p for p in net.parameters() if p.requires_grad]
    if not trained:
        raise ModelError(
            "nothing to train: the graph has no weight that train.freeze leaves to be trained; "
            f"initializers are {', '.join(list(net.graph.initializers)[:8]) or 'none'}"
        )
    spared = [p for p in trained if id(p) in plain or p.dim() < 2]
    decayed = [p for p in trained if not (id(p) in plain or p.dim() < 2)]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum)
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=settings.lr)


def _spared(net: Interpreter) -> set[int]:
    """Ids of the weights that every reader takes for a bias or a scale."""
    found = set()
    for name, value in net.graph.initializers.items():
        uses = value.uses() if name not in net.computed_names else ()
        if uses and all(k in _PLAIN.get(node.op_type, ()) for node, k in uses):
            found.add(id(net.weight(name)))
    return found


class Average:
    """The mean of weights and BatchNormalization statistics over the last steps.

    mean <- d mean + (1 - d) now,  d = min(decay, (1 + t) / (10 + t)) after t steps, so that the
    start is soon forgotten: Polyak and Juditsky, SIAM J. Control Optim. 30 (1992), in the decaying
    form that deep nets are averaged in.
    """

    def __init__(self, net: Interpreter, decay: float) -> None:
        self._decay, self.steps = decay, 0
        self._now = _averaged(net)
        self.mean = {name: tensor.detach().clone() for name, tensor in self._now.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the net as it is after a step."""
        share = 1 - min(self._decay, (1 + self.steps) / (10 + self.steps))
        for name, mean in self.mean.items():
            mean.lerp_(self._now[name], share)
        self.steps += 1

    @torch.no_grad()
    def put(self) -> None:
        """Make the net the mean one."""
        for name, tensor in self._now.items():
            tensor.copy_(self.mean[name])

    def state_dict(self) -> dict[str, object]:
        """To go on from later."""
        return {"mean": self.mean, "steps": self.steps}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """The other way round."""
        mean, steps = state["mean"], state["steps"]
        assert isinstance(mean, dict) and isinstance(steps, int)
        for name, tensor in self.mean.items():
            tensor.copy_(mean[name])
        self.steps = steps


def _averaged(net: Interpreter) -> dict[str, Tensor]:
    """Parameters of floats, and the running statistics."""
    found = {name: p.data for name, p in net.named_parameters() if p.is_floating_point()}
    for node in net.graph:
        if node.op_type == "BatchNormalization":
            for value in node.inputs[3:5]:
                if value is not None and value.is_initializer():
                    found[f"statistics {value.name}"] = net.weight(str(value.name))
    return found
