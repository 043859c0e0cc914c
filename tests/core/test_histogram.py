"""Quantiles and attainment against hand-made cases, and against each other."""

from __future__ import annotations

from math import inf, nan

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tokenservice.core.histogram import Buckets, attainment, observations_per_second, quantile
from tokenservice.core.model import Missing

EVEN: Buckets = ((0.1, 1.0), (0.2, 2.0), (0.4, 4.0), (inf, 4.0))
TAILED: Buckets = ((0.1, 9.0), (inf, 10.0))

NOTHING_KNOWN = {
    "no buckets": (),
    "all zero": ((0.1, 0.0), (inf, 0.0)),
    "NaN, as rates over an empty window are": ((0.1, nan), (inf, nan)),
    "NaN in one bucket": ((0.1, nan), (inf, 1.0)),
}


@st.composite
def histograms(draw: st.DrawFn) -> Buckets:
    bounds = [n / 1000 for n in sorted(draw(st.sets(st.integers(1, 100_000), min_size=1, max_size=10)))]
    counts = draw(st.lists(st.floats(0, 1000), min_size=len(bounds) + 1, max_size=len(bounds) + 1))
    total, buckets = 0.0, []
    for bound, count in zip([*bounds, inf], counts, strict=True):
        total += count
        buckets.append((bound, total))
    assume(total > 1e-3)
    return tuple(buckets)


@pytest.mark.parametrize(
    ("fraction", "seconds"), [(0.0, 0.0), (0.25, 0.1), (0.5, 0.2), (0.75, 0.3), (0.99, 0.396), (1.0, 0.4)]
)
def test_quantile_is_linear_within_a_bucket(fraction: float, seconds: float) -> None:
    assert quantile(EVEN, fraction) == pytest.approx(seconds)


def test_quantile_beyond_the_last_bound_is_that_bound() -> None:
    assert quantile(TAILED, 0.99) == 0.1


@pytest.mark.parametrize(("target", "share"), [(0.05, 0.125), (0.1, 0.25), (0.3, 0.75), (0.4, 1.0), (9.0, 1.0)])
def test_attainment_is_linear_within_a_bucket(target: float, share: float) -> None:
    assert attainment(EVEN, target) == pytest.approx(share)


def test_requests_beyond_the_last_bound_do_not_count_as_within_a_target() -> None:
    assert attainment(TAILED, 60.0) == pytest.approx(0.9)


@pytest.mark.parametrize("buckets", NOTHING_KNOWN.values(), ids=NOTHING_KNOWN.keys())
def test_without_observations_nothing_is_known(buckets: Buckets) -> None:
    for answer in (quantile(buckets, 0.5), attainment(buckets, 1.0), observations_per_second(buckets)):
        assert isinstance(answer, Missing)


def test_a_dip_between_buckets_is_smoothed() -> None:
    assert attainment(((0.1, 5.0), (0.2, 4.0), (inf, 10.0)), 0.2) == pytest.approx(0.5)


def test_observations_are_the_last_count() -> None:
    assert observations_per_second(TAILED) == 10.0


@given(histograms(), st.floats(0.01, 1.0))
def test_attainment_at_a_quantile_is_its_fraction(buckets: Buckets, fraction: float) -> None:
    seconds = quantile(buckets, fraction)
    share = attainment(buckets, seconds) if not isinstance(seconds, Missing) else seconds
    assert not isinstance(share, Missing)
    beyond = 1 - (buckets[-2][1] / buckets[-1][1])
    assert share >= min(fraction, 1 - beyond) - 1e-6


@given(histograms(), st.floats(0, 200), st.floats(0, 200))
def test_attainment_rises_with_the_target(buckets: Buckets, one: float, other: float) -> None:
    low, high = attainment(buckets, min(one, other)), attainment(buckets, max(one, other))
    assert not isinstance(low, Missing)
    assert not isinstance(high, Missing)
    assert 0.0 <= low <= high <= 1.0 + 1e-12
