"""Every number about the planner. Run `python -m benchmarks.planner.run`; a few minutes."""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when numpy is imported: costs are CPU time
os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import itertools
import json
import platform
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.planner import table
from benchmarks.planner.instances import instance, network, optimum
from rankc.knapsack import solve
from rankc.planning import Candidate, Plan, make_plan
from rankc.recipe import Planning, Unit

SAME = 1e-12
SMALL = {1: 1000, 2: 500, 3: 200}  # instances by the number of limits
SHARES = (0.1, 0.2, 0.3, 0.5, 0.7)  # of the room between smallest and dense
NETS = 20
STEPS = 60  # budgets of one net, from the smallest to dense
# name, sites, ranks, forms, noise, limited units, repeats
SCALES: tuple[tuple[str, int, int, int, float, tuple[Unit, ...], int], ...] = (
    ("click model", 29, 32, 1, 0.0, ("bytes",), 5),
    ("vision net", 50, 256, 4, 0.0, ("macs",), 5),
    ("vision net, noisy losses", 50, 256, 4, 0.2, ("macs",), 5),
    ("vision net", 50, 256, 4, 0.0, ("macs", "bytes"), 5),
    ("vision net, noisy losses", 50, 64, 4, 0.2, ("macs", "bytes"), 5),
    ("1,000 layers", 1000, 4096, 1, 0.0, ("macs",), 5),
    ("1,000 layers, noisy losses", 1000, 4096, 1, 0.2, ("macs",), 5),
    ("1,000 layers", 1000, 4096, 1, 0.0, ("macs", "bytes"), 1),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write raw.json and table.md; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planner.run", description=__doc__)
    parser.add_argument("--out", type=Path, default=table.RESULTS, help="where results go")
    out = parser.parse_args(argv).out
    raw = {
        "format": 1,
        "environment": {"numpy": np.__version__, "python": platform.python_version()},
        "brute_force": [brute_force(limits, count) for limits, count in SMALL.items()],
        "strategies": [one for noise in (0.0, 0.2) for one in strategies(noise)],
        "monotone": [
            monotone(*kind) for kind in ((30, 64, 3, 0.0), (30, 64, 3, 0.2), (60, 4096, 1, 0.0))
        ],
        "scale": [scale(*kind) for kind in SCALES],
    }
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(raw, indent=1, sort_keys=True) + "\n"
    (out / "raw.json").write_text(text, encoding="utf-8", newline="\n")
    print(f"{out / 'raw.json'}\n{table.write(out)}")
    return 0


def brute_force(limits: int, count: int) -> dict[str, Any]:
    """Against every choice there is."""
    excess, refused, over = [], 0, 0
    for seed in range(count):
        offers, most = instance(seed, limits)
        best, found = optimum(offers, most), solve(offers, most)
        if (best is None) != (found is None):
            raise AssertionError(f"seed {seed}: {best} against {found}")
        if best is None or found is None:
            refused += 1
            continue
        over += found.bound > best + SAME
        excess.append((found.loss - best) / best if best > SAME else found.loss - best)
    return {
        "limits": limits,
        "instances": count,
        "impossible": refused,
        "optimal": sum(each <= SAME for each in excess),
        "within_a_hundredth": sum(each <= 0.01 for each in excess),
        "worst_excess": max(max(excess), 0.0),
        "bound_above_optimum": over,
    }


def budget_at(
    candidates: Sequence[Candidate], share: float, units: Sequence[Unit]
) -> dict[Unit, float]:
    """Between the smallest, 0, and all dense, 1."""
    found: dict[Unit, float] = {}
    for unit in units:
        costs = [candidate.costs(unit) for candidate in candidates]
        low, high = sum(min(d, r.min()) for d, r in costs), sum(d for d, _ in costs)
        found[unit] = int(low + share * (high - low))
    return found


def strategies(noise: float) -> Iterator[dict[str, Any]]:
    """How many times the optimum's loss the others lose, and how far their plans say they are."""
    for share in SHARES:
        nets = [network(seed, 30, 64, 3, noise) for seed in range(NETS)]
        plans = {
            name: [planned(net, share, name) for net in nets]
            for name in ("optimal", "greedy", "uniform")
        }
        for name, made in plans.items():
            yield {
                "noise": noise,
                "share": share,
                "strategy": name,
                "times_the_optimum": [
                    one.loss / best.loss for one, best in zip(made, plans["optimal"], strict=True)
                ],
                "gap": [one.gap for one in made],
                "exact": sum(one.exact for one in made),
            }


def planned(net: Sequence[Candidate], share: float, strategy: str) -> Plan:
    """The plan of one strategy, by multiply-accumulates."""
    planning = Planning(strategy=strategy)  # type: ignore[arg-type]
    return make_plan(net, [], budgets=budget_at(net, share, ["macs"]), planning=planning)


def monotone(sites: int, ranks: int, forms: int, noise: float) -> dict[str, Any]:
    """Whether a larger budget ever loses more."""
    net = network(7, sites, ranks, forms, noise)
    shares = np.linspace(0, 1, STEPS).tolist()
    losses = [make_plan(net, [], budgets=budget_at(net, s, ["macs"])).loss for s in shares]
    worse = sum(b > a * (1 + SAME) for a, b in itertools.pairwise(losses))
    return {
        "sites": sites,
        "ranks": ranks,
        "forms": forms,
        "noise": noise,
        "worse": worse,
        "budgets": STEPS,
    }


def scale(
    name: str,
    sites: int,
    ranks: int,
    forms: int,
    noise: float,
    units: tuple[Unit, ...],
    repeats: int,
) -> dict[str, Any]:
    """Seconds from candidates to plan, at several budgets."""
    net = network(5, sites, ranks, forms, noise)
    spent, walls = [], []
    plans: dict[float, Plan] = {}
    for share in (0.1, 0.3, 0.5, 0.7):
        budgets = budget_at(net, share, units)
        for _ in range(repeats):
            cpu, wall = time.thread_time(), time.perf_counter()
            made = make_plan(net, [], budgets=budgets)
            spent.append(time.thread_time() - cpu)
            walls.append(time.perf_counter() - wall)
            plans[share] = made
    return {
        "name": name,
        "sites": sites,
        "ranks": ranks,
        "forms": forms,
        "units": list(units),
        "points": sum(len(candidate.curve.ranks) + 1 for candidate in net),
        "cpu_seconds": spent,
        "wall_seconds": walls,
        "gaps": [plan.gap for plan in plans.values()],
        "exact": sum(plan.exact for plan in plans.values()),
    }


if __name__ == "__main__":
    raise SystemExit(main())
