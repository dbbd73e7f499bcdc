"""Whether each rewrite of a plan pays: its layer timed, dense against factored, by itself.

Fewer multiply-accumulates are not yet less time. Every layer that a plan rewrites is taken out of
the model and run in turn with its factored form, one thread, CPU time (`validate.sampling`), at the
batch sizes that matter. A layer that is not faster at any of them has lost: put it back dense.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from rankc.layer_models import concrete, isolate, rewritten, signature
from rankc.layer_timing import Bench, Compared, bench_of, compare, empty_call_ns
from rankc.passbase import Pass, Site
from rankc.planning import Choice, Plan
from rankc.progress import SilentProgress, Stage
from rankc.rewriting import Sites, Solutions

SECONDS = 0.3  # a layer, over all batch sizes
NOISE = 0.98  # an interval that reaches below this may be of a layer that gained

Memo = dict[tuple[str, str, int, str], Compared]  # by signature, pass, rank and form


@dataclasses.dataclass(frozen=True, slots=True)
class LayerSpeed:
    """How a rewritten layer compares with the dense one."""

    choice: Choice
    timed: Mapping[
        int, Compared
    ]  # by batch size; ratios are factored / dense: 0.5 is twice as fast
    reason: str = ""  # why it was not timed; empty where it was

    @property
    def lost(self) -> bool:
        """Whether the rewrite is no faster at any batch size, beyond noise."""
        return bool(self.timed) and all(_lost(one) for one in self.timed.values())

    @property
    def best(self) -> Compared | None:
        """At the batch size where the rewrite does best; None: not timed."""
        return min(self.timed.values(), key=lambda one: one.ratio, default=None)

    @property
    def ratio(self) -> float | None:
        """Factored / dense there."""
        return None if self.best is None else self.best.ratio


def _lost(compared: Compared) -> bool:
    return compared.ratio >= 1.0 and compared.interval[0] >= NOISE


def time_choices(
    model: ir.Model,
    sites: Sites,
    solutions: Solutions,
    plan: Plan,
    batch_sizes: Sequence[int],
    *,
    seconds: float = SECONDS,
    memo: Memo | None = None,
    stage: Stage | None = None,
    bench: Bench | None = None,
) -> list[LayerSpeed]:
    """Time every choice of the plan that is a layer; equal layers are timed once.

    Args:
        model: what the plan was made for, before the rewrites.
        sites: who owns which site.
        solutions: what the owners made of the sites.
        plan: its choices are timed, in its order.
        batch_sizes: rows a call. Where the model fixes their number, all mean the same.
        seconds: CPU time a layer, over all batch sizes.
        memo: of earlier calls for the same machine; what is in it is not timed again.
        stage: told how far it is.
        bench: where to time; by default ONNX Runtime with one thread, here.

    Returns:
        One entry a choice; one that is no layer, or has unknown shapes, has a reason and no times.

    Raises:
        MachineError: there is no ONNX Runtime, or it refuses a layer.
    """
    with SilentProgress().stage("pays") as silent:
        watch = stage or silent
        known = {} if memo is None else memo
        timer = _Timer(model, solutions, batch_sizes, seconds, bench or bench_of("cpu"), known)
        owners = {(site.pass_name, site.name): site for site in sites.owners}
        speeds = []
        for k, choice in enumerate(plan.choices):
            site = owners[choice.pass_name, choice.site]
            speeds.append(timer.speed(choice, site, sites.owners[site]))
            watch.advance(k + 1, len(plan.choices))
        return speeds


class _Timer:
    """Layers of one model at several batch sizes, and what was timed of them."""

    def __init__(
        self,
        model: ir.Model,
        solutions: Solutions,
        batch_sizes: Sequence[int],
        seconds: float,
        bench: Bench,
        memo: Memo,
    ) -> None:
        self._models = {size: concrete(model, size) for size in sorted(set(batch_sizes))}
        self._solutions, self._bench = solutions, bench
        self._seconds = seconds / max(len(self._models), 1)
        self._known = memo
        self._empty_ns: float | None = None

    def speed(self, choice: Choice, site: Site, owner: Pass) -> LayerSpeed:
        """One choice at every batch size."""
        timed: dict[int, Compared] = {}
        for size, model in self._models.items():
            alone = isolate(model, owner, site, size)
            if isinstance(alone, str):
                return LayerSpeed(choice, {}, alone)
            key = (signature(alone), choice.pass_name, choice.rank, choice.form)
            if key not in self._known:
                solution = self._solutions[site]
                factored = rewritten(alone, owner, site, choice.rank, solution, choice.form)
                self._known[key] = self._compare(alone, factored)
            timed[size] = self._known[key]
        return LayerSpeed(choice, timed)

    def _compare(self, dense: ir.Model, factored: ir.Model) -> Compared:
        bench = self._bench
        if self._empty_ns is None:
            self._empty_ns = empty_call_ns(bench)
        calls = bench.open(dense), bench.open(factored)
        return compare(bench, *calls, self._seconds, self._empty_ns)
