"""Where the times come from that a recipe plans by: a table that was measured, or a data sheet."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from rankc.errors import RecipeError
from rankc.latency_table import LatencyTable, load, times_for
from rankc.layer_models import concrete
from rankc.offers import Candidate
from rankc.passbase import Pass, Site, Times
from rankc.recipe import Timing
from rankc.rewriting import Solutions
from rankc.roofline import Device, Memo, device_named, roofline_times

Origin = LatencyTable | Device
HERE = "cpu"  # the target of a table whose device may be this machine


def open_times(timing: Timing, folder: Path) -> Origin | None:
    """What the recipe names, or None.

    Raises:
        DataError: no such table, or a damaged one.
        RecipeError: no such device, or it does not compute in that precision.
    """
    if timing.table is not None:
        return load(folder / timing.table)
    if timing.device is None:
        return None
    device = device_named(timing.device)
    device.gmacs(timing.precision)
    return device


def described(origin: Origin | None, timing: Timing) -> str:
    """In words, measured or estimated, for plans and reports; empty for None."""
    if isinstance(origin, LatencyTable):
        head = origin.header
        return f"measured on {head.device} by {head.backend} {head.version}, batch {head.batch}"
    if origin is None:
        return ""
    size = f"batch {timing.batch}, {timing.precision}"
    return f"estimated from the data sheet of {origin.name}, not measured; {size}"


def elsewhere(origin: Origin | None) -> bool:
    """Whether the times are those of something else than a CPU like this machine's."""
    return isinstance(origin, Device) or (origin is not None and origin.header.target != HERE)


def with_times(
    origin: Origin | None,
    timing: Timing,
    model: ir.Model,
    owners: Mapping[Site, Pass],
    solutions: Solutions,
    offers: Sequence[Candidate],
) -> list[Candidate]:
    """The candidates with what they cost on the target, as far as that is known.

    Args:
        origin: what `open_times` opened.
        timing: the same.
        model: after clean-up.
        owners: of the sites.
        solutions: what the owners made of them.
        offers: what every site could become.

    Raises:
        RecipeError: a table has none of the model's layers.
    """
    if origin is None:
        return list(offers)
    batch = origin.header.batch if isinstance(origin, LatencyTable) else timing.batch
    fixed = concrete(model, batch)
    look = _looked_up(origin) if isinstance(origin, LatencyTable) else _estimated(origin, timing)
    found = []
    for offer in offers:
        pass_ = owners[offer.site]
        layer = pass_.probe(model, offer.site).inputs is not None
        times = look(fixed, pass_, offer, solutions[offer.site]) if layer else _nothing(offer)
        found.append(dataclasses.replace(offer, times=times))
    if offers and not any(offer.times for offer in found):
        raise RecipeError(
            f"timing: {timing.table or timing.device}: has none of the model's "
            f"{len(offers)} layers; `rankc profile MODEL` measures them and adds them to a table"
        )
    return found


Look = Callable[[ir.Model, Pass, Candidate, object], Times | None]


def _looked_up(table: LatencyTable) -> Look:
    return lambda model, pass_, offer, _: times_for(table, model, pass_, offer.site, offer.curve)


def _estimated(device: Device, timing: Timing) -> Look:
    memo: Memo = {}

    def look(model: ir.Model, pass_: Pass, offer: Candidate, solution: object) -> Times | None:
        return roofline_times(
            device, model, pass_, offer.site, offer.curve, solution,
            batch=timing.batch, precision=timing.precision, memo=memo,
        )  # fmt: skip

    return look


def _nothing(offer: Candidate) -> Times:
    """Of rows that are looked up: no layer, and next to no time."""
    return Times(0.0, np.zeros(len(offer.curve.ranks)), measured=False)
