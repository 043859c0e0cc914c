"""The reference rate is what it says: kept at lambda*, missed above it."""

from __future__ import annotations

import pytest

from tokenservice.core.step import StepModel
from tokenservice.simulate.engine import EngineLimits
from tokenservice.simulate.steady import Bounds, attainment, reference_rate

H100_32B_TP2 = StepModel(13.96, 0.057, 0.054, 0.049)
LIMITS = EngineLimits(256, 8192, 330_000)
LENGTHS = [(400, 100), (1000, 200), (3000, 300)]
BOUNDS = Bounds(ttft_seconds=2.0, tpot_seconds=0.1)


def test_the_reference_rate_meets_the_bounds_and_a_quarter_more_does_not() -> None:
    rate = reference_rate(H100_32B_TP2, LIMITS, LENGTHS, BOUNDS)
    assert attainment(H100_32B_TP2, LIMITS, LENGTHS, rate, BOUNDS) >= 0.99
    assert attainment(H100_32B_TP2, LIMITS, LENGTHS, rate * 1.25, BOUNDS, requests=8000) < 0.99


def test_stricter_bounds_give_less() -> None:
    strict = Bounds(ttft_seconds=0.45, tpot_seconds=0.04)
    assert reference_rate(H100_32B_TP2, LIMITS, LENGTHS, strict) < reference_rate(H100_32B_TP2, LIMITS, LENGTHS, BOUNDS)


@pytest.mark.parametrize("bounds", [Bounds(ttft_seconds=0.001, tpot_seconds=0.1)])
def test_what_a_lone_request_misses_is_no_rate_at_all(bounds: Bounds) -> None:
    assert reference_rate(H100_32B_TP2, LIMITS, LENGTHS, bounds) == 0.0
