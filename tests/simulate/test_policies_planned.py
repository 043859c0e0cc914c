"""Counts that are worked out in advance: static sizes, Mélange's allocation, Aegaeon's pool."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.simulate.views import CHAT, LENGTHS, TARGETS, ask, make_variant, make_view
from tokenservice.core.capacity import Workload, capacity
from tokenservice.core.model import ServiceKey
from tokenservice.core.step import StepModel
from tokenservice.simulate.policies.aegaeon import pooled_accelerators
from tokenservice.simulate.policies.melange import FixedRate, allocate, allocate_variants, melange
from tokenservice.simulate.policies.static import Static, p99_sizes, pooled_sizes, smallest_sizes

A, B, C = (ServiceKey("default", name) for name in "abc")


# --- Static --------------------------------------------------------------------------------------------------------


def test_a_static_fleet_never_changes() -> None:
    policy = Static("static-p99", {CHAT: 7})
    assert [ask(policy, now, make_view(3)) for now in (0.0, 9e5)] == [7, 7]
    assert ask(policy, 0.0, make_view(3, most=5)) == 5
    assert ask(Static("static-p99", {}), 0.0, make_view(3)) == 3


def test_the_99th_percentile_is_rounded_up_to_at_least_one() -> None:
    rates = np.concatenate([np.full(970, 10.0), np.full(30, 31.0)])
    assert p99_sizes({A: rates, B: np.zeros(10)}, {A: 10.0, B: 1.0}) == {A: 4, B: 1}
    assert p99_sizes({A: np.concatenate([rates, np.full(5000, 10.0)])}, {A: 10.0}) == {A: 1}


def test_peaks_at_different_times_need_less_together() -> None:
    early, late = np.array([40.0] * 50 + [0.0] * 50), np.array([0.0] * 50 + [40.0] * 50)
    rates = {A: 10.0, B: 10.0, C: 10.0}
    assert p99_sizes({A: early, B: late, C: np.zeros(100)}, rates) == {A: 4, B: 4, C: 1}
    assert pooled_sizes({A: early, B: late, C: np.zeros(100)}, rates) == {A: 2, B: 1, C: 1}
    assert pooled_sizes({}, {}) == {}


def test_a_service_that_no_replica_serves_is_named() -> None:
    with pytest.raises(ValueError, match="default/a"):
        p99_sizes({A: np.ones(3)}, {A: 0.0})


@given(st.lists(st.floats(0, 50), min_size=1, max_size=8))
def test_pooling_shares_out_exactly_what_the_sum_needs(levels: list[float]) -> None:
    demand = {ServiceKey("default", f"s{n}"): np.full(20, level) for n, level in enumerate(levels)}
    sizes = pooled_sizes(demand, dict.fromkeys(demand, 1.0))
    assert sum(sizes.values()) == max(len(levels), int(np.ceil(sum(levels) - 1e-9)))
    assert min(sizes.values()) >= 1


@given(st.lists(st.tuples(st.integers(1, 200), st.integers(1, 200)), min_size=1, max_size=6))
def test_the_smallest_sizes_are_found_for_all_services_at_once(given: list[tuple[int, int]]) -> None:
    need = {ServiceKey("default", f"s{n}"): enough for n, (enough, _) in enumerate(given)}
    asked = list[int]()

    def attained(sizes: Mapping[ServiceKey, int]) -> dict[ServiceKey, float]:
        asked.append(1)
        return {key: 0.99 if size >= need[key] else 0.9 for key, size in sizes.items()}

    first = {key: size for key, (_, size) in zip(need, given, strict=True)}
    assert smallest_sizes(attained, first) == need
    assert len(asked) <= 18


def test_a_service_that_no_size_serves_gets_the_most() -> None:
    lost, easy = ServiceKey("default", "lost"), ServiceKey("default", "easy")
    found = smallest_sizes(lambda sizes: {lost: 0.0, easy: 1.0}, {lost: 3, easy: 5}, most=40)
    assert found == {lost: 40, easy: 1}


# --- Mélange -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rates", "throughput", "cost", "slices", "counts"),
    [
        pytest.param([4, 1], [[4, 0.1], [6, 1]], [1, 3], 8, (1, 1), id="short ones to the cheap, long ones to the big"),
        pytest.param([4, 1], [[4, 0.1], [40, 10]], [1, 3], 8, (0, 1), id="one big takes both"),
        pytest.param([5], [[1], [4]], [1.5, 4], 5, (1, 1), id="a bucket is cut: four fifths to the big"),
        pytest.param([5], [[1], [4]], [1.5, 4], 1, (5, 0), id="an uncut one is not"),
        pytest.param([4, 1], [[4, 0], [6, 1]], [1, 3], 8, (1, 1), id="who cannot keep the objectives gets none"),
        pytest.param([0, 0], [[4, 1]], [1], 8, (0,), id="no load, no accelerator"),
        pytest.param([2], [[0], [2]], [1, 3], 8, (0, 1), id="a type that takes nothing"),
    ],
)
def test_the_cheapest_mix(
    rates: list[float], throughput: list[list[float]], cost: list[float], slices: int, counts: tuple[int, ...]
) -> None:
    assert allocate(rates, throughput, cost, slices) == counts


def test_a_bucket_that_no_type_takes_is_named() -> None:
    with pytest.raises(ValueError, match="bucket 1"):
        allocate([1, 1], [[1, 0]], [1])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0.5, 6), min_size=2, max_size=2), st.lists(st.floats(0.5, 8), min_size=4, max_size=4))
def test_no_mix_is_cheaper(rates: list[float], able: list[float]) -> None:
    throughput, cost, slices = [able[:2], able[2:]], [1.0, 2.5], 3
    found = allocate(rates, throughput, cost, slices)
    best = min(
        sum(price * np.ceil(load - 1e-6) for price, load in zip(cost, loads, strict=True))
        for first, second in product(range(slices + 1), repeat=2)
        for loads in [
            [
                rates[0] * first / slices / throughput[0][0] + rates[1] * second / slices / throughput[0][1],
                rates[0] * (1 - first / slices) / throughput[1][0]
                + rates[1] * (1 - second / slices) / throughput[1][1],
            ]
        ]
    )
    assert sum(price * count for price, count in zip(cost, found, strict=True)) == pytest.approx(best)


def test_variants_are_compared_by_what_they_take() -> None:
    slow = make_variant(StepModel(20.0, 0.2, 0.0, 0.02), name="slow")
    each = capacity(slow, LENGTHS, TARGETS).requests_per_second
    assert allocate_variants({LENGTHS: 1.5 * each}, [slow], TARGETS) == {"slow": 2}
    assert allocate_variants({LENGTHS: 1.5 * each, Workload(4000.0, 50.0): 0.0}, [slow, make_variant()], TARGETS) == {
        "slow": 0,
        "h100-vllm-tp1-bf16": 1,
    }


def test_as_a_policy_it_stands_for_its_window_at_the_highest_minute() -> None:
    policy = melange(FixedRate(window=3600.0))

    def rate(start: float, end: float) -> float:
        return 42.0 if start <= 1800 < end else 7.0

    assert ask(policy, 0.0, make_view(1), rate) == 5
    assert ask(policy, 1860.0, make_view(5), rate) == 5  # the peak is over, the allocation stands
    assert ask(policy, 3600.0, make_view(5), rate) == 1


# --- Aegaeon -------------------------------------------------------------------------------------------------------


def test_a_hundred_rare_models_are_half_active_and_share_by_seven() -> None:
    """The paper's example: 100 models at 0.037 requests/s that stay 16.79 s have 46.55 active on average."""
    services = np.full(100, 1.0)
    pool = pooled_accelerators(np.full((100, 1), 0.037), 100 * services, services, 16.79 * services)
    assert pool.tolist() == [7]  # 46.3 over 7


def test_busy_models_gain_nothing_and_the_widest_must_fit() -> None:
    rates = np.array([[95.0, 0.0, 0.001], [0.0, 0.0, 0.0]])
    pool = pooled_accelerators(rates, np.array([10.0, 10.0]), np.array([4.0, 8.0]), np.array([5.0, 5.0]))
    assert pool.tolist() == [38, 0, 4]
    with pytest.raises(ValueError, match="reference_rates"):
        pooled_accelerators(rates, np.array([10.0, 0.0]), np.ones(2), np.ones(2))
