from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from models.ctr import formats
from models.ctr.formats import AVAZU, CRITEO, FormatError, Stream, ValueCounter, open_folder
from models.ctr.rows import Rows
from numpy.typing import NDArray

AVAZU_HEADER = (
    "id,click,hour,C1,banner_pos,site_id,site_domain,site_category,app_id,app_domain,app_category,"
    "device_id,device_ip,device_model,device_type,device_conn_type,C14,C15,C16,C17,C18,C19,C20,C21"
)
ROWS = 400


def criteo_lines(rows: int = ROWS, seed: int = 0) -> list[str]:
    """Rows as in train.txt: label, 13 counts, 26 hashes, with gaps."""
    rng = np.random.default_rng(seed)
    lines = []
    for _ in range(rows):
        counts = ["" if rng.random() < 0.3 else str(rng.integers(-2, 9000)) for _ in range(13)]
        hashes = [
            "" if rng.random() < 0.2 else f"{rng.integers(0, 3 + place) * 2654435761 % 2**32:08x}"
            for place in range(26)
        ]
        lines.append("\t".join([str(rng.integers(0, 2)), *counts, *hashes]))
    return lines


def avazu_lines(rows: int = ROWS, seed: int = 0) -> list[str]:
    """A header and rows as in train.csv; the hours run over two days."""
    rng = np.random.default_rng(seed)
    lines = [AVAZU_HEADER]
    for row in range(rows):
        hour = f"1410{21 + row * 2 // rows:02d}{row % 24:02d}"
        values = [f"{rng.integers(0, 2 + place):x}" for place in range(21)]
        lines.append(",".join([str(10**18 + row), str(rng.integers(0, 2)), hour, *values]))
    return lines


def write(path: Path, lines: list[str]) -> Path:
    text = "".join(line + "\n" for line in lines)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, "utf-8", newline="\n")
    return path


def cells(lines: list[str], delimiter: str, rows: NDArray[np.int64]) -> list[list[str]]:
    return [lines[row].split(delimiter) for row in rows]


def parts(rows: int) -> NDArray[np.int64]:
    return formats.part_of(np.arange(rows, dtype=np.uint64))


@pytest.mark.parametrize("name", ["train.txt", "train.txt.gz"])
def test_criteo_rows_keep_their_labels_numbers_and_values(tmp_path: Path, name: str) -> None:
    lines = criteo_lines()
    write(tmp_path / name, lines)
    stream = open_folder(tmp_path, "criteo", min_count=2)
    table = cells(lines, "\t", np.flatnonzero(parts(ROWS) == 2))
    test = stream.head("test", ROWS)
    assert test.ids.dtype == np.int64
    assert test.dense.dtype == test.label.dtype == np.float32
    assert test.label.tolist() == [float(row[0]) for row in table]
    for row, ids in zip(table, test.ids, strict=True):
        known = [v.get(text, 0) for v, text in zip(stream.vocabularies, row[14:], strict=True)]
        assert ids.tolist() == known
    for row, dense in zip(table, test.dense, strict=True):
        for place, text in enumerate(row[1:14]):
            if text == "":
                assert dense[place] == 0.0
                continue
            back = dense[place] * stream.deviation[place] + stream.mean[place]
            assert np.sign(back) * np.expm1(abs(back)) == pytest.approx(int(text), abs=2e-2)


def test_avazu_rows_keep_their_values_and_split_the_hour(tmp_path: Path) -> None:
    lines = avazu_lines()
    write(tmp_path / "train.gz", lines)
    stream = open_folder(tmp_path, "avazu", min_count=1)
    assert stream.fields == (*AVAZU_HEADER.split(",")[3:], "hour_of_day", "day_of_week")
    assert stream.dense_names == ()
    table = cells(lines[1:], ",", np.flatnonzero(parts(ROWS) == 1))
    rows = stream.head("validation", ROWS)
    assert rows.dense.shape == (len(table), 0)
    hours, days = stream.vocabularies[-2:]
    assert set(days) == {"1", "2"}  # 21 and 22 October 2014: Tuesday and Wednesday
    for row, ids in zip(table, rows.ids, strict=True):
        assert ids[-2] == hours[str(int(row[2][-2:]))]
        assert ids[0] == stream.vocabularies[0].get(row[3], 0)
    assert rows.label.tolist() == [float(row[1]) for row in table]


def test_ids_are_ordered_by_frequency_in_the_training_rows_only(tmp_path: Path) -> None:
    lines = criteo_lines()
    write(tmp_path / "train.txt", lines)
    stream = open_folder(tmp_path, "criteo", min_count=3)
    train = np.flatnonzero(parts(ROWS) == 0)
    for place, vocabulary in enumerate(stream.vocabularies):
        counts = Counter(row[14 + place] for row in cells(lines, "\t", train))
        expected = sorted((-n, v) for v, n in counts.items() if v and n >= 3)
        assert list(vocabulary) == [v for _, v in expected]
        assert list(vocabulary.values()) == list(range(1, len(expected) + 1))
    ids = Rows.join(list(stream.windows("train"))).ids
    for place, size in enumerate(stream.sizes):
        frequencies = np.bincount(ids[:, place], minlength=size)[1:]
        assert len(frequencies) == size - 1
        assert np.all(np.diff(frequencies) <= 0)
        assert frequencies.min() >= 3


def test_training_numbers_are_standardised(tmp_path: Path) -> None:
    write(tmp_path / "train.txt", criteo_lines())
    stream = open_folder(tmp_path, "criteo")
    dense = Rows.join(list(stream.windows("train"))).dense.astype(np.float64)
    known = np.where(dense == 0.0, np.nan, dense)
    np.testing.assert_allclose(np.nanmean(known, axis=0), 0.0, atol=1e-5)
    np.testing.assert_allclose(np.nanstd(known, axis=0), 1.0, atol=1e-5)


def test_windows_do_not_change_what_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "train.txt", criteo_lines())
    whole = open_folder(tmp_path, "criteo", min_count=2)
    expected = Rows.join(list(whole.windows("train")))
    monkeypatch.setattr(formats.read_chunks, "__defaults__", (37,))
    stream = open_folder(tmp_path, "criteo", min_count=2)
    windows = list(stream.windows("train"))
    assert max(len(window.label) for window in windows) <= 37
    assert stream.vocabularies == whole.vocabularies
    np.testing.assert_allclose(stream.mean, whole.mean, rtol=1e-12)
    again = Rows.join(windows)
    np.testing.assert_array_equal(again.ids, expected.ids)
    np.testing.assert_array_equal(again.label, expected.label)
    np.testing.assert_allclose(again.dense, expected.dense, rtol=1e-5, atol=1e-6)


def test_batches_hold_every_training_row_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "train.txt", criteo_lines())
    monkeypatch.setattr(formats.read_chunks, "__defaults__", (90,))
    stream = open_folder(tmp_path, "criteo", min_count=2)
    batches = list(stream.train_batches(32, seed=0))
    assert [len(b.label) for b in batches[:-1]] == [32] * (len(batches) - 1)
    assert sum(len(b.label) for b in batches) == stream.train_rows
    order = Rows.join(list(stream.windows("train"))).dense
    drawn = Rows.join(batches).dense
    assert not np.array_equal(drawn, order)
    np.testing.assert_array_equal(drawn[np.lexsort(drawn.T)], order[np.lexsort(order.T)])
    again = Rows.join(list(stream.train_batches(32, seed=0)))
    np.testing.assert_array_equal(again.dense, drawn)
    assert not np.array_equal(Rows.join(list(stream.train_batches(32, seed=1))).dense, drawn)


def test_parts_are_disjoint_and_of_the_stated_shares() -> None:
    shares = np.bincount(parts(200_000), minlength=3) / 200_000
    np.testing.assert_allclose(shares, [0.8, 0.1, 0.1], atol=0.003)


def test_counter_in_bounded_memory_keeps_what_is_frequent() -> None:
    rng = np.random.default_rng(0)
    counter = ValueCounter(max_values=100)
    exact: Counter[str] = Counter()
    for _ in range(50):
        frequent = [str(v) for v in rng.integers(0, 20, size=400)]
        rare = [f"rare{v}" for v in rng.integers(0, 10**9, size=60)]
        counter.update(frequent + rare)
        exact.update(frequent + rare)
        assert len(counter.counts) <= 100
    assert 0 < counter.undercount < 200
    assert {str(v) for v in range(20)} <= set(counter.counts)
    for value, count in counter.counts.items():
        assert exact[value] - counter.undercount <= count <= exact[value]
    unbounded = ValueCounter(max_values=10**6)
    unbounded.update(list(exact.elements()))
    assert unbounded.undercount == 0


def test_undercount_is_reported_by_field(tmp_path: Path) -> None:
    write(tmp_path / "train.txt", criteo_lines())
    assert open_folder(tmp_path, "criteo").undercount == {}
    assert "C26" in open_folder(tmp_path, "criteo", max_values=8).undercount


CRITEO_ROW = criteo_lines(1)[0].split("\t")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row[:-1], r"train\.txt:4: expected 40 columns separated by '\\t', found 39"),
        (lambda row: [*row, "x"], r"train\.txt:4: expected 40 columns .* found 41"),
        (lambda row: [""], r"train\.txt:4: expected 40 columns .* found 1$"),
        (lambda row: ["2", *row[1:]], r"train\.txt:4: column label: expected 0 or 1, found '2'"),
        (lambda row: [row[0], "1.5", *row[2:]], r"train\.txt:4: column I1: .* found '1\.5'"),
    ],
)
def test_malformed_criteo_row_is_named_by_file_and_line(
    tmp_path: Path, change: Callable[[list[str]], list[str]], message: str
) -> None:
    lines = criteo_lines(3)
    lines.append("\t".join(change(CRITEO_ROW)))
    write(tmp_path / "train.txt", lines)
    with pytest.raises(FormatError, match=message):
        open_folder(tmp_path, "criteo")


def test_line_numbers_go_on_after_the_first_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats.read_chunks, "__defaults__", (4,))
    lines = avazu_lines(20)
    lines[17] = lines[17].replace(",1410", ",1499")
    write(tmp_path / "train.csv", lines)
    with pytest.raises(FormatError, match=r"train\.csv:18: column hour: expected YYMMDDHH"):
        open_folder(tmp_path, "avazu")


def test_wrong_header_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", avazu_lines(3)[1:])
    with pytest.raises(FormatError, match=r"train\.csv:1: expected the header 'id,click,hour"):
        open_folder(tmp_path, "avazu")


def test_missing_empty_and_damaged_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"no criteo log; looked for train\.txt, train\.txt\.gz"):
        open_folder(tmp_path, "criteo")
    with pytest.raises(FormatError, match=r"unknown format 'movielens'; choose from criteo, avazu"):
        open_folder(tmp_path, "movielens")
    path = write(tmp_path / "train.txt.gz", criteo_lines())
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(FormatError, match="damaged gzip file"):
        open_folder(tmp_path, "criteo")
    path.write_bytes(b"plain text")
    with pytest.raises(FormatError, match="damaged gzip file"):
        open_folder(tmp_path, "criteo")
    (tmp_path / "train.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FormatError, match="not text"):
        open_folder(tmp_path, "criteo")
    (tmp_path / "train.txt").write_bytes(b"")
    with pytest.raises(FormatError, match="no rows"):
        open_folder(tmp_path, "criteo")


def test_formats_state_what_the_public_files_hold() -> None:
    assert len(CRITEO.columns) == 40
    assert ",".join(AVAZU.columns) == AVAZU_HEADER


def test_memory_does_not_grow_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats.read_chunks, "__defaults__", (16,))
    write(tmp_path / "train.txt", criteo_lines())
    stream: Stream = open_folder(tmp_path, "criteo")
    head = stream.head("train", 20)
    assert len(head.label) == 20
    windows = stream.windows("train")
    next(windows)
    read = next(formats.read_chunks(stream.path, CRITEO))
    assert len(read.columns["label"]) == 16
