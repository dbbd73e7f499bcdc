"""Every kind of bad input: a named error, its exit code, no traceback, and nothing half-written."""

from __future__ import annotations

import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from builders import Array, mlp, model_of, weight
from model_files import edited
from projects import Project, Refusal, save
from rankc.errors import Exit

Case = tuple[str, Callable[[Project], object], tuple[str, ...]]  # id, what to spoil, words


def cases(*listed: Case) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("spoil", "words"), [pytest.param(spoil, words, id=name) for name, spoil, words in listed]
    )


# --- the model ------------------------------------------------------------------------------


def model(change: Callable[[Path], object]) -> Callable[[Project], object]:
    return lambda project: change(project.folder / "model.onnx")


def proto(change: Callable[[onnx.ModelProto], object]) -> Callable[[Project], object]:
    return model(lambda path: edited(path, change))


def cut(share: float) -> Callable[[Project], object]:
    return model(lambda path: os.truncate(path, int(share * path.stat().st_size)))


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe_instead(path: Path) -> None:
    """Whoever opens it for reading waits for ever."""
    path.unlink()
    os.mkfifo(path)


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", "x")


def tensor_of(proto: onnx.ModelProto, name: str) -> onnx.TensorProto:
    (found,) = (tensor for tensor in proto.graph.initializer if tensor.name == name)
    assert isinstance(found, onnx.TensorProto)
    return found


def poison(number: float, name: str = "fc1.weight") -> Callable[[onnx.ModelProto], object]:
    def change(proto: onnx.ModelProto) -> None:
        tensor = tensor_of(proto, name)
        array = onnx.numpy_helper.to_array(tensor).copy()
        array.flat[2] = number
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))

    return change


def foreign(proto: onnx.ModelProto) -> None:
    proto.graph.node[-1].domain = "acme.ops"
    proto.opset_import.append(onnx.OperatorSetIdProto(domain="acme.ops", version=1))


def field(number: int, content: bytes) -> bytes:
    """A protobuf field of bytes."""
    length, size = bytearray(), len(content)
    while size > 127:
        length.append(size & 127 | 128)
        size >>= 7
    return bytes([number << 3 | 2, *length, size]) + content


def nested(path: Path) -> None:
    """Ten thousand graphs, each in an attribute of a node of the one around it."""
    graph = b""
    for _ in range(10_000):
        graph = field(1, field(5, field(1, b"then_branch") + field(6, graph)) + field(4, b"If"))
    path.write_bytes(bytes([8, 10]) + field(7, graph))


def external(then: Callable[[Path], object]) -> Callable[[Project], object]:
    """Move the weights to `weights.bin`, and spoil that."""

    def spoil(project: Project) -> None:
        path = project.folder / "model.onnx"
        whole = onnx.load(path)
        onnx.save(whole, path, save_as_external_data=True, location="weights.bin")
        then(path.with_name("weights.bin"))

    return spoil


def linked(data: Path) -> None:
    data.rename(data.with_name("elsewhere.bin"))
    data.symlink_to("elsewhere.bin")


def leads_out(data: Path) -> None:
    data.rename(data.parent.parent / "weights.bin")
    data.symlink_to(data.parent.parent / "weights.bin")


def relocated(location: str) -> Callable[[Path], object]:
    def change(proto: onnx.ModelProto) -> None:
        for tensor in proto.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location

    return lambda data: edited(data.with_name("model.onnx"), change)


def replaced(build: Callable[[], ir.Model]) -> Callable[[Project], object]:
    return model(lambda path: ir.save(build(), path))


def text_model() -> ir.Model:
    t, y = (ir.val(name, ir.DataType.STRING, ["batch", 1]) for name in "ty")
    tape = ir.tape.Tape()
    tape.op("Identity", [t], output=y)
    return model_of(tape, [t], [y])


def on_click_inputs(*kinds: str, shape: tuple[int, ...] = (), integer: bool = False) -> ir.Model:
    """Operators on `dense`, as ids are read by nobody."""
    ids, tape = ir.val("ids", ir.DataType.INT64, ["batch", 4]), ir.tape.Tape()
    dense = ir.val("dense", ir.DataType.FLOAT, ["batch", 3])
    value = tape.op("MatMul", [dense, weight(tape, "W", np.ones((3, 32), np.float32))], name="up")
    more = [weight(tape, "shape", np.array(shape))] if shape else []
    for kind in kinds[:-1]:
        value = tape.op(kind, [value])
    dtype = ir.DataType.INT64 if integer else ir.DataType.FLOAT
    y = ir.val("y", dtype, [None] * (len(shape) or 2))
    tape.op(kinds[-1], [value, *more], output=y)
    return model_of(tape, [ids, dense], [y])


NOT_ONNX = "is not an ONNX model"


@cases(
    ("missing", model(os.remove), ("model.onnx: there is no such file",)),
    ("empty", cut(0), ("model.onnx: is empty",)),
    ("text", model(lambda p: p.write_text("hello")), (NOT_ONNX, "cut short or damaged")),
    ("random", model(lambda p: p.write_bytes(np.random.default_rng(0).bytes(5000))), (NOT_ONNX,)),
    ("tenth", cut(0.1), (NOT_ONNX, "cut short")),
    ("half", cut(0.5), (NOT_ONNX, "cut short")),
    ("last byte", cut(0.99999), (NOT_ONNX, "cut short")),
    ("zip", model(zipped), (NOT_ONNX, "a zip archive", "torch.onnx.export")),
    ("pickle", model(lambda p: p.write_bytes(pickle.dumps({}))), (NOT_ONNX, "a Python pickle")),
    ("folder", model(folder_instead), ("is a folder or a device",)),
    ("pipe", model(pipe_instead), ("is a folder or a device",)),
    ("nan", proto(poison(np.nan)), ("initializer 'fc1.weight' has 1 NaN elements",)),
    ("infinite", proto(poison(np.inf)), ("initializer 'fc1.weight' has 1 infinite elements",)),
    (
        "huge dims",
        proto(lambda p: tensor_of(p, "fc1.weight").dims.__setitem__(0, 1 << 40)),
        ("tensor 'fc1.weight' of shape [1099511627776, 35]", "damaged"),
    ),
    (
        "negative dims",
        proto(lambda p: tensor_of(p, "fc1.weight").dims.__setitem__(0, -1)),
        ("'fc1.weight' has a negative dimension",),
    ),
    ("foreign operator", proto(foreign), ("operators of acme.ops", "without custom operators")),
    (
        "unknown operator",
        proto(lambda p: setattr(p.graph.node[-1], "op_type", "Frobnicate")),
        ("Frobnicate",),
    ),
    (
        "old opset",
        proto(lambda p: setattr(p.opset_import[0], "version", 9)),
        ("has opset 9; supported are 13 to",),
    ),
    ("deep", model(nested), (NOT_ONNX,)),
    ("data missing", external(os.remove), ("external data file 'weights.bin' is missing",)),
    ("data cut", external(lambda p: os.truncate(p, 99)), ("'weights.bin', which has 99",)),
    ("data linked", external(linked), ("'weights.bin' is a symbolic link; refused",)),
    ("data linked out", external(leads_out), ("'weights.bin' lies outside the model's folder",)),
    ("data outside", external(relocated("../calibration.npz")), ("'../calibration.npz' lies out",)),
    ("data absolute", external(relocated("/etc/passwd")), ("'/etc/passwd' lies outside",)),
    ("text input", replaced(text_model), ("'t' holds text, which is not supported",)),
    (
        "integers only",
        replaced(lambda: on_click_inputs("ArgMax", integer=True)),
        ("no output of a floating type to compare, only y int64",),
    ),
    (
        "answers nan",
        replaced(lambda: on_click_inputs("Neg", "Abs", "Neg", "Sqrt")),
        ("output 'y' is NaN or infinite",),
    ),
    (
        "fails when run",
        replaced(lambda: on_click_inputs("Reshape", shape=(-1, 7))),
        ("model.onnx: onnxruntime failed", "Reshape"),
    ),
)
def test_a_bad_model(
    small: Project, refused: Refusal, spoil: Callable[[Project], object], words: tuple[str, ...]
) -> None:
    spoil(small)
    small.set(gates=[])  # auc fits not all of these outputs, which would be told first
    refused(small, Exit.MODEL, *words)


def test_a_model_that_onnx_runtime_refuses(small: Project, refused: Refusal) -> None:
    """Valid ONNX, but ONNX Runtime wants the axes of an Unsqueeze in the file itself."""
    path = small.folder / "model.onnx"
    onnx.save(onnx.load(path), path, save_as_external_data=True, size_threshold=0)
    refused(small, Exit.MODEL, "model.onnx: onnxruntime", "refuses it", "Unsqueeze")


def test_weights_that_overflow_once_they_are_folded(small: Project, refused: Refusal) -> None:
    proto(poison(5e32, "wide.1"))(small)
    refused(small, Exit.MODEL, "model.onnx: a rewrite that is exact in theory", "too large")


def column_nine(proto: onnx.ModelProto) -> None:
    tensor_of(proto, "k2").CopyFrom(onnx.numpy_helper.from_array(np.array(9), "k2"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (column_nine, "idx=9 must be within the inclusive range [-4,3]"),
        (poison(3e37), "the gradient at 'emb.0' is not finite or overflows"),
    ],
)
def test_a_model_that_does_not_fit_the_rows(
    small: Project, refused: Refusal, change: Callable[[onnx.ModelProto], object], says: str
) -> None:
    proto(change)(small)
    refused(small, Exit.USAGE, "calibration", says)


def test_a_machine_without_onnx_runtime(
    small: Project, refused: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    refused(small, Exit.ENVIRONMENT, "onnxruntime cannot be imported", "pip install onnxruntime")


# --- the data -------------------------------------------------------------------------------


def rows(change: Callable[[dict[str, Array]], object]) -> Callable[[Path], object]:
    def spoil(path: Path) -> None:
        with np.load(path) as archive:
            arrays = dict(archive)
        change(arrays)
        save(path, arrays)

    return spoil


def put(name: str, index: Any, number: float) -> Callable[[Path], object]:
    return rows(lambda arrays: arrays[name].__setitem__(index, number))


def swap(name: str, change: Callable[[Array], Array]) -> Callable[[Path], object]:
    return rows(lambda arrays: arrays.__setitem__(name, change(arrays[name])))


def every(change: Callable[[Array], Array]) -> Callable[[Path], object]:
    return rows(lambda arrays: arrays.update({k: change(a) for k, a in arrays.items()}))


BAD_DATA: list[tuple[str, Callable[[Path], object], tuple[str, ...]]] = [
    ("missing", os.remove, ("no such file or folder",)),
    ("empty file", lambda p: os.truncate(p, 0), ("not an .npz, or truncated",)),
    ("text", lambda p: p.write_text("ids\n"), ("not an .npz",)),
    ("cut", lambda p: os.truncate(p, 3000), ("not an .npz, or truncated",)),
    ("pipe", pipe_instead, ("is a pipe or a device",)),
    ("no rows", every(lambda a: a[:0]), ("there are no rows in it",)),
    ("pickled", swap("dense", lambda a: a.astype(object)), ("dense", "Python objects (a pickle)")),
    ("name", rows(lambda a: a.update(Dense=a.pop("dense"))), ("no array dense", "Dense")),
    ("fractions", swap("ids", lambda a: a + 0.5), ("ids is float64", "takes ids int64 (batch, 4)")),
    ("text values", swap("dense", lambda a: a.astype(str)), ("dense is <U", "dense float32")),
    ("columns", swap("ids", lambda a: a[:, :3]), ("ids has shape (1024, 3)", "(batch, 4)")),
    ("axes", swap("ids", lambda a: a[:, 0]), ("ids has shape (1024,)", "(batch, 4)")),
    ("row counts", swap("ids", lambda a: a[:-1]), ("differ in rows: ids 1023, dense 1024",)),
    ("nan", put("dense", (700, 1), np.nan), ("dense, row 700, column 1: nan",)),
    ("infinite", put("dense", (700, 1), -np.inf), ("dense, row 700, column 1: -inf",)),
]


@pytest.mark.parametrize("which", ["calibration", "validation"])
@pytest.mark.parametrize(
    ("spoil", "words"), [pytest.param(s, w, id=name) for name, s, w in BAD_DATA]
)
def test_bad_data(
    small: Project,
    refused: Refusal,
    which: str,
    spoil: Callable[[Path], object],
    words: tuple[str, ...],
) -> None:
    spoil(small.folder / f"{which}.npz")
    done = refused(small, Exit.USAGE, f"{which}.npz", *words)
    early = "row 700" not in done.last
    assert ("cleanup" in done.out) != early, "what needs no reading is told at once"


@pytest.mark.parametrize(
    ("row", "bad", "says"),
    [
        (0, 200, "calibration.npz: rows 0 to 255:"),
        (0, -1, "calibration.npz: ids, row 0, column 1: no table row for id -1; valid are 0 to"),
        (700, 200, "calibration.npz: rows 512 to 767:"),
        (700, 10**12, "idx=1000000000000 must be within the inclusive range [-200,199]"),
        (700, -1, "calibration data: id -1 for table 'emb.1', whose rows are 0 to 199"),
    ],
)
def test_calibration_ids_outside_their_table(
    small: Project, refused: Refusal, row: int, bad: int, says: str
) -> None:
    put("ids", (row, 1), bad)(small.folder / "calibration.npz")
    refused(small, Exit.USAGE, says)


@pytest.mark.parametrize("passes", [["gather_fusion"], [{"embedding": {"rank": 4}}]], ids=str)
@pytest.mark.parametrize("bad", [200, 10**12])
def test_validation_ids_outside_their_table(
    small: Project, refused: Refusal, bad: int, passes: list[Any]
) -> None:
    put("ids", (700, 1), bad)(small.folder / "validation.npz")
    done = refused(small.set(passes=passes, budget=None), Exit.USAGE, "validation.npz: ", str(bad))
    if "gather_fusion" in passes:
        assert "ids, row 700, column 1: no table row for id" in done.last


def test_values_that_overflow(small: Project, refused: Refusal) -> None:
    put("dense", (700, 1), 1e30)(small.folder / "calibration.npz")
    refused(small, Exit.USAGE, "the input of 'fc1' is not finite or overflows")


LABELS: list[tuple[str, Callable[[Path], object], tuple[str, ...]]] = [
    ("missing", rows(lambda a: a.pop("label")), ("no array label; it has: dense, ids",)),
    ("one class", swap("label", lambda a: 0 * a), ("'label': all 1024 labels are 0", "both")),
    ("other class", swap("label", lambda a: 0 * a + 1), ("all 1024 labels are 1",)),
    ("three", put("label", 3, 2), ("neither 0 nor 1 (the first is 2.0)",)),
    ("signs", swap("label", lambda a: 2 * a - 1), ("neither 0 nor 1 (the first is -1.0)",)),
    ("nan", put("label", 3, np.nan), ("label, row 3: nan",)),
    ("text", swap("label", lambda a: a.astype(str)), ("label", "must hold numbers")),
    ("two", swap("label", lambda a: np.stack([a, a], axis=1)), ("shape (256, 2)", "one number")),
]


@pytest.mark.parametrize(("spoil", "words"), [pytest.param(s, w, id=n) for n, s, w in LABELS])
def test_bad_labels(
    small: Project, refused: Refusal, spoil: Callable[[Path], object], words: tuple[str, ...]
) -> None:
    spoil(small.folder / "validation.npz")
    refused(small, Exit.USAGE, *words)


def test_code_runs_only_where_it_is_trusted(small: Project, refused: Refusal) -> None:
    mark = small.folder / "ran"
    (small.folder / "rows.py").write_text(f"open({str(mark)!r}, 'w').close()\n", "utf-8")
    small.edit(lambda tree: tree["data"]["calibration"].update(path="rows.py:rows"))
    refused(small, Exit.USAGE, "rows.py:rows", "--trust-recipe-code")
    assert not mark.exists()


def test_a_metrics_code_runs_only_where_it_is_trusted(small: Project, refused: Refusal) -> None:
    mark = small.folder / "ran"
    (small.folder / "scoring.py").write_text(f"open({str(mark)!r}, 'w').close()\n", "utf-8")
    small.set(metrics={"mine": {"code": "scoring.py:mine", "better": "higher"}})
    refused(small, Exit.USAGE, "metrics.mine: ", "--trust-recipe-code")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        ("mean_iou", ("gates[0]: mean_iou does not fit the compared output, p float32 ",)),
        (
            "accuracy_top1",
            ("of two classes or more; this one has: auc, grouped_auc, ",),
        ),
        ("spearman", ("so the labels, or there must be no labels; measured: auc",)),
        ("grouped_auc", ("grouped_auc needs groups", "data.validation.group")),
    ],
)
def test_a_metric_that_does_not_fit(
    small: Project, refused: Refusal, gate: str, words: tuple[str, ...]
) -> None:
    small.set(gates=[{"metric": gate, "goal": "threshold", "value": 0.5}])
    refused(small, Exit.USAGE, *words)


def test_an_empty_validation_set(small: Project, refused: Refusal) -> None:
    rows(lambda a: a.update({name: array[:0] for name, array in a.items()}))(
        small.folder / "validation.npz"
    )
    refused(small, Exit.USAGE, "validation.npz: there are no rows in it")


def test_a_group_column_of_another_length(small: Project, refused: Refusal) -> None:
    rows(lambda a: a.update(user=np.arange(7)))(small.folder / "validation.npz")
    small.edit(lambda tree: tree["data"]["validation"].update(group="user"))
    refused(small, Exit.USAGE, "validation.npz: the arrays differ in rows: ", "user 7")
    small.edit(lambda tree: tree["data"]["validation"].update(group="users"))
    refused(small, Exit.USAGE, "validation.npz: no array users; it has: ")


# --- the place for the result ---------------------------------------------------------------


def test_a_file_in_the_place_of_the_bundle(small: Project, refused: Refusal) -> None:
    small.out.parent.mkdir()
    small.out.write_text("mine", "utf-8")
    refused(small, Exit.USAGE, f"--out {small.out} is a file; give a folder")
    assert small.out.read_text("utf-8") == "mine"


def test_a_folder_of_somebody_elses(small: Project, refused: Refusal) -> None:
    small.out.mkdir(parents=True)
    (small.out / "thesis.tex").write_text("mine", "utf-8")
    refused(small, Exit.USAGE, "is not empty and holds no bundle")


def test_a_file_in_the_place_of_a_parent(small: Project, refused: Refusal) -> None:
    small.out.parent.write_text("mine", "utf-8")
    refused(small, Exit.ENVIRONMENT, str(small.out.parent), "--out")


def test_a_link_to_itself(small: Project, refused: Refusal) -> None:
    small.out.parent.mkdir()
    small.out.symlink_to(small.out.name)
    done = small.rankc("compile")
    assert done.code in (Exit.USAGE, Exit.ENVIRONMENT)  # before Python 3.13, and since
    assert str(small.out) in done.last
    assert "Traceback" not in done.err


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(small: Project, refused: Refusal) -> None:
    small.out.parent.mkdir(mode=0o500)
    refused(small, Exit.ENVIRONMENT, "Permission denied", "fix the permissions")


def test_a_fixed_batch_that_is_not_timed(small: Project, refused: Refusal) -> None:
    fixed = mlp()
    for value in (fixed.graph.inputs[0], fixed.graph.outputs[0]):
        assert value.shape is not None
        value.shape = ir.Shape([8, *value.shape[1:]])
    ir.save(fixed, small.folder / "model.onnx")
    for which in ("calibration", "validation"):
        save(small.folder / f"{which}.npz", {"x": np.ones((8, 16), np.float32)})
    small.without_labels().set(passes=[{"lowrank": {"rank": 4, "min_size": 1}}], gates=[])
    words = "latency.batch_sizes: 1 cannot be run", "(8, 16)"
    done = refused(small.set(budget=None), Exit.USAGE, *words)
    assert "  cleanup " not in done.out, "before anything is compressed, or trained for hours"
