from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankc.validate.verdicts import rule, samples_needed

numbers = st.floats(-1, 1).map(lambda x: round(x, 6))


@given(numbers, st.floats(0, 0.5), st.floats(0, 0.5), numbers, st.booleans())
def test_the_whole_interval_decides(
    observed: float, below: float, above: float, limit: float, at_least: bool
) -> None:
    interval = (observed - below, observed + above)
    found = rule(observed, limit, interval, at_least=at_least, samples=100)
    kept = [end >= limit if at_least else end <= limit for end in interval]
    assert found.verdict == ("pass" if all(kept) else "undecided" if any(kept) else "fail")
    mirrored = rule(-observed, -limit, (-interval[1], -interval[0]), at_least=not at_least)
    assert mirrored.verdict == found.verdict


@given(numbers, st.floats(1e-3, 0.5), numbers, st.integers(2, 10**6))
def test_so_many_rows_do_decide(observed: float, half: float, limit: float, rows: int) -> None:
    needed = samples_needed(observed, limit, (observed - half, observed + half), rows)
    if needed is None:
        assert abs(observed - limit) <= 1e-4 * half
        return
    narrowed = half * math.sqrt(rows / needed)
    ends = (observed - narrowed * (1 - 1e-6), observed + narrowed * (1 - 1e-6))
    assert rule(observed, limit, ends, at_least=False).verdict != "undecided"
    assert needed <= 1.1 * rows * (half / (observed - limit)) ** 2 + 1  # rounded up, not further


@pytest.mark.parametrize(
    ("observed", "limit", "needed"),
    [
        (0.0009, 0.001, 1_700_000),  # 67,000 rows, half of 0.0005: 25 times as many
        (0.0, 0.0005, 67_000),
        (0.001, 0.001, None),
        (0.0, 0.001, 17_000),  # it is decided already, with fewer rows
    ],
)
def test_rows_needed(observed: float, limit: float, needed: int | None) -> None:
    interval = (observed - 0.0005, observed + 0.0005)
    assert rule(observed, limit, interval, at_least=False, samples=67_000).needed == needed


def test_what_is_exact_needs_no_rows() -> None:
    assert rule(2.0, 2.0, None, at_least=True, samples=10).verdict == "pass"
    assert rule(1.9, 2.0, None, at_least=True, samples=10).needed is None
    assert samples_needed(0.0, 0.1, (0.0, 0.0), 10) == 1
    assert samples_needed(0.1, 0.1, (0.1, 0.1), 10) is None
