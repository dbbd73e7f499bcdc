"""Rows are shuffled, held apart, kept within memory, and the same every time."""

from __future__ import annotations

import dataclasses
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pyarrow import parquet

from rankc.data import Batch, open_source
from rankc.errors import DataError
from rankc.recipe import DataSpec, Images
from rankc.train.minibatches import Block, compact, joined
from rankc.train.rows import Rows, held_out_of
from rankrt.session import TensorSpec
from sources import Rows as Arrays


def numbered(count: int, width: int = 4, batch: int = 64) -> Arrays:
    """Row k holds k + 0.5 everywhere, and has label k."""
    x = np.broadcast_to(np.arange(count)[:, None] + 0.5, (count, width)).astype(np.float32)
    return Arrays({"x": x}, batch, np.arange(count))


def seen(rows: Rows, epoch: int, skip: int = 0) -> NDArray[Any]:
    """Numbers of the rows of an epoch, (steps, batch_size); feeds and labels have to be theirs."""
    found = []
    for batch in rows.batches(epoch, skip):
        assert batch.labels is not None
        np.testing.assert_array_equal(batch.labels, batch.rows)
        np.testing.assert_array_equal(batch.feeds["x"][:, 0], batch.rows + 0.5)
        found.append(batch.rows)
    return np.stack(found)


def looked_at(rows: Rows) -> NDArray[Any]:
    return np.concatenate([batch.rows for batch in rows.held_out()])


WHOLE: dict[str, Any] = {"width": 4}
STREAM: dict[str, Any] = {"width": 400}  # 1.6 kB a row: 1 MiB holds 600 of them


@pytest.mark.parametrize("how", [WHOLE, STREAM])
def test_an_epoch_has_every_row_once_in_another_order(how: dict[str, Any]) -> None:
    rows = Rows(numbered(1500, **how), batch_size=50, share=0.2, memory_mb=1)
    assert bool(list(rows.in_memory())) == (how is WHOLE)
    assert (rows.count, rows.held_out_count, rows.steps) == (1200, 300, 24)
    epochs = [seen(rows, epoch) for epoch in (0, 1)]
    for epoch in epochs:
        assert sorted([*epoch.flatten(), *looked_at(rows)]) == list(range(1500))
        assert np.abs(np.corrcoef(epoch.flatten(), np.arange(1200))[0, 1]) < 0.75
    assert (epochs[0] != epochs[1]).mean() > 0.9


@pytest.mark.parametrize("how", [WHOLE, STREAM])
def test_an_epoch_can_be_entered_anywhere(how: dict[str, Any]) -> None:
    rows = Rows(numbered(1500, **how), batch_size=48, memory_mb=1, seed=7)
    again = Rows(numbered(1500, **how), batch_size=48, memory_mb=1, seed=7)
    whole = seen(rows, 3)
    for skip in (0, 1, 13, len(whole) - 1):
        np.testing.assert_array_equal(seen(again, 3, skip), whole[skip:])


def test_another_seed_is_another_order_and_another_split() -> None:
    one, other = (Rows(numbered(400), batch_size=40, seed=seed) for seed in (0, 1))
    assert (looked_at(one) != looked_at(other)).any()
    assert (seen(one, 0) != seen(other, 0)).any()


def test_a_stream_takes_no_more_memory_than_it_may() -> None:
    """The buffer of 1 MiB holds 655 rows of 1600 bytes: row 0 comes out late, but row 0 of 3000."""
    source = numbered(3000, width=400)
    rows = Rows(source, numbered(10, width=400), batch_size=50, memory_mb=1)
    order = seen(rows, 0).flatten()
    assert order[:50].max() < 655 + 2 * 64
    assert sorted(order) == list(range(3000))


@given(st.floats(0.01, 0.9), st.integers(0, 5), st.integers(1, 3000))
@example(0.8999999999999999, 0, 80)
@settings(max_examples=60, deadline=None)
def test_held_out_rows_are_a_share_of_every_stretch(share: float, seed: int, count: int) -> None:
    chosen = held_out_of(np.arange(count), share, seed)
    assert abs(chosen.sum() - share * count) <= 1 + share
    first = held_out_of(np.arange(count // 2), share, seed)  # a stream is split as it comes
    np.testing.assert_array_equal(first, chosen[: count // 2])


def test_held_out_rows_follow_no_period() -> None:
    """Of rows that repeat every ten, all ten kinds are held out."""
    chosen = np.flatnonzero(held_out_of(np.arange(2000), 0.1, 0))
    assert len(set(chosen % 10)) == 10


def test_rows_held_out_in_a_source_of_their_own() -> None:
    rows = Rows(numbered(100), numbered(30), batch_size=20)
    assert (rows.count, rows.held_out_count) == (100, 30)
    assert looked_at(rows).tolist() == list(range(30))


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("how", [WHOLE, STREAM])
def test_rows_that_judge_are_those_that_no_look_goes_by(how: dict[str, Any], apart: bool) -> None:
    held_out = numbered(701, **how) if apart else None
    given = numbered(1500, **how), held_out
    plain, halves = (
        Rows(*given, batch_size=50, share=0.2, memory_mb=1, judged=judged)
        for judged in (False, True)
    )
    everyone = looked_at(plain)
    judging = [np.concatenate([batch.rows for batch in r.judging()]) for r in (plain, halves)]
    np.testing.assert_array_equal(judging[0], everyone)
    choosing, twos = looked_at(halves), 2 * (len(everyone) // 2)
    assert sorted([*choosing, *judging[1]]) == everyone.tolist()
    kept = np.isin(everyone, choosing)[:twos].reshape(-1, 2)
    assert (kept.sum(axis=1) == 1).all(), "one of every two"
    assert 0 < kept[:, 0].sum() < len(kept), "not always the first"
    assert plain.digest != halves.digest


def test_too_few_rows_to_choose_and_to_judge() -> None:
    Rows(numbered(30), numbered(3), batch_size=10)
    words = r": 3 rows would be held out, and at least 4 are needed, half of them .*give more rows$"
    with pytest.raises(DataError, match=words):
        Rows(numbered(30), numbered(3), batch_size=10, judged=True)


def test_pixels_are_kept_in_a_byte_each_and_given_as_what_they_were() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (90, 3, 4, 4)).astype(np.float32)
    rows = Rows(Arrays({"x": pixels}, 16), batch_size=10)
    assert rows._kept.whole is not None
    assert rows._kept.whole.columns["x"].dtype == np.uint8
    for batch in rows.batches(0):
        assert batch.feeds["x"].dtype == torch.float32
        np.testing.assert_array_equal(batch.feeds["x"], pixels[batch.rows])


def test_a_fraction_among_pixels_keeps_all_of_them_exact() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (900, 3, 30, 30)).astype(np.float32)
    pixels[700, 1, 2, 3] = 17.25
    for memory in (64, 1):
        rows = Rows(Arrays({"x": pixels}, 16), batch_size=10, memory_mb=memory)
        for batch in rows.batches(0):
            np.testing.assert_array_equal(batch.feeds["x"], pixels[batch.rows])


@pytest.mark.parametrize("value", [-1.0, 256.0, 0.5, 1e30])
def test_only_what_a_byte_holds_becomes_one(value: float) -> None:
    array = np.zeros((2, 2, 2), np.float32)
    assert compact(array).dtype == np.uint8
    array[1, 1, 1] = value
    assert compact(array) is array


def test_blocks_of_two_kinds_join_to_what_both_were() -> None:
    parts = [np.full((2, 1, 1), value, np.float32) for value in (3.0, 3.5)]
    blocks = [Block.of(Batch({"x": part}, None), 2 * k) for k, part in enumerate(parts)]
    whole = joined(blocks).minibatch()
    np.testing.assert_array_equal(whole.feeds["x"], np.concatenate(parts))
    assert whole.rows.tolist() == [0, 1, 2, 3]


def digest(path: Path, shape: tuple[Any, ...], **spec: Any) -> str:
    inputs = [TensorSpec("x", "float32", ("batch", *shape))]
    source = open_source(DataSpec(str(path), batch_size=8, **spec), path.parent, inputs)
    return Rows(source, batch_size=4, share=0.2).digest


def test_files_that_are_read_in_another_way_are_other_rows(tmp_path: Path) -> None:
    """A checkpoint made by one label, or by one scale of pixels, is none of another's."""
    rows, images = tmp_path / "rows.npz", tmp_path / "images"
    np.savez(rows, x=np.ones((20, 4), np.float32), a=np.arange(20), b=np.arange(20) % 2)
    images.mkdir()
    for k in range(20):
        pixels = np.full((4, 4, 3), 10 * k, np.uint8)
        Image.fromarray(pixels).save(images / f"{k:02}.png")
    by = [digest(rows, (4,), label=label) for label in "aab"]
    assert by[0] == by[1] != by[2]
    scaled = [
        digest(images, (3, 4, 4), image=Images(mean=(0.0,), scale=(scale,)))
        for scale in (255.0, 255.0, 128.0)
    ]
    assert scaled[0] == scaled[1] != scaled[2]


def test_fewer_rows_than_a_step_takes() -> None:
    with pytest.raises(DataError, match=r"27 rows to train on, and 3 held out, and a step takes .* "
                       r"= 64; set data.training.batch_size to 27 or less"):  # fmt: skip
        Rows(numbered(30), batch_size=64)


def test_no_rows_to_hold_out() -> None:
    with pytest.raises(DataError, match=r"none of \d+ rows would be held out at holdout = 0"):
        Rows(numbered(3), batch_size=2, share=0.01, seed=1)


@dataclasses.dataclass
class Shrinking(Arrays):
    """Gives fewer rows the second time, as code of a user's may."""

    reads: int = 0

    def batches(self) -> Iterator[Batch]:
        self.reads += 1
        yield from list(super().batches())[: None if self.reads == 1 else 5]


def test_a_source_that_changes_is_told() -> None:
    x = np.random.default_rng(0).normal(size=(1500, 400)).astype(np.float32)
    rows = Rows(Shrinking({"x": x}, 64), batch_size=50, memory_mb=1)
    with pytest.raises(DataError, match="has to give the same rows every time"):
        list(rows.batches(0))


@dataclasses.dataclass
class Endless(Arrays):
    """Rows that are made as they are read, 200 MB of them."""

    made: int = 250

    def __post_init__(self) -> None:
        self.rows = None

    def batches(self) -> Iterator[Batch]:
        for k in range(self.made):
            rng = np.random.default_rng(k)
            yield Batch({"x": rng.normal(size=(1000, 200)).astype(np.float32)}, None)


def test_a_stream_that_does_not_fit_stays_within_its_memory() -> None:
    tracemalloc.start()
    try:
        rows = Rows(Endless({}), batch_size=500, memory_mb=16)
        count = sum(batch.size for batch in rows.batches(0))
        looked_at = sum(batch.size for batch in rows.held_out())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (count, looked_at) == (225_000, 25_000)
    assert 12 << 20 < peak < 24 << 20  # what is asked for, and a few blocks that pass through


def test_a_folder_of_images_with_a_class_a_folder(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for k in range(30):
        folder = tmp_path / ("cat", "dog")[k % 2]
        folder.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (4, 4, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{k:02}.png")
    spec = DataSpec(
        str(tmp_path), batch_size=8, label="folder", image=Images(mean=(127.0,), scale=(64.0,))
    )
    inputs = [TensorSpec("x", "float32", ("batch", 3, 4, 4))]
    rows = Rows(open_source(spec, tmp_path, inputs), batch_size=9, share=0.1)
    batches = list(rows.batches(0))
    assert [batch.size for batch in batches] == [9, 9, 9]
    labels = np.concatenate([np.asarray(batch.labels) for batch in batches])
    assert sorted(set(labels.tolist())) == [0, 1]
    assert abs(float(batches[0].feeds["x"].mean())) < 0.5


def sources(folder: Path) -> dict[str, Path]:
    """The same 60 rows in every format that a recipe may name."""
    x = np.random.default_rng(0).normal(size=60).astype(np.float32)
    y = np.arange(60) % 2
    np.savez(folder / "rows.npz", x=x, y=y)
    (folder / "npy").mkdir()
    for name, array in (("x", x), ("y", y)):
        np.save(folder / "npy" / f"{name}.npy", array)
    lines = ["x,y", *(f"{a!r},{b}" for a, b in zip(x.tolist(), y.tolist(), strict=True))]
    (folder / "rows.csv").write_text("\n".join(lines))
    (folder / "rows.py").write_text(
        "import numpy as np\n"
        "def rows():\n"
        f"    x = np.load({str(folder / 'npy' / 'x.npy')!r})\n"
        "    for at in range(0, 60, 7):\n"
        "        yield {'x': x[at:at + 7], 'y': np.arange(at, min(at + 7, 60)) % 2}\n"
    )
    parquet.write_table(pyarrow.table({"x": x, "y": y}), folder / "rows.parquet")
    names = ("rows.npz", "npy", "rows.csv", "rows.py:rows", "rows.parquet")
    return {name: folder / name for name in names}


def test_every_kind_of_source_gives_the_same_steps(tmp_path: Path) -> None:
    found = {}
    for name in sources(tmp_path):
        spec = DataSpec(name, batch_size=16, label="y")
        inputs = [TensorSpec("x", "float32", ("batch",))]
        rows = Rows(open_source(spec, tmp_path, inputs, trust_code=True), batch_size=9, seed=2)
        batches = list(rows.batches(1))
        found[name] = [
            np.concatenate([b.feeds["x"].numpy() for b in batches]),
            np.concatenate([np.asarray(b.labels) for b in batches]),
        ]
    first = found["rows.npz"]
    assert len(first[0]) == 54
    for name, (x, y) in found.items():
        np.testing.assert_array_equal(x, first[0], err_msg=name)
        np.testing.assert_array_equal(y, first[1], err_msg=name)
