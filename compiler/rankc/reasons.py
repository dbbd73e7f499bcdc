"""Amounts in words, and in one line why a site gets the rank it gets."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rankc.recipe import Unit

WORDS: dict[Unit, str] = {
    "bytes": "bytes",
    "parameters": "parameters",
    "macs": "MACs",
    "ms": "ms",
}


def amount(unit: Unit, value: float) -> str:
    """A number as a reader wants it: whole, or of milliseconds to the nanosecond."""
    return f"{round(value, 6):,}" if unit == "ms" else f"{round(value):,}"


def measured(unit: Unit, value: float) -> str:
    """The same with its unit."""
    return f"{amount(unit, value)} {WORDS[unit]}"


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """Another thing that a site could have become, against what it becomes."""

    name: str  # "rank 28 as vertical", "dense"
    unit: Unit
    cost: float  # more or less, always positive
    loss: float  # the same


def rewritten(name: str, shares: Sequence[tuple[Unit, float]], loss: float, up: Step | None) -> str:
    """Why a rank was chosen.

    Args:
        name: "rank 24 of 64 as channel".
        shares: what is left of each limited unit, 0.5 is half.
        loss: predicted for it.
        up: the next dearer choice that loses less; None: there is none.
    """
    saved = " and ".join(_saved(unit, share) for unit, share in shares)
    after = "nothing dearer loses less"
    if up is not None:
        cost = measured(up.unit, up.cost)
        after = f"{up.name} would cost {cost} more and save {up.loss:.2g}"
    return f"{name}: {saved} for {loss:.2g} of loss; {after}"


def _saved(unit: Unit, share: float) -> str:
    if share >= 1:
        return f"{share:.3g}x the {'time' if unit == 'ms' else WORDS[unit]}"
    how = "less time" if unit == "ms" else f"fewer {WORDS[unit]}"
    return f"{1 / share:.3g}x {how}" if share > 0 else f"all {WORDS[unit]} saved"


def left_dense(best: Step) -> str:
    """Why a site is not rewritten, though it could be: what its best rewrite would do."""
    saved = measured(best.unit, best.cost)
    return f"left dense: {best.name} would save {saved} for {best.loss:.2g} of loss"


def no_rank() -> str:
    """Why: every rank is excluded by the options."""
    return "left dense: min_rank, floor and cap leave no rank"


def none_cheaper(units: Sequence[Unit]) -> str:
    """Why: the factors are as dear as the original."""
    kinds = ["less time" if unit == "ms" else f"fewer {WORDS[unit]}" for unit in units]
    return f"left dense: no rank takes {' or '.join(kinds)}"


def own_pays_not(rank: int) -> str:
    """Why: no budget decides, and at the rank that the pass would take the layer is no smaller."""
    return f"left dense: its own rank, {rank}, takes no fewer bytes, or more MACs"


def slower_here(forms: Sequence[str]) -> str:
    """Why: the forms that seemed best were timed, and lost."""
    named = " and ".join(filter(None, dict.fromkeys(forms)))
    how = named and f" as {named}"
    return f"left dense: rewritten{how} it gained too little, timed on this machine"


def none_faster(milliseconds: float, timed: bool) -> str:
    """Why: what would be smaller would be slower."""
    how = "measured" if timed else "by the roofline"
    return f"left dense: dense is faster than every smaller rank ({milliseconds:.3g} ms {how})"
