"""What `lowrank` and `embedding` make of a small model, before `gather_fusion` folds it."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from builders import lookup, lookup_rows
from rankc.calibrate import calibrate
from rankc.passbase import Pass, Site
from rankc.passes.embedding import Embedding
from rankc.passes.lowrank import LowRank
from rankc.progress import SilentProgress
from sources import Rows

BEFORE = """
field0 = Gather(ids, column0)
lookup0 = Gather(user, field0)
field1 = Gather(ids, column1)
lookup1 = Gather(item, field1)
field2 = Gather(ids, column2)
lookup2 = Gather(user, field2)
concat = Concat(lookup0, lookup1, lookup2)
fc1 = Gemm(concat, w1, b1)
relu1 = Relu(fc1)
fc2 = Gemm(relu1, w2, b2)
head = Sigmoid(fc2)
"""

# The bias of the second factor keeps the mean output.
LOWRANK = BEFORE.replace(
    "fc1 = Gemm(concat, w1, b1)\n",
    "fc1.A = MatMul(concat, fc1.A)\nfc1.B = Gemm(fc1.A, fc1.B, fc1.b)\n",
).replace("Relu(fc1)", "Relu(fc1.B)")

# Both lookups of the shared table read the same codes and the same decoder.
EMBEDDING = """
field0 = Gather(ids, column0)
lookup0.codes = Gather(user.codes, field0)
lookup0.cast = Cast(lookup0.codes)
lookup0.decode = MatMul(lookup0.cast, user.decoder)
lookup0.mean = Add(lookup0.decode, user.mean)
field1 = Gather(ids, column1)
lookup1 = Gather(item, field1)
field2 = Gather(ids, column2)
lookup2.codes = Gather(user.codes, field2)
lookup2.cast = Cast(lookup2.codes)
lookup2.decode = MatMul(lookup2.cast, user.decoder)
lookup2.mean = Add(lookup2.decode, user.mean)
concat = Concat(lookup0.mean, lookup1, lookup2.mean)
fc1 = Gemm(concat, w1, b1)
relu1 = Relu(fc1)
fc2 = Gemm(relu1, w2, b2)
head = Sigmoid(fc2)
"""


def text(model: ir.Model) -> str:
    """A line a node, in order; a value is called after the node that makes it."""
    lines = []
    for node in model.graph:
        read = [v.producer().name if v.producer() else v.name for v in node.inputs if v]  # type: ignore[union-attr]
        lines.append(f"{node.name} = {node.op_type}({', '.join(map(str, read))})")
    return "\n" + "\n".join(lines) + "\n"


def rewritten(pass_: Pass, name: str, rank: int) -> ir.Model:
    model = lookup()
    site = next(s for s in pass_.match(model) if isinstance(s, Site) and s.name == name)
    with SilentProgress().stage("calibrate") as stage:
        probes = {site: pass_.probe(model, site)}
        stats = calibrate(model, probes, Rows({"ids": lookup_rows()}), stage).stats
    pass_.rewrite(model, site, rank, pass_.solve(model, site, stats[site]))
    return model


def test_the_model_before() -> None:
    assert text(lookup()) == BEFORE


@pytest.mark.parametrize(
    ("pass_", "name", "after"),
    [
        pytest.param(LowRank(min_size=64, round_to=1), "fc1", LOWRANK, id="lowrank"),
        pytest.param(Embedding(int8=True), "user", EMBEDDING, id="embedding"),
    ],
)
def test_the_rewrite(pass_: Pass, name: str, after: str) -> None:
    model = rewritten(pass_, name, 3)
    assert text(model) == after
    dense = {"lowrank": "w1", "embedding": "user"}[pass_.name]
    assert dense not in model.graph.initializers
