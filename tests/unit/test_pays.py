from __future__ import annotations

import dataclasses

import onnx_ir as ir
import pytest

from builders import lookup, lookup_rows, model_of, weight
from layer_builders import image_model, lowrank, random, solutions_of, stack
from rankc.calibrate import calibrate
from rankc.cleanup import clean
from rankc.layer_models import concrete
from rankc.layer_timing import Call, Compared, Machine, bench_of
from rankc.passbase import Pass
from rankc.passes.conv import Conv
from rankc.passes.embedding import Embedding
from rankc.pays import LayerSpeed, time_choices
from rankc.planning import Plan, make_plan
from rankc.progress import SilentProgress
from rankc.rewriting import Sites, Solutions, candidates, solve
from rankc.validate.sampling import Samples
from sources import Rows


class Counted:
    """The real bench, counting what it opens."""

    def __init__(self) -> None:
        self._bench = bench_of("cpu")
        self.machine: Machine = self._bench.machine
        self.opened = 0

    def open(self, alone: ir.Model) -> Call:
        self.opened += 1
        return self._bench.open(alone)

    def pairs(self, first: Call, second: Call, seconds: float) -> Samples:
        return self._bench.pairs(first, second, seconds)


def planned(model: ir.Model, *passes: Pass) -> tuple[Sites, Solutions, Plan]:
    sites = Sites.of(model, passes)
    solutions = solutions_of(concrete(model, 1), sites)
    return sites, solutions, make_plan(candidates(model, sites, solutions), ())


def test_a_planted_slow_layer_is_found_and_a_fast_one_is_not() -> None:
    model = stack([512, 512])
    sites, solutions, plan = planned(model, lowrank(rank=512))  # twice the work
    speeds = time_choices(model, sites, solutions, plan, [1, 16], seconds=0.2)
    assert [s.choice.site for s in speeds if s.lost] == ["fc0", "last"]
    assert all(set(s.timed) == {1, 16} and s.reason == "" for s in speeds)
    sites, solutions, plan = planned(model, lowrank(rank=8))  # a thirtieth of it
    speeds = time_choices(model, sites, solutions, plan, [1, 16], seconds=0.2)
    assert not any(s.lost for s in speeds)
    assert all(s.ratio is not None and s.ratio < 1 for s in speeds)


def test_equal_choices_are_timed_once() -> None:
    model = stack([64, 64, 64, 64])
    sites, solutions, plan = planned(model, lowrank(rank=8))
    bench = Counted()
    speeds = time_choices(model, sites, solutions, plan, [1], seconds=0.02, bench=bench)
    assert [s.choice.site for s in speeds] == ["fc0", "fc1", "fc2", "last"]
    assert speeds[0].timed[1] is speeds[2].timed[1]
    assert speeds[0].timed[1] is not speeds[3].timed[1]
    assert bench.opened == 1 + 2 + 2  # the empty call, and two for each of two layers


def test_a_fixed_batch_is_timed_once_for_all_sizes() -> None:
    model = stack([64, 64], batch=4)
    sites, solutions, plan = planned(model, lowrank(rank=8))
    bench = Counted()
    speeds = time_choices(model, sites, solutions, plan, [1, 32], seconds=0.02, bench=bench)
    assert bench.opened == 5
    assert speeds[0].timed[1] is speeds[0].timed[32]


def test_a_convolution_is_timed_in_the_form_of_its_choice() -> None:
    model = image_model()
    sites, solutions, plan = planned(model, Conv(rank=4, forms=("vertical",)))
    assert {choice.form for choice in plan.choices} == {"vertical"}
    speeds = time_choices(model, sites, solutions, plan, [1], seconds=0.02)
    assert [len(s.timed) for s in speeds] == [1, 1]


def test_tables_and_unknown_shapes_have_a_reason_instead() -> None:
    model = lookup()
    clean(model)
    pass_ = Embedding(rank=2)
    sites = Sites.of(model, [pass_])
    probes = {site: pass_.probe(model, site) for site in sites.owners}
    with SilentProgress().stage("calibrate") as stage:
        stats = calibrate(model, probes, Rows({"ids": lookup_rows()}), stage).stats
    solutions = solve(model, sites, stats)
    plan = make_plan(candidates(model, sites, solutions), ())
    speeds = time_choices(model, sites, solutions, plan, [1])
    assert len(speeds) == len(plan.choices) > 0
    assert all("table" in s.reason and not s.lost and s.ratio is None for s in speeds)


def test_unknown_shapes_have_a_reason_instead() -> None:
    x, tape = ir.val("x", ir.DataType.FLOAT, ["batch", "tokens", 32]), ir.tape.Tape()
    y = ir.val("y", ir.DataType.FLOAT, ["batch", "tokens", 40])
    tape.op("MatMul", [x, weight(tape, "w", random(32, 40))], name="fc0", output=y)
    model, pass_ = model_of(tape, [x], [y]), lowrank(rank=8)
    same = stack([32, 40])
    known, solutions, plan = planned(same, pass_)
    sites = Sites.of(model, [pass_])
    (site,) = sites.owners
    only = dataclasses.replace(plan, choices=plan.choices[:1])
    assert site in known.owners
    (speed,) = time_choices(model, sites, solutions, only, [1])
    assert "tokens" in speed.reason
    assert not speed.lost


def compared(ratio: float, low: float) -> Compared:
    return Compared(1.0, ratio, ratio, (low, ratio + 0.1), 20)


@pytest.mark.parametrize(
    ("timed", "lost"),
    [
        ({}, False),
        ({1: (1.5, 1.4)}, True),
        ({1: (1.5, 1.4), 32: (0.6, 0.5)}, False),  # it pays at 32
        ({1: (1.5, 1.4), 32: (1.01, 0.99)}, True),
        ({1: (1.01, 0.9)}, False),  # noise
        ({1: (0.99, 0.985)}, False),
    ],
)
def test_a_layer_has_lost_if_it_gains_nowhere_beyond_noise(
    timed: dict[int, tuple[float, float]], lost: bool
) -> None:
    model = stack([32, 32])
    _, _, plan = planned(model, lowrank(rank=8))
    speed = LayerSpeed(plan.choices[0], {b: compared(*pair) for b, pair in timed.items()})
    assert speed.lost is lost
    assert speed.ratio == min((r for r, _ in timed.values()), default=None)
