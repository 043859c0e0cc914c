"""Demand from metrics."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.build import make_metrics
from tokenservice.core.capacity import DEFAULT, Workload
from tokenservice.core.demand import Demand, demand, remembered, workload_of
from tokenservice.core.hindsight import forecast
from tokenservice.core.model import Json, Missing, ServiceMetrics
from tokenservice.core.status import workload_status

WORK = Workload(1000, 200)
GONE = Missing("MetricsMissing", "stale")


def known(metrics: ServiceMetrics, **options: float) -> Demand:
    found = demand(metrics, WORK, **options)
    assert isinstance(found, Demand)
    return found


def test_missing_metrics_are_missing_demand() -> None:
    assert demand(GONE, WORK) is GONE


def test_no_traffic_is_known_demand() -> None:
    assert known(make_metrics(0.0)).requests_per_second == 0.0


def test_a_queue_adds_what_empties_it_in_half_a_minute() -> None:
    assert known(make_metrics(10.0, waiting=60.0)).requests_per_second == pytest.approx(12.0)


def test_the_peak_is_never_below_the_present() -> None:
    assert known(make_metrics(10.0, peak_requests_per_second=3.0)).peak_requests_per_second == 10.0


def test_tokens_follow_the_workload() -> None:
    assert known(make_metrics(10.0)).tokens_per_second == pytest.approx(2000.0)


@pytest.mark.parametrize(
    ("slope", "lead", "expected"), [(0.0, 60, 10.0), (0.05, 60, 13.0), (1.0, 60, 15.0), (-1.0, 60, 10.0)]
)
def test_forecast_follows_growth_within_bounds_and_never_decline(slope: float, lead: float, expected: float) -> None:
    assert forecast(10.0, slope, lead) == pytest.approx(expected)


def test_lengths_without_measurement_are_the_published_means() -> None:
    absent = Missing("NoData", "nothing finished yet")
    assert workload_of(GONE) == DEFAULT
    assert workload_of(make_metrics(5.0, mean_input_tokens=absent, mean_output_tokens=absent)) == DEFAULT


def test_many_requests_make_their_own_lengths_count() -> None:
    found = workload_of(make_metrics(500.0, mean_input_tokens=8000.0, mean_output_tokens=50.0, prefix_hit_rate=0.52))
    assert found.input_tokens == pytest.approx(8000, rel=0.03)
    assert found.output_tokens == pytest.approx(50, rel=0.03)
    assert found.hit_rate == 0.5


def test_few_requests_say_little_about_lengths() -> None:
    found = workload_of(make_metrics(0.05, mean_input_tokens=8000.0))
    assert found.input_tokens < 1.3 * DEFAULT.input_tokens


@given(st.floats(1, 30_000), st.floats(0.985, 1.015))
def test_lengths_move_in_steps_of_five_percent(tokens: float, noise: float) -> None:
    one, other = (workload_of(make_metrics(50.0, mean_input_tokens=size)) for size in (tokens, tokens * noise))
    step = one.input_tokens / other.input_tokens
    assert any(step == pytest.approx(near) for near in (1 / 1.05, 1.0, 1.05))


@given(st.floats(0, 1e4), st.floats(-100, 100), st.floats(0, 600))
def test_forecast_is_at_least_the_present_and_at_most_half_above(now: float, slope: float, lead: float) -> None:
    assert now <= forecast(now, slope, lead) <= now * 1.5


@given(st.floats(1, 30_000), st.floats(1, 30_000), st.floats(0, 1))
def test_what_a_status_shows_of_a_workload_is_remembered_to_the_digit(
    prompt: float, answer: float, hits: float
) -> None:
    measured = make_metrics(500.0, mean_input_tokens=prompt, mean_output_tokens=answer, prefix_hit_rate=hits)
    work = workload_of(measured)
    assert remembered({"workload": workload_status(work)}) == work


@pytest.mark.parametrize(
    "status",
    [
        {},
        {"workload": None},
        {"workload": "long"},
        {"workload": {"inputTokens": 900.0}},
        {"workload": {"inputTokens": "a", "outputTokens": 1.0, "cachedShare": 0.0}},
        {"workload": {"inputTokens": 0.0, "outputTokens": 0.0, "cachedShare": -3.0}},
    ],
    ids=str,
)
def test_a_status_that_says_nothing_of_use_leaves_the_usual_lengths(status: Json) -> None:
    assert remembered(status) == DEFAULT
