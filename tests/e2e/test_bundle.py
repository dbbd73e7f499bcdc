"""What the runtime makes of a compiled bundle: moved, packed, damaged, and fed with wrong ids."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from builders import Array
from projects import Done, Project, click_model, click_rows, save
from rankc.packing import pack_tar
from rankrt import BundleError, FeedError
from rankrt.__main__ import main
from rankrt.bundle import load

Compiled = tuple[Project, Done]
Capture = pytest.CaptureFixture[str]
FILES = (
    "manifest.json",
    "model.onnx",
    "golden.npz",
    "plan.json",
    "metrics.json",
    "recipe.yaml",
    "recipe.lock.json",
    "report.html",
    "report.md",
    "junit.xml",
    "layers.json",
)
DAMAGED = 3  # exit code of rankrt


@pytest.fixture
def bundle(compiled: Compiled, tmp_path: Path) -> Path:
    """A copy of the bundle."""
    return Path(shutil.copytree(compiled[0].out, tmp_path / "moved"))


@pytest.fixture(scope="module")
def rows() -> dict[str, Array]:
    return click_rows(click_model(), 64)


def test_a_moved_and_a_packed_bundle_answer_the_same(
    compiled: Compiled, bundle: Path, rows: dict[str, Array]
) -> None:
    with load(compiled[0].out) as there:
        want = there.run(rows)["p"]
    pack_tar(bundle, bundle.with_suffix(".tar"))
    for path in (bundle, bundle.with_suffix(".tar")):
        with load(path) as here:
            np.testing.assert_array_equal(here.run(rows)["p"], want)


@pytest.mark.parametrize("suffix", ["", ".tar"])
def test_the_command_line_reads_it(bundle: Path, suffix: str, capsys: Capture) -> None:
    pack_tar(bundle, bundle.with_suffix(".tar"))
    path = str(bundle.with_suffix(suffix))
    assert main(["selftest", path, "--json"]) == 0
    tested = json.loads(capsys.readouterr().out)
    assert tested["ok"] is True
    assert (tested["rows"], tested["max_abs_err"]) == (8, 0.0)
    assert main(["info", path]) == 0
    assert "ids 0..39 to 0..299 by column, checked at every call" in capsys.readouterr().out
    assert main(["bench", path, "--seconds", "0.01", "--batch", "1"]) == 0


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", [0.0, 0.5, 0.999])
def test_a_flipped_bit_anywhere_is_found(
    bundle: Path, name: str, where: float, capsys: Capture
) -> None:
    raw = bytearray((bundle / name).read_bytes())
    raw[int(where * len(raw))] ^= 1
    (bundle / name).write_bytes(raw)
    with pytest.raises(BundleError, match=name.replace(".", r"\.")):
        load(bundle)
    assert main(["selftest", str(bundle)]) == DAMAGED
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("FAILED | ")
    assert "Traceback" not in err


def test_no_bit_of_the_manifest_can_flip(bundle: Path) -> None:
    path = bundle / "manifest.json"
    raw = path.read_bytes()
    for at in range(0, len(raw), 7):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ (1 << at % 8)]) + raw[at + 1 :])
        with pytest.raises(BundleError):
            load(bundle)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_longer_file_is_found(bundle: Path, name: str) -> None:
    raw = (bundle / name).read_bytes()
    (bundle / name).write_bytes(raw + b"\n")
    assert main(["info", str(bundle)]) == DAMAGED
    (bundle / name).unlink()
    assert main(["info", str(bundle)]) == DAMAGED


@pytest.mark.parametrize("where", [0.01, 0.3, 0.6, 0.9])
def test_a_flipped_bit_in_a_tar_is_found(bundle: Path, where: float) -> None:
    tar = bundle.with_suffix(".tar")
    pack_tar(bundle, tar)
    raw = bytearray(tar.read_bytes())
    payload = np.flatnonzero(np.frombuffer(bytes(raw), np.uint8))  # not the padding
    raw[payload[int(where * len(payload))]] ^= 1
    tar.write_bytes(raw)
    assert main(["selftest", str(tar)]) == DAMAGED


@pytest.mark.parametrize(
    ("column", "bad", "says"),
    [
        (0, 300, r"the id 300 at \[5, 0\], valid are 0\.\.299"),
        (1, 200, r"the id 200 at \[5, 1\], valid are 0\.\.199"),  # a row of another field's table
        (3, 40, r"the id 40 at \[5, 3\], valid are 0\.\.39"),
        (2, -1, r"the id -1 at \[5, 2\], valid are 0\.\.149"),
        (1, -(2**63), r"valid are 0\.\.199"),
        (1, 2**62, r"valid are 0\.\.199"),
    ],
)
def test_an_id_of_another_field_is_refused(
    compiled: Compiled, rows: dict[str, Array], column: int, bad: int, says: str
) -> None:
    ids = rows["ids"].copy()
    ids[5, column] = bad
    with load(compiled[0].out) as bundle, pytest.raises(FeedError, match=says):
        bundle.run({**rows, "ids": ids})


@pytest.mark.parametrize("which", ["calibration", "validation"])
@pytest.mark.parametrize("row", [0, 900])
def test_golden_rows_are_rows_that_the_bundle_takes(small: Project, which: str, row: int) -> None:
    """What `run` would refuse is refused while compiling: a bundle passes its own self-test."""
    path = small.folder / f"{which}.npz"
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays["ids"][row, 1] = -1  # of the original: the last row
    save(path, arrays)
    done = small.rankc("compile")
    assert done.code == 2
    assert "id -1" in done.last
    assert not small.out.exists()
