from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from bundles import MLP_INPUTS, MLP_OUTPUTS
from rankrt.errors import BundleError
from rankrt.manifest import MAX_BYTES, Engine, FileInfo, Golden, Manifest
from rankrt.session import TensorSpec

_FILE = FileInfo("0" * 64, 10)
_ENGINE = Engine("tensorrt-rtx", "fp16", "a.plan", ("8.6",), "1.7.1", True, False, "no GPU", 1e-3)


def _manifest(**changes: Any) -> Manifest:
    manifest = Manifest(
        name="ctr",
        files={"model.onnx": _FILE, "a.plan": _FILE, "golden.npz": _FILE},
        inputs=(*MLP_INPUTS, TensorSpec("ids", "int64", ("batch", 2, None))),
        outputs=MLP_OUTPUTS,
        id_ranges={"ids": 7},
        engines=(_ENGINE, Engine("tensorrt", "fp32", None, (), "", False, False, "no package")),
        golden=Golden("golden.npz", 2e-6),
        ranks={"emb": 4},
        metrics={"auc": {"original": 0.81, "interval": [-0.1, None]}, "passed": True},
        versions={"rankc": "0.1.0"},
    )
    return dataclasses.replace(manifest, **changes)


def test_what_is_written_is_read() -> None:
    manifest = _manifest()
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert manifest.engines[0].name == "tensorrt-rtx-fp16"


def test_the_order_of_entries_does_not_matter() -> None:
    files = dict.fromkeys(reversed(list(_manifest().files)), _FILE)
    assert _manifest(files=files).to_json() == _manifest().to_json()


def test_every_changed_byte_is_noticed() -> None:
    text = _manifest().to_json()
    for i, old in enumerate(text):
        new = "7" if old != "7" else "8"
        with pytest.raises(BundleError):
            Manifest.from_json(text[:i] + new + text[i + 1 :])


@pytest.mark.parametrize("width", [None, 2, 4])
def test_a_reformatted_manifest_is_refused(width: int | None) -> None:
    text = json.dumps(json.loads(_manifest().to_json()), indent=width, sort_keys=True)
    with pytest.raises(BundleError, match="not as rankc wrote it"):
        Manifest.from_json(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not valid JSON"),
        ("[1, 2]", "holds a list, expected an object"),
        ("{}", "format is None, this runtime reads 1"),
        ('{"format": 2}', "format is 2, this runtime reads 1: upgrade rankrt"),
        ('{"format": 1}', "missing fields engines, files"),
        ('{"format": 1, "nmae": 0}', "unknown fields nmae .known: engines, files"),
        ("[" * 100_000, "nested too deeply"),
        ('{"format": ' + "1" * 5000 + "}", "manifest.json is not valid JSON|format is"),
        (" " * (MAX_BYTES + 1), "more than"),
    ],
)
def test_text_that_is_no_manifest(text: str, says: str) -> None:
    with pytest.raises(BundleError, match=says):
        Manifest.from_json(text)


def test_deep_nesting_in_the_metrics_is_refused() -> None:
    deep = "[" * 900 + "]" * 900
    text = _manifest(metrics={"x": 0}).to_json().replace('"x": 0', f'"x": {deep}')
    with pytest.raises(BundleError):
        Manifest.from_json(text)


@pytest.mark.parametrize(
    "name", ["../a", "/etc/passwd", "a/../../b", "a\\b", "C:x", "a//b", "", "a\n"]
)
def test_names_that_are_no_files_of_a_bundle(name: str) -> None:
    text = _manifest(files={**_manifest().files, name: _FILE}).to_json()
    with pytest.raises(BundleError, match="is refused"):
        Manifest.from_json(text)


_SPEC = TensorSpec("ids", "int64", ("batch", 2))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"files": {"manifest.json": _FILE}}, "it names the manifest itself"),
        ({"files": {"model.onnx": FileInfo("0" * 64, -1)}}, "impossible size"),
        ({"files": {"model.onnx": FileInfo("beef", 1)}}, "impossible size or sha256"),
        ({"files": {"other": _FILE}}, "'model.onnx' is used but is not one of its files"),
        ({"golden": Golden("gone.npz", 1e-6)}, "'gone.npz' is used but"),
        ({"golden": Golden("golden.npz", -1.0)}, "golden.tolerance is -1.0"),
        ({"golden": Golden("golden.npz", True)}, "golden.tolerance is true or false"),
        ({"engines": (dataclasses.replace(_ENGINE, backend="tvm"),)}, "'tvm', not one of"),
        ({"engines": (dataclasses.replace(_ENGINE, precision="int3"),)}, "not one of fp16, fp32"),
        ({"engines": (dataclasses.replace(_ENGINE, built=False),)}, "file exactly if it was built"),
        ({"engines": (dataclasses.replace(_ENGINE, file="b.plan"),)}, "'b.plan' is used but"),
        ({"inputs": (TensorSpec("x", "int3", ()),)}, "the dtype of 'x' is 'int3'"),
        ({"inputs": (TensorSpec("x", "int8", (-1,)),)}, "negative size"),
        ({"id_ranges": {"x": 3}}, "names 'x', which is no integer input"),
        ({"inputs": (_SPEC,), "id_ranges": {"ids": (1, 2, 3)}}, "has 3 columns for input ids"),
        ({"inputs": (_SPEC,), "id_ranges": {"ids": (1, -2)}}, "must lie in 0"),
        ({"ranks": {"emb": True}}, "ranks.'emb'. is true or false, expected a whole number"),
        ({"versions": {"numpy": 2}}, "versions.'numpy'. is a whole number, expected a text"),
        ({"name": None}, "name is null, expected a text"),
    ],
)  # fmt: skip
def test_fields_that_contradict_each_other(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(BundleError, match=says):
        Manifest.from_json(_manifest(**changes).to_json())


def test_nan_is_not_written() -> None:
    with pytest.raises(BundleError, match="NaN"):
        _manifest(metrics={"auc": float("nan")}).to_json()


@pytest.mark.parametrize("word", ["NaN", "Infinity", "1e999"])
def test_nan_and_infinity_are_not_read(word: str) -> None:
    text = _manifest(metrics={"x": 12345}).to_json().replace("12345", word)
    with pytest.raises(BundleError):
        Manifest.from_json(text)
