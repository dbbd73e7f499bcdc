"""Small bundles that several tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from builders import mlp, mlp_rows, model_of, weight
from rankc.packing import GOLDEN, write_golden, write_manifest
from rankrt.manifest import Golden, Manifest
from rankrt.session import TensorSpec, open_model

MLP_INPUTS = (TensorSpec("x", "float32", ("batch", 16)),)
MLP_OUTPUTS = (TensorSpec("y", "float32", ("batch", 8)),)


def write_mlp_bundle(folder: Path, rows: int = 8, **fields: Any) -> Manifest:
    """A whole bundle of `builders.mlp`; `fields` replace those of its manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    ir.save(mlp(), folder / "model.onnx")
    feeds = {"x": mlp_rows(rows)}
    write_golden(folder, feeds, open_model(folder / "model.onnx").run(feeds))
    fields = {
        "name": "tiny",
        "inputs": MLP_INPUTS,
        "outputs": MLP_OUTPUTS,
        "golden": Golden(GOLDEN, 2e-6),
        "ranks": {"up": 8, "down": 16},
        "versions": {"rankc": "0.1.0"},
        **fields,
    }
    return write_manifest(folder, **fields)


def fused_tables() -> ir.Model:
    """z = table[ids + (0, 3)]: fields of 3 and 5 ids share one table of 8 rows; row i is (i,)."""
    ids = ir.val("ids", ir.DataType.INT64, ["batch", 2])
    tape = ir.tape.Tape()
    offsets = weight(tape, "offsets", np.array([0, 3], np.int64))
    table = weight(tape, "table", np.arange(8, dtype=np.float32)[:, None])
    rows = tape.op("Add", [ids, offsets], name="shift")
    z = ir.val("z", ir.DataType.FLOAT, ["batch", 2, 1])
    tape.op("Gather", [table, rows], name="look_up", output=z)
    return model_of(tape, [ids], [z])


def write_tables_bundle(folder: Path, **fields: Any) -> Manifest:
    """A bundle of `fused_tables` that knows its ids' ranges, without golden rows."""
    folder.mkdir(parents=True, exist_ok=True)
    ir.save(fused_tables(), folder / "model.onnx")
    fields = {
        "name": "tables",
        "inputs": (TensorSpec("ids", "int64", ("batch", 2)),),
        "outputs": (TensorSpec("z", "float32", ("batch", 2, 1)),),
        "id_ranges": {"ids": (2, 4)},
        **fields,
    }
    return write_manifest(folder, **fields)
