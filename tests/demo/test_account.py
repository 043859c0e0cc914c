"""The account adds up, and a missed request never counts for anything."""

from __future__ import annotations

from dataclasses import astuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2e.demo.account import Held, NodeSpan, Outcome, bill, worth
from tokenservice.core.step import StepModel
from tokenservice.simulate.reference import Reference

REFERENCE = Reference(
    model=StepModel(10.0, 0.05, 0.05, 0.05),
    tensor_parallel_size=2,
    requests_per_second=4.0,
    batch=64.0,
    mean_input_tokens=1000.0,
    mean_output_tokens=200.0,
)
SPAN = NodeSpan(accelerators=8, price_per_hour=3.0, idle_watts=100.0, busy_watts=700.0, start=0.0, end=1000.0)
ALL_READY = Held(at=0.0, ready=8, starting=0, draining=0, free_on_used_nodes=0, on_empty_nodes=0)


def request(met: bool) -> Outcome:
    return Outcome(service="chat", arrived_at=0.0, input_tokens=1000, output_tokens=200, met=met, delivered_tokens=200)


def test_a_full_fleet_at_its_reference_rate_has_utilization_one() -> None:
    replicas, seconds = 4, 1000
    outcomes = [request(True)] * (replicas * 4 * seconds)
    assert bill(outcomes, {"chat": REFERENCE}, [SPAN], [ALL_READY]).waterfall.utilization == pytest.approx(1)


def test_a_missed_request_counts_for_nothing() -> None:
    got = bill([request(True), request(False)], {"chat": REFERENCE}, [SPAN], [ALL_READY])
    assert got.waterfall.utilization == pytest.approx(0.5 / 8000)
    assert got.attainment == {"chat": 0.5}


def test_a_mean_request_is_worth_the_accelerators_over_the_rate() -> None:
    assert worth(REFERENCE, 1000, 200) == pytest.approx(2 / 4)


@given(
    st.integers(1, 4000),
    st.integers(0, 400),
    st.tuples(*[st.integers(0, 8)] * 4),
)
def test_the_waterfall_adds_up_to_one(met: int, missed: int, spare: tuple[int, int, int, int]) -> None:
    held = Held(
        at=0.0, ready=8, starting=spare[0], draining=spare[1], free_on_used_nodes=spare[2], on_empty_nodes=spare[3]
    )
    outcomes = [request(True)] * met + [request(False)] * missed
    waterfall = bill(outcomes, {"chat": REFERENCE}, [SPAN], [held]).waterfall
    assert sum(astuple(waterfall)) == pytest.approx(1)
