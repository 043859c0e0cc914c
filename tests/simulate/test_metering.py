"""What the simulated Prometheus says: rates by hand, and as PromQL defines them on the same samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenservice.core.histogram import attainment
from tokenservice.core.model import Missing, ServiceMetrics
from tokenservice.core.step import StepModel
from tokenservice.core.windows import Windows
from tokenservice.simulate.bounds import Bounds
from tokenservice.simulate.engine import EngineLimits
from tokenservice.simulate.metering import Meter, Scrape, scrape
from tokenservice.simulate.policy import EngineView
from tokenservice.simulate.pool import Pool
from tokenservice.simulate.traffic import Requests

WINDOWS = Windows(rate=15, peak=60, staleness=30)
TTFT_EDGES, TPOT_EDGES = (0.5, 1.0, inf), (0.05, inf)
IDLE = EngineView(running=0.0, waiting=0.0, kv_usage=0.0)

START = replace(
    scrape(Pool(Bounds(ttft_seconds=1.0, tpot_seconds=0.05))),
    ttft_counts=np.array([0, 0, 0]),
    tpot_counts=np.array([0, 0]),
    engines=(IDLE,),
)
SECOND = replace(
    START,
    at=5.0,
    finished=10,
    prompt_tokens=12_000,
    cached_tokens=3000,
    output_tokens=2500,
    busy_seconds=4.0,
    request_seconds=30.0,
    ttft_counts=np.array([6, 10, 12]),
    tpot_counts=np.array([9, 10]),
    engines=(
        EngineView(running=3.0, waiting=2.0, kv_usage=0.25),
        EngineView(running=1.0, waiting=1.0, kv_usage=0.75),
    ),
)


def meter(*scrapes: Scrape, windows: Windows = WINDOWS) -> Meter:
    made = Meter(windows, TTFT_EDGES, TPOT_EDGES)
    for one in scrapes:
        made.scraped(one)
    return made


def known(metrics: ServiceMetrics | Missing) -> ServiceMetrics:
    assert isinstance(metrics, ServiceMetrics)
    return metrics


def test_every_figure_of_two_scrapes_is_what_a_hand_reckons() -> None:
    made = meter(START, SECOND)
    assert made.metrics(5.0) == ServiceMetrics(
        requests_per_second=(12 + 3) / 5,  # first tokens, and what the queues grew by
        peak_requests_per_second=3.0,
        output_tokens_per_second=500.0,
        input_tokens_per_second=2400.0,
        mean_input_tokens=1000.0,
        mean_output_tokens=250.0,
        prefix_hit_rate=0.25,
        running=4.0,
        waiting=3.0,
        kv_usage=0.75,
        engines_reporting=2,
        engines_heard=2,
        ttft_buckets=((0.5, 1.2), (1.0, 2.0), (inf, 2.4)),
        tpot_buckets=((0.05, 1.8), (inf, 2.0)),
    )
    assert made.duty_cycle() == pytest.approx(4 / 5 / 2)
    assert made.concurrency() == 6.0
    assert made.engines == SECOND.engines


def test_unfinished_requests_are_counted_as_a_proxy_does_not_over_the_window_of_rates() -> None:
    third = replace(SECOND, at=10.0, request_seconds=130.0)
    assert meter(START, SECOND, third).concurrency() == 20.0
    assert isinstance(meter(START).concurrency(), Missing)  # nobody saw that there was none


UNKNOWN: dict[str, tuple[Meter, float, str]] = {
    "nothing was scraped": (meter(), 0.0, "NoSeries"),
    "one scrape makes no rate": (meter(SECOND), 5.0, "TooFewSamples"),
    "engines are gone, and their series with them": (
        meter(START, SECOND, replace(SECOND, at=10.0, engines=())),
        10.0,
        "NoSeries",
    ),
    "the newest sample is too old": (meter(START, SECOND), 35.1, "Stale"),
    "a window holds one sample": (meter(START, replace(SECOND, at=15.0)), 15.0, "TooFewSamples"),
}


@pytest.mark.parametrize(("made", "now", "reason"), UNKNOWN.values(), ids=UNKNOWN)
def test_what_prometheus_could_not_say_is_missing(made: Meter, now: float, reason: str) -> None:
    found = made.metrics(now)
    assert isinstance(found, Missing)
    assert found.reason == reason


def test_a_sample_is_good_until_it_is_stale() -> None:
    made = meter(START, SECOND, windows=replace(WINDOWS, rate=60))
    assert isinstance(made.metrics(35.0), ServiceMetrics)
    assert isinstance(made.metrics(35.1), Missing)


def growing(per_scrape: Sequence[int], *, every: float = 5.0) -> list[Scrape]:
    """Scrapes between which so many requests got their first token."""
    total = np.cumsum([0, *per_scrape])
    return [replace(START, at=index * every, ttft_counts=np.array([0, 0, count])) for index, count in enumerate(total)]


def test_a_window_forgets_what_lies_before_it_and_the_peak_does_not() -> None:
    made = meter(*growing([100, 0, 0, 0, 0]))
    assert known(made.metrics(25.0)).requests_per_second == 0.0
    assert known(made.metrics(25.0)).peak_requests_per_second == 20.0
    made = meter(*growing([100, *[0] * 13]))
    assert known(made.metrics(70.0)).peak_requests_per_second == 20.0 / 2  # the sample at 10 s still saw it
    made = meter(*growing([100, *[0] * 15]))
    assert known(made.metrics(80.0)).peak_requests_per_second == 0.0


def test_a_queue_that_is_worked_off_is_no_demand_and_never_a_negative_one() -> None:
    full = replace(START, engines=(replace(IDLE, waiting=50.0),))
    drained = replace(full, at=5.0, ttft_counts=np.array([0, 0, 40]), engines=(replace(IDLE, waiting=10.0),))
    assert known(meter(full, drained).metrics(5.0)).requests_per_second == 0.0
    vanished = replace(full, at=5.0, engines=(IDLE,))
    assert known(meter(full, vanished).metrics(5.0)).requests_per_second == 0.0


@given(st.lists(st.integers(0, 50), min_size=3, max_size=40), st.floats(0, 4.9))
def test_the_peak_is_the_highest_rate_that_was_told_within_its_window(counts: list[int], late: float) -> None:
    made, told = meter(), []
    for one in growing(counts):
        made.scraped(one)
        if one.at > 0:
            told.append((one.at, known(made.metrics(one.at)).requests_per_second))
    last = told[-1][0]
    within = [rate for at, rate in told if at >= last - WINDOWS.peak]
    assert known(made.metrics(last + late)).peak_requests_per_second == pytest.approx(max(within))


# --- PromQL's own definition


def promql_rate(samples: Sequence[tuple[float, float]], now: float, window: float) -> float | None:
    """`rate(counter[window])` at `now`, as `extrapolatedRate` in Prometheus' promql/functions.go has it (3.x).

    None without two samples. Counters that fall are not handled: these are totals.
    """
    within = [(at, value) for at, value in samples if now - window < at <= now]
    if len(within) < 2:
        return None
    (first_at, first), (last_at, last) = within[0], within[-1]
    sampled = last_at - first_at
    usual_gap = sampled / (len(within) - 1)
    to_start, to_end = first_at - (now - window), now - last_at
    if to_start >= usual_gap * 1.1:
        to_start = usual_gap / 2
    if last > first:  # a counter is not extrapolated below zero
        to_start = min(to_start, sampled * first / (last - first))
    if to_end >= usual_gap * 1.1:
        to_end = usual_gap / 2
    return (last - first) * (sampled + to_start + to_end) / sampled / window


@given(
    st.lists(st.integers(0, 50), min_size=12, max_size=40),
    st.sampled_from([15, 20, 30, 60]),
    st.sampled_from([0.0, 1.0, 4.9]),
)
def test_rates_are_those_of_promql_on_the_same_samples(counts: list[int], window: int, late: float) -> None:
    scrapes = growing([5000, *counts])  # a counter that began long ago
    now = scrapes[-1].at + late
    samples = [(one.at, one.first_tokens) for one in scrapes]
    found = known(meter(*scrapes, windows=replace(WINDOWS, rate=window)).metrics(now))
    assert found.requests_per_second == pytest.approx(promql_rate(samples, now, window))


@pytest.mark.parametrize("every", [7.5, 15.0])
def test_a_window_with_too_few_scrapes_is_missing_for_promql_too(every: float) -> None:
    scrapes = growing([10] * 8, every=every)
    now = scrapes[-1].at
    by_promql = promql_rate([(one.at, one.first_tokens) for one in scrapes], now, WINDOWS.rate)
    assert (by_promql is None) == isinstance(meter(*scrapes).metrics(now), Missing)


# --- what is scraped of real replicas


def test_a_scrape_tells_of_replicas_that_are_there_and_counts_those_that_were() -> None:
    pool = Pool(Bounds(ttft_seconds=1.0, tpot_seconds=0.05))
    slots = [pool.add(StepModel(10.0, 0.1, 0.0, 0.01), EngineLimits(8, 512, 100_000)) for _ in range(2)]
    for slot in slots:
        pool.open(slot, True)
    ones = np.ones(20)
    traffic = Requests(
        np.arange(20) / 10,
        np.full(20, 100, np.int32),
        np.full(20, 50, np.int32),
        np.full(20, 25, np.int32),
        ones * np.nan,
    )
    pool.advance(traffic, 60.0)
    pool.remove(slots[0])
    seen = scrape(pool)
    assert (seen.at, seen.finished, seen.first_tokens, len(seen.engines)) == (60.0, 20, 20.0, 1)
    assert (seen.prompt_tokens, seen.cached_tokens, seen.output_tokens) == (2000, 500, 1000)
    made = Meter(WINDOWS, pool.ttft_edges_s, pool.tpot_edges_s)
    made.scraped(replace(seen, at=55.0))
    made.scraped(seen)
    assert isinstance(attainment(known(made.metrics(60.0)).ttft_buckets, 1.0), Missing)
