from __future__ import annotations

import json
from pathlib import Path

import onnx_ir as ir
import pytest

import rankc.profiling
from builders import lookup
from layer_builders import image_model, lowrank, site_named, stack
from rankc.__main__ import main
from rankc.errors import DataError, Exit, MachineError, RecipeError
from rankc.latency_table import load, times_for
from rankc.layer_models import isolate, rewritten, solved
from rankc.layer_timing import (
    Call,
    Machine,
    bench_of,
    compare,
    empty_call_ns,
    layer_engine,
    self_fed,
    wall_pairs,
)
from rankc.passes.conv import Conv
from rankc.profiling import profile
from rankc.rank_grid import grid
from rankc.recipe import Target
from rankc.validate.sampling import Samples
from rankrt.backends import cuda, onnxruntime, tensorrt

Capture = pytest.CaptureFixture[str]
LAYERS = ["Gemm(1x32, 32x32, 32)", "MatMul(1x32, 32x32)"]  # of `stack([32, 32, 32])`


class Watched:
    """The real bench, which notes what it opens and may be interrupted at one of its openings."""

    def __init__(self, stop_at: int | None = None) -> None:
        self._bench, self._stop_at = bench_of("cpu"), stop_at
        self.machine: Machine = self._bench.machine
        self.opened: list[str] = []

    def open(self, alone: ir.Model) -> Call:
        self.opened.append(" ".join(node.op_type for node in alone.graph))
        if len(self.opened) == self._stop_at:
            raise KeyboardInterrupt
        return self._bench.open(alone)

    def pairs(self, first: Call, second: Call, seconds: float) -> Samples:
        return self._bench.pairs(first, second, seconds / 4)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two equal layers and a third; each has one rank to time as a pair, 8, and three as pivot."""
    monkeypatch.chdir(tmp_path)
    ir.save(stack([32, 32, 32]), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_equal_layers_are_timed_once_and_a_second_run_times_nothing(model: Path) -> None:
    first = Watched()
    found = profile(model, bench=first)
    assert found.out == Path("build/latency-cpu-b1.json")
    assert (found.layers, found.sites, found.timed, found.known, found.left) == (2, 3, 2, 0, 0)
    assert found.done
    gemms, matmuls = "Gemm Gemm Concat Gather", "MatMul Add MatMul Add Concat Gather"
    assert first.opened == [
        *("Gemm", "Identity", "MatMul Gemm", gemms, gemms, gemms),
        *("MatMul", "MatMul MatMul Add", matmuls, matmuls, matmuls),
    ]
    table = load(found.out, "cpu")
    assert sorted(table.layers) == LAYERS
    assert [sorted(layer.of("lowrank", "")) for layer in table.layers.values()] == [[8], [8]]
    pivots = [sorted(layer.of("lowrank", "pivot")) for layer in table.layers.values()]
    assert pivots == [[8, 16, 24], [8, 16, 24]]
    before = found.out.read_bytes()
    second = Watched()
    again = profile(model, bench=second)
    assert (again.timed, again.known, again.done) == (0, 2, True)
    assert second.opened == []
    assert found.out.read_bytes() == before


def test_another_model_adds_what_is_new(model: Path, tmp_path: Path) -> None:
    out = profile(model, bench=Watched()).out
    before = load(out)
    ir.save(stack([32, 40]), tmp_path / "other.onnx")
    found = profile(tmp_path / "other.onnx", bench=Watched())
    assert (found.out, found.timed) == (out, 2)
    after = load(out)
    assert len(after.layers) == 4
    assert {key: after.layers[key] for key in LAYERS} == before.layers


def test_an_interrupt_loses_one_layer_at_most(model: Path) -> None:
    out = Path("t.json")
    with pytest.raises(KeyboardInterrupt):
        profile(model, out=out, bench=Watched(stop_at=8))  # while the second layer is factored
    table = load(out)
    assert list(table.layers) == LAYERS[:1]
    kept = table.layers[LAYERS[0]]
    rest = Watched()
    found = profile(model, out=out, bench=rest)
    assert (found.timed, found.known, found.left) == (1, 1, 0)
    assert "MatMul Gemm" not in rest.opened
    assert load(out).layers[LAYERS[0]] == kept


def test_time_that_is_up_leaves_a_table_to_go_on_with(model: Path) -> None:
    found = profile(model, out=Path("t.json"), minutes=1e-9, bench=Watched())
    assert (found.timed, found.left, found.done) == (0, 2, False)
    assert load(found.out).layers == {}
    assert profile(model, out=Path("t.json"), minutes=5, bench=Watched()).done


def test_the_table_serves_the_sites_it_was_made_for(model: Path) -> None:
    table = load(profile(model, bench=Watched()).out)
    whole, pass_ = ir.load(model), lowrank()
    site = site_named(whole, pass_, "fc1")
    alone = isolate(whole, pass_, site, 1)
    assert isinstance(alone, ir.Model)
    curve = pass_.cost(site, solved(pass_, alone, site))
    found = times_for(table, whole, pass_, site, curve)
    assert found is not None
    assert found.measured
    assert len(found.ranked) == len(curve.ranks)


def test_convolutions_are_timed_in_every_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ir.save(image_model(layers=1), tmp_path / "m.onnx")
    monkeypatch.setattr(rankc.profiling, "grid", lambda curve, macs: grid(curve, macs, most=1))
    found = profile(tmp_path / "m.onnx", out=tmp_path / "t.json", passes=["conv"], bench=Watched())
    assert (found.layers, found.left) == (1, 0)
    (layer,) = load(found.out).layers.values()
    forms = layer.ranked_ms["conv"]
    assert {"channel", "vertical", "horizontal", "input"} <= set(forms)
    assert all(forms.values())


def test_what_cannot_be_meant_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="'gpu' is not known; choose one of cpu, cuda, tensorrt"):
        profile(model, "gpu")
    with pytest.raises(RecipeError, match=r"--pass pruning: no such pass; choose among .*lowrank"):
        profile(model, passes=["lowrank", "pruning"])
    with pytest.raises(RecipeError, match="--batch is 0"):
        profile(model, batch=0)
    for minutes in (0.0, -1.0, float("nan")):
        with pytest.raises(RecipeError, match="--minutes is"):
            profile(model, minutes=minutes)
    ir.save(lookup(), tmp_path / "tables.onnx")
    with pytest.raises(RecipeError, match="embedding: no layer that could be timed"):
        profile(tmp_path / "tables.onnx", passes=["embedding"])


def test_times_of_two_machines_or_batch_sizes_do_not_mix(model: Path) -> None:
    out = profile(model, bench=Watched()).out
    with pytest.raises(DataError, match="measured with batch 1, and here it is 2"):
        profile(model, out=out, batch=2)
    table = json.loads(out.read_text("utf-8"))
    table["header"]["device"] = "another processor"
    out.write_text(json.dumps(table), "utf-8")
    with pytest.raises(DataError, match="measured with device 'another processor'"):
        profile(model, out=out)
    out.write_text("{}", "utf-8")
    with pytest.raises(DataError, match="is no latency table"):
        profile(model, out=out)


def test_a_target_that_is_not_here_says_what_to_install(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(cuda.probe(), str):
        with pytest.raises(MachineError, match=r"target cuda: .*pip install 'rankc\[gpu\]'"):
            profile(model, "cuda")
    if tensorrt.available("tensorrt") is not None:
        with pytest.raises(MachineError, match=r"target tensorrt: .*JetPack"):
            profile(model, "tensorrt")
    monkeypatch.setattr(onnxruntime, "available", lambda: "not here: pip install onnxruntime")
    with pytest.raises(MachineError, match="target cpu: not here: pip install onnxruntime"):
        profile(model, "cpu")


def test_an_onnxruntime_without_cuda_is_told_from_a_machine_without_a_gpu(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime as ort

    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    monkeypatch.setattr(cuda, "probe", lambda: cuda.Device("a GPU", "8.9"))
    with pytest.raises(MachineError, match=r"no CUDAExecutionProvider.*pip uninstall onnxruntime"):
        profile(model, "cuda")


# --- timing ---------------------------------------------------------------------------------


def test_both_clocks_see_which_of_two_layers_is_larger() -> None:
    bench, pass_ = bench_of("cpu"), lowrank()
    whole = stack([32, 1024])
    site = site_named(whole, pass_, "fc0")
    large, small = (isolate(m, pass_, site, 8) for m in (whole, stack([32, 32])))
    assert isinstance(large, ir.Model)
    assert isinstance(small, ir.Model)
    calls = bench.open(large), bench.open(small)
    found = compare(bench, *calls, 0.05, empty_call_ns(bench))
    assert found.interval[0] <= found.ratio <= found.interval[1] < 1.0
    assert found.factored_ms < found.dense_ms
    samples = wall_pairs(*calls, 0.05)
    assert (samples.original > 0).all()
    assert len(samples.original) >= 5


def test_a_layer_never_takes_less_than_nothing() -> None:
    bench, pass_ = bench_of("cpu"), lowrank()
    whole = stack([32, 32])
    alone = isolate(whole, pass_, site_named(whole, pass_, "fc0"), 1)
    assert isinstance(alone, ir.Model)
    call = bench.open(alone)
    found = compare(bench, call, call, 0.02, empty_ns=1e9)
    assert found.dense_ms > 0
    assert found.ratio == 1.0


def test_layers_that_feed_themselves_are_what_tensorrt_builds(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="published for x86-64 Linux and Windows only")
    whole, pass_ = image_model(), Conv()
    site = site_named(whole, pass_, "conv1")
    alone = isolate(whole, pass_, site, 2)
    assert isinstance(alone, ir.Model)
    factored = rewritten(alone, pass_, site, 4, solved(pass_, alone, site), "vertical")
    file, entry = layer_engine(self_fed(factored), Target("tensorrt-rtx"), tmp_path)
    assert file.stat().st_size > 0
    assert (entry.backend, entry.ran) == ("tensorrt-rtx", False)
    with pytest.raises(MachineError, match="target tensorrt-rtx: not built"):
        layer_engine(alone, Target("tensorrt-rtx", compute_capability=("1.1",)), tmp_path)


# --- command line ---------------------------------------------------------------------------


def test_the_command_ends_with_what_it_did(
    model: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rankc.profiling, "bench_of", lambda target: Watched())
    argv = ["profile", str(model), "--target", "cpu", "--out", "t.json"]
    assert main([*argv, "--minutes", "1e-9"]) == Exit.OK
    last = "PASSED | 0 layers, 2 left: run it again to go on | t.json"
    assert capsys.readouterr().out.splitlines()[-1] == last
    assert main([*argv, "--pass", "lowrank"]) == Exit.OK
    text = capsys.readouterr().out
    assert "2 layers timed → t.json" in text
    assert text.splitlines()[-1] == "PASSED | 2 layers | t.json"
    assert main([*argv, "--json"]) == Exit.OK
    out, err = capsys.readouterr()
    assert json.loads(out)["known"] == 2
    assert "2 were in the table already" in err


def test_the_command_says_that_an_interrupt_left_a_table(
    model: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rankc.profiling, "bench_of", lambda target: Watched(stop_at=4))
    argv = ["profile", str(model), "--target", "cpu", "--out", "t.json"]
    assert main(argv) == Exit.INTERRUPTED
    last = "FAILED | interrupted; t.json has what was timed, run it again to go on"
    assert capsys.readouterr().out.splitlines()[-1] == last
    assert list(load(Path("t.json")).layers) == LAYERS[:1]


@pytest.mark.usefixtures("model")
def test_the_command_refuses_like_every_other(capsys: Capture) -> None:
    assert main(["profile", "model.onnx"]) == Exit.USAGE
    assert "--target" in capsys.readouterr().err
    assert main(["profile", "none.onnx", "--target", "cpu"]) == Exit.MODEL
    assert "FAILED | none.onnx: there is no such file" in capsys.readouterr().out
