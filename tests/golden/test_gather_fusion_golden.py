"""What `gather_fusion` makes of a small DeepFM and a small DCN, node by node."""

from __future__ import annotations

import onnx_ir as ir

import ctr_builders
from rankc.passes.gather_fusion import GatherFusion

# Two of three fields have codes of rank 2, one of rank 3; `dense` is joined to them. val_30 is what
# fc1 reads into its Relu, val_18 the sum of the fields, val_27 all of the logit but the tower.
DEEPFM = """
ids.taken = Gather(ids, ids.columns)
ids.rows = Add(ids.taken, ids.offsets)
ids.groups.0, ids.groups.1 = Split(ids.rows, ids.groups.sizes)
rows.2 = Gather(table.2, ids.groups.0)
rows.2.flat = Reshape(rows.2, rows.2.flat.shape)
rows.3 = Gather(table.3, ids.groups.1)
rows.3.flat = Reshape(rows.3, rows.3.flat.shape)
rows = Concat(rows.2.flat, rows.3.flat)
base = Concat(rows, dense)
narrow.layer = Gemm(base, narrow.weight, narrow.bias)
val_27.part, val_30, val_18 = Split(narrow.layer, narrow.parts.sizes)
val_31 = Relu(val_30)
val_32 = Gemm(val_31, fc2.weight, fc2.bias)
val_33 = Relu(val_32)
val_34 = Gemm(val_33, out.weight, out.bias)
rows.squared = Mul(rows, rows)
val_27.sum = Gemm(rows.squared, val_27.second, val_27.part)
val_18.part.squared = Mul(val_18, val_18)
val_27 = Gemm(val_18.part.squared, val_27.second.1, val_27.sum)
val_35 = Add(val_27, val_34)
p = Sigmoid(val_35)
"""

# The same at full rank: wide weights glued to the rows, every table in one.
DEEPFM_EXACT = """
ids.rows = Add(ids, ids.offsets)
rows.5 = Gather(table.5, ids.rows)
rows.5.flat = Reshape(rows.5, rows.5.flat.shape)
base = Concat(rows.5.flat, dense)
narrow.layer = Gemm(base, narrow.weight, narrow.bias)
"""

# The crosses multiply by x0, val_11: at full rank it is the base itself, and every layer stays.
DCN_EXACT = """
ids.rows = Add(ids, ids.offsets)
rows.4 = Gather(table.4, ids.rows)
rows.4.flat = Reshape(rows.4, rows.4.flat.shape)
val_11 = Concat(rows.4.flat, dense)
val_12 = Gemm(val_11, cross0.weight, cross0.bias)
val_13 = Mul(val_11, val_12)
"""

# Codes of rank 2 as int8 are cast after they are joined, and x0 is decoded from them.
DCN_INT8 = """
ids.rows = Add(ids, ids.offsets)
rows.2 = Gather(table.2, ids.rows)
rows.2.flat = Reshape(rows.2, rows.2.flat.shape)
codes.float = Cast(rows.2.flat)
base = Concat(codes.float, dense)
val_11 = MatMul(base, val_11.weight)
val_12 = Gemm(val_11, cross0.weight, cross0.bias)
val_13 = Mul(val_11, val_12)
"""

GLUED = """
val_3.glued = Gather(emb.0, val_0)
val_3, val_10 = Split(val_3.glued, emb.0.widths)
"""

FIELDS = (5, 7, 11)
fusion = GatherFusion()


def lines(model: ir.Model) -> str:
    """One line a node: outputs = Operator(inputs)."""
    found = []
    for node in model.graph:
        inputs = ", ".join(str(v.name) for v in node.inputs if v is not None)
        found.append(f"{', '.join(str(v.name) for v in node.outputs)} = {node.op_type}({inputs})")
    return "\n" + "\n".join(found) + "\n"


def test_deepfm() -> None:
    model = ctr_builders.deepfm(FIELDS)
    fusion.prepare(model)
    assert GLUED in lines(model)
    ctr_builders.project(model, {"emb.0": 2, "emb.1": 3, "emb.2": 2})
    fusion.finish(model)
    assert lines(model) == DEEPFM


def test_deepfm_at_full_rank() -> None:
    model = ctr_builders.deepfm(FIELDS)
    fusion.prepare(model)
    fusion.finish(model)
    rest = DEEPFM[DEEPFM.index("val_27.part,") :].replace("rows", "rows.5.flat")
    assert lines(model) == DEEPFM_EXACT + rest


def test_dcn_at_full_rank() -> None:
    model = ctr_builders.dcn(FIELDS)
    fusion.prepare(model)
    fusion.finish(model)
    assert lines(model).startswith(DCN_EXACT)


def test_dcn_with_int8_codes() -> None:
    model = ctr_builders.dcn(FIELDS)
    fusion.prepare(model)
    ctr_builders.project(model, dict.fromkeys(("emb.0", "emb.1", "emb.2"), 2), int8=True)
    fusion.finish(model)
    assert lines(model).startswith(DCN_INT8)
