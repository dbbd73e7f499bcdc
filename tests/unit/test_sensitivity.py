from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir
import pytest

from builders import Array, mlp, mlp_rows, model_of, weight
from rankc.calibrate import calibrate
from rankc.cleanup import clean
from rankc.data import Batch
from rankc.passbase import Moments, Pass, Site, SiteStats
from rankc.passes.lowrank import LowRank
from rankc.sensitivity import BATCHES, measure
from sources import Rows

LAYERS = LowRank(min_size=1, round_to=1)


class Marks:
    """A stage that remembers how far it was told to be."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int | None]] = []

    def advance(self, done: int, total: int | None = None) -> None:
        self.seen.append((done, total))

    def note(self, text: str) -> None: ...


def tower(kind: str, *heads: int) -> ir.Model:
    """h = `kind`(x A), and an output y0, y1, ... of each width out of h; int64 for a width of 0."""
    rng, tape = np.random.default_rng(2), ir.tape.Tape()
    x, outputs = ir.val("x", ir.DataType.FLOAT, ["batch", 16]), []
    a = weight(tape, "A", (rng.normal(size=(16, 12)) / 4).astype(np.float32))
    hidden = tape.op(kind, [tape.op("MatMul", [x, a], name="up")], name="act")
    for k, width in enumerate(heads):
        b = weight(tape, f"B{k}", rng.normal(size=(12, width or 9)).astype(np.float32))
        y = ir.val(f"y{k}", ir.DataType.FLOAT, ["batch", width])
        if width:
            tape.op("MatMul", [hidden, b], name=f"head{k}", output=y)
        else:
            y = ir.val(f"y{k}", ir.DataType.INT64, ["batch", 1])
            wide = tape.op("MatMul", [hidden, b], name=f"head{k}")
            tape.op("ArgMax", [wide], attributes={"axis": 1}, output=y)
        outputs.append(y)
    model = model_of(tape, [x], outputs)
    clean(model)
    return model


def owners(model: ir.Model) -> dict[Site, Pass]:
    return {site: LAYERS for site in LAYERS.match(model) if isinstance(site, Site)}


def known(model: ir.Model, rows: Rows) -> Mapping[Site, SiteStats]:
    probes = {site: LAYERS.probe(model, site) for site in owners(model)}
    return calibrate(model, probes, rows, Marks()).stats


def measured(model: ir.Model, rows: Rows, *names: str) -> dict[str, float]:
    """The weights of the named sites, as if none had a gradient."""
    stats, sites = known(model, rows), owners(model)
    unknown = {site: "no gradient" for site in sites if site.name in names}
    blank = {s: SiteStats(k.inputs, k.counts) if s in unknown else k for s, k in stats.items()}
    found = measure(model, sites, blank, unknown, rows, Marks())
    for site in sites:
        same = found[site] is blank[site]
        assert same == (site.name not in names), "only what is unknown is measured"
        assert found[site].inputs is stats[site].inputs
    weights = {s.name: found[s].output_weight for s in unknown}
    assert all(isinstance(w, float) for w in weights.values())
    return weights  # type: ignore[return-value]


def lost(model: ir.Model, x: Array) -> Array:
    """What rewriting `up` at a middle rank takes away from its output, (rows, m)."""
    (site,) = (s for s in owners(model) if s.name == "up")
    moments = Moments(len(x), x.mean(axis=0), x.T @ x / len(x))
    solution = LAYERS.solve(model, site, SiteStats(inputs=moments))
    ranks = LAYERS.cost(site, solution).ranks
    rank = int(ranks[len(ranks) // 2])
    kept = solution.found.decode[:, :rank] @ solution.found.encode[:, :rank].T
    error: Array = (x - x.mean(axis=0)) @ solution.weight @ (np.eye(site.shape[1]) - kept.T)
    return error


def test_in_a_linear_model_it_is_what_the_logit_feels_of_the_error() -> None:
    """logit = h B, so the measured number is E[(error B)^2] / E|error|^2 whatever the rank."""
    model, x = tower("Neg", 1), mlp_rows(600)
    error = lost(model, x.astype(np.float64))
    b = model.graph.initializers["B0"].const_value
    assert b is not None
    want = np.square(error @ b.numpy()).sum() / np.square(error).sum()
    assert measured(model, Rows({"x": x}), "up")["up"] == pytest.approx(want, rel=1e-3)


def test_it_agrees_with_the_gradient_on_an_mlp() -> None:
    model, rows = mlp(), Rows({"x": mlp_rows(1000)}, 1000)
    clean(model)
    stats = known(model, rows)
    for name, number in measured(model, rows, "up", "down").items():
        (site,) = (s for s in stats if s.name == name)
        felt = stats[site].output_weight
        assert isinstance(felt, np.ndarray)
        mean = np.trace(felt) / len(felt)
        assert mean / 3 < number < 3 * mean, name
    # The logits are the layer's output itself: every error is felt as it is.
    assert measured(model, rows, "down")["down"] == pytest.approx(1.0, rel=1e-3)


def test_every_float_output_is_an_answer() -> None:
    x = Rows({"x": mlp_rows(600)})
    both = measured(tower("Round", 2, 3), x, "up")["up"]
    first = measured(tower("Round", 2), x, "up")["up"]
    assert both > 1.2 * first > 0


def test_a_site_that_leads_to_integers_only_counts_by_itself() -> None:
    model = tower("Round", 1, 0)
    assert measured(model, Rows({"x": mlp_rows(600)}), "head1") == {"head1": 1.0}


def test_a_few_batches_are_enough() -> None:
    class Counting(Rows):
        taken = 0

        def batches(self) -> Iterator[Batch]:
            for batch in super().batches():
                self.taken += 1
                yield batch

    rows = Counting({"x": mlp_rows(1000)}, 10)
    model = tower("Round", 1)
    sites = owners(model)
    (site,) = (s for s in sites if s.name == "up")
    stats, rows.taken, marks = known(model, rows), 0, Marks()
    before = ir.to_proto(model).SerializeToString()
    measure(model, sites, stats, {site: "no gradient"}, rows, marks)
    assert rows.taken <= 2 * (BATCHES + 1)
    assert marks.seen == [(1, 1)]
    assert ir.to_proto(model).SerializeToString() == before
