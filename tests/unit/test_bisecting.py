from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import lookup, lookup_rows, mlp, mlp_rows
from rankc.bisecting.searching import Culprit, culprits
from rankc.lowering.half import HalfModel
from rankc.serialize import save
from rankrt.session import Array, open_model


def named(
    harms: dict[str, float], groups: list[list[str]], enough: float
) -> tuple[list[Culprit], int]:
    """Culprits where harms add up, and how many sets were asked for."""
    asked: dict[frozenset[str], float] = {}

    def harm(names: frozenset[str]) -> float:
        asked[names] = math.fsum(harms[name] for name in names)
        return asked[names]

    return list(culprits(harm, groups, lambda left: left <= enough)), len(asked)


@given(
    st.integers(1, 64), st.data(), st.floats(1.0, 1e6),
    st.lists(st.floats(0.0, 0.9), min_size=64, max_size=64),
)  # fmt: skip
def test_the_worst_of_many_is_found_however_the_others_are(
    count: int, data: st.DataObject, worst: float, others: list[float]
) -> None:
    names = [f"layer{k}" for k in range(count)]
    k, cut = data.draw(st.integers(0, count - 1)), data.draw(st.integers(0, count))
    harms = dict(zip(names, others, strict=False)) | {names[k]: worst}
    found, _ = named(harms, [names[:cut], names[cut:]], enough=math.fsum(harms.values()) - worst)
    if found:  # by rounding, nothing at all may be enough
        assert found[0].name == names[k]
        assert found[0].alone == pytest.approx(worst)
        assert found[0].wins == pytest.approx(worst, rel=1e-6)


def test_one_of_64_takes_few_steps() -> None:
    names = [f"layer{k}" for k in range(64)]
    found, asked = named(dict.fromkeys(names, 0.0) | {"layer41": 1.0}, [names], enough=0.0)
    assert [one.name for one in found] == ["layer41"]
    assert asked <= 4 * 6 + 2


def test_several_come_the_worst_first_until_it_is_enough() -> None:
    names = list("abcdefgh")
    harms = dict.fromkeys(names, 0.01) | {"b": 3.0, "f": 5.0, "g": 1.0}
    found, _ = named(harms, [names], enough=1.2)
    assert [one.name for one in found] == ["f", "b"]


def test_of_equals_the_first_is_named() -> None:
    found, _ = named({"a": 0.0, "b": 1e9, "c": 1e9}, [["a", "b", "c"]], enough=1e9)
    assert found[0].name == "b"


def test_nothing_is_named_where_all_share_it() -> None:
    names = [f"layer{k}" for k in range(40)]
    found, _ = named(dict.fromkeys(names, 1.0), [names], enough=1.0)
    assert found == []


# --- float16 without a device ---------------------------------------------------------------


def answers(model: ir.Model, feeds: dict[str, Array], folder: Path) -> Array:
    save(model, folder / "model.onnx")
    session = open_model(folder / "model.onnx", optimize=False)
    return next(iter(session.run(feeds).values()))


def test_rounding_is_what_numpy_does_in_float16(tmp_path: Path) -> None:
    model, x = mlp(), mlp_rows()
    a, b, bias = (model.graph.initializers[n].const_value for n in ("A", "B", "b"))
    assert a is not None and b is not None and bias is not None

    def low(array: Array) -> Array:
        return array.astype(np.float16).astype(np.float32)

    hidden = np.maximum(low(low(x) @ low(a.numpy())), 0)
    logit = low(hidden @ low(b.numpy()).T + low(bias.numpy()))
    got = answers(HalfModel.of(model).rounding(), {"x": x}, tmp_path)
    assert np.abs(got - 1 / (1 + np.exp(-logit))).max() < 2e-3  # a tie may round either way
    assert np.abs(got - answers(model, {"x": x}, tmp_path)).max() > 1e-4


@pytest.mark.parametrize(
    ("model", "feeds"), [(mlp(), {"x": mlp_rows()}), (lookup(), {"ids": lookup_rows()})]
)
def test_without_rounding_it_is_the_model(
    model: ir.Model, feeds: dict[str, Array], tmp_path: Path
) -> None:
    half = HalfModel.of(model)
    exact = half.rounding(lambda layer: False)
    assert np.array_equal(answers(exact, feeds, tmp_path), answers(model, feeds, tmp_path))
    assert [value.name for value in half.rounding().graph.outputs] == [
        value.name for value in model.graph.outputs
    ]


def test_only_the_layer_that_overflows_overflows(tmp_path: Path) -> None:
    model, feeds = mlp(), {"x": mlp_rows()}
    for name, factor in (("A", 3e4), ("B", 1e-3)):
        value = model.graph.initializers[name]
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy() * np.float32(factor), name=name)
    half = HalfModel.of(model)
    assert half.names == ["x", "up", "down"]
    broken = {
        name for name in half.names
        if not np.isfinite(answers(half.rounding(name.__eq__), feeds, tmp_path)).all()
    }  # fmt: skip
    assert broken == {"up"}
