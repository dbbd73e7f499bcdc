"""`rankc explain` says of every layer what plan and metrics say, and needs the bundle alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from projects import Done, Project, command, read_json
from rankc.errors import Exit
from rankc.explaining import Explained, _kept, _time
from rankc.report import text
from rankrt.bundle import read

Compiled = tuple[Project, Done]


def layers_of(made: Project) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read_json(made.out / "layers.json")["layers"]
    return found


def test_a_rewritten_layer_is_explained(compiled: Compiled, tmp_path: Path) -> None:
    made, _ = compiled
    moved = Path(shutil.copytree(made.out, tmp_path / "alone"))
    choice = max(
        read_json(made.out / "plan.json")["choices"],
        key=lambda one: one["dense_size_bytes"] - one["size_bytes"],
    )
    done = command("explain", str(moved), choice["site"])
    assert done.code == Exit.OK, done.out + done.err
    first, *_ = done.out.splitlines()
    assert f"→ rank {choice['rank']} of {choice['full_rank']} ({choice['pass_name']})" in first
    saved = choice["dense_size_bytes"] - choice["size_bytes"]
    assert (f"saves {saved / 1e3:.2f} kB" if saved >= 1000 else f"saves {saved} B") in done.out
    assert f"dense would win back {choice['loss']:.3g}" in done.out
    assert "of squared change of the logit" in done.out
    assert "not timed" in done.out  # the recipe says `revert: false`
    (layer,) = [one for one in layers_of(made) if one["site"] == choice["site"]]
    for step, verb in ((layer["smaller"], "save"), (layer["larger"], "take")):
        if step is not None:
            assert f"rank {step['rank']} would {verb}" in done.out


def test_every_layer_and_every_skip_can_be_asked_for(compiled: Compiled) -> None:
    made, _ = compiled
    contents = read(made.out)
    found = Explained.of(contents)
    names = [one["site"] for one in found.layers] + [one["name"] for one in found.skips]
    plan = read_json(made.out / "plan.json")
    known = {c["site"] for c in plan["choices"]} | {s["name"] for s in plan["skips"]}
    assert set(names) == known
    for name in names:
        lines = list(found.lines(name))
        assert lines
        assert all(lines)
    assert [row[0] for row in found.rows()] == names
    for skip in found.skips:
        assert skip["reason"] in next(iter(found.lines(skip["name"])))


def test_without_a_layer_there_is_a_table(compiled: Compiled) -> None:
    made, _ = compiled
    done = command("explain", str(made.out))
    assert done.code == Exit.OK
    for layer in layers_of(made):
        (line,) = [one for one in done.out.splitlines() if one.startswith(f"{layer['site']} ")]
        assert f"{layer['costs']['size_bytes']:,} of" in line


def test_json_is_the_layer_as_the_bundle_has_it(compiled: Compiled) -> None:
    made, _ = compiled
    layer = layers_of(made)[0]
    got = json.loads(command("explain", str(made.out), layer["site"], "--json").out)
    assert {key: got[key] for key in layer} == layer
    everything = json.loads(command("explain", str(made.out), "--json").out)
    assert everything["layers"] == layers_of(made)


def test_an_unknown_layer_is_refused_with_the_nearest(compiled: Compiled) -> None:
    made, _ = compiled
    name = layers_of(made)[0]["site"]
    done = command("explain", str(made.out), f"{name}x")
    assert done.code == Exit.USAGE
    assert f"did you mean {name!r}" in done.err
    assert "layers: " in done.err
    assert done.last.startswith("FAILED | no layer")


@pytest.mark.parametrize(
    ("error", "says"),
    [(0.0, "100 %"), (1e-9, "> 99.99 %"), (0.0061, "99.39 %"), (1.0, "0.00 %")],
)
def test_a_share_is_never_rounded_up_to_all(error: float, says: str) -> None:
    assert _kept(error) == says


def test_times_are_told_where_they_were_measured() -> None:
    timed = {"32": {"ratio": 0.5, "interval": [0.4, 0.6]}}
    times = {"original_ms": 0.02, "compressed_ms": 0.0149}
    line = _time({"timed": timed, "times": times})
    assert "saves 5.10 µs a call within the model" in line
    ratio = f"0.50{text.TIMES} (0.40{text.RANGE}0.60)"
    assert f"{ratio} the time at batch 32, by itself" in line
