"""Trained rank pruning: what it cuts, what it pulls at, and the ranks it keeps."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rankc.factors import Unfolding
from rankc.passes.trp import Target, Trp
from rankc.train.trp import Parts, polar
from rankc.train.trp_ranks import Schedule, fewest, jointly

Array = NDArray[Any]
SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))
SEEDS = st.integers(0, 2**32 - 1)


def drawn(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Matrices whose singular values fall over decades."""
    rng = np.random.default_rng(seed)
    scale = 10.0 ** -rng.uniform(0, 2, size=shape[-1])
    return torch.from_numpy((rng.normal(size=shape) * scale).astype(np.float32))


@settings(deadline=None)
@given(SHAPES, SEEDS, st.floats(0.01, 0.999))
def test_a_cut_keeps_the_energy_with_the_fewest_directions(
    shape: tuple[int, int, int], seed: int, energy: float
) -> None:
    matrices = drawn(shape, seed)
    parts = Parts.of(matrices)
    rank = fewest(parts.squares, energy)
    whole = matrices.double().square().sum()
    assert parts.kept(rank).double().square().sum() >= energy * whole * (1 - 1e-5)
    assert int(torch.linalg.matrix_rank(parts.kept(rank)).max()) <= rank
    assert parts.kept(rank - 1).double().square().sum() < energy * whole * (1 + 1e-5)


def test_a_cut_of_nothing_and_of_everything() -> None:
    nothing = Parts.of(torch.zeros(2, 3, 4))
    assert fewest(nothing.squares, 0.98) == 1
    assert not nothing.kept(1).any()
    assert not nothing.pull(1).any()
    matrices = torch.eye(4)[None]
    everything = Parts.of(matrices)
    assert fewest(everything.squares, 1.0) == 4
    torch.testing.assert_close(everything.kept(4), matrices)


@settings(deadline=None)
@given(SHAPES, SEEDS, st.floats(0.5, 0.999))
def test_the_pull_is_a_sub_gradient_of_the_nuclear_norm(
    shape: tuple[int, int, int], seed: int, energy: float
) -> None:
    """|V|_* >= |W|_* + <pull, V - W> for all V, at the W that a cut leaves (Watson, 1992)."""
    parts = Parts.of(drawn(shape, seed).double())
    rank = fewest(parts.squares, energy)
    kept, other = parts.kept(rank), drawn(shape, seed + 1).double()
    norm = torch.linalg.matrix_norm(kept, "nuc").sum()
    bound = norm + (parts.pull(rank) * (other - kept)).sum()
    assert torch.linalg.matrix_norm(other, "nuc").sum() >= bound - 1e-9 * norm


@settings(deadline=None)
@given(SEEDS)
def test_the_pull_is_the_gradient_where_there_is_one(seed: int) -> None:
    """By finite differences."""
    rng = np.random.default_rng(seed)
    matrix, way = (torch.from_numpy(rng.normal(size=(1, 4, 4))) for _ in range(2))
    matrix = matrix + 4 * torch.eye(4)
    h = 1e-5
    ends = [torch.linalg.matrix_norm(matrix + s * h * way, "nuc").sum() for s in (1, -1)]
    slope = float(ends[0] - ends[1]) / (2 * h)
    found = float((Parts.of(matrix).pull(4) * way).sum())
    assert found == pytest.approx(slope, rel=1e-5, abs=1e-7)


@settings(deadline=None)
@given(st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40)), SEEDS)
def test_newton_schulz_finds_the_directions_of_the_decomposition(
    shape: tuple[int, int, int], seed: int
) -> None:
    """U VT but for its singular values, near to 1 where W's are above 1 % of its norm."""
    rng = np.random.default_rng(seed)
    matrices = torch.from_numpy(rng.normal(size=shape))
    left, sizes, right = torch.linalg.svd(matrices, full_matrices=False)
    inner = left.mT @ polar(matrices) @ right.mT
    values = torch.diagonal(inner, dim1=1, dim2=2)
    torch.testing.assert_close(inner, torch.diag_embed(values), atol=1e-8, rtol=0)
    large = sizes > 0.01 * torch.linalg.matrix_norm(matrices)[:, None]
    assert ((values > 0.6) & (values < 1.3))[large].all()
    assert ((values >= 0) & (values < 1.3)).all()
    assert not polar(torch.zeros(1, 2, 3)).any()


# --- which ranks ----------------------------------------------------------------------------


def spectra(seed: int) -> dict[Target, Array]:
    """Of some layers, which pay up to some rank."""
    rng = np.random.default_rng(seed)
    found = {}
    for k in range(int(rng.integers(1, 6))):
        full, each = int(rng.integers(1, 20)), int(rng.integers(1, 50))
        macs = max(int(full * each * rng.uniform(0.5, 1.1)), 1)
        how = Unfolding((full, full), (0, 1), 1)
        target = Target(f"layer{k}", f"w{k}", how, 1, (macs - 1) // each, macs, each)
        found[target] = np.sort(rng.exponential(size=full) ** 3)[::-1]
    return found


def macs_of(ranks: dict[Target, int]) -> int:
    return sum(t.macs if rank > t.most else rank * t.macs_a_rank for t, rank in ranks.items())


@settings(deadline=None)
@given(SEEDS, st.floats(0.05, 0.99))
def test_joint_ranks_keep_the_share_and_the_most_energy_for_each_mac(
    seed: int, share: float
) -> None:
    squares = spectra(seed)
    ranks = jointly(squares, share)
    least = macs_of(dict.fromkeys(squares, 1))
    assert macs_of(ranks) <= max(share * sum(t.macs for t in squares), least)
    worth = {t: one / one.sum() / t.macs_a_rank for t, one in squares.items()}
    cut = {t: rank for t, rank in ranks.items() if rank < len(squares[t])}
    taken = [worth[t][rank - 1] for t, rank in ranks.items() if 1 < rank <= t.most]
    left = [worth[t][rank] for t, rank in cut.items()]
    assert not taken or not left or min(taken) >= max(left)
    for more in (t for t, w in ((t, worth[t][ranks[t]]) for t in cut) if w == max(left)):
        longer = {**ranks, more: ranks[more] + 1}
        assert macs_of(longer) > share * sum(t.macs for t in squares)


def test_what_is_kept_comes_down_to_what_is_asked_for() -> None:
    squares = spectra(4)
    for how in ({"energy": 0.6}, {"keep": 0.2}):
        pass_ = Trp(anneal=0.5, **how)  # type: ignore[arg-type]
        found = [Schedule(pass_, 100).ranks(step, squares) for step in (0, 20, 49, 50, 100)]
        sums = [sum(ranks.values()) for ranks in found]
        assert sums == sorted(sums, reverse=True)
        assert sums[0] > sums[1] > sums[2] == sums[3] == sums[4]
        at_once = Schedule(dataclasses.replace(pass_, anneal=0.0), 100)
        assert at_once.ranks(0, squares) == found[-1]
