"""Quantiles and attainment of cumulative histograms, as Prometheus gives them.

Buckets are (upper bound in seconds, cumulative requests per second), ascending, the last bound infinite. Within a
bucket requests are taken as evenly spread, as `histogram_quantile` does; the first bucket starts at zero. Where an
estimate would need the inside of the infinite bucket, it says what is certain: a quantile there is the highest finite
bound, and none of its requests counts as within a finite target.
"""

from __future__ import annotations

from itertools import pairwise
from math import isfinite, isnan

from tokenservice.core.model import Missing, Reason

Buckets = tuple[tuple[float, float], ...]


def quantile(buckets: Buckets, fraction: float) -> float | Missing:
    """Seconds within which `fraction` (0 to 1) of the requests fall; Missing without observations."""
    steps = _steps(buckets)
    if isinstance(steps, Missing):
        return steps
    rank = min(max(fraction, 0.0), 1.0) * steps[-1][1]
    for (low, below), (high, upto) in pairwise(steps):
        if upto >= rank and upto > below:
            return low + (high - low) * max(0.0, rank - below) / (upto - below) if isfinite(high) else low
    return steps[0][0]


def attainment(buckets: Buckets, target_seconds: float) -> float | Missing:
    """Share of requests (0 to 1) within `target_seconds`; Missing without observations."""
    steps = _steps(buckets)
    if isinstance(steps, Missing):
        return steps
    total = steps[-1][1]
    for (low, below), (high, upto) in pairwise(steps):
        if target_seconds < high:
            return (below + (upto - below) * _share(low, high, target_seconds)) / total
    return 1.0


def observations_per_second(buckets: Buckets) -> float | Missing:
    """Requests per second behind the histogram; Missing without any."""
    steps = _steps(buckets)
    return steps if isinstance(steps, Missing) else steps[-1][1]


def _share(low: float, high: float, target: float) -> float:
    """How much of a bucket is certainly, or evenly spread, within the target."""
    return max(0.0, target - low) / (high - low) if isfinite(high) else 0.0


def _steps(buckets: Buckets) -> list[tuple[float, float]] | Missing:
    """Buckets from zero on, made monotone: scrapes that race with requests leave counts that dip."""
    steps, highest = [(0.0, 0.0)], 0.0
    for bound, count in buckets:
        if isnan(bound) or isnan(count):
            return Missing(Reason.METRICS_MISSING, "the latency histogram holds NaN")
        highest = count if count > highest else highest
        steps.append((bound, highest))
    return steps if highest > 0.0 else Missing(Reason.METRICS_MISSING, "no requests were observed in the window")
