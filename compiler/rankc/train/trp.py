"""Trained rank pruning: weights cut to lower rank as they are trained, for the pass `trp`.

Every m steps, before the step, each weight W = U S VT (unfolded) becomes U_k S_k V_kT with the
smallest k that keeps the energy asked for, and lambda U_k V_kT is added to its gradient in that
step: Xu et al., IJCAI 2020. Momentum stays as it is. `newton-schulz` takes
    W <- W - rate lambda U VT
after every step instead, decoupled from the gradient, with U VT of W by five matrix iterations:
no decomposition. Looks at held-out rows see every weight cut, as it will be in the end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from rankc.errors import RecipeError
from rankc.linalg import Floats
from rankc.passes.trp import Target, Trp
from rankc.recipe_training import Training
from rankc.train.hooks import Silent
from rankc.train.interpreter import Interpreter
from rankc.train.schedule import rate_at
from rankc.train.trp_ranks import Schedule

Tensor = torch.Tensor
ITERATIONS = 5
# Takes singular values from 0.003 to 1 near to 1 within five iterations: Jordan et al., "Muon: An
# optimizer for hidden layers in neural networks", 2024.
COEFFICIENTS = 3.4445, -4.7750, 2.0315


@dataclasses.dataclass(frozen=True, slots=True)
class Parts:
    """Matrices of one weight, decomposed."""

    left: Tensor  # (matrices, rows, full)
    sizes: Tensor  # (matrices, full), falling
    right: Tensor  # (matrices, full, columns)

    @classmethod
    def of(cls, matrices: Tensor) -> Parts:
        """Decompose (matrices, rows, columns)."""
        return cls(*torch.linalg.svd(matrices, full_matrices=False))

    @property
    def squares(self) -> Floats:
        """Squared singular values, of all matrices together, (full,)."""
        found: Floats = self.sizes.double().square().sum(dim=0).cpu().numpy()
        return found

    def kept(self, rank: int) -> Tensor:
        """The matrices of that rank nearest to these."""
        scaled = self.left[..., :rank] * self.sizes[:, None, :rank]
        return torch.matmul(scaled, self.right[:, :rank])

    def pull(self, rank: int) -> Tensor:
        """U_k V_kT, a sub-gradient of the sum of their nuclear norms."""
        there: Tensor = self.left[..., :rank] * self.sizes[:, None, :rank].gt(0)
        return torch.matmul(there, self.right[:, :rank])


def polar(matrices: Tensor) -> Tensor:
    """U VT of (matrices, rows, columns), singular values within about a third of 1."""
    a, b, c = COEFFICIENTS
    wide = matrices.shape[1] <= matrices.shape[2]
    turned = matrices if wide else matrices.transpose(1, 2)
    x: Tensor = turned / torch.linalg.matrix_norm(turned, keepdim=True).clamp_min(
        torch.finfo(turned.dtype).tiny
    )
    for _ in range(ITERATIONS):
        square = x @ x.transpose(1, 2)
        x = a * x + (b * square + c * square @ square) @ x
    return x if wide else x.transpose(1, 2)


@dataclasses.dataclass(slots=True)
class _Track:
    """What became of one layer so far."""

    ranks: list[list[int]] = dataclasses.field(default_factory=list)  # [step, rank], changes only
    same: int = 0  # truncations that found the rank of the one before
    rest: int = 0  # truncations that it is still left out of
    squares: list[float] = dataclasses.field(default_factory=list)  # when last decomposed

    def note(self, step: int, rank: int, settled: int) -> None:
        if self.ranks and self.ranks[-1][1] == rank:
            self.same += 1
        else:
            self.ranks.append([step, rank])
            self.same = 0
        if settled and self.same >= settled:
            self.rest = settled - 1


class TrpHook(Silent):
    """Truncates the weights of one net as it is trained."""

    name = "trp"
    keeps_last = True  # the ranks fall as it goes

    def __init__(self, pass_: Trp, targets: Sequence[Target], settings: Training) -> None:
        """A hook for one training.

        Args:
            pass_: says how.
            targets: what, of the net as it will be trained: `pass_.trained`.
            settings: of the training.
        """
        self._pass, self._targets, self._settings = pass_, targets, settings
        self._tracks = {target.site: _Track() for target in targets}
        self._final: dict[str, int] = {}
        self._pulls: dict[str, Tensor] = {}
        self._decomposed = self._skipped = 0

    def key(self) -> str:
        return repr((self._pass, tuple(self._targets)))

    def start(self, net: Interpreter, steps: int) -> None:
        """Find the weights.

        Raises:
            RecipeError: one of them is frozen.
        """
        self._net, self._steps = net, steps
        trained = set(net.weight_names)
        for target in self._targets:
            if target.weight not in trained:
                raise RecipeError(
                    f"train.freeze: it holds weight {target.weight!r} of layer {target.site!r}, "
                    "which trp truncates; add the layer to the pass's `ignore`, or train it"
                )

    @torch.no_grad()
    def before_step(self, step: int) -> None:
        if self._pass.step == "newton-schulz" or step % self._pass.period:
            return
        due = []
        for target in self._targets:
            track = self._tracks[target.site]
            if track.rest:
                track.rest -= 1
                self._skipped += 1
            else:
                due.append(target)
        parts = self._decompose(due)
        for target, one in parts.items():
            self._tracks[target.site].squares = one.squares.tolist()
        # Those that rest count as they were when last decomposed.
        known = {t: np.array(self._tracks[t.site].squares) for t in self._targets}
        ranks = self._ranks(step, known)
        for target in parts:
            rank = ranks[target]
            self._tracks[target.site].note(step, rank, self._pass.settled)
            self._cut(target, parts[target], rank, self._pass.keep is not None)
            self._pulls[target.site] = parts[target].pull(rank)

    @torch.no_grad()
    def after_backward(self, step: int) -> None:
        for target in self._targets:
            pull, weight = self._pulls.pop(target.site, None), self._weight(target)
            if pull is not None and weight.grad is not None:
                folded = folded_as(pull, target).to(weight.dtype)
                weight.grad.add_(folded, alpha=self._pass.nuclear)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        if self._pass.step == "svd":
            return
        rate = rate_at(self._settings, step, self._steps) * self._pass.nuclear
        for target in self._targets:
            weight = self._weight(target)
            pull = folded_as(polar(matrices_of(weight, target)), target)
            weight.sub_(pull.to(weight.dtype), alpha=rate)

    @torch.no_grad()
    def evaluating(self) -> None:
        parts = self._decompose(self._targets)
        ranks = self._ranks(self._steps, {t: one.squares for t, one in parts.items()})
        for target, rank in ranks.items():
            self._cut(target, parts[target], rank, True)
        self._final = {target.site: rank for target, rank in ranks.items()}

    def report(self) -> dict[str, Any]:
        """Ranks of every layer, [step, rank] where one changed, and how much was decomposed."""
        return {
            "ranks": {site: self._told(site) for site in self._tracks},
            "final": self._final,
            "decomposed": self._decomposed,
            "skipped": self._skipped,
        }

    def _told(self, site: str) -> list[list[int]]:
        """Over time, and what the last look cut it to, if that is another rank."""
        ranks, final = self._tracks[site].ranks, self._final.get(site)
        last = ranks[-1][1] if ranks else None
        return ranks if final in (None, last) else [*ranks, [self._steps, final]]

    def state_dict(self) -> dict[str, Any]:
        tracks = {site: dataclasses.asdict(track) for site, track in self._tracks.items()}
        return {
            "tracks": tracks,
            "final": self._final,
            "decomposed": self._decomposed,
            "skipped": self._skipped,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._tracks = {site: _Track(**track) for site, track in state["tracks"].items()}
        self._final = dict(state["final"])
        self._decomposed, self._skipped = state["decomposed"], state["skipped"]

    def _weight(self, target: Target) -> Tensor:
        return self._net.weight(target.weight)

    def _decompose(self, targets: Sequence[Target]) -> dict[Target, Parts]:
        """Without those that are not finite: the loop then says at the loss what went wrong."""
        every = {target: matrices_of(self._weight(target), target) for target in targets}
        parts = {t: Parts.of(m) for t, m in every.items() if bool(torch.isfinite(m).all())}
        self._decomposed += len(parts)
        return parts

    def _ranks(self, step: int, squares: Mapping[Target, Floats]) -> dict[Target, int]:
        """Of layers that were decomposed, by their squared singular values."""
        known = {target: one for target, one in squares.items() if len(one)}
        return Schedule(self._pass, self._steps).ranks(step, known) if known else {}

    def _cut(self, target: Target, parts: Parts, rank: int, pays: bool) -> None:
        """Cut a weight in place, if asked for only where factors are smaller than the layer."""
        if rank <= target.most or not pays:
            self._weight(target).copy_(folded_as(parts.kept(rank), target))


def matrices_of(weight: Tensor, target: Target) -> Tensor:
    """A weight unfolded, (matrices, rows, columns), in float32 at least."""
    how = target.unfolding
    wide = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    return wide.permute(how.order).reshape(target.matrices, -1, how.columns)


def folded_as(matrices: Tensor, target: Target) -> Tensor:
    """The other way round."""
    how = target.unfolding
    return matrices.reshape(how.permuted).permute(how.inverse)
