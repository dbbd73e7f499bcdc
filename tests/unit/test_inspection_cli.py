"""`rankc inspect` as typed: the table, JSON, the page, and what is refused before long work."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import rich.console

from builders import lookup, lookup_rows
from rankc.__main__ import main
from rankc.console import Console
from rankc.errors import Exit
from rankc.inspection import inspect
from rankc.report.text import TIMES

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def model(tmp_path: Path) -> str:
    ir.save(lookup(), tmp_path / "model.onnx")
    np.savez(tmp_path / "rows.npz", ids=lookup_rows())
    return str(tmp_path / "model.onnx")


def shown(model: str, width: int) -> list[str]:
    file = io.StringIO()
    screen = rich.console.Console(file=file, force_terminal=False, width=width, highlight=False)
    Console(console=screen).show_model(inspect(Path(model)))
    return file.getvalue().splitlines()


def test_the_table_has_a_line_a_site(model: str, capsys: Capture) -> None:
    assert main(["inspect", model]) == Exit.OK
    text = capsys.readouterr().out
    lines = text.splitlines()
    head = next(line for line in lines if line.startswith("site"))
    assert head.split("  ")[0] == "site"
    for name, operator in (("user", "Gather"), ("item", "Gather"), ("fc1", "Gemm")):
        assert any(line.split()[:2] == [name, operator] for line in lines), text
    assert "from the weights alone" in text
    assert "left alone: fc2 (lowrank:" in text


def test_no_number_is_cut_short_on_a_narrow_terminal(model: str) -> None:
    narrow, wide = (
        next(line.split() for line in shown(model, width) if line.startswith("fc1"))
        for width in (80, 200)
    )
    assert wide[1:3] == ["Gemm", f"36{TIMES}40"]
    assert narrow == [wide[0], *wide[3:]]  # all but operator, weight, and a form that has no name
    assert all(len(line) <= 80 for line in shown(model, 80) if line.startswith("fc1"))


def test_json_says_the_same_and_stays_alone_on_standard_output(model: str, capsys: Capture) -> None:
    rows = str(Path(model).with_name("rows.npz"))
    assert main(["inspect", model, "--json", "--calibrate", rows]) == Exit.OK
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found == json.loads(json.dumps(inspect(Path(model), rows).to_dict()))
    assert found["rows"] == 512
    assert "calibrate" in err
    assert "spectra" in err


def test_the_page_is_written_where_asked(model: str, tmp_path: Path, capsys: Capture) -> None:
    target = tmp_path / "page.html"
    assert main(["inspect", model, "--html", str(target)]) == Exit.OK
    assert f"page {target}" in capsys.readouterr().out
    page = target.read_text("utf-8")
    assert page.count("<svg") == 3
    assert "fc1" in page


def test_what_cannot_be_done_is_said_with_its_exit_code(
    model: str, tmp_path: Path, capsys: Capture
) -> None:
    assert main(["inspect", model, "--html", str(tmp_path)]) == Exit.USAGE
    assert "is a folder" in capsys.readouterr().err
    assert main(["inspect", model, "--calibrate", str(tmp_path / "no.npz")]) == Exit.USAGE
    assert "no such file" in capsys.readouterr().err
    (tmp_path / "model.onnx").write_bytes(b"hello")
    assert main(["inspect", model]) == Exit.MODEL
