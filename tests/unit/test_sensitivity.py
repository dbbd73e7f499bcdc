from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir
import pytest

from builders import Array, lookup, lookup_rows, mlp, mlp_rows, model_of, weight
from conv_builders import convnet, images
from rankc.answers import divergence
from rankc.calibrate import calibrate
from rankc.cleanup import clean
from rankc.data import Batch
from rankc.offers import Candidate
from rankc.passbase import Moments, Pass, Site, SiteStats
from rankc.passes.conv import DEFAULT_FORMS, Conv, Form
from rankc.passes.embedding import Embedding
from rankc.passes.lowrank import LowRank
from rankc.sensitivity import MIDDLE, measure, middle
from rankrt.session import open_model
from sources import Rows

LAYERS = LowRank(min_size=1, round_to=1)
EVERY_FORM: tuple[Form, ...] = (*DEFAULT_FORMS, "pivot")


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
    unknown = [site for site in sites if site.name in names]
    blank = {s: SiteStats(k.inputs, k.counts) if s in unknown else k for s, k in stats.items()}
    found = measure(model, sites, blank, unknown, rows, Marks(), rows=2000)
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
    curve = LAYERS.cost(site, solution)
    at = middle(Candidate(site, LAYERS.dense(model, site), curve))
    assert at is not None
    rank = int(curve.ranks[at])
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


def test_a_model_of_integers_only_has_nothing_to_measure() -> None:
    model = tower("Round", 0)
    assert measured(model, Rows({"x": mlp_rows(60)}), "up") == {"up": 1.0}


class Counting(Rows):
    taken = 0

    def batches(self) -> Iterator[Batch]:
        for batch in super().batches():
            self.taken += 1
            yield batch


def test_the_rows_are_read_once_and_no_more_than_asked_for() -> None:
    rows, model = Counting({"x": mlp_rows(1000)}, 10), tower("Round", 4, 4)
    sites = owners(model)
    stats, marks = known(model, rows), Marks()
    rows.taken, before = 0, ir.to_proto(model).SerializeToString()
    measure(model, sites, stats, [s for s in sites if s.name != "head1"], rows, marks, rows=40)
    assert rows.taken == 4
    assert marks.seen == [(1, 2), (2, 2)]
    assert ir.to_proto(model).SerializeToString() == before


def everywhere(
    model: ir.Model, pass_: Pass, rows: Rows, fisher: bool = False
) -> list[tuple[Site, SiteStats, float]]:
    """All sites measured: what was known of each but the weight, and the weight."""
    sites: dict[Site, Pass] = {s: pass_ for s in pass_.match(model) if isinstance(s, Site)}
    probes = {s: dataclasses.replace(pass_.probe(model, s), graded=False) for s in sites}
    stats = calibrate(model, probes, rows, Marks()).stats
    stats = {s: dataclasses.replace(k, output_weight=None) for s, k in stats.items()}
    found = measure(model, sites, stats, sites, rows, Marks(), fisher=fisher)
    weights = [found[s].output_weight for s in sites]
    assert all(isinstance(w, float) for w in weights)
    return [(s, stats[s], w) for s, w in zip(sites, weights, strict=True)]  # type: ignore[misc]


def predicted(model: ir.Model, pass_: Pass, site: Site, known: SiteStats) -> tuple[float, ir.Model]:
    """The loss at the middling entry, and the model rewritten so."""
    solution = pass_.solve(model, site, known)
    curve, changed = pass_.cost(site, solution), model.clone()
    at = middle(Candidate(site, pass_.dense(model, site), curve))
    assert at is not None
    pass_.rewrite(changed, site, int(curve.ranks[at]), solution, curve.form(at))
    return float(curve.loss[at]), changed


def answers(model: ir.Model, feeds: Mapping[str, Array], name: str) -> Array:
    return open_model(ir.to_proto(model).SerializeToString()).run(feeds)[name]


@pytest.mark.parametrize("fisher", [False, True])
@pytest.mark.parametrize("form", [*EVERY_FORM, None])
def test_convolutions_are_measured_in_every_form(form: Form | None, fisher: bool) -> None:
    """What is then predicted for the rewrite that was tried is what the answer felt of it."""
    pass_ = Conv(min_size=64, round_to=1, forms=EVERY_FORM if form is None else (form,))
    model, feeds = convnet(), {"x": images(48)}
    clean(model)
    found = everywhere(model, pass_, Rows(feeds, 20), fisher)
    assert found
    for site, known, number in found:
        weighted = dataclasses.replace(known, output_weight=number)
        loss, changed = predicted(model, pass_, site, weighted)
        a, b = answers(model, feeds, "logits"), answers(changed, feeds, "logits")
        felt = 2 * divergence("categorical" if fisher else "normal", a, b) / 48
        assert loss == pytest.approx(felt, rel=1e-3), site.name


def test_a_convolution_weighs_as_much_as_by_its_gradient() -> None:
    """Summed over all places of an image, up to 99; errors that agree there are felt more."""
    model, rows = convnet(), Rows({"x": images(96)}, 16)
    clean(model)
    pass_ = Conv(min_size=64, round_to=1, forms=("channel",))
    sites = [site for site in pass_.match(model) if isinstance(site, Site)]
    graded = calibrate(model, {s: pass_.probe(model, s) for s in sites}, rows, Marks()).stats
    for site, _, number in everywhere(model, pass_, rows):
        felt = graded[site].output_weight
        assert isinstance(felt, np.ndarray)
        mean = np.trace(felt) / len(felt)
        assert mean / 3 < number < 20 * mean, site.name


def test_tables_are_measured_too() -> None:
    model, feeds, pass_ = lookup(), {"ids": lookup_rows(512)}, Embedding()
    clean(model)
    for site, known, number in everywhere(model, pass_, Rows(feeds, 100), fisher=True):
        weighted = dataclasses.replace(known, output_weight=number)
        loss, changed = predicted(model, pass_, site, weighted)
        p, q = (answers(net, feeds, "p").astype(float) for net in (model, changed))
        apart = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
        assert loss == pytest.approx(2 * apart.sum() / 512, rel=1e-3), site.name


def test_the_middling_entry_saves_something_and_is_nearest_in_error() -> None:
    model, pass_ = convnet(), Conv(min_size=64, round_to=1)
    clean(model)
    for site, known, _ in everywhere(model, pass_, Rows({"x": images(48)})):
        dense, curve = pass_.dense(model, site), pass_.cost(site, pass_.solve(model, site, known))
        at = middle(Candidate(site, dense, curve))
        assert at is not None
        assert curve.macs[at] < dense.macs
        apart = np.abs(np.log(np.maximum(curve.error, 1e-300) / MIDDLE))
        assert apart[at] == apart[curve.macs < dense.macs].min()


def test_a_site_with_exact_rewrites_only_counts_by_itself() -> None:
    model = mlp(rank=1)
    clean(model)
    (site,) = (s for s in owners(model) if s.name == "up")
    solution = LAYERS.solve(model, site, known(model, Rows({"x": mlp_rows(200)}))[site])
    curve = LAYERS.cost(site, solution)
    exact = dataclasses.replace(curve, error=np.zeros(len(curve.ranks)))
    assert middle(Candidate(site, LAYERS.dense(model, site), exact)) is None
