"""What an error is weighed by, through the command line."""

from __future__ import annotations

import pytest

from projects import Project, read_json
from rankc.errors import Exit


@pytest.mark.parametrize("sensitivity", ["gradient", "fisher", "perturbation", "kl"])
def test_every_sensitivity_makes_a_plan_and_the_same_one_twice(
    small: Project, sensitivity: str
) -> None:
    small.set(planning={"sensitivity": sensitivity, "rows": 200}, gates=[]).without_validation()
    plans = []
    for _ in range(2):
        done = small.rankc("compile")
        assert done.code == Exit.OK, done.out + done.err
        assert ("kl curves" in done.out) is (sensitivity == "kl")
        plans.append((small.out / "plan.json").read_bytes())
    assert plans[0] == plans[1]
    plan = read_json(small.out / "plan.json")
    assert plan["choices"]
    assert all(choice["loss"] >= 0 for choice in plan["choices"])


def test_kl_curves_are_losses_of_the_answer(small: Project) -> None:
    """In nats: far below the squared change of the logit, which a Sigmoid flattens."""
    small.set(gates=[]).without_validation()
    losses = []
    for sensitivity in ("gradient", "kl"):
        small.set(planning={"sensitivity": sensitivity})
        assert small.rankc("compile").code == Exit.OK
        losses.append(read_json(small.out / "plan.json")["loss"])
    assert 0 < losses[1] < losses[0]
