"""External data that is not where, or not what, the model says."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from builders import mlp
from model_files import edited, refusal, weight_of
from rankc.errors import ModelError
from rankc.intake import load


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """A model whose weights lie in w.bin beside it."""
    file = tmp_path / "model.onnx"
    ir.save(mlp(), file, external_data="w.bin", size_threshold_bytes=0)
    return file


def relocated(path: Path, location: str) -> Path:
    return edited(path, lambda p: set_entry(p, "location", location))


def set_entry(proto: onnx.ModelProto, key: str, value: str) -> None:
    tensor = proto.graph.initializer[0]
    kept = [entry for entry in tensor.external_data if entry.key != key]
    del tensor.external_data[:]
    tensor.external_data.extend([*kept, onnx.StringStringEntryProto(key=key, value=value)])


def test_external_data_stays_on_disk_and_is_part_of_the_digest(external: Path) -> None:
    intake = load(external)
    weight = intake.model.graph.initializers["A"].const_value
    assert isinstance(weight, ir.ExternalTensor)
    data = external.with_name("w.bin")
    assert intake.size_bytes == external.stat().st_size + data.stat().st_size
    np.testing.assert_array_equal(weight.numpy(), weight_of(mlp()))
    values = np.fromfile(data, np.float32)
    (values * 2).tofile(data)
    assert load(external).sha256 != intake.sha256


@pytest.mark.parametrize("location", ["weights/../../etc/passwd", "/etc/passwd", "../w.bin", "."])
def test_external_data_outside_the_folder_is_refused(external: Path, location: str) -> None:
    (external.parent.parent / "w.bin").write_bytes(b"secret")
    message = refusal(relocated(external, location))
    assert message.startswith(
        f"the external data file '{location}' lies outside the model's folder; refused\n"
        "  copy the data next to the model"
    )


def test_a_windows_path_is_refused_everywhere(external: Path) -> None:
    assert "lies outside" in refusal(relocated(external, "C:\\Windows\\win.ini"))


def test_a_link_out_of_the_folder_is_refused(external: Path, tmp_path: Path) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-secret"
    outside.write_bytes(b"0" * 10_000)
    (tmp_path / "link.bin").symlink_to(outside)
    assert "lies outside the model's folder" in refusal(relocated(external, "link.bin"))


def test_a_link_within_the_folder_is_refused_as_onnx_refuses_it(
    external: Path, tmp_path: Path
) -> None:
    (tmp_path / "link.bin").symlink_to(tmp_path / "w.bin")
    assert "'link.bin' is a symbolic link" in refusal(relocated(external, "link.bin"))


def test_a_model_behind_a_link_finds_its_data(external: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "model.onnx").symlink_to(external)
    loaded = load(elsewhere / "model.onnx").model
    np.testing.assert_array_equal(weight_of(loaded), weight_of(mlp()))


def test_a_hard_link_is_refused(external: Path, tmp_path: Path) -> None:
    os.link(tmp_path / "w.bin", tmp_path / "other.bin")
    assert "has a second name (a hard link)" in refusal(external)


def test_links_in_a_circle_are_refused(external: Path, tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert "is missing" in refusal(relocated(external, "a"))


def test_a_device_or_pipe_as_data_does_not_hang(external: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is not a regular file" in refusal(relocated(external, "pipe"))


def test_missing_external_data(external: Path, tmp_path: Path) -> None:
    (tmp_path / "w.bin").unlink()
    message = refusal(external)
    assert "external data file 'w.bin' is missing" in message
    assert "copy it next to the model" in message


def test_external_data_that_was_cut_short(external: Path, tmp_path: Path) -> None:
    os.truncate(tmp_path / "w.bin", 100)
    assert "which has 100; the file is cut short" in refusal(external)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("offset", "-4", "reads bytes -4"),
        ("offset", "99999999999", "reads bytes 99,999,999,999"),
        ("offset", "four", "not a number"),
        ("length", "12", "declares 12 of 'w.bin'"),
        ("location", "", "has no location"),
        ("location", "w\0.bin", "has no location"),
    ],
)
def test_impossible_ranges(external: Path, key: str, value: str, reason: str) -> None:
    assert reason in refusal(edited(external, lambda p: set_entry(p, key, value)))


def test_external_data_of_a_constant_is_read(external: Path) -> None:
    def to_constant(proto: onnx.ModelProto) -> None:
        tensor = proto.graph.initializer.pop(0)
        node = onnx.NodeProto(op_type="Constant", output=[tensor.name])
        node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR, t=tensor)
        proto.graph.node.insert(0, node)

    first = next(iter(load(edited(external, to_constant)).model.graph))
    np.testing.assert_array_equal(first.attributes["value"].as_tensor().numpy(), weight_of(mlp()))


def test_the_size_limit_counts_external_files(external: Path) -> None:
    with pytest.raises(ModelError, match="above the limit"):
        load(external, max_bytes=external.stat().st_size + 10)
