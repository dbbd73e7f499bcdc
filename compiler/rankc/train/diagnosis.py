"""Where numbers stopped being finite."""

from __future__ import annotations

import torch

from rankc.errors import RecipeError
from rankc.train.interpreter import Interpreter
from rankc.train.minibatches import Minibatch


def diverged(
    net: Interpreter, batch: Minibatch | None, terms: dict[str, float], when: str
) -> RecipeError:
    """The error to raise where a loss is not finite.

    Args:
        net: as it is.
        batch: the rows, on the net's device; None: of no step.
        terms: of the loss, by name.
        when: the step, for the message.
    """
    told = ", ".join(f"{name} {value:g}" for name, value in terms.items())
    return RecipeError(
        f"training diverged at {when}: the loss is not finite ({told}); {_first(net, batch)}. "
        "Lower lr, set clip (such as 1.0), or add a warmup"
    )


@torch.no_grad()
def _first(net: Interpreter, batch: Minibatch | None) -> str:
    """The first weight or, after that, the first value computed that is not finite."""
    for name in net.graph.initializers:
        computed = name in net.computed_names
        if not _finite(net.computing(name)() if computed else net.weight(name)):
            return f"weight {name!r} is no longer finite"
    if batch is None:
        return "all weights are finite"
    names = [str(v.name) for node in net.graph for v in node.outputs if v.name]
    with net.capture(*names) as seen:
        net.run(batch.feeds)
    for node in net.graph:
        for value in node.outputs:
            if value.name in seen and not _finite(seen[str(value.name)]):
                return f"{node.op_type} node {node.name!r} is the first to put out NaN or Inf"
    return "every value of the net is finite, so it is the loss itself that overflows"


def _finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
