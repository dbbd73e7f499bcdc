"""Convolutions in every form: exact where they say so, predicted where they do not."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from conv_builders import random_conv
from rankc.calibrate import calibrate
from rankc.cleanup import clean
from rankc.passbase import Skip
from rankc.passes.conv import DEFAULT_FORMS, Conv
from rankc.progress import SilentProgress
from rankrt.session import open_model
from sources import Rows


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    (found,) = open_model(ir.to_proto(model).SerializeToString()).run({"x": x}).values()
    return found


@pytest.mark.parametrize("seed", range(200))
def test_full_rank_is_exact_for_any_convolution(seed: int) -> None:
    """Strides, pads, dilations, groups, kernels of one to three axes; every form."""
    rng = np.random.default_rng(seed)
    model, shape = random_conv(rng)
    clean(model)
    forms = (*DEFAULT_FORMS, "pivot")
    pass_ = Conv(forms=forms, min_size=0, round_to=1, positions=1000)
    (found,) = pass_.match(model)
    if isinstance(found, Skip):
        assert "auto_pad" in found.reason or "none of the forms" in found.reason
        return
    x = rng.normal(size=(12, *shape)).astype(np.float32)
    with SilentProgress().stage("calibrate") as stage:
        stats = calibrate(model, {found: pass_.probe(model, found)}, Rows({"x": x}, 6), stage).stats
    solution, want = pass_.solve(model, found, stats[found]), run(model, x)
    curve = pass_.cost(found, solution)
    last = {form: at for at, form in enumerate(curve.forms)}
    whole = max((int(f.partition("-")[2]) for f in last if f.startswith("tucker")), default=0)
    for form, at in last.items():
        if form.startswith("tucker") and form != f"tucker-{whole}":
            continue  # fewer inner channels than there are: not meant to be exact
        changed = model.clone()
        pass_.rewrite(changed, found, int(curve.ranks[at]), solution, form)
        gap = np.abs(run(changed, x) - want).max()
        assert gap <= 1e-5 * np.abs(want).max(), form
