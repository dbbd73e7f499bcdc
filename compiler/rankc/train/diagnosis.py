"""Where numbers stopped being finite."""

from __future__ import annotations

import torch

from rankc.errors import RecipeError
from rankc.train.interpreter import Interpreter
from rankc.train.minibatches import Minibatch
from rankc.train.readings import device_of


def diverged(
    net: Interpreter, batch: Minibatch, terms: dict[str, float], when: str, trained: bool
) -> RecipeError:
    """The error to raise where a loss is not finite.

    Args:
        net: as it is.
        batch: the rows.
        terms: of the loss, by name.
        when: the step, for the message.
        trained: whether a step has been made; if not, it is the model as it came.
    """
    told = ", ".join(f"{name} {value:g}" for name, value in terms.items())
    where = f"{when}: the loss is not finite ({told}); {_first(net, batch.to(device_of(net)))}"
    if not trained:
        return RecipeError(
            f"before any training, at {where}. Train on other rows, or with another objective"
        )
    return RecipeError(
        f"training diverged at {where}. Lower lr, set clip (such as 1.0), or add a warmup"
    )


@torch.no_grad()
def _first(net: Interpreter, batch: Minibatch) -> str:
    """The first weight or, after that, the first value computed that is not finite."""
    for name in net.weight_names:
        if not _finite(_tensor(net, name)):
            return f"weight {name!r} is no longer finite, since the step before"
    names = [str(v.name) for node in net.graph for v in node.outputs if v.name]
    with net.capture(*names) as seen:
        net.run(batch.feeds)
    for node in net.graph:
        # -Inf that a mask is made of is no fault: what goes in has to be finite.
        read = [str(v.name) for v in node.inputs if v is not None]
        inputs = [seen[name] if name in seen else _tensor(net, name, batch) for name in read]
        outputs = [seen[str(v.name)] for v in node.outputs if v.name in seen]
        if all(map(_finite, inputs)) and not all(map(_finite, outputs)):
            return f"{node.op_type} node {node.name!r} is the first to put out NaN or Inf"
    return "every node puts out finite numbers, so it is the loss itself that overflows"


def _tensor(net: Interpreter, name: str, batch: Minibatch | None = None) -> torch.Tensor:
    """An initializer, or what is fed."""
    if batch is not None and name in batch.feeds:
        return batch.feeds[name]
    return net.computing(name)() if name in net.computed_names else net.weight(name)


def _finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
