from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import Array
from rankc.passbase import Curve, Dense
from rankc.spectra import ENERGIES, KEEP, offers, paying, spectrum

falling = st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=24).map(
    lambda found: np.sort(np.array(found) / np.sum(found))[::-1]
)


def curve_of(energies: Array, ranks: Array | None = None, forms: tuple[str, ...] = ()) -> Curve:
    """A site of 10 + 10 parameters a rank whose error is the tail of the spectrum."""
    ranks = np.arange(1, len(energies) + 1) if ranks is None else ranks
    error = 1 - np.cumsum(energies)[ranks - 1]
    return Curve(ranks, error, error, 20 * ranks, 20 * ranks, 80 * ranks, forms=forms)


@given(energies=falling)
def test_the_spectrum_is_read_off_the_errors(energies: Array) -> None:
    found = spectrum(curve_of(energies), len(energies))
    np.testing.assert_allclose(found.energies, energies, atol=1e-9)
    share = np.sqrt(energies) / np.sqrt(energies).sum()
    assert found.effective_rank == pytest.approx(np.prod(share**-share), rel=1e-4)
    for rank, wanted in zip(found.ranks, ENERGIES, strict=True):
        assert energies[:rank].sum() >= wanted - 1e-9
        assert energies[: rank - 1].sum() < wanted + 1e-9


@given(energies=falling, step=st.integers(2, 6))
def test_directions_between_two_ranks_share_evenly(energies: Array, step: int) -> None:
    full = len(energies)
    ranks = np.unique([*range(step, full, step), full])
    found = np.array(spectrum(curve_of(energies, ranks), full).energies)
    blocks = np.split(energies, ranks[:-1])
    even = np.concatenate([np.full(len(block), block.mean()) for block in blocks])
    np.testing.assert_allclose(found, even, atol=1e-9)
    exact = spectrum(curve_of(energies), full).effective_rank
    assert exact - 1e-6 <= spectrum(curve_of(energies, ranks), full).effective_rank <= full + 1e-6


def test_equal_directions_have_their_number_as_rank_and_one_has_one() -> None:
    flat = spectrum(curve_of(np.full(8, 1 / 8)), 8)
    assert flat.effective_rank == pytest.approx(8)
    assert flat.ranks == (8, 8)
    one = spectrum(curve_of(np.array([1.0, 0, 0])), 3)
    assert one.effective_rank == pytest.approx(1)
    assert one.ranks == (1, 1)


def joined(*curves: tuple[str, Curve]) -> Curve:
    columns: dict[str, Any] = {
        field: np.concatenate([getattr(curve, field) for _, curve in curves])
        for field in ("ranks", "error", "loss", "parameters", "macs", "size_bytes")
    }
    names = tuple(name for name, curve in curves for _ in curve.ranks)
    return Curve(**columns, forms=names)


WIDE = curve_of(np.full(6, 1 / 6))
NARROW = curve_of(np.array([0.7, 0.2, 0.1]))


def test_the_form_with_the_sites_own_rank_shows_its_spectrum() -> None:
    both = joined(("wide", WIDE), ("narrow", NARROW))
    assert spectrum(both, 3).form == "narrow"
    assert spectrum(both, 6).form == "wide"
    assert spectrum(both, 4).form == "wide"  # nobody's: the most ranks
    twins = joined(("first", NARROW), ("second", NARROW))
    assert spectrum(twins, 3).form == "first"


def test_the_best_form_within_a_share_is_offered() -> None:
    dense = Dense(parameters=120, macs=0, size_bytes=480)
    found = offers(joined(("wide", WIDE), ("narrow", NARROW)), dense)
    assert [(o.keep, o.form, o.rank) for o in found] == [
        ("1/2", "narrow", 3),
        ("1/3", "narrow", 2),
        ("1/4", "narrow", 1),
    ]
    assert [o.error for o in found] == pytest.approx([0.0, 0.1, 0.3])
    assert [o.form for o in offers(WIDE, dense)] == [""] * 3


def test_nothing_is_offered_where_nothing_is_so_small() -> None:
    dense = Dense(parameters=45, macs=0, size_bytes=180)
    assert [o.keep for o in offers(NARROW, dense)] == ["1/2"]


@given(energies=falling, parameters=st.integers(1, 500))
def test_offers_are_the_least_error_that_fits(energies: Array, parameters: int) -> None:
    curve = curve_of(energies)
    found = {o.keep: o for o in offers(curve, Dense(parameters, 0, 0))}
    for keep, share in KEEP.items():
        fits = curve.error[curve.parameters <= share * parameters]
        assert (keep in found) == bool(len(fits))
        if len(fits):
            assert found[keep].error == pytest.approx(max(fits.min(), 0.0))


def test_a_rank_pays_if_it_takes_fewer_parameters_and_no_more_arithmetic() -> None:
    both = joined(("wide", WIDE), ("narrow", NARROW))
    assert paying(both, Dense(parameters=81, macs=100, size_bytes=0)) == {"wide": 4, "narrow": 3}
    assert paying(both, Dense(parameters=81, macs=45, size_bytes=0)) == {"wide": 2, "narrow": 2}
    assert paying(both, Dense(parameters=20, macs=45, size_bytes=0)) == {}
    table = Dense(parameters=81, macs=0, size_bytes=0)  # no arithmetic to compare with
    assert paying(both, table) == {"wide": 4, "narrow": 3}


def test_an_error_that_rounding_made_negative_is_none() -> None:
    curve = dataclasses.replace(NARROW, error=np.array([0.3, -1e-17, 0.0]))
    (first, *_) = offers(curve, Dense(parameters=80, macs=0, size_bytes=0))
    assert first.error == 0.0
