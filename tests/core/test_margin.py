"""What missed objectives teach about capacity: what conformal inference promises, and when nothing is learned."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import inf, isclose, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.build import make_metrics, make_spec
from tokenservice.api.token_fleet import TokenFleetSpec
from tokenservice.core.capacity import Capacity, Limit, Targets, Workload
from tokenservice.core.demand import Demand
from tokenservice.core.margin import HIGHEST, LOWEST, UNTRIED, learned, moved, overruns, remembered, usable
from tokenservice.core.model import Margin, Missing, ServiceMetrics
from tokenservice.core.scaling import desired

TARGETS = Targets(ttft_seconds=1.0, ttft_fraction=0.99, tpot_seconds=0.05, tpot_fraction=0.99)
ALLOWED = 0.01
STEP_SECONDS = 10.0
PER_SECOND = 0.01
GONE = Missing("NoSeries", "no engine has reported")
TRIED = Margin(factor=1.0, usual=10.0, at=0.0)

shares = st.floats(0, 1)


def seen(missed: float, *, tpot_missed: float = 0.0, rate: float = 10.0) -> ServiceMetrics:
    """A moment in which these shares of the requests were late to their first token, or slow after it."""
    return make_metrics(
        rate,
        ttft_buckets=((TARGETS.ttft_seconds, rate * (1 - missed)), (inf, rate)),
        tpot_buckets=((TARGETS.tpot_seconds, rate * (1 - tpot_missed)), (inf, rate)),
    )


def after(margin: Margin, metrics: ServiceMetrics | Missing, *, load: float = 1.0, **known: Any) -> Margin:
    assert margin.at is not None
    return moved(margin, metrics, TARGETS, margin.at + STEP_SECONDS, load=load, **known)


# --- the guarantee


def lived(misses: list[float], capable_at: float) -> list[tuple[float, Margin]]:
    """Each moment's share of misses and the margin after it; up to `capable_at` replicas keep every objective."""
    margin, told = TRIED, []
    for adverse in misses:
        missed = adverse if margin.factor > capable_at else 0.0
        margin = after(margin, seen(missed))
        told.append((missed, margin))
    return told


@given(st.lists(st.one_of(shares, st.sampled_from([0.0, 1.0])), min_size=1, max_size=400), st.floats(0.55, 1.5))
def test_whatever_the_world_does_misses_stay_at_the_allowed_share_in_the_long_run(
    misses: list[float], capable_at: float
) -> None:
    told = lived(misses, capable_at)
    mean = sum(missed for missed, _ in told) / len(told)
    assert mean <= ALLOWED + (HIGHEST - LOWEST) / (PER_SECOND * STEP_SECONDS * len(told)) + 1e-9


@given(st.lists(st.floats(0, 0.03), min_size=1, max_size=400))
def test_no_more_headroom_is_kept_than_the_allowed_misses_ask_for(misses: list[float]) -> None:
    told = lived(misses, capable_at=0.0)
    if all(LOWEST < margin.factor < HIGHEST for _, margin in told):
        mean = sum(missed for missed, _ in told) / len(told)
        spent = 0.006  # half, and what overruns are seen to leave
        assert abs(mean - spent) <= (HIGHEST - LOWEST) / (PER_SECOND * STEP_SECONDS * len(told)) + 1e-9


def test_the_share_of_misses_converges_to_what_may_be_spent_where_capacity_is_misjudged() -> None:
    misses = [0.0 if index % 3 else 0.9 for index in range(20_000)]
    told = lived(misses, capable_at=0.83)
    late = [missed for missed, _ in told[10_000:]]
    assert sum(late) / len(late) == pytest.approx(0.9 * ALLOWED, rel=0.05)  # no overrun took any
    assert all(0.7 < margin.factor < 0.87 for _, margin in told[10_000:])


@pytest.mark.parametrize(("each", "left"), [(0.0, 0.9), (0.1, 0.75), (0.5, 0.5), (1.0, 0.5)])
def test_it_spends_what_overruns_leave_of_the_allowed_misses(each: float, left: float) -> None:
    """Once an hour demand overruns the pool for half a minute; in it and most of a minute after some requests miss."""
    margin, missed, overrun = TRIED, list[float](), list[float]()
    for index in range(40_000):
        if index % 360 < 3:
            margin = after(margin, seen(each), load=2.0)
        elif index % 360 < 8:
            margin = after(margin, seen(each))
        else:
            margin = after(margin, seen(0.3 if margin.factor > 0.83 else 0.0))
            missed.append(0.3 if margin.factor > 0.83 else 0.0)
            continue
        overrun.append(each)
    late = missed[len(missed) // 2 :]
    assert sum(late) / len(late) == pytest.approx(left * ALLOWED, rel=0.06)
    assert margin.overrun_share == pytest.approx(sum(overrun) / 40_000 / ALLOWED, rel=0.15, abs=1e-3)


@given(st.lists(st.tuples(shares, shares, st.floats(0, 500), st.floats(0, 3), st.booleans()), max_size=60))
def test_the_factor_stays_within_its_bounds_whatever_is_seen(
    moments: list[tuple[float, float, float, float, bool]],
) -> None:
    margin = TRIED
    for missed, slow, rate, load, enough in moments:
        margin = after(margin, seen(missed, tpot_missed=slow, rate=rate), load=load, enough=enough)
        assert LOWEST <= margin.factor <= HIGHEST
        assert LOWEST <= usable(margin) <= HIGHEST


@pytest.mark.parametrize(("missed", "bound"), [(1.0, LOWEST), (0.0, HIGHEST)])
def test_a_world_that_is_always_worse_or_better_ends_at_a_bound(missed: float, bound: float) -> None:
    margin = TRIED
    for _ in range(1000):
        margin = after(margin, seen(missed))
    assert margin.factor == bound


@given(shares, shares, st.floats(0, 3), st.booleans())
def test_where_some_more_miss_the_factor_is_never_higher(missed: float, more: float, load: float, enough: bool) -> None:
    few, many = sorted((missed, more))
    better, worse = (after(TRIED, seen(share), load=load, enough=enough).factor for share in (few, many))
    assert worse <= better


# --- when it moves, and when it does not


def test_half_a_minute_of_nothing_but_misses_lowers_it_by_three_tenths() -> None:
    margin = replace(TRIED, overrun_share=1.0)
    for _ in range(3):
        margin = after(margin, seen(1.0))
    assert margin.factor == pytest.approx(1 - PER_SECOND * 30 * (1 - 0.005))


@pytest.mark.parametrize("known", [{}, {"load": 0.2}, {"enough": True}, {"load": 0.0, "enough": True}], ids=str)
def test_a_certain_miss_lowers_it_however_idle_or_full_the_fleet_is(known: dict[str, Any]) -> None:
    assert after(TRIED, seen(0.5), **known).factor < 1


RISES: dict[str, tuple[dict[str, Any], bool]] = {
    "kept objectives under load raise it": ({}, True),
    "an idle pool proves nothing": ({"load": 0.3}, False),
    "a pool of unknown load proves nothing": ({"load": 0.0}, False),
    "a pool that is as full as it may be proves something": ({"load": 0.65, "filled": 0.7}, True),
    "... and one that is a little less full nothing": ({"load": 0.6, "filled": 0.7}, False),
    "a fleet that is full enough need not be fuller": ({"enough": True}, False),
}


@pytest.mark.parametrize(("known", "rises"), RISES.values(), ids=RISES)
def test_it_rises_only_where_it_was_tried_and_is_wanted(known: dict[str, Any], rises: bool) -> None:
    assert (after(TRIED, seen(0.0), **known).factor > 1) == rises


def test_a_pool_that_demand_has_overrun_says_nothing_of_its_capacity_nor_does_the_minute_after() -> None:
    margin = after(TRIED, seen(1.0), load=2.0)
    for _ in range(5):
        margin = after(margin, seen(1.0))
        assert margin.factor == 1
    assert after(margin, seen(1.0)).factor < 1


def test_for_as_long_as_the_queue_of_an_overrun_stands_it_says_nothing_either() -> None:
    margin = after(TRIED, seen(1.0), load=2.0)
    for _ in range(20):
        margin = after(margin, seen(1.0), queued=True)
        assert margin.factor == 1
    for _ in range(6):
        margin = after(margin, seen(1.0))
    assert margin.factor < 1


def test_a_queue_that_no_overrun_began_lowers_it() -> None:
    """Replicas that should have taken what came take less."""
    assert after(TRIED, seen(1.0), queued=True).factor < 1


def test_it_rises_faster_while_little_was_tried_and_never_falls_faster() -> None:
    known = replace(TRIED, tried_seconds=120.0)
    rise = {margin.tried_seconds: after(margin, seen(0.0)).factor - 1 for margin in (TRIED, known)}
    assert rise[0.0] == pytest.approx((100 / 30) ** 0.5 * rise[120.0])
    assert after(TRIED, seen(0.5)).factor == after(known, seen(0.5)).factor < 1


@pytest.mark.parametrize("load", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("metrics", [GONE, make_metrics(10.0), seen(0.0, rate=0.0)], ids=["gone", "blind", "silent"])
def test_what_was_not_seen_moves_nothing(metrics: ServiceMetrics | Missing, load: float) -> None:
    assert after(TRIED, metrics, load=load).factor == 1


def test_more_than_all_that_may_miss_lowers_it_though_it_is_not_certain_that_so_many_did() -> None:
    steady = replace(TRIED, overrun_share=0.0)
    assert after(steady, seen(0.0055, tpot_missed=0.0055)).factor < 1
    assert after(steady, seen(0.0045, tpot_missed=0.005)).factor == 1


def test_a_share_that_the_histograms_leave_open_moves_nothing() -> None:
    """Between half a percent (all who were slow were late too) and 1 % (nobody was): more than may be, or less."""
    assert after(TRIED, seen(0.005, tpot_missed=0.005)).factor == 1


def test_the_first_look_only_starts_the_clock() -> None:
    first = moved(UNTRIED, seen(1.0), TARGETS, 100.0, load=1.0)
    assert (first.factor, first.at) == (1.0, 100.0)
    assert after(first, seen(1.0)).factor < 1


@pytest.mark.parametrize("now", [-5.0, 0.0])
def test_a_look_at_no_later_time_changes_nothing(now: float) -> None:
    assert moved(TRIED, seen(1.0), TARGETS, now, load=1.0).factor == 1


def test_a_long_silence_counts_as_half_a_minute() -> None:
    longest = moved(TRIED, seen(0.2), TARGETS, 30.0, load=1.0).factor
    assert moved(TRIED, seen(0.2), TARGETS, 3000.0, load=1.0).factor == longest < 1


# pragma: allowlist nextline secret
def test_a_moment_weighs_as_much_as_its_traffic_and_at_most_three_times_the_usual() -> None:
    fall = {rate: 1 - after(TRIED, seen(1.0, rate=rate)).factor for rate in (1.0, 10.0, 1000.0)}
    assert fall[1.0] < 0.11 * fall[10.0]
    assert fall[1000.0] == pytest.approx(3 * fall[10.0], rel=0.3)
    assert fall[1000.0] <= 3 * fall[10.0]


def test_the_grid_keeps_small_steps_from_the_count() -> None:
    factors = [1.0 + index * 0.0001 for index in range(100)]
    grid = [usable(Margin(factor=factor)) for factor in factors]
    assert len(set(grid)) == 2
    assert all(isclose(later - earlier, 0, abs_tol=0.0101) for earlier, later in pairwise(grid))


# --- what it does to counts


DEMAND = Demand(
    requests_per_second=63.0,
    peak_requests_per_second=63.0,
    forecast_requests_per_second=63.0,
    workload=Workload(1000, 200),
    tokens_per_second=12_600,
    waiting=0.0,
)
TEN_PER_SECOND = Capacity(10.0, 50.0, 0.2, 0.03, Limit.TPOT)

COUNTS: dict[str, tuple[float, float | None, int]] = {
    "as modelled": (1.0, None, 9),
    "replicas that do less than modelled are more": (0.5, None, 18),
    "replicas that do more than modelled are fewer": (1.5, None, 6),
    "who sets a target of his own gets that headroom": (1.5, 0.7, 9),
    "... and more where objectives are missed": (0.5, 0.7, 18),
}


@pytest.mark.parametrize(("waiting", "replicas"), [(0.0, 10), (3000.0, 14)], ids=["no queue", "a queue"])
def test_while_a_queue_stands_the_replicas_that_work_it_off_stay(waiting: float, replicas: int) -> None:
    """Let go as soon as they were on their way to work it off, they would be asked for again, and never come."""
    asked = replace(DEMAND, waiting=waiting, arriving=63.0, lead_seconds=80.0)
    assert desired(make_spec(), 14, asked, TEN_PER_SECOND, TokenFleetSpec()).replicas == replicas


@pytest.mark.parametrize(("margin", "own_target", "replicas"), COUNTS.values(), ids=COUNTS)
def test_the_count_follows_the_margin(margin: float, own_target: float | None, replicas: int) -> None:
    scaling = {} if own_target is None else {"scaling": {"targetUtilization": own_target}}
    spec = make_spec(**scaling)
    assert desired(spec, 1, DEMAND, TEN_PER_SECOND, TokenFleetSpec(), margin=margin).replicas == replicas


@given(st.floats(LOWEST, HIGHEST), st.floats(LOWEST, HIGHEST), st.floats(0, 500), st.integers(1, 40))
def test_less_trust_never_means_fewer_replicas(one: float, other: float, rate: float, current: int) -> None:
    low, high = sorted((one, other))
    asked = replace(DEMAND, requests_per_second=rate, peak_requests_per_second=rate, forecast_requests_per_second=rate)
    cautious, bold = (
        desired(make_spec(), current, asked, TEN_PER_SECOND, TokenFleetSpec(), margin=factor) for factor in (low, high)
    )
    assert cautious.replicas >= bold.replicas


# --- what outlives the process


def test_what_was_learned_is_told_and_taken_up_again() -> None:
    wiser = after(TRIED, seen(0.5))
    assert learned(wiser) == usable(wiser) < 1
    again = remembered({"capacityFactor": learned(wiser), "overrunShare": overruns(wiser)})
    assert usable(again) == usable(wiser)
    assert (again.overrun_share, overruns(UNTRIED)) == (0.5, None)
    calm = replace(wiser, overrun_share=0.12)
    assert remembered({"capacityFactor": 0.9, "overrunShare": overruns(calm)}).overrun_share == 0.1
    assert learned(again) == learned(wiser)  # an idle service after a restart keeps what stands there
    assert (
        after(replace(again, at=0.0), seen(0.0)).factor - again.factor
        < after(replace(UNTRIED, at=0.0), seen(0.0)).factor - UNTRIED.factor
    )  # it is no beginner any more


@pytest.mark.parametrize("nonsense", [None, "0.8", True, nan, inf, [0.8]])
def test_a_status_that_says_nothing_of_it_teaches_nothing(nonsense: object) -> None:
    assert remembered({"capacityFactor": nonsense}) == UNTRIED
    assert remembered({"capacityFactor": 0.8, "overrunShare": nonsense}) == remembered({"capacityFactor": 0.8})
    assert remembered({}) == UNTRIED
    assert learned(UNTRIED) is None


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_no_status_leads_beyond_the_bounds(written: float) -> None:
    assert LOWEST <= remembered({"capacityFactor": written}).factor <= HIGHEST
