"""Tables of int8 codes and what reads them, trained at one rate."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from builders import model_of, weight
from rankc.train.codes import readers_of, tables_of_codes
from rankc.train.interpreter import Interpreter
from rankc.train.recovery import Recovering


def _value(model: ir.Model, name: str) -> NDArray[Any]:
    value = model.graph.initializers[name].const_value
    assert value is not None
    return np.asarray(value.numpy())


def coded() -> ir.Model:
    """Rows of an int8 table, scaled: what the pass embedding makes; and codes that stay codes."""
    tape = ir.tape.Tape()
    ids = ir.val("ids", ir.DataType.INT64, ["batch"])
    codes = np.random.default_rng(0).integers(-127, 128, (50, 4)).astype(np.int8)
    rows = tape.op("Gather", [weight(tape, "codes", codes), ids])
    plain = tape.op("Cast", [rows], attributes={"to": int(ir.DataType.FLOAT)})
    scale = weight(tape, "scale", np.full(4, 0.01, np.float32))
    y = ir.val("y", ir.DataType.FLOAT, ["batch", 4])
    tape.op("Mul", [plain, scale], output=y)
    kept = ir.val("kept", ir.DataType.INT8, ["batch", 4])
    tape.op("Gather", [weight(tape, "others", codes[:, ::-1].copy()), ids], output=kept)
    return model_of(tape, [ids], [y, kept])


def test_codes_of_int8_tables_are_trained_and_stay_codes() -> None:
    model = coded()
    assert tables_of_codes(model.graph) == ["codes"]
    assert tables_of_codes(model.graph, ["co*"]) == []
    before = _value(model, "codes")
    net, ids = Interpreter(model), torch.arange(20)
    hook = Recovering([], "all", 0.0)
    whole = net(ids)[0].detach()
    hook.start(net, 1)
    torch.testing.assert_close(net(ids)[0], whole, rtol=0, atol=0)
    optimizer = torch.optim.SGD(net.parameters(), lr=50.0)
    net(ids)[0].sum().backward()
    optimizer.step()
    hook.finish(net)
    trained = net.to_onnx()
    after = _value(trained, "codes")
    assert after.dtype == np.int8
    assert (after[:20] < before[:20]).any() and (after[20:] == before[20:]).all()
    torch.testing.assert_close(Interpreter(trained)(ids)[0], net(ids)[0])


def layered() -> ir.Model:
    """Codes beside numbers, into a layer: what is left where scales are folded into readers."""
    rng, tape = np.random.default_rng(1), ir.tape.Tape()
    ids = ir.val("ids", ir.DataType.INT64, ["batch"])
    dense = ir.val("dense", ir.DataType.FLOAT, ["batch", 2])
    codes = rng.integers(-127, 128, (50, 4)).astype(np.int8)
    rows = tape.op("Gather", [weight(tape, "codes", codes), ids])
    plain = tape.op("Cast", [rows], attributes={"to": int(ir.DataType.FLOAT)})
    both = tape.op("Concat", [plain, dense], attributes={"axis": 1})
    matrix = rng.normal(size=(6, 3)) * np.array([1e-3] * 4 + [1.0, 0.0])[:, None]
    hidden = tape.op("MatMul", [both, weight(tape, "w", matrix.astype(np.float32))], name="first")
    square = tape.op("Mul", [plain, plain])
    felt = weight(tape, "felt", np.full((4, 1), 1e-5, np.float32))
    term = tape.op("MatMul", [square, felt], name="squares")
    y = ir.val("y", ir.DataType.FLOAT, ["batch", 3])
    tape.op("Add", [hidden, term], output=y)
    return model_of(tape, [ids, dense], [y])


def test_readers_are_found_through_squares_and_other_columns() -> None:
    model = layered()
    assert sorted(readers_of(model.graph, ["codes"])) == [("felt", 0), ("w", 0)]


def test_a_step_of_adam_is_a_share_of_readers_of_any_size() -> None:
    net, hook = Interpreter(layered()), Recovering([], "all", 0.0)
    ids, dense = torch.arange(50), torch.ones(50, 2)
    before = net(ids, dense)[0].detach()
    weights = {name: net.weight(name).detach().clone() for name in ("w", "felt")}
    hook.start(net, 1)
    torch.testing.assert_close(net(ids, dense)[0], before, rtol=1e-5, atol=1e-5)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    net(ids, dense)[0].square().sum().backward()
    optimizer.step()
    hook.finish(net)
    for name, was in weights.items():
        size = was.square().mean(dim=1).sqrt()
        moved = (net.weight(name) - was).abs().max(dim=1).values[size > 0] / size[size > 0]
        torch.testing.assert_close(moved, torch.full_like(moved, 0.01 / 0.35), rtol=0.05, atol=0)
