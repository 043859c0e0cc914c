"""The reference rate is what it says: kept at lambda*, missed above it, by engines that are plain to believe."""

from __future__ import annotations

from math import nan

import pytest

from tests.simulate.engine_pool import Call, EnginePool
from tokenservice.core.step import StepModel
from tokenservice.simulate.bounds import Bounds
from tokenservice.simulate.engine import EngineLimits
from tokenservice.simulate.steady import REPLICAS, attainment, poisson, reference_rate

H100_32B_TP2 = StepModel(13.96, 0.057, 0.054, 0.049)
LIMITS = EngineLimits(256, 8192, 330_000)
LENGTHS = [(400, 100), (1000, 200), (3000, 300)]
BOUNDS = Bounds(ttft_seconds=2.0, tpot_seconds=0.1)
STRICT = Bounds(ttft_seconds=0.45, tpot_seconds=0.04)


def test_a_replica_holds_more_of_requests_whose_prompts_are_found_in_part() -> None:
    found = [(inputs, outputs, inputs // 2) for inputs, outputs in LENGTHS]
    assert poisson(found, 1.0, 50, 0).cached_tokens.any()
    without = reference_rate(H100_32B_TP2, LIMITS, LENGTHS, STRICT)
    assert reference_rate(H100_32B_TP2, LIMITS, found, STRICT) > 1.1 * without
    assert reference_rate(H100_32B_TP2, LIMITS, [(*one, 0) for one in LENGTHS], STRICT) == without


def test_the_reference_rate_meets_the_bounds_and_a_quarter_more_does_not() -> None:
    rate = reference_rate(H100_32B_TP2, LIMITS, LENGTHS, BOUNDS)
    assert attainment(H100_32B_TP2, LIMITS, LENGTHS, rate, BOUNDS) >= 0.99
    assert attainment(H100_32B_TP2, LIMITS, LENGTHS, rate * 1.25, BOUNDS, requests=8000) < 0.99


def test_stricter_bounds_give_less() -> None:
    assert reference_rate(H100_32B_TP2, LIMITS, LENGTHS, STRICT) < reference_rate(H100_32B_TP2, LIMITS, LENGTHS, BOUNDS)


@pytest.mark.parametrize("bounds", [Bounds(ttft_seconds=0.001, tpot_seconds=0.1)])
def test_what_a_lone_request_misses_is_no_rate_at_all(bounds: Bounds) -> None:
    assert reference_rate(H100_32B_TP2, LIMITS, LENGTHS, bounds) == 0.0


def plain_attainment(requests_per_second: float, requests: int) -> float:
    """The same by engines and a router in Python."""
    traffic = poisson(LENGTHS, requests_per_second * REPLICAS, requests, seed=0)
    plain = EnginePool()
    for _ in range(REPLICAS):
        plain.open(plain.add(H100_32B_TP2, LIMITS, 1.0), True)
    lengths = zip(traffic.input_tokens.tolist(), traffic.output_tokens.tolist(), strict=True)
    calls = [Call(at, *length, 0, nan) for at, length in zip(traffic.at_s.tolist(), lengths, strict=True)]
    plain.advance(calls, calls[-1].at_s + 1000)
    return sum(within(plain, number) for number in range(requests // 5, requests)) / (requests - requests // 5)


def within(plain: EnginePool, number: int) -> bool:
    call, first_ms = plain.calls[number], plain.first_token_ms[number]
    ttft_seconds = first_ms / 1000 - call.at_s
    tpot_seconds = (plain.finished_ms[number] - first_ms) / (call.output_tokens - 1) / 1000
    return ttft_seconds <= STRICT.ttft_seconds and tpot_seconds <= STRICT.tpot_seconds


@pytest.mark.parametrize("requests_per_second", [2.0, 8.0, 10.0])
def test_compiled_replicas_keep_the_share_that_plain_engines_keep(requests_per_second: float) -> None:
    compiled = attainment(H100_32B_TP2, LIMITS, LENGTHS, requests_per_second, STRICT, requests=500)
    assert 0.5 < compiled < 1
    assert compiled == plain_attainment(requests_per_second, 500)
