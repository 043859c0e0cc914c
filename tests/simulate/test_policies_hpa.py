"""The HPA counts as Kubernetes does: cases worked out by hand from its controller's code."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.simulate.views import make_view
from tokenservice.simulate.policies.hpa import Behaviour, Hpa, Rate, average_value, per_pod, value


@pytest.mark.parametrize(
    ("total", "replicas", "wanted"),
    [
        pytest.param(45, 3, 3, id="0.94 of the target is within the tolerance"),
        pytest.param(60, 3, 4, id="60 over 16 is 3.75"),
        pytest.param(20, 3, 2, id="20 over 16 is 1.25"),
        pytest.param(0, 3, 0, id="nothing needs nothing"),
        pytest.param(17, 0, 2, id="from zero there is no tolerance"),
    ],
)
def test_a_total_is_shared_by_the_target(total: float, replicas: int, wanted: int) -> None:
    assert average_value(total, 16, replicas) == wanted


def test_a_value_multiplies_the_ready_replicas() -> None:
    assert value(2.0, 1.0, replicas=4, ready=2) == 4
    assert value(1.05, 1.0, replicas=4, ready=2) == 4
    assert value(3.0, 1.0, replicas=0, ready=0) == 3


@pytest.mark.parametrize(
    ("mean", "reporting", "wanted"),
    [
        pytest.param(0.96, 4, 5, id="all report: 4 x 1.2"),
        pytest.param(0.84, 4, 4, id="all report: within the tolerance"),
        pytest.param(0.96, 2, 4, id="silent pods at zero turn 1.2 into 0.6: nothing happens"),
        pytest.param(2.40, 2, 6, id="silent pods at zero turn 3.0 into 1.5"),
        pytest.param(0.40, 2, 3, id="silent pods at the target turn 0.5 into 0.75"),
        pytest.param(0.70, 2, 4, id="silent pods at the target turn 0.875 into 0.94, within the tolerance"),
    ],
)
def test_silent_pods_hold_back_both_ways(mean: float, reporting: int, wanted: int) -> None:
    assert per_pod(mean, 0.8, 4, reporting) == wanted


def test_a_mean_over_no_pod_is_no_metric() -> None:
    assert per_pod(0.0, 0.8, 4, 0) is None


def test_up_is_the_larger_of_double_and_four_in_15_seconds() -> None:
    hpa, count, counts = Hpa(), 1, []
    for tick in range(6):
        count = hpa.decide(tick * 15.0, make_view(count), 60) or 0
        counts.append(count)
    assert counts == [5, 10, 20, 40, 60, 60]


def test_within_the_period_nothing_is_added_twice() -> None:
    hpa = Hpa()
    assert hpa.decide(0.0, make_view(1), 60) == 5
    assert hpa.decide(5.0, make_view(5), 60) == 5
    assert hpa.decide(15.0, make_view(5), 60) == 10


def test_down_waits_until_the_highest_wish_is_five_minutes_old() -> None:
    hpa = Hpa()
    wishes = {0.0: 10} | {15.0 * tick: 2 for tick in range(1, 21)}
    counts = {now: hpa.decide(now, make_view(10), wish) for now, wish in wishes.items()}
    assert {counts[15.0 * tick] for tick in range(20)} == {10}
    assert counts[300.0] == 2


def test_the_count_that_is_found_at_first_is_a_wish_like_any_other() -> None:
    hpa = Hpa(Behaviour(up_window=30))
    assert [hpa.decide(15.0 * tick, make_view(10), 2) for tick in range(21)] == [10] * 20 + [2]
    hpa = Hpa(Behaviour(up_window=30))
    assert [hpa.decide(15.0 * tick, make_view(2), 6) for tick in range(3)] == [2, 2, 6]


def test_up_waits_for_the_lowest_wish_of_its_window() -> None:
    hpa = Hpa(Behaviour(up_window=30))
    assert hpa.decide(0.0, make_view(2), 2) == 2
    assert hpa.decide(15.0, make_view(2), 6) == 2
    assert hpa.decide(30.0, make_view(2), 5) == 5


def test_one_pod_a_period_is_one_pod_a_period() -> None:
    hpa = Hpa(Behaviour(down_window=0, down=Rate(period_seconds=120, pods=1)))
    assert hpa.decide(0.0, make_view(8), 1) == 7
    assert hpa.decide(60.0, make_view(7), 1) == 7
    assert hpa.decide(120.0, make_view(7), 1) == 6


def test_of_several_metrics_the_highest_counts_and_a_missing_one_forbids_less() -> None:
    behaviour = Behaviour(down_window=0)
    assert Hpa(behaviour).decide(0.0, make_view(4), 2, 3) == 3
    assert Hpa(behaviour).decide(0.0, make_view(4), 2, None) is None
    assert Hpa(behaviour).decide(0.0, make_view(4), 6, None) == 6
    assert Hpa(behaviour).decide(0.0, make_view(4), None) is None


@given(st.lists(st.integers(0, 200), min_size=1, max_size=60), st.integers(1, 64))
def test_the_count_never_leaves_the_bounds_nor_passes_every_recent_wish(wishes: list[int], start: int) -> None:
    hpa, count = Hpa(), start
    for tick, wish in enumerate(wishes):
        before, recent = count, wishes[max(0, tick - 19) : tick + 1]
        count = hpa.decide(tick * 15.0, make_view(count), wish) or 0
        assert 1 <= count <= 64
        assert min(before, max(1, min(recent))) <= count <= max(before, *recent)
        assert count <= max(2 * before, before + 4)
