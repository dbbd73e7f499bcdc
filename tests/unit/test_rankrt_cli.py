from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bundles import MLP_INPUTS, MLP_OUTPUTS, write_mlp_bundle, write_tables_bundle
from rankc.packing import pack_tar, write_golden, write_manifest
from rankrt import bench
from rankrt.__main__ import main
from rankrt.errors import FeedError
from rankrt.manifest import Engine, Golden, Manifest
from rankrt.session import TensorSpec

_PLAN = Engine("tensorrt-rtx", "fp16", "a.plan", ("8.6",), "1.7.1", True, False, "no GPU here")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "tiny"
    folder.mkdir()
    (folder / "a.plan").write_bytes(b"not an engine")
    write_mlp_bundle(folder, engines=(_PLAN,))
    return folder


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "tables"
    write_tables_bundle(folder)
    return folder


Capture = pytest.CaptureFixture[str]


def test_selftest(folder: Path, capsys: Capture) -> None:
    assert main(["selftest", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "bundle    tiny"
    assert lines[1].startswith("backend   onnxruntime ")
    assert lines[2].startswith("          tensorrt-rtx-fp16 refused: ")
    assert lines[3].startswith("golden    8 of 8 inputs, max |Δ| ")
    assert lines[3].endswith(" (bound 2e-06)")
    assert lines[4] == "OK"


def test_selftest_of_a_tar(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    pack_tar(folder, tmp_path / "b.tar")
    assert main(["selftest", str(tmp_path / "b.tar"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["ok"], facts["rows"], facts["passed"]) == (True, 8, 8)
    assert facts["refused"][0]["name"] == "tensorrt-rtx-fp16"


def test_other_outputs_are_exit_code_4(tmp_path: Path, capsys: Capture) -> None:
    write_mlp_bundle(tmp_path)
    write_golden(tmp_path, {"x": np.ones((4, 16), np.float32)}, {"y": np.ones((4, 8), np.float32)})
    write_manifest(
        tmp_path,
        name="off",
        inputs=MLP_INPUTS,
        outputs=MLP_OUTPUTS,
        golden=Golden("golden.npz", 1e-6),
    )
    assert main(["selftest", str(tmp_path)]) == 4
    out = capsys.readouterr().out
    assert "golden    0 of 4 inputs" in out
    assert out.splitlines()[-1].startswith("FAILED | onnxruntime does not reproduce")
    assert main(["selftest", str(tmp_path), "--json"]) == 4
    assert json.loads(capsys.readouterr().out)["ok"] is False


def test_nothing_to_test_with_is_no_pass(tables: Path, capsys: Capture) -> None:
    assert main(["selftest", str(tables)]) == 3
    assert "has no golden rows" in capsys.readouterr().err


def test_a_damaged_bundle_is_exit_code_3(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "a.plan").write_bytes(b"not an enginE")
    for verb in ("info", "selftest", "bench"):
        assert main([verb, str(copy)]) == 3
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err.startswith(f"FAILED | {copy / 'a.plan'}: sha256 is ")
    assert main(["info", str(tmp_path / "absent")]) == 3
    assert "does not exist" in capsys.readouterr().err


def test_a_backend_that_cannot_run_is_exit_code_6(folder: Path, capsys: Capture) -> None:
    assert main(["selftest", str(folder), "--backend", "tensorrt-rtx"]) == 6
    assert "tensorrt-rtx-fp16: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["selftest"],
        ["run", "x"],
        ["selftest", "x", "--backend", "tvm"],
        ["bench", "x", "--batch", "0"],
        ["bench", "x", "--dim", "seq"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: rankrt" in capsys.readouterr().err


def test_info(folder: Path, capsys: Capture) -> None:
    assert main(["info", str(folder)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^bundle    tiny  \d\.\d kB in 3 files, every sha256 matches$", out, re.M)
    assert "inputs    x float32 (batch, 16)" in out
    assert "ranks     2 sites, rank 8 to 16, median 12" in out
    assert "engines   tensorrt-rtx-fp16  " in out
    assert "would run onnxruntime" in out
    assert "made by   rankc 0.1.0" in out


def test_info_says_which_ids_are_valid(tables: Path, capsys: Capture) -> None:
    assert main(["info", str(tables)]) == 0
    assert "ids 0..2 to 0..4 by column, checked at every call" in capsys.readouterr().out


def test_info_for_machines(folder: Path, capsys: Capture) -> None:
    assert main(["info", str(folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["would_use"] == "onnxruntime"
    assert [engine["name"] for engine in facts["engines"]] == ["tensorrt-rtx-fp16", "onnxruntime"]
    assert facts["engines"][0]["reason"]
    assert facts["size_bytes"] == sum(f["size_bytes"] for f in facts["files"].values())


def test_bench(folder: Path, capsys: Capture) -> None:
    assert main(["bench", str(folder), "--batch", "1", "20", "--seconds", "0.01"]) == 0
    out = capsys.readouterr().out
    assert "inputs    golden rows, repeated" in out
    assert "wall p50" in out
    assert "CPU p50" in out
    assert [line.split()[0] for line in out.splitlines() if line[:7].strip().isdigit()] == [
        "1",
        "20",
    ]


def test_bench_for_machines(tables: Path, capsys: Capture) -> None:
    assert main(["bench", str(tables), "--batch", "3", "--seconds", "0.01", "--json"]) == 0
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    (row,) = facts["batches"]
    assert facts["inputs"].startswith("made up")
    assert row["batch"] == 3
    assert row["runs"] >= bench.MIN_RUNS
    assert 0 < row["wall_p50_ms"] <= row["wall_p95_ms"]
    assert facts["load_ms"] > 0
    assert facts["peak_memory_bytes"] > 1e6


def test_bench_times_what_it_is_given() -> None:
    timing = bench.time_batch(lambda: sum(range(20_000)), 1, 0.01)
    assert timing.cpu_p50_ms > 0.05  # 20,000 additions on no machine take less
    assert timing.runs >= bench.MIN_RUNS


def _manifest(*inputs: TensorSpec, **fields: Any) -> Manifest:
    return Manifest("x", {}, inputs, (), **fields)


def test_made_up_ids_stay_within_their_ranges() -> None:
    ids = TensorSpec("ids", "int64", ("batch", 2))
    feeds = bench.made_up(_manifest(ids, id_ranges={"ids": (1, 5)}), 200, {})
    np.testing.assert_array_equal(feeds["ids"].max(axis=0), [1, 5])
    np.testing.assert_array_equal(feeds["ids"].min(axis=0), [0, 0])
    again = bench.made_up(_manifest(ids, id_ranges={"ids": (1, 5)}), 200, {})
    np.testing.assert_array_equal(feeds["ids"], again["ids"])


def test_made_up_inputs_need_every_size() -> None:
    manifest = _manifest(TensorSpec("x", "float16", (None, "seq", 4)))
    assert bench.made_up(manifest, 2, {"seq": 3})["x"].shape == (2, 3, 4)
    with pytest.raises(FeedError, match="axis 1 has no size; give it with --dim seq=N"):
        bench.made_up(manifest, 2, {})


def test_golden_rows_are_repeated_in_order() -> None:
    specs = (TensorSpec("x", "float32", ("batch",)), TensorSpec("k", "float32", (2,)))
    feeds = bench.tiled({"x": np.arange(3.0), "k": np.ones(2)}, specs, 5)
    np.testing.assert_array_equal(feeds["x"], [0, 1, 2, 0, 1])
    assert feeds["k"].shape == (2,)


def test_names_in_a_bundle_cannot_drive_the_terminal(tmp_path: Path, capsys: Capture) -> None:
    write_mlp_bundle(tmp_path, name="evil\x1b[2J\ud800")
    assert main(["info", str(tmp_path)]) == 0
    assert "bundle    evil\\x1b[2J\\ud800" in capsys.readouterr().out


def test_a_bug_of_ours_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def fail(path: str) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("rankrt.cli.read", fail)
    assert main(["info", "x"]) == 1
    assert "ZeroDivisionError: oops; --traceback shows where" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        main(["--traceback", "info", "x"])


def test_ctrl_c_is_exit_code_130(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def interrupted(path: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rankrt.cli.read", interrupted)
    assert main(["info", "x"]) == 130
    assert capsys.readouterr().err == "FAILED | interrupted\n"


def test_it_runs_as_a_module_where_the_terminal_knows_ascii_only(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rankrt", "selftest", str(folder)],
        capture_output=True,
        env={"PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.splitlines()[-1] == b"OK"


def test_help_teaches_the_exit_codes(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "exit codes: 0 fine; 2 wrong usage" in out
    assert "selftest" in out


_PEAK = """
import numpy
from rankrt.bench import peak_memory_bytes
before = peak_memory_bytes()
block = numpy.ones(64 << 17)  # 64 MiB
print((peak_memory_bytes() - before) / block.nbytes)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell")
def test_peak_memory_is_this_process_own() -> None:
    ballast = np.ones(16 << 20)  # 128 MiB in the parent
    done = subprocess.run([sys.executable, "-c", _PEAK], capture_output=True, check=True)
    assert 0.9 < float(done.stdout) < 1.2
    assert ballast.nbytes == 1 << 27
