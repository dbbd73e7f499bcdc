"""One layer of a model on its own: what a latency table measures and what a roofline counts.

What stands between the value that a site reads and the values that its rewrite changes is taken out
of the graph, with its weights and with the sizes that shape inference finds. Values do not matter
to time, so a layer is known by its operators, attributes and shapes: its signature.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from rankc.calibrate import calibrate
from rankc.data import Batch, Source
from rankc.graph import FLOAT, initializer_bytes
from rankc.passbase import Moments, Pass, Site, SiteStats
from rankc.progress import SilentProgress
from rankc.serialize import SINGLE_FILE_BYTES
from rankc.shapes import infer_shapes

Feeds = dict[str, NDArray[Any]]

_MANY = 1 << 20  # rows that made-up moments claim: none is too few
_SAME_SPEED = {"alpha", "beta", "kernel_shape"}  # a factor, or what the weight's shape says
_DEFAULTS: dict[str, set[object]] = {
    "auto_pad": {"NOTSET"},
    "dilations": {1},
    "group": {1},
    "pads": {0},
    "strides": {1},
    "transA": {0},
    "transB": {0},
}


def concrete(model: ir.Model, batch: int) -> ir.Model:
    """The model at one batch size, shapes inferred; itself where its inputs have fixed sizes.

    The batch is the first axis of the graph inputs. Other free axes stay free.
    """
    inputs = [v for v in model.graph.inputs if not v.is_initializer() and v.shape is not None]
    first = [v.shape[0] for v in inputs if v.shape is not None and len(v.shape)]
    names = {d.value for d in first if isinstance(d, ir.SymbolicDim)}
    if not names:
        return model
    fixed = model.clone()
    for value in fixed.graph.inputs:
        if value.shape is not None:
            value.shape = ir.Shape(
                [
                    batch if _is_batch(dim, axis, names) else dim
                    for axis, dim in enumerate(value.shape)
                ]
            )
    for node in fixed.graph.all_nodes():
        for value in node.outputs:
            value.shape = None
    infer_shapes(fixed)
    return fixed


def _is_batch(dim: int | ir.SymbolicDim, axis: int, names: set[str | None]) -> bool:
    if isinstance(dim, int):
        return False
    return axis == 0 or (dim.value is not None and dim.value in names)


def isolate(model: ir.Model, pass_: Pass, site: Site, batch: int) -> ir.Model | str:
    """The site's layer as a model of its own, of concrete shapes; or why that cannot be.

    Args:
        model: after clean-up. Where several sites are asked for, give `concrete(model, batch)`,
            which is then not made again for each.
        pass_: the site's owner.
        site: a layer; its node keeps its name.
        batch: rows; has no effect where the model fixes their number.

    Returns:
        A model that the pass can rewrite at the same site.
    """
    probe = pass_.probe(model, site)
    if probe.inputs is None:
        return "a table of rows that are looked up: it has no layer to time"
    fixed = concrete(model, batch)
    try:
        graph = ir.convenience.extract(fixed.graph, [probe.inputs], list(probe.outputs))
    except ValueError:
        return "what it computes depends on more than its input and its weights"
    (given,) = graph.inputs
    if given.dtype not in (None, FLOAT):
        return f"its input is {given.dtype}, not float32"
    if _sizes(given) is None:
        shape = "?" if given.shape is None else str(given.shape)
        return f"the shape of its input is {shape}: export the model with fixed sizes, batch aside"
    given.type = ir.TensorType(FLOAT)
    alone = ir.Model(graph, ir_version=model.ir_version)
    if (size := initializer_bytes(alone)) > SINGLE_FILE_BYTES:
        return f"its weights take {size:,} bytes, more than is held in memory as one file"
    return alone


def _sizes(value: ir.Value) -> tuple[int, ...] | None:
    """The shape if every axis is a number."""
    shape = value.shape
    if shape is None or not all(isinstance(d, int) for d in shape):
        return None
    return tuple(int(d) for d in shape if isinstance(d, int))


def feeds_of(alone: ir.Model, seed: int = 0) -> Feeds:
    """Random rows that fit the inputs of an isolated layer."""
    rng = np.random.default_rng(seed)
    return {
        str(value.name): rng.standard_normal(_sizes(value), dtype=np.float32)
        for value in alone.graph.inputs
    }


def solved(pass_: Pass, alone: ir.Model, site: Site) -> Any:
    """A solution for a layer of which only shapes are of interest: white inputs, no gradient."""
    probe = dataclasses.replace(pass_.probe(alone, site), graded=False)
    with SilentProgress().stage("layer") as stage:
        found = calibrate(alone, {site: probe}, _OneBatch(feeds_of(alone)), stage)
    return pass_.solve(alone, site, _white(found.stats[site]))


def _white(stats: SiteStats) -> SiteStats:
    """The same shapes, with the identity for every moment: nothing is singular, nothing random."""
    moments = stats.inputs
    if moments is not None:
        eye = np.broadcast_to(np.eye(moments.mean.shape[-1]), moments.second.shape).copy()
        moments = Moments(_MANY, np.zeros_like(moments.mean), eye)
    return dataclasses.replace(stats, inputs=moments, output_weight=1.0)


class _OneBatch(Source):
    """One batch in memory."""

    path = Path("random rows")

    def __init__(self, feeds: Feeds) -> None:
        self._batch = Batch(feeds, None)
        self.rows = self._batch.rows

    def batches(self) -> Iterator[Batch]:
        yield self._batch

    def digest(self) -> str:
        rows = (feed.tobytes() for _, feed in sorted(self._batch.feeds.items()))
        return hashlib.sha256(b"".join(rows)).hexdigest()


def rewritten(
    alone: ir.Model, pass_: Pass, site: Site, rank: int, solution: Any, form: str = ""
) -> ir.Model:
    """A copy of an isolated layer, factored, its inner shapes inferred."""
    factored = alone.clone()
    pass_.rewrite(factored, site, rank, solution, form)
    infer_shapes(factored)
    return factored


def signature(alone: ir.Model) -> str:
    """What the speed of an isolated layer depends on, as text: equal layers have equal ones.

    For example `Conv(1x16x32x32, 16x16x3x3, 16) pads=1,1,1,1`.
    """
    return " > ".join(_node_signature(node) for node in alone.graph)


def _node_signature(node: ir.Node) -> str:
    shapes = ", ".join("-" if v is None else _shape_text(v) for v in node.inputs)
    attributes = sorted(filter(None, (_attribute_text(a) for a in node.attributes.values())))
    return " ".join([f"{node.op_type}({shapes})", *attributes])


def _shape_text(value: ir.Value) -> str:
    sizes = _sizes(value)
    text = "?" if sizes is None else "x".join(map(str, sizes)) or "scalar"
    return text if value.dtype in (None, FLOAT) else f"{text}:{value.dtype.name}"


def _attribute_text(attribute: ir.Attr) -> str:
    """`name=value`; empty for a default, however it is spelt, and for what costs no time."""
    value: Any = attribute.value
    entries = list(value) if isinstance(value, (tuple, list)) else [value]
    default = _DEFAULTS.get(attribute.name)
    if attribute.name in _SAME_SPEED or (default is not None and default.issuperset(entries)):
        return ""
    return f"{attribute.name}={','.join(map(str, entries))}"
