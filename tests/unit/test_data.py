from __future__ import annotations

import contextlib
import csv
import io
import tracemalloc
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rankc.data import Source, open_source
from rankc.errors import DataError, RecipeError
from rankc.recipe import DataSpec
from rankrt.session import TensorSpec

Arrays = dict[str, NDArray[Any]]
Write = Callable[[Path, Arrays], str]

INPUTS = (
    TensorSpec("ids", "int64", ("batch", 3)),
    TensorSpec("dense", "float32", ("batch", 2)),
    TensorSpec("hour", "int64", ("batch",)),
)


def rows(count: int = 10) -> Arrays:
    rng = np.random.default_rng(0)
    return {
        "ids": rng.integers(0, 100, (count, 3)),
        "dense": rng.normal(size=(count, 2)).astype(np.float32),
        "hour": rng.integers(0, 24, count),
        "y": rng.integers(0, 2, count),
        "unused": np.full(count, np.nan),
    }


def write_npz(folder: Path, arrays: Arrays) -> str:
    np.savez_compressed(folder / "rows.npz", **arrays)  # type: ignore[arg-type]
    return "rows.npz"


def write_npy(folder: Path, arrays: Arrays) -> str:
    (folder / "rows").mkdir()
    for name, array in arrays.items():
        np.save(folder / "rows" / f"{name}.npy", array)
    return "rows"


def flat(arrays: Arrays) -> Arrays:
    columns = {}
    for name, array in arrays.items():
        if array.ndim == 1:
            columns[name] = array
        else:
            columns |= {f"{name}_{k}": array[:, k] for k in range(array.shape[1])}
    return columns


def write_csv(folder: Path, arrays: Arrays) -> str:
    columns = flat(arrays)
    with (folder / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*(array.tolist() for array in columns.values()), strict=True))
    return "rows.csv"


def write_parquet(folder: Path, arrays: Arrays) -> str:
    pq.write_table(pa.table(flat(arrays)), folder / "rows.parquet", row_group_size=4)
    return "rows.parquet"


def write_parquet_lists(folder: Path, arrays: Arrays) -> str:
    columns = {
        name: array
        if array.ndim == 1
        else pa.FixedSizeListArray.from_arrays(array.reshape(-1), array.shape[1])
        for name, array in arrays.items()
    }
    pq.write_table(pa.table(columns), folder / "lists.parquet", row_group_size=4)
    return "lists.parquet"


def write_code(folder: Path, arrays: Arrays) -> str:
    write_npz(folder, arrays)
    (folder / "mine.py").write_text(
        "import numpy as np, pathlib\n"
        "def load():\n"
        "    arrays = np.load(pathlib.Path(__file__).parent / 'rows.npz')\n"
        "    yield {k: arrays[k][:7] for k in arrays}\n"
        "    yield {k: arrays[k][7:] for k in arrays}\n",
        encoding="utf-8",
    )
    return "mine.py:load"


WRITERS = (write_npz, write_npy, write_csv, write_parquet, write_parquet_lists, write_code)


def opened(
    folder: Path, path: str, inputs: Sequence[TensorSpec] = INPUTS, **options: Any
) -> Source:
    return open_source(DataSpec(path, **options), folder, inputs, trust_code=True)


def joined(source: Source) -> Arrays:
    batches = list(source.batches())
    arrays = {name: np.concatenate([b.feeds[name] for b in batches]) for name in batches[0].feeds}
    labels = [b.labels for b in batches if b.labels is not None]
    return arrays | ({"y": np.concatenate(labels)} if labels else {})


@pytest.mark.parametrize("write", WRITERS)
def test_every_kind_yields_the_same_rows_again_and_again(tmp_path: Path, write: Write) -> None:
    arrays = rows()
    source = opened(tmp_path, write(tmp_path, arrays), batch_size=4, label="y")
    for _ in range(2):
        got = joined(source)
        assert set(got) == {"ids", "dense", "hour", "y"}
        for name, array in got.items():
            np.testing.assert_array_equal(array, arrays[name])
        assert [str(got[name].dtype) for name in ("ids", "dense")] == ["int64", "float32"]
    assert all(0 < batch.rows <= 4 for batch in source.batches())
    assert source.rows in (10, None)


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("limit", [1, 4, 7, 10, 99])
def test_rows_limits_what_is_read(tmp_path: Path, write: Write, limit: int) -> None:
    arrays = rows()
    source = opened(tmp_path, write(tmp_path, arrays), batch_size=4, rows=limit)
    got = joined(source)
    np.testing.assert_array_equal(got["ids"], arrays["ids"][:limit])
    assert "y" not in got
    assert source.rows in (min(limit, 10), None)


@pytest.mark.parametrize("write", WRITERS)
def test_missing_arrays_are_told_with_those_present(tmp_path: Path, write: Write) -> None:
    arrays = rows()
    del arrays["dense"]
    with pytest.raises(DataError, match=r"(array|column) dense.*it has: .*hour.*unused"):
        joined(opened(tmp_path, write(tmp_path, arrays)))


@pytest.mark.parametrize("write", WRITERS)
def test_a_missing_label_is_told(tmp_path: Path, write: Write) -> None:
    with pytest.raises(DataError, match=r"no (array|column) target; it has: dense"):
        joined(opened(tmp_path, write(tmp_path, rows()), label="target"))


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_told_with_their_row(
    tmp_path: Path, write: Write, bad: float
) -> None:
    arrays = rows()
    arrays["dense"][7, 1] = bad
    with pytest.raises(DataError, match=r"dense, row 7, column 1: .*finite"):
        joined(opened(tmp_path, write(tmp_path, arrays), batch_size=4))


@pytest.mark.parametrize("write", WRITERS)
def test_labels_that_are_not_finite_are_told(tmp_path: Path, write: Write) -> None:
    arrays = rows() | {"y": np.array([0.0] * 9 + [np.nan])}
    with pytest.raises(DataError, match=r"label y, row 9: nan"):
        joined(opened(tmp_path, write(tmp_path, arrays), label="y", batch_size=4))


@pytest.mark.parametrize("write", WRITERS)
def test_no_rows_are_an_error(tmp_path: Path, write: Write) -> None:
    with pytest.raises(DataError, match="no rows"):
        joined(opened(tmp_path, write(tmp_path, rows(0))))


@pytest.mark.parametrize("write", WRITERS)
def test_fractions_are_no_ids(tmp_path: Path, write: Write) -> None:
    arrays = rows() | {"hour": np.arange(10) + 0.5}
    with pytest.raises(DataError, match=r"hour"):
        joined(opened(tmp_path, write(tmp_path, arrays)))


@pytest.mark.parametrize("write", WRITERS)
def test_another_width_is_an_error(tmp_path: Path, write: Write) -> None:
    arrays = rows() | {"ids": np.zeros((10, 2), np.int64)}
    with pytest.raises(DataError, match=r"ids has shape .*ids int64 \(batch, 3\)|no column ids_2"):
        joined(opened(tmp_path, write(tmp_path, arrays)))


@pytest.mark.parametrize("write", WRITERS)
def test_the_digest_follows_the_content(tmp_path: Path, write: Write) -> None:
    arrays = rows()
    path = write(tmp_path, arrays)
    first = opened(tmp_path, path).digest()
    assert first == opened(tmp_path, path).digest()
    assert len(first) == 64
    if write is not write_code:  # there it covers the code only, and says so
        other = tmp_path / "other"
        other.mkdir()
        arrays["dense"][0] += 1
        assert first != opened(other, write(other, arrays)).digest()


@pytest.mark.parametrize("write", [write_npz, write_npy])
def test_arrays_of_different_length_are_told(tmp_path: Path, write: Write) -> None:
    arrays = rows() | {"hour": np.zeros(9, np.int64)}
    with pytest.raises(DataError, match="differ in rows: ids 10, dense 10, hour 9"):
        opened(tmp_path, write(tmp_path, arrays))


@pytest.mark.parametrize("write", [write_npz, write_npy])
def test_pickles_are_refused(tmp_path: Path, write: Write) -> None:
    arrays = rows() | {"hour": np.array([{}] * 10)}
    with pytest.raises(DataError, match=r"hour.*Python objects"):
        opened(tmp_path, write(tmp_path, arrays))


@pytest.mark.parametrize("write", [write_npz, write_npy])
def test_column_order_files_are_read_too(tmp_path: Path, write: Write) -> None:
    arrays = rows()
    path = write(tmp_path, arrays | {"ids": np.asfortranarray(arrays["ids"])})
    np.testing.assert_array_equal(
        joined(opened(tmp_path, path, batch_size=3))["ids"], arrays["ids"]
    )


@pytest.mark.parametrize("keep", [0, 5, 60, 130, 0.5, 0.9])
def test_truncated_npy_files_are_told(tmp_path: Path, keep: float) -> None:
    path = write_npy(tmp_path, rows(100))
    file = tmp_path / path / "ids.npy"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(keep * len(whole) if 0 < keep < 1 else keep)])
    with pytest.raises(DataError, match=r"ids\.npy.*(truncated|corrupt)"):
        joined(opened(tmp_path, path))


@settings(max_examples=60, deadline=None)
@given(cut=st.none() | st.floats(0, 0.999), flip=st.integers(0, 3000))
def test_damaged_npz_files_end_in_a_data_error_or_the_right_rows(
    tmp_path_factory: pytest.TempPathFactory, cut: float | None, flip: int
) -> None:
    folder = tmp_path_factory.mktemp("npz")
    arrays = rows(100)
    file = folder / write_npz(folder, arrays)
    whole = bytearray(file.read_bytes())
    whole[flip % len(whole)] ^= 0x5A
    file.write_bytes(whole if cut is None else whole[: int(cut * len(whole))])
    try:
        got = joined(opened(folder, "rows.npz"))
    except DataError:
        return
    np.testing.assert_array_equal(got["ids"], arrays["ids"])
    np.testing.assert_array_equal(got["dense"], arrays["dense"])


def test_a_damaged_directory_of_an_npz_is_told_wherever_the_damage_is(tmp_path: Path) -> None:
    """Every byte of the central directory, one at a time; some ask for another zip version."""
    file = tmp_path / write_npz(tmp_path, rows(3))
    whole = file.read_bytes()
    for at in range(whole.index(b"PK\x01\x02"), len(whole)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0x5A]) + whole[at + 1 :])
        with contextlib.suppress(DataError):
            joined(opened(tmp_path, file.name))


def test_a_header_that_lies_about_the_size_is_told(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    header = {"descr": "<i8", "fortran_order": False, "shape": (10**12,)}
    np.lib.format.write_array_header_1_0(buffer, header)
    path = write_npy(tmp_path, rows())
    (tmp_path / path / "hour.npy").write_bytes(buffer.getvalue() + bytes(80))
    with pytest.raises(DataError, match="truncated"):
        opened(tmp_path, path)


def test_an_npz_that_is_another_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name in ("ids.npy", "dense.npy", "hour.npy"):
            archive.writestr(name, "hello")
    with pytest.raises(DataError, match="ids: not a NumPy array"):
        opened(tmp_path, "a.npz")


def test_a_large_npz_is_streamed(tmp_path: Path) -> None:
    count = 200_000
    write_npz(tmp_path, {"x": np.zeros((count, 16))})
    source = opened(tmp_path, "rows.npz", [TensorSpec("x", "float32", ("batch", 16))])
    tracemalloc.start()
    assert sum(batch.rows for batch in source.batches()) == count
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3e6  # the array has 25.6 MB


CASTS = [  # of what is in the file, to what the model takes, and whether every value is kept
    (np.array([1, 2]), "int32", True),
    (np.array([1, 2], np.int32), "int64", True),
    (np.array([1, 2**31]), "int32", False),
    (np.array([-1, 2]), "uint8", False),
    (np.array([2**63], np.uint64), "int64", False),
    (np.array([-1]), "uint64", False),
    (np.array([0.5, 0.1]), "float32", True),
    (np.array([1e300]), "float32", False),
    (np.array([1.5], np.float32), "float16", True),
    (np.array([1.0, 2.0]), "int64", False),
    (np.array([1, 2]), "float32", True),
    (np.array([2**24 + 1]), "float32", False),
    (np.array([True, False]), "float32", True),
    (np.array([True, False]), "int64", True),
    (np.array([1, 0]), "bool", False),
    (np.array(["a"]), "float32", False),
    (np.array([1j]), "float32", False),
    (np.array([1.0], ">f8"), "float32", True),
]


@pytest.mark.parametrize(("array", "dtype", "kept"), CASTS)
def test_conversions_keep_every_value_or_are_refused(
    tmp_path: Path, array: NDArray[Any], dtype: str, kept: bool
) -> None:
    write_npz(tmp_path, {"x": array})
    spec = [TensorSpec("x", dtype, ("batch",))]
    if kept:
        got = joined(opened(tmp_path, "rows.npz", spec))["x"]
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, array.astype(dtype))
    else:
        with pytest.raises(DataError, match=r"x"):
            joined(opened(tmp_path, "rows.npz", spec))


def test_a_model_with_a_fixed_batch(tmp_path: Path) -> None:
    write_npz(tmp_path, {"x": np.zeros((10, 2), np.float32)})
    spec = [TensorSpec("x", "float32", (5, 2))]
    assert len(list(opened(tmp_path, "rows.npz", spec, batch_size=5).batches())) == 2
    with pytest.raises(DataError, match="takes exactly 5 rows"):
        joined(opened(tmp_path, "rows.npz", spec))


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ([], "takes no inputs"),
        ([TensorSpec("x", "float32", ())], "has no batch axis"),
        ([TensorSpec("x", "object", ("batch",))], "takes text"),
    ],
)
def test_models_that_rows_cannot_be_fed_to(
    tmp_path: Path, spec: list[TensorSpec], says: str
) -> None:
    write_npz(tmp_path, rows())
    with pytest.raises(DataError, match=says):
        opened(tmp_path, "rows.npz", spec)


def test_labels_are_one_number_a_row_or_one_a_place(tmp_path: Path) -> None:
    write_npz(tmp_path, rows() | {"y": np.zeros((10, 1)), "z": np.zeros((10, 2))})
    (wide,) = opened(tmp_path, "rows.npz", label="z").batches()
    assert wide.labels is not None and wide.labels.shape == (10, 2)
    (batch,) = opened(tmp_path, "rows.npz", label="y").batches()
    assert batch.labels is not None and batch.labels.shape == (10,)
    write_npz(tmp_path, rows() | {"y": np.full(10, "a")})
    with pytest.raises(DataError, match=r"label y is <U1 .* it must hold numbers: write classes"):
        joined(opened(tmp_path, "rows.npz", label="y"))


def test_groups_are_numbers_or_text(tmp_path: Path) -> None:
    names = np.array([f"user {i % 3}" for i in range(10)])
    write_npz(
        tmp_path, rows() | {"who": names, "many": np.zeros((10, 2)), "bad": np.full(10, np.nan)}
    )
    batches = list(opened(tmp_path, "rows.npz", group="who", batch_size=4).batches())
    groups = [batch.groups for batch in batches if batch.groups is not None]
    assert np.concatenate(groups).tolist() == names.tolist()
    assert batches[0].labels is None
    with pytest.raises(DataError, match=r"group many .* must hold one number or text a row"):
        joined(opened(tmp_path, "rows.npz", group="many"))
    with pytest.raises(DataError, match=r"group bad, row 0: nan"):
        joined(opened(tmp_path, "rows.npz", group="bad"))
    with pytest.raises(DataError, match=r"no array whom; it has: "):
        opened(tmp_path, "rows.npz", group="whom")
    write_npz(tmp_path, rows() | {"who": names[:9]})
    with pytest.raises(DataError, match=r"the arrays differ in rows: .*who 9"):
        opened(tmp_path, "rows.npz", group="who")


def test_groups_out_of_tables(tmp_path: Path) -> None:
    spec = [TensorSpec("x", "float32", ("batch", 2)), TensorSpec("i", "int64", ("batch",))]
    text = "x_0,x_1,i,who\n0.5,1,3,ann\n1.5,2,4,bob\n"
    (tmp_path / "t.csv").write_text(text, "utf-8")
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {"x_0": [0.5, 1.5], "x_1": [1.0, 2.0], "i": [3, 4], "who": ["ann", "bob"]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    for file in ("t.csv", "t.parquet"):
        for group, expected in (("who", ["ann", "bob"]), ("i", [3, 4]), ("x_1", [1.0, 2.0])):
            (batch,) = opened(tmp_path, file, spec, group=group).batches()
            assert batch.groups is not None and batch.groups.tolist() == expected
            assert batch.feeds["x"].tolist() == [[0.5, 1.0], [1.5, 2.0]]
        with pytest.raises(DataError, match="no column whom; it has: i, who"):
            opened(tmp_path, file, spec, group="whom")


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("none.npz", "no such file"),
        ("x.txt", r"cannot read '\.txt' files; give an \.npz"),
        ("none.py:f", "no such file"),
        ("m.py:g", "has no function 'g'"),
        ("m.py:raises", "raised ZeroDivisionError"),
        ("m.py:numbers", "yielded a int, not a dict"),
        ("broken.py:f", "raised SyntaxError"),
    ],
)
def test_other_wrong_paths(tmp_path: Path, path: str, says: str) -> None:
    (tmp_path / "x.txt").write_text("1", "utf-8")
    (tmp_path / "broken.py").write_text("def", "utf-8")
    (tmp_path / "m.py").write_text(
        "def raises():\n    yield 1 / 0\ndef numbers():\n    yield 1\n", "utf-8"
    )
    with pytest.raises(DataError, match=says):
        joined(opened(tmp_path, path))


def test_code_runs_only_where_it_is_trusted(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('it ran')", "utf-8")
    with pytest.raises(RecipeError, match="--trust-recipe-code"):
        open_source(DataSpec("evil.py:load"), tmp_path, INPUTS)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("a,hour\n1,2\n\n3\n", "row 1 has 1 values, the header names 2"),
        ("hour\nx\n", "hour, row 0: 'x' is not a whole number"),
        ("hour\n\n2\n''\n", "hour, row 1: \"''\" is not a whole number"),
        ("hour\n99999999999999999999\n", "is not a whole number of 64 bits"),
        ("hour,hour\n1,2\n", "names hour twice"),
        ('hour\n"1\n', "cannot be read as CSV"),
        ("hour\n\xff\n", "cannot be read as CSV"),
    ],
)
def test_malformed_csv(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "a.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=says):
        joined(opened(tmp_path, "a.csv", [TensorSpec("hour", "int64", ("batch",))]))


def test_an_input_of_free_width_takes_the_columns_that_are_there(tmp_path: Path) -> None:
    spec = [TensorSpec("ids", "int64", ("batch", "fields"))]
    for write in (write_csv, write_parquet, write_parquet_lists):
        got = joined(opened(tmp_path, write(tmp_path, rows()), spec))
        assert got["ids"].shape == (10, 3)


def test_a_table_holds_no_images(tmp_path: Path) -> None:
    path = write_csv(tmp_path, rows())
    with pytest.raises(DataError, match="a table cannot hold"):
        opened(tmp_path, path, [TensorSpec("x", "float32", ("batch", 3, 8, 8))])


def test_parquet_with_missing_values_and_ragged_lists(tmp_path: Path) -> None:
    spec = [TensorSpec("x", "int64", ("batch", 2))]
    pq.write_table(pa.table({"x": [[1, 2], None]}), tmp_path / "null.parquet")
    pq.write_table(pa.table({"x": [[1, 2], [3, None]]}), tmp_path / "inner.parquet")
    pq.write_table(pa.table({"x": [[1, 2], [3]]}), tmp_path / "ragged.parquet")
    (tmp_path / "text.parquet").write_bytes(b"PAR1 no")
    for name, says in {
        "null": "x, row 1: no value",
        "inner": "x, row 1: no value",
        "ragged": r"lists of different lengths \[1, 2\]",
        "text": "not a Parquet file",
    }.items():
        with pytest.raises(DataError, match=says):
            joined(opened(tmp_path, f"{name}.parquet", spec))
