"""The node tests of the `onnx` package, run by the interpreter, and the page that counts them.

    python tests/train/node_suite.py --out docs/operators.md

It is no part of the package: importing the tests computes all their data, which takes seconds.
"""

from __future__ import annotations

import argparse
import collections
import fnmatch
import functools
import importlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from rankc.recipe_schema import MARKER
from rankc.train.interpreter import Interpreter
from rankc.train.operators import OPERATORS
from rankc.train.registry import Tensor, as_torch

_ONCE = "16-bit Softmax, here rounded once and not step by step"

# Names of tests that cannot pass, as globs, and why. Every other test of an operator passes.
EXCLUDED: Mapping[str, str] = {
    "test_attention_*causal_bf16*": _ONCE,
    "test_attention_4d_causal_fp16*": _ONCE,
    "test_attention_4d_*padded_kv_bf16*": _ONCE,
    "test_cast*FLOAT4E2M1*": "4-bit floats",
    "test_cast*FLOAT8*": "8-bit floats",
    "test_cast*INT2*": "2-bit integers",
    "test_cast*INT4*": "4-bit integers",
    "test_col2im_5d": "an image of three axes",
    "test_dequantizelinear_e?m*": "8-bit floats",
    "test_dequantizelinear_float4*": "4-bit floats",
    "test_dequantizelinear_*int2": "2-bit integers",
    "test_dequantizelinear_*int4": "4-bit integers",
    "test_dft_inverse": "noise of 2e-7 where nothing should be",
    "test_dft_inverse_opset19": "noise of 2e-7 where nothing should be",
    "test_equal_string*": "strings",
    "test_identity_opt": "optional values",
    "test_identity_sequence": "sequences",
    "test_loop11": "an opset before 13",
    "test_quantizelinear_e?m*": "8-bit floats",
    "test_quantizelinear_float4*": "4-bit floats",
    "test_quantizelinear_*int2": "2-bit integers",
    "test_quantizelinear_*int4": "4-bit integers",
    "test_scan_sum": "an opset before 13",
    "test_training_dropout": "drops at random",
    "test_training_dropout_default*": "drops at random",
    "test_training_dropout_mask": "drops at random",
}


@functools.cache
def suite() -> Mapping[str, Any]:
    """All node tests by name, as `onnx.backend.test.case` has them: model, inputs, outputs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        module = importlib.import_module("onnx.backend.test.case.node")
        return {case.name: case for case in module.collect_testcases(None)}


@functools.cache
def names() -> Mapping[str, tuple[str, ...]]:
    """The tests of each operator whose nodes are all known to the interpreter.

    A test of a function as the nodes that it stands for, `..._expanded`, is one of the function's.
    """
    found: dict[str, list[str]] = collections.defaultdict(list)
    for name, case in suite().items():
        if all(_known(node) for node in _nodes(case.model.graph)):
            found[_operator(name)].append(name)
    return {operator: tuple(found[operator]) for operator in sorted(found)}


def _known(node: Any) -> bool:
    return node.domain == "" and node.op_type in OPERATORS


def _nodes(graph: Any) -> Iterator[Any]:
    """Those of bodies, too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from _nodes(attribute.g)


def _operator(name: str) -> str:
    base = suite()[name.partition("_expanded")[0]]
    return str(base.model.graph.node[0].op_type)


def reason(name: str) -> str | None:
    """Why a test is left out, or None."""
    return next((why for glob, why in EXCLUDED.items() if fnmatch.fnmatchcase(name, glob)), None)


@functools.cache
def failure(name: str) -> str | None:
    """What went wrong in a test, or None."""
    case = suite()[name]
    try:
        net = Interpreter(ir.serde.deserialize_model(case.model))
        for inputs, outputs in case.data_sets:
            with torch.no_grad():
                found = net(*map(_tensor, inputs))
            for one, wanted in zip(found, map(_tensor, outputs), strict=True):
                _compare(one, wanted, case.rtol, case.atol)
    except Exception as error:  # whatever it is, it is what is asked for
        return f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None


def _tensor(value: Any) -> Tensor:
    if hasattr(value, "data_type"):
        return as_torch(ir.serde.deserialize_tensor(value), "the test")
    if not isinstance(value, np.ndarray | np.generic):
        raise TypeError(f"a test of a {type(value).__name__}")
    return as_torch(ir.tensor(np.asarray(value)), "the test")


def _compare(found: Tensor, wanted: Tensor, relative: float, absolute: float) -> None:
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    if found.dtype is torch.bfloat16:
        found, wanted = found.float(), wanted.float()
    np.testing.assert_allclose(found.numpy(), wanted.numpy(), relative, absolute)


# --- docs/operators.md ----------------------------------------------------------------------


def page(before: str) -> str:
    """The page with its table renewed; what stands above the marker is somebody's prose."""
    return f"{before.partition(MARKER)[0]}{MARKER}\n\n{_text()}"


def _text() -> str:
    known = {operator: names().get(operator, ()) for operator in sorted(OPERATORS)}
    others = {operator: names()[operator] for operator in names() if operator not in OPERATORS}
    every = [name for found in names().values() for name in found]
    version = importlib.import_module("onnx").__version__
    left = sum(reason(name) is not None for name in every)
    lines = [
        f"{len(known)} operators. Of the {len(every)} node tests of onnx {version} that need no "
        f"other operator {_passed(every)} pass and {left} are left out.",
        "",
        "| operator | tests that pass | left out |",
        "|---|---|---|",
        *(f"| {k} | {_passed(found)} | {_left_out(found)} |" for k, found in known.items()),
        "",
        "Functions that run as the nodes they stand for: "
        + ", ".join(f"{operator} ({_passed(found)})" for operator, found in others.items())
        + ".",
    ]
    return "\n".join(lines) + "\n"


def _passed(found: tuple[str, ...] | list[str]) -> int:
    return sum(reason(name) is None and failure(name) is None for name in found)


def _left_out(found: tuple[str, ...]) -> str:
    counts = collections.Counter(why for name in found if (why := reason(name)))
    return ", ".join(f"{count}: {why}" for why, count in sorted(counts.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description="Renew the page of operators.")
    parser.add_argument("--out", type=Path, required=True)
    out: Path = parser.parse_args().out
    out.write_text(page(out.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
