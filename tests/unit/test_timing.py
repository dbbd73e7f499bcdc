"""Times from a table that was measured, or from a data sheet, and always said which."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from layer_builders import HEADER, lowrank, solutions_of, stack
from rankc.errors import DataError, RecipeError
from rankc.latency_table import LatencyTable, Ranked
from rankc.layer_models import concrete, isolate, signature
from rankc.recipe import Timing
from rankc.rewriting import Draft, Sites, candidates
from rankc.timing import Origin, described, elsewhere, open_times, with_times


@pytest.fixture
def draft() -> Draft:
    model = stack([64, 96, 64])
    sites = Sites.of(model, [lowrank()])
    solutions = solutions_of(concrete(model, 1), sites)
    return Draft(model, sites, solutions, candidates(model, sites, solutions))


def table_of(draft: Draft, *names: str, dense: float = 2.0, ratio: float = 0.5) -> LatencyTable:
    """Every rank of some layers takes that share of the dense layer's time."""
    table = LatencyTable(HEADER)
    for offer in draft.offers:
        if offer.site.name in names:
            pass_ = draft.sites.owners[offer.site]
            alone = isolate(draft.model, pass_, offer.site, 1)
            assert not isinstance(alone, str)
            for rank in offer.curve.ranks:
                table.record(signature(alone), dense, "lowrank", Ranked("", int(rank), ratio))
    return table


def timed(
    draft: Draft, origin: Origin | None, timing: Timing
) -> dict[str, tuple[float, bool] | None]:
    owners = draft.sites.owners
    offers = with_times(origin, timing, draft.model, owners, draft.solutions, draft.offers)
    return {
        o.site.name: None if o.times is None else (o.times.dense, o.times.measured) for o in offers
    }


def test_a_table_tells_what_it_has_and_nothing_else(draft: Draft) -> None:
    found = timed(draft, table_of(draft, "fc0", "last"), Timing())
    assert found == {"fc0": (2.0, True), "fc1": None, "last": (2.0, True)}


def test_a_table_of_other_layers_is_refused(draft: Draft) -> None:
    with pytest.raises(RecipeError, match=r"timing: t\.json: has none of the model's 3 layers"):
        timed(draft, LatencyTable(HEADER), Timing(table="t.json"))


def test_a_device_estimates_every_layer(draft: Draft) -> None:
    timing = Timing(device="jetson-orin-nano-8gb", batch=8, precision="fp16")
    found = timed(draft, open_times(timing, Path()), timing)
    assert all(one is not None and one[0] > 0 and one[1] is False for one in found.values())


def test_without_either_nothing_is_known(draft: Draft) -> None:
    assert set(timed(draft, open_times(Timing(), Path()), Timing()).values()) == {None}


def test_words_say_measured_or_estimated(draft: Draft, tmp_path: Path) -> None:
    table_of(draft, "fc0").save(tmp_path / "t.json")
    timing = Timing(table="t.json")
    table = open_times(timing, tmp_path)
    assert described(table, timing) == "measured on a processor by onnxruntime 1.0, batch 1"
    assert not elsewhere(table)
    device = Timing(device="t4", precision="fp16")
    said = described(open_times(device, tmp_path), device)
    assert said == "estimated from the data sheet of t4, not measured; batch 1, fp16"
    assert elsewhere(open_times(device, tmp_path))
    assert described(None, Timing()) == "" and not elsewhere(None)


def test_a_table_of_another_target_is_from_elsewhere(tmp_path: Path) -> None:
    LatencyTable(dataclasses.replace(HEADER, target="cuda")).save(tmp_path / "t.json")
    assert elsewhere(open_times(Timing(table="t.json"), tmp_path))


@pytest.mark.parametrize(
    ("timing", "error", "says"),
    [
        (Timing(table="none.json"), DataError, "there is no such file; `rankc profile` writes"),
        (Timing(device="abacus"), RecipeError, "'abacus' is not known; choose one of x86"),
        (Timing(device="x86-avx2-core", precision="fp16"), RecipeError, "does not compute in fp16"),
    ],
)
def test_what_cannot_be_opened(
    timing: Timing, error: type[Exception], says: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=says):
        open_times(timing, tmp_path)


@pytest.mark.parametrize("more", [{"batch": 8}, {"precision": "fp16"}])
def test_what_only_a_device_has(more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="those of a device, and none is given"):
        Timing(table="t.json", **more)


def test_a_table_and_a_device_are_one_too_many() -> None:
    with pytest.raises(ValueError, match="a table or a device, not both"):
        Timing(table="t.json", device="t4")
