"""Recipes, models and data of other kinds, through the command line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import ctr_builders
from builders import Array, mlp, mlp_rows, model_of, weight
from projects import Done, Project, click_project, project, save
from rankc.errors import Exit
from rankrt.__main__ import main as rankrt_main
from rankrt.bundle import load

LAYERS = [{"lowrank": {"round_to": 4, "min_size": 128}}]
Compiled = tuple[Project, Done]


def test_without_validation_data_sizes_are_measured(small: Project) -> None:
    assert small.without_validation().rankc("compile").code == Exit.OK
    metrics = small.metrics
    assert set(metrics["metrics"]) == {"size_bytes", "params", "macs", "nodes"}
    assert metrics["unavailable"]["auc"] == "there is no validation data"
    assert metrics["rows"] == 0
    assert rankrt_main(["selftest", str(small.out)]) == 0


def test_exact_passes_alone_change_nothing(small: Project) -> None:
    small.set(passes=["gather_fusion"], budget=None, gates=[])
    done = small.rankc("compile")
    assert done.code == Exit.OK
    assert "calibrate" not in done.out
    metrics = small.metrics
    assert metrics["metrics"]["max_abs_err"]["compressed"] < 1e-5
    assert metrics["metrics"]["nodes"]["compressed"] < metrics["metrics"]["nodes"]["original"] / 2


def test_a_budget_in_parameters(small: Project) -> None:
    small.set(budget={"unit": "parameters", "max": 6000}, gates=[])
    small.set(passes=["gather_fusion", "embedding", *LAYERS])
    done = small.rankc("compile")
    assert done.code == Exit.OK
    params = small.metrics["metrics"]["params"]
    assert params["original"] > 6000
    assert 0.95 * 6000 < params["compressed"] <= 6000


def test_ranks_without_a_budget(small: Project) -> None:
    small.set(passes=[{"embedding": {"rank": 3}}], budget=None, gates=[])
    assert small.rankc("compile").code == Exit.OK
    assert set(load(small.out).manifest.ranks.values()) == {3}


def test_a_metric_of_ones_own_and_groups(small: Project) -> None:
    code = "def miss(labels, outputs):\n    return abs(outputs.reshape(-1) - labels)\n"
    (small.folder / "scoring.py").write_text(code, "utf-8")
    with np.load(small.folder / "validation.npz") as archive:
        arrays = dict(archive)
    arrays["carrier"] = np.array([f"c{i % 5}" for i in range(len(arrays["label"]))])
    np.savez(small.folder / "validation.npz", **arrays)
    small.set(metrics={"miss": {"code": "scoring.py:miss", "better": "lower"}})
    small.edit(lambda tree: tree["data"]["validation"].update(group="carrier"))
    gates = [
        {"metric": "miss", "goal": "max-degradation", "value": 0.05},
        {"metric": "grouped_auc", "goal": "max-degradation", "value": 0.05},
    ]
    small.set(gates=gates)
    done = small.rankc("compile", "--trust-recipe-code")
    assert done.code == Exit.OK, done.err
    assert "miss" in done.out and "auc within groups" in done.out
    assert small.metrics["own"] == {"miss": "lower"}
    locked = json.loads((small.out / "recipe.lock.json").read_text("utf-8"))
    expected = hashlib.sha256(code.encode()).hexdigest()
    assert locked["sha256"]["metrics.miss"] == expected


def test_no_labels_no_auc(small: Project) -> None:
    small.without_labels()
    small.set(gates=[{"metric": "cosine", "goal": "threshold", "value": 0.9}])
    assert small.rankc("compile").code == Exit.OK
    metrics = small.metrics
    assert "auc" in metrics["unavailable"]
    assert "max_abs_err" in metrics["metrics"]


@pytest.mark.parametrize("build", [ctr_builders.dcn, ctr_builders.sequence])
def test_other_click_models(tmp_path: Path, build: Callable[..., ir.Model]) -> None:
    made = click_project(tmp_path, build((300, 200, 150, 40), 8, 32), budget={"keep_ratio": 0.7})
    done = made.rankc("compile")
    assert done.code == Exit.OK, done.err
    metrics = made.metrics
    assert metrics["ratios"]["size_bytes"] > 1.4
    assert metrics["metrics"]["cosine"]["compressed"] > 0.95
    assert rankrt_main(["selftest", str(made.out)]) == 0


def test_an_mlp_of_low_rank_costs_nothing(tmp_path: Path) -> None:
    rows, budget = {"x": mlp_rows(512)}, {"keep_ratio": 0.9}
    made = project(tmp_path, mlp(rank=4), rows, passes=LAYERS, budget=budget)
    made.without_labels()
    assert made.rankc("compile").code == Exit.OK
    metrics = made.metrics
    assert metrics["metrics"]["max_abs_err"]["compressed"] < 1e-5
    assert metrics["ratios"]["params"] > 1.2


def tower(*middle: str, heads: tuple[int, ...] = (1,)) -> ir.Model:
    """Layers `up`, the operators in `middle`, and a layer and a sigmoid for each of `heads`."""
    rng, tape = np.random.default_rng(1), ir.tape.Tape()
    x = ir.val("x", ir.DataType.FLOAT, ["batch", 16])

    def random(name: str, *shape: int) -> ir.Value:
        return weight(tape, name, (rng.normal(size=shape) / shape[-1] ** 0.5).astype(np.float32))

    def between(kind: str, h: ir.Value) -> ir.Value:
        if kind == "Einsum":
            inputs, attributes = [h, random("E", 32, 32)], {"equation": "bi,io->bo"}
            return tape.op("Einsum", inputs, attributes=attributes, name="einsum")
        if kind == "LSTM":
            first, second = (weight(tape, f"axis{k}", np.array([k])) for k in (0, 1))
            inputs = [tape.op("Unsqueeze", [h, first]), random("W", 1, 128, 32)]
            inputs.append(random("R", 1, 128, 32))
            (y,) = tape.op_multi_out(
                "LSTM", inputs, num_outputs=1, attributes={"hidden_size": 32}, name="lstm"
            )
            return tape.op("Squeeze", [tape.op("Squeeze", [y, second]), first])
        return tape.op(kind, [h])

    hidden = tape.op("MatMul", [x, random("A", 16, 32)], name="up")
    for kind in middle:
        hidden = between(kind, hidden)
    outputs = []
    for k, width in enumerate(heads):
        outputs.append(ir.val(f"y{k}", ir.DataType.FLOAT, ["batch", width]))
        logit = tape.op("MatMul", [hidden, random(f"B{k}", 32, width)], name=f"head{k}")
        tape.op("Sigmoid", [logit], output=outputs[-1])
    return model_of(tape, [x], outputs)


@pytest.mark.parametrize("kind", ["Einsum", "LSTM"])
def test_layers_before_an_operator_without_a_gradient_are_measured(
    tmp_path: Path, kind: str
) -> None:
    rows = {"x": mlp_rows(512)}
    made = project(tmp_path, tower(kind, heads=(8,)), rows, passes=LAYERS).without_labels()
    made.set(budget={"max": (made.folder / "model.onnx").stat().st_size - 400})
    done = made.rankc("compile")
    assert done.code == Exit.OK, done.err
    assert "512 rows, one pass; without a gradient, perturbed: up\n" in done.out
    assert load(made.out).manifest.ranks
    assert made.metrics["metrics"]["cosine"]["compressed"] > 0.8


def test_a_model_with_several_outputs(tmp_path: Path) -> None:
    model, rows = tower("Relu", heads=(1, 8)), {"x": mlp_rows(512)}
    made = project(tmp_path, model, rows, passes=LAYERS, budget={"keep_ratio": 0.9})
    made.without_labels()
    done = made.rankc("compile")
    assert done.code == Exit.OK, done.err
    assert "perturbed" not in done.out
    with load(made.out) as bundle:
        got, want = bundle.run(rows), made.original(rows)
    assert set(got) == {"y0", "y1"}
    assert all(np.abs(got[name] - want[name]).mean() < 0.1 for name in want)


# --- data -----------------------------------------------------------------------------------


def as_npy(folder: Path, rows: dict[str, Array]) -> str:
    (folder / "rows").mkdir()
    for name, array in rows.items():
        np.save(folder / "rows" / f"{name}.npy", array)
    return "rows"


def columns(rows: dict[str, Array]) -> dict[str, list[Any]]:
    return {f"{name}_{k}": a[:, k].tolist() for name, a in rows.items() for k in range(a.shape[1])}


def as_csv(folder: Path, rows: dict[str, Array]) -> str:
    table = columns(rows)
    lines = [",".join(map(repr, line)) for line in zip(*table.values(), strict=True)]
    (folder / "rows.csv").write_text("\n".join([",".join(table), *lines]) + "\n", "utf-8")
    return "rows.csv"


def as_parquet(folder: Path, rows: dict[str, Array]) -> str:
    arrow, parquet = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    parquet.write_table(arrow.table(columns(rows)), folder / "rows.parquet", row_group_size=100)
    return "rows.parquet"


def as_code(folder: Path, rows: dict[str, Array]) -> str:
    save(folder / "hidden.npz", rows)
    (folder / "rows.py").write_text(
        "from pathlib import Path\n"
        "import numpy as np\n"
        "def rows():\n"
        "    whole = dict(np.load(Path(__file__).with_name('hidden.npz')))\n"
        "    for at in range(0, 1024, 512):\n"
        "        yield {name: array[at : at + 512] for name, array in whole.items()}\n",
        "utf-8",
    )
    return "rows.py:rows"


@pytest.mark.parametrize("write", [as_npy, as_csv, as_parquet, as_code])
def test_the_same_rows_in_any_form_make_the_same_model(
    small: Project, compiled: Compiled, write: Callable[[Path, dict[str, Array]], str]
) -> None:
    with np.load(small.folder / "calibration.npz") as archive:
        path = write(small.folder, dict(archive))
    small.without_validation().edit(lambda r: r["data"]["calibration"].update(path=path))
    done = small.rankc("compile", "--trust-recipe-code")
    assert done.code == Exit.OK, done.err
    want = (compiled[0].out / "model.onnx").read_bytes()
    assert (small.out / "model.onnx").read_bytes() == want
