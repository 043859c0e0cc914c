"""Figures of delivery: bounds, sums, and what is not known."""

from __future__ import annotations

from dataclasses import astuple, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.simulated_capacity import SHAPES, TARGETS, variant
from tokenservice.core.capacity import Capacity, Limit, capacity
from tokenservice.core.model import Missing
from tokenservice.core.utilization import (
    Counts,
    Interval,
    Served,
    Waterfall,
    dollars_per_million_tokens,
    fleet_utilization,
    joint_attainment,
    joules_per_token,
    service_utilization,
    waterfall,
    watts,
    work_per_request,
)

GONE = Missing("MetricsMissing", "no requests")
FULL = Capacity(10.0, 1.0, 0.1, 0.01, Limit.TPOT)
NOTHING = replace(FULL, requests_per_second=0.0)
ALWAYS = Interval(1.0, 1.0)

shares = st.floats(0.0, 1.0)


@st.composite
def intervals(draw: st.DrawFn) -> Interval:
    low, high = sorted((draw(shares), draw(shares)))
    return Interval(low, high)


served = st.lists(
    st.builds(
        Served,
        requests_per_second=st.floats(0, 1000),
        work_per_request=st.floats(0.001, 10),
        attainment=intervals(),
    ),
    max_size=5,
)
some = st.integers(0, 500)
counts = st.builds(
    Counts, ready=some, starting=some, draining=some, free_on_used_nodes=some, free_on_empty_nodes=some
).filter(lambda it: it.existing > 0)


def test_requests_within_both_are_bounded_by_the_marginals() -> None:
    assert joint_attainment(0.9, 0.8) == Interval(pytest.approx(0.7), 0.8)
    assert joint_attainment(0.3, 0.4) == Interval(0.0, 0.3)


@pytest.mark.parametrize(("ttft", "tpot"), [(GONE, 0.9), (0.9, GONE)])
def test_one_marginal_alone_bounds_nothing(ttft: float | Missing, tpot: float | Missing) -> None:
    assert joint_attainment(ttft, tpot) is GONE


def test_a_replica_at_capacity_is_worth_its_accelerators() -> None:
    reference = variant("32b-tp2")
    found = capacity(reference, SHAPES["chat"], TARGETS["2s/50ms"])
    work = work_per_request(reference, found)
    assert not isinstance(work, Missing)
    assert work * found.requests_per_second == pytest.approx(reference.accelerators)


def test_a_request_that_cannot_be_served_well_has_no_worth() -> None:
    assert isinstance(work_per_request(variant("8b-tp1"), NOTHING), Missing)


def test_utilization_of_a_fleet_that_always_runs_at_capacity_is_one() -> None:
    one = Served(requests_per_second=40.0, work_per_request=0.1, attainment=ALWAYS)
    assert fleet_utilization([one], Counts(ready=4)) == ALWAYS


def test_free_accelerators_lower_utilization_whoever_pays_for_them() -> None:
    one = Served(requests_per_second=40.0, work_per_request=0.1, attainment=Interval(0.9, 1.0))
    assert fleet_utilization([one], Counts(ready=4, free_on_used_nodes=1, free_on_empty_nodes=3)) == Interval(0.45, 0.5)


def test_parts_are_what_they_are_named() -> None:
    one = Served(requests_per_second=40.0, work_per_request=0.1, attainment=Interval(0.75, 1.0))
    held = Counts(ready=5, starting=1, draining=1, free_on_used_nodes=1, free_on_empty_nodes=2)
    assert waterfall([one], held) == Waterfall(
        utilization=0.3,
        headroom=0.1,
        cold_start=0.1,
        draining=0.1,
        fragmentation=0.1,
        idle_nodes=0.2,
        slo_misses=0.1,
    )


def test_an_empty_fleet_has_no_utilization() -> None:
    assert isinstance(fleet_utilization([], Counts()), Missing)
    assert isinstance(waterfall([], Counts()), Missing)


@given(served, counts)
def test_the_waterfall_adds_up_and_no_part_is_negative(every: list[Served], held: Counts) -> None:
    parts = waterfall(every, held)
    assert not isinstance(parts, Missing)
    assert sum(astuple(parts)) == pytest.approx(1.0, abs=1e-12)
    assert min(astuple(parts)) >= 0.0


@given(served, counts)
def test_the_waterfall_starts_at_the_lower_end_of_utilization(every: list[Served], held: Counts) -> None:
    parts, interval = waterfall(every, held), fleet_utilization(every, held)
    assert not isinstance(parts, Missing)
    assert not isinstance(interval, Missing)
    assert parts.utilization == pytest.approx(interval.low)
    assert 0.0 <= interval.low <= interval.high <= 1.0


@given(served, counts, st.integers(1, 100))
def test_more_idle_accelerators_never_raise_utilization(every: list[Served], held: Counts, idle: int) -> None:
    before = fleet_utilization(every, held)
    after = fleet_utilization(every, replace(held, free_on_empty_nodes=held.free_on_empty_nodes + idle))
    assert not isinstance(before, Missing)
    assert not isinstance(after, Missing)
    assert after.low <= before.low


def test_demand_against_what_serves() -> None:
    assert service_utilization(12.0, 20.0) == pytest.approx(0.6)
    assert service_utilization(30.0, 20.0) == pytest.approx(1.5)
    assert isinstance(service_utilization(1.0, 0.0), Missing)


def test_cost_and_energy_per_token() -> None:
    assert dollars_per_million_tokens(3.6, 1000.0) == pytest.approx(1.0)
    assert watts(2, 0.5, 100, 700) == pytest.approx(800)
    assert joules_per_token(800, 400.0) == pytest.approx(2.0)


def test_without_output_there_is_no_cost_per_token() -> None:
    assert isinstance(dollars_per_million_tokens(3.6, 0.0), Missing)
    assert isinstance(joules_per_token(800, 0.0), Missing)


@given(st.floats(-1, 3))
def test_power_stays_between_idle_and_busy(busy_share: float) -> None:
    assert 100 <= watts(1, busy_share, 100, 700) <= 700
