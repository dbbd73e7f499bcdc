"""Maestro's training: layers as two factors whose directions come in order of importance.

Each targeted weight becomes  W = sum of u_j v_jT,  from the balanced SVD of what it was. In a step
layers run on their first directions only (`rankc.train.maestro_draws`): one of them, drawn without
replacement from all pairs of a layer and a rank, as in the paper; or all of them, at the ranks that
fit into a share of the MACs that is drawn. So what counts most is learned first. The penalty
    lambda sum over layers, j of  |(u_j, u_j+1, ...)| + |(v_j, v_j+1, ...)|
lies heaviest on the last directions. After every epoch those of least importance,
|(u_j, ...)| |(v_j, ...)| below epsilon, are dropped for good. The graph is not restructured.
Horvath et al., ICML 2024, sections 3 and 4: "per-layer" sampling, hierarchical group lasso,
progressive shrinking. A layer keeps one direction at least.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from rankc.errors import ModelError
from rankc.factors import LEARNED, Factors, Unfolding, balanced
from rankc.linalg import Floats
from rankc.passes.maestro import Maestro, Target
from rankc.train.hooks import Silent
from rankc.train.interpreter import Interpreter
from rankc.train.maestro_draws import Budgets, Pairs

Tensor = torch.Tensor


class Factored(nn.Module):
    """A weight as the product of two factors, or of their first directions."""

    kept: Tensor

    def __init__(self, factors: Factors, like: Tensor) -> None:
        super().__init__()
        self.unfolding: Unfolding = factors.unfolding
        first, second = (torch.from_numpy(f).to(like) for f in (factors.first, factors.second))
        self.first, self.second = nn.Parameter(first), nn.Parameter(second)
        kept = torch.ones(factors.rank, dtype=torch.bool, device=like.device)
        self.register_buffer("kept", kept)  # a prefix
        self.width: int | None = None  # directions that a step goes by; None: all that are kept

    def forward(self) -> Tensor:
        if self.width is None:
            matrix = (self.first * self.kept) @ self.second
        else:
            matrix = self.first[:, : self.width] @ self.second[: self.width]
        how = self.unfolding
        return matrix.reshape(how.permuted).permute(how.inverse).contiguous()

    @property
    def rank(self) -> int:
        """How many directions are kept."""
        return int(self.kept.sum())

    def suffixes(self) -> tuple[Tensor, Tensor]:
        """|(u_j, u_j+1, ...)| and the same of v, of the directions that are kept, (k,) each."""
        squares = self.first.square().sum(0), self.second.square().sum(1)
        size = len(self.kept)
        # a cumulative sum has no deterministic form on CUDA
        upper = torch.ones(size, size, dtype=self.first.dtype, device=self.kept.device).triu()
        u, v = (_root(upper @ (one * self.kept)) for one in squares)
        return u, v

    @torch.no_grad()
    def gains(self) -> Floats:
        """|u_j|^2 |v_j|^2 of the directions that are kept: the energy of each, (rank,)."""
        squares = self.first.square().sum(0) * self.second.square().sum(1)
        return np.asarray(squares[: self.rank].cpu().numpy(), np.float64)

    @torch.no_grad()
    def shrink(self, epsilon: float) -> None:
        """Drop the directions of less importance than that, but the first."""
        u, v = self.suffixes()
        below = np.flatnonzero((u * v).cpu().numpy() < epsilon)
        if len(below):
            self.kept[max(int(below[0]), 1) :] = False

    def factors(self) -> Factors:
        """What was learned, in float64."""
        first, second = (
            f.detach().cpu().numpy().astype(np.float64) for f in (self.first, self.second)
        )
        return Factors(self.unfolding, first[:, : self.rank], second[: self.rank])


def _root(squares: Tensor) -> Tensor:
    """Square roots with a gradient of 0 at 0."""
    positive = squares > 0
    return torch.where(positive, torch.where(positive, squares, 1.0).sqrt(), 0.0)


class MaestroHook(Silent):
    """Trains the targets of a pass as factors; `factors` has them afterwards."""

    name = Maestro.name
    keeps_last = True  # what is trained for is the order of directions, which no look sees
    reestimates = True  # statistics of BatchNormalization, before every look

    def __init__(self, options: Maestro, targets: Sequence[Target], seed: int) -> None:
        """Make a hook.

        Args:
            options: of the training.
            targets: what `options.trained` finds in the model that is trained.
            seed: of the draws.
        """
        self.options, self.seed = options, seed
        self._targets = list(targets)
        self._layers: list[Factored] = []
        self._step = 0
        self._history: list[tuple[int, list[int]]] = []  # ranks since which step
        self.factors: dict[str, Factors] = {}  # by the name of the weight

    def key(self) -> str:
        return f"{self.options} {self.seed}"

    def start(self, net: Interpreter, steps: int) -> None:
        """Make the targets products.

        Raises:
            ModelError: none of them is to be trained.
        """
        self._targets = [t for t in self._targets if t.weight in net.weight_names]
        if not self._targets:
            raise ModelError(
                "maestro: no layer is left to be trained as factors: its targets match none that "
                "can be, or train.freeze names all of their weights"
            )
        for target in self._targets:
            weight = net.weight(target.weight).detach()
            known = net.graph.initializers[target.weight].meta.get(LEARNED)
            if known is None:
                matrix = target.unfolding.unfold(weight.cpu().numpy())
                known = Factors(target.unfolding, *balanced(matrix))
            layer = Factored(known, weight)
            net.compute_weight(target.weight, layer)
            self._layers.append(layer)
        self._pairs = Pairs(self.seed, self._ranks())
        self._budgets = Budgets(self.seed, self._targets, self.options.smallest)
        self._note()

    def before_step(self, step: int) -> None:
        self._whole()
        if self.options.sampling == "layer":
            for _ in range(self.options.sampled):
                layer, rank = self._pairs.next()
                self._layers[layer].width = rank
            return
        if self._budgets.due(step):
            self._budgets.plan([one.gains() for one in self._layers])
        for one, rank in zip(self._layers, self._budgets.next(step), strict=True):
            one.width = rank

    def penalty(self) -> Tensor | None:
        if not self.options.group_lasso:
            return None
        sums = [norms.sum() for layer in self._layers for norms in layer.suffixes()]
        return self.options.group_lasso * torch.stack(sums).sum()

    def after_step(self, step: int) -> None:
        self._step = step + 1
        self._whole()

    def evaluating(self) -> None:
        self._whole()

    def after_epoch(self, epoch: int) -> None:
        for layer in self._layers:
            layer.shrink(self.options.shrink)
        ranks = self._ranks()
        if ranks != self._history[-1][1]:
            self._pairs.restart(ranks)
            self._budgets.forget()
        self._note()

    def finish(self, net: Interpreter) -> None:
        for target, layer in zip(self._targets, self._layers, strict=True):
            self.factors[target.weight] = layer.factors()
            net.settle_weight(target.weight)

    def report(self) -> dict[str, Any]:
        """Of every layer [step, rank] before the training and after every epoch; MACs kept."""
        whole = sum(target.macs for target in self._targets)
        return {
            "ranks": {
                target.site: [[step, ranks[k]] for step, ranks in self._history]
                for k, target in enumerate(self._targets)
            },
            "macs_kept": [self._macs(ranks) / whole for _, ranks in self._history],
        }

    def _macs(self, ranks: Sequence[int]) -> int:
        """What the targets take, those left dense for which factors don't pay."""
        pairs = zip(self._targets, ranks, strict=True)
        return sum(min(target.macs, rank * target.macs_a_rank) for target, rank in pairs)

    def _whole(self) -> None:
        for layer in self._layers:
            layer.width = None

    def _ranks(self) -> list[int]:
        return [layer.rank for layer in self._layers]

    def _note(self) -> None:
        self._history.append((self._step, self._ranks()))

    def state_dict(self) -> dict[str, Any]:
        history = [[step, ranks] for step, ranks in self._history]
        draws = {"pairs": self._pairs.state_dict(), "budgets": self._budgets.state_dict()}
        return {**draws, "history": history, "step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._pairs.load_state_dict(state["pairs"])
        self._budgets.load_state_dict(state["budgets"])
        self._history = [(step, list(ranks)) for step, ranks in state["history"]]
        self._step = state["step"]
